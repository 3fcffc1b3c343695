"""Children that a worker of a storm forks while it holds a connection, with hooks or without."""

from __future__ import annotations

import _thread
import ctypes
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nimue import NimueInheritedConnectionError
from stress.diary import Diary, now
from stress.storm.order import BIRTH_BOUND, CHILD_BOUND

_C = ctypes.PyDLL(None, use_errno=True)

#: What a child does, and how often.
DEEDS = ("use", "use", "die", "leave", "stay", "stay")
#: The longest that one stays when it has closed its pool, in seconds: its parent may die meanwhile.
STAY = 1.0


class WrongAnswer(Exception):
    """A connection was not what it had to be."""


def told(error: BaseException) -> str:
    """What it is, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames]
    return f"{type(error).__name__}: {error} ({' > '.join(places)})"


def c_fork() -> int:
    """fork() by the C library, at a moment at which CPython survives it in the child.

    A thread that has waited for the interpreter's lock for the switch interval asks for it; at a
    fork then, the child hands it over and waits for ever for somebody to take it. So that interval
    is long, and whoever waits already gets the lock before.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2.0)
    try:
        time.sleep(0.001)
        pid: int = _C.fork()
    finally:
        sys.setswitchinterval(interval)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "fork")
    return pid


def c_fork_at_rest(bound: float) -> int | None:
    """The same once every other thread rests; None if that does not come within ``bound`` seconds.

    The interpreter's own lock does not survive a C fork at which a thread waits for it, whatever a
    pool does. Servers that fork so do it while nothing else runs.
    """
    deadline = time.monotonic() + bound
    while not _others_rest():
        if time.monotonic() > deadline:
            return None
    return c_fork()


def _others_rest() -> bool:
    """Nobody ran, or wanted to, while this thread slept and the interpreter's lock was free."""
    before = _activity()
    time.sleep(0.01)
    return all(state == "S" for state, _ in before.values()) and _activity() == before


def _activity() -> dict[str, tuple[str, str]]:
    """Of each other thread its state, and how often it has begun and ceased to run."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        if int(task) != threading.get_native_id():
            with suppress(OSError), open(f"/proc/self/task/{task}/status") as file:
                text = file.read()
                state = text.partition("\nState:\t")[2][:1]
                found[task] = state, text.partition("\nvoluntary_ctxt_switches:")[2]
    return found


def hooked_fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Fork:
    """A fork in the middle of a hold. ``use`` is what the child does with its own pool."""

    def __init__(
        self, diary: Diary, folder: str, kind: str, deed: str, use: Callable[[Diary, str], None]
    ) -> None:
        self._diary, self._folder, self._use = diary, folder, use
        self._kind, self._deed = kind, deed

    def run(self, conn: Any) -> None:
        """Fork. ``conn`` is the connection that the parent holds, and the child must not use."""
        pid = c_fork_at_rest(1.0) if self._kind == "C" else hooked_fork()
        if pid == 0:
            try:
                self._be_child(conn)
            finally:
                os._exit(0)
        elif pid is not None:
            self._diary.note("fork", f"{self._kind}, {self._deed}")

    def _be_child(self, conn: Any) -> None:
        if self._deed == "leave":
            return
        faulthandler.unregister(signal.SIGALRM)
        signal.setitimer(signal.ITIMER_REAL, BIRTH_BOUND)
        refused = _is_refused(conn)
        if self._kind == "C":
            _be_born()
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
        signal.alarm(int(CHILD_BOUND))
        diary = Diary(self._folder, f"{self._diary.name}.{self._kind}{os.getpid()}.{now()}")
        try:
            diary.note_files("up")
            if not refused:
                raise WrongAnswer("a child can use its parent's connection")
            self._use(diary, self._deed)
            if self._deed == "stay":
                time.sleep(random.random() * STAY)
        except Exception as error:
            diary.note("err", 0, told(error))
        # Its sockets and descriptors are its parent's in part: they are not counted.
        diary.note("out", now(), 0, 0)
        if self._deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)


def _is_refused(conn: Any) -> bool:
    try:
        conn.cursor()
    except NimueInheritedConnectionError:
        return True
    return False


def _be_born() -> None:
    """Have another thread wait for the interpreter's lock, and hand it over.

    Where a thread of the parent waited for it at the fork, the C library waits for that for ever.
    """
    for seconds in (0.002, 0.002, 0.01):  # the last is longer than the switch interval
        handed = _thread.allocate_lock()
        handed.acquire()
        _thread.start_new_thread(handed.release, ())
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pass
        handed.acquire()


def choose(dice: random.Random) -> str:
    """A deed."""
    return dice.choice(DEEDS)
