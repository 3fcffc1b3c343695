"""What a process does when it has taken a ticket, while a question holds a connection."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any

from stress.trial.desk import DRIVER
from stress.trial.tickets import Deed
from stress.trial.words import told

if TYPE_CHECKING:
    from stress.trial.desk import Desk

#: Seconds after which a child that hangs is put down, and is told of.
CHILD_BOUND = 30
#: The farthest that the wall clock steps, in seconds.
STEP = 7200.0

_time = time.time


def fork(desk: Desk, conn: Any, dice: Random) -> None:
    """A child that exits in any way, with or without a use of its own pool before."""
    # Elsewhere a server's own code would be above, and go on as if it were the parent.
    ways = [*WAYS, *(["sys.exit"] if desk.drives_itself else [])]
    way, uses = dice.choice(ways), dice.choice((0, 0, 1, 3))
    _in_child(desk, f"fork, {way}, {uses} uses", lambda: _live(desk, uses, way, dice))


def crossed(desk: Desk, conn: Any, dice: Random) -> None:
    """A child that tries the connection that its parent is using."""
    _in_child(desk, "crossed", lambda: _try(desk, conn))


def leak(desk: Desk, conn: Any, dice: Random) -> bool:
    """The question's own connection is dropped at its end, not given back."""
    desk.note_did("leak", "a connection dropped")
    return True


def interrupt(desk: Desk, conn: Any, dice: Random) -> None:
    """KeyboardInterrupt wherever another of the threads that ask is just now."""
    others = [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith(DRIVER)
        and thread is not threading.current_thread()
    ]
    if others:
        victim = dice.choice(others)
        strike = ctypes.pythonapi.PyThreadState_SetAsyncExc
        number, error = ctypes.c_ulong(victim.ident or 0), ctypes.py_object(KeyboardInterrupt)
        desk.note_did("interrupt", victim.name)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(5.0)  # CPython is to run no other thread between these two
        try:
            if not _starts_another(victim):
                strike(number, error)
        finally:
            sys.setswitchinterval(interval)


def _starts_another(thread: threading.Thread) -> bool:
    """Whether that is what it is at.

    Until the new one runs, CPython has the starter's number for it as well, and would interrupt
    that one at its first step. The starter would wait for ever to hear that it has begun.
    """
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code is not threading.Thread.start.__code__:
        frame = frame.f_back
    return frame is not None


def clock(desk: Desk, conn: Any, dice: Random) -> None:
    """What ``time.time()`` says in this process steps forward or back."""
    step = dice.uniform(-STEP, STEP)
    time.time = lambda: _time() + step
    desk.note_did("clock", f"{step:+.0f} s")


def _in_child(desk: Desk, what: str, live: Callable[[], None]) -> None:
    parent = desk.diary.name
    desk.note_did(what.partition(",")[0], what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    finally:
        _let_go_of_logging()
    if pid:
        _reaper(desk, pid, what)
        return
    try:
        signal.alarm(CHILD_BOUND)
        desk.enter_child(f"{parent}.{os.getpid()}")
        live()
    except SystemExit:
        raise
    except KeyboardInterrupt:  # meant for a thread of the parent, which is not to go on here
        pass
    except BaseException as error:
        desk.note_wrong(told(error))
    os._exit(0)


def _let_go_of_logging() -> None:
    """Undo what CPython does where KeyboardInterrupt comes at the end of a fork.

    It lands in the hook that frees logging's lock, which is then this thread's for ever: whoever
    forks in another thread, or logs there for the first time, waits for ever. See
    https://github.com/python/cpython/issues/106238.
    """
    lock: Any = vars(logging)["_lock"]
    while lock._is_owned():
        lock.release()


def _reaper(desk: Desk, pid: int, what: str) -> None:
    """A thread waits for the child, whose parent may be killed at any time."""

    def wait() -> None:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:  # whoever reaps all children of this process was faster
            return
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGALRM:
            desk.note_wrong(f"a child hung: {what}")
        elif code < 0 and -code not in (signal.SIGTERM, signal.SIGKILL):
            desk.note_wrong(f"a child ended by signal {-code}: {what}")

    threading.Thread(target=wait, name="reaper", daemon=True).start()


def _live(desk: Desk, uses: int, way: str, dice: Random) -> None:
    for n in range(uses):
        desk.ask(f"{desk.diary.name}.{n}", dice)
    if way == "sys.exit":
        sys.exit()
    WAYS[way](desk)


def _try(desk: Desk, conn: Any) -> None:
    try:
        conn.cursor().execute("select 1")
    except Exception:
        return
    desk.note_wrong("a child could use its parent's connection")


def _terminate() -> None:
    # A handler that it inherits would have it go on in its parent's code, as if it were that.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


#: How a child ends; ``sys.exit``, through all that its parent was in the middle of, comes on top.
WAYS: Mapping[str, Callable[[Desk], None]] = {
    "os._exit": lambda desk: None,
    "close": lambda desk: desk.pool.close(desk.brief.timeout),
    "SIGTERM": lambda desk: _terminate(),
    "SIGKILL": lambda desk: os.kill(os.getpid(), signal.SIGKILL),
    "exec": lambda desk: os.execv(sys.executable, [sys.executable, "-S", "-c", ""]),
}

DEEDS: Mapping[str, Deed] = {
    "fork": fork,
    "crossed": crossed,
    "leak": leak,
    "interrupt": interrupt,
    "clock": clock,
}
