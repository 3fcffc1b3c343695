"""The one background thread of a process: it wakes, sweeps, and listens.

It serves all pools and holds none of them alive. It decides and never waits for a driver: what a
sweep finds to do is done by the opener's threads.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from _queue import Empty, SimpleQueue
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nimue import fork, goodbye, inherit, lost, opener, sweep
from nimue.process import (
    Pipe,
    await_end,
    is_deserted,
    is_gone,
    is_uwsgi_master,
    leave_behind_threads,
    start,
)

if TYPE_CHECKING:
    from nimue.state import State

logger = logging.getLogger("nimue.monitor")

_WAKE = None

#: Seconds for which it rests in the master of uWSGI, which forks meanwhile, in C, and waits for
#: nobody: a child in which the interpreter's lock is held by a thread left behind waits for ever.
#: Not a whole number of seconds: at those uWSGI's master wakes, and forks where one has died.
HUSH = 1.6

#: Seconds between two looks whether the process of an adrift monitor is deserted.
ADRIFT = 1.0


class Inbox:
    """Messages for the monitor, from anywhere: ``put`` waits for nobody and may come inside itself.

    The monitor waits for a bell and not in the queue's ``get``. Since Python 3.13 that notes who
    waits in a table of the interpreter's, in a node on the waiting thread's stack. A child that C
    code forked keeps the table, gives the stack to its next thread, and dies at the node.
    """

    def __init__(self) -> None:
        self._messages: SimpleQueue[Any] = SimpleQueue()
        self._bell = threading.Lock()
        self._bell.acquire()
        #: The same bell for who waits for descriptors besides; made when that first happens.
        self._pipe: Pipe | None = None

    def put(self, message: Any) -> None:
        try:
            self._messages.put(message)
        finally:  # an interrupt in between must not leave it there unheard of
            self.ring()

    def ring(self) -> None:
        """Have whoever listens look again."""
        try:
            self._bell.release()
        except RuntimeError:  # it has rung already
            pass
        if self._pipe is not None:
            self._pipe.write()

    def get(self, wait: float, ears: Sequence[int] = ()) -> Any:
        """The next message; a wake-up call if none comes within so many seconds, or sooner.

        Sooner, too, if one of these descriptors becomes readable.
        """
        if self.is_empty and wait > 0:
            if ears:
                self._listen(wait, ears)
            else:
                self._bell.acquire(True, wait)
        try:
            return self._messages.get(False)
        except Empty:
            return _WAKE

    def _listen(self, wait: float, ears: Sequence[int]) -> None:
        if self._pipe is None or not self._pipe.is_open:
            try:
                self._pipe = Pipe()
            except OSError:  # no descriptor left: the others' wishes wait for the next look
                self._bell.acquire(True, wait)
                return
        # Who rings after this finds the pipe, and who rang before has released the bell.
        if not self._bell.acquire(False):
            poll = select.poll()
            for fd in (self._pipe.fd, *ears):
                poll.register(fd, select.POLLIN)
            poll.poll(wait * 1000)
            self._bell.acquire(False)
        self._pipe.drain()

    def rest(self, wait: float) -> None:
        """Wait so many seconds or for a ring, and leave all messages where they are."""
        self._bell.acquire(True, wait)

    def forsake(self) -> None:
        """In a child: close what the parent rings by."""
        if self._pipe is not None:
            self._pipe.close()

    @property
    def is_empty(self) -> bool:
        return self._messages.empty()


class Monitor:
    """Starts with the first acquire, ends with the last pool, and starts again after a fork.

    Connections that others may ask for are not left without it: under a shared limit it starts
    with the first of them.

    While it runs, and only then, ``fork.door`` stands open: its end, however it comes, shuts the
    door, and whoever comes next finds it shut and starts another.
    """

    def __init__(self, is_adrift: bool = False) -> None:
        self.pid = os.getpid()
        #: A thread other than the main one has forked this process: its end is not seen to.
        self.is_adrift = is_adrift
        self._lock = threading.RLock()
        #: Finalizers post here: the watch of a handle that was dropped, the state of a lost pool.
        self.inbox = Inbox()
        self._thread: threading.Thread | None = None
        #: Those that were ``_thread`` once and have perhaps not quite ended.
        self._former: list[threading.Thread] = []

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def expect(self) -> None:
        """There is a new pool: look after it from its next acquire on."""
        with self._lock:
            if self.is_alive:
                self.inbox.put(_WAKE)
            else:
                fork.door[0] = 0

    def ensure(self) -> None:
        """Have a thread run, and open the door. While a fork is under way both must wait.

        And in a child that is not settled yet, where this is the parent's.
        """
        if self.pid != os.getpid():
            return
        with self._lock:
            if fork.is_near():
                return
            if not self.is_alive:
                thread = threading.Thread(target=self._run, name="nimue-monitor", daemon=True)
                self._thread = thread
                start(thread)
            fork.door[0] = 1

    def stop(self, deadline: float) -> None:
        """End the thread before a fork. It is not started again until somebody acquires."""
        with self._lock:  # whoever starts one meanwhile has done so, or finds the gate shut
            if self._thread is None and not self._former and not fork.door[0]:
                return
            self._retire()
            former = list(self._former)
        self.inbox.ring()
        await_end(former, deadline)
        with self._lock:
            self._former = [thread for thread in self._former if not is_gone(thread)]

    def _retire(self) -> None:
        """From now on there is no monitor; the thread ends when it finds out."""
        fork.door[0] = 0  # first: whatever cuts this short, who comes by the door makes it right
        self._former = [thread for thread in self._former if not is_gone(thread)]
        if self._thread is not None:
            self._former.append(self._thread)
        self._thread = None

    def _run(self) -> None:
        me = threading.current_thread()
        try:
            self._hush(me)
            if is_uwsgi_master():
                self._doze(me)
                return
            wait, ears = 0.0, list[int]()
            while not self._is_over():
                message = self.inbox.get(wait, ears)
                if self._thread is not me:  # it may not be meant for this one
                    self.inbox.put(message)
                    return
                if message is not _WAKE:
                    self._receive(message)
                    message = _WAKE  # holds nothing alive while it waits
                wait, ears = self._sweep_all()
        finally:
            with self._lock:
                if self._thread is me:
                    self._retire()

    def _hush(self, me: threading.Thread) -> None:
        until = time.monotonic() + (HUSH if is_uwsgi_master() else 0)
        while self._thread is me and (wait := until - time.monotonic()) > 0:
            self.inbox.rest(wait)

    def _doze(self, me: threading.Thread) -> None:
        """All pools go dormant, and with them this thread: a master uses none, and forks.

        Not so where a fork's own hooks have had it end, and wait for that.
        """
        while self._thread is me and not self.inbox.is_empty:
            if (message := self.inbox.get(0.0)) is not _WAKE:
                self._receive(message)  # what was dropped at import is not kept for ever
        for state in goodbye.guests() if self._thread is me else ():
            try:
                inherit.doze(state)
            except Exception:
                logger.exception("pool %r could not go dormant", state.name)

    def _is_over(self) -> bool:
        """Whether there is nothing to look after any more; from then on this thread is none."""
        if self.is_adrift and is_deserted():  # the process would live on for this thread alone
            return True
        # Not under this lock: a signal handler may fork inside the registry's lock, and its fork
        # waits for this one. Who comes too late to be a guest has put a message in the inbox.
        guests = goodbye.guests()
        with self._lock:
            if self._thread is not threading.current_thread():
                return True
            if not self.inbox.is_empty or any(
                not state.is_shut or state.entries for state in guests
            ):
                return False
            self._retire()
            return True

    def _receive(self, message: Any) -> None:
        try:
            lost.receive(message)
        except Exception:
            logger.exception("the monitor could not deal with %r", message)

    def _sweep_all(self) -> tuple[float, list[int]]:
        """Sweep every pool.

        Returns how many seconds may pass until the next time, and the descriptors by which other
        processes may ask for it sooner.
        """
        wait, ears = sweep.LEISURE, set[int]()
        for state in goodbye.guests():
            try:
                works, wake_at = sweep.sweep(state, time.monotonic())
                opener.start(state, works)
                wait = min(wait, wake_at - time.monotonic())
                wait = min(wait, self._look_around(state, ears))
            except Exception:
                logger.exception("the sweep of pool %r failed", state.name)
                wait = min(wait, 1.0)
        return max(0.001, min(wait, ADRIFT) if self.is_adrift else wait), list(ears)

    def _look_around(self, state: State, ears: set[int]) -> float:
        """What other processes want of a pool; returns how many seconds that may wait again."""
        if state.is_shut:
            if not state.entries:
                state.limit.leave(state)
                goodbye.forget(state)
            return sweep.LEISURE
        ear = state.limit.ear()
        if ear is not None:
            ears.add(ear)
        works, look_at = state.limit.look_after(state, time.monotonic())
        opener.start(state, works)
        state.limit.leave(state)  # if it was closed meanwhile, this may have been a return
        return look_at - time.monotonic()


class _Hook:
    """Told of forks before any pool is, since this module is imported before any is made."""

    def before_fork(self, fork: fork.Fork) -> bool:
        here.stop(fork.deadline)
        return False

    def fork_is_over(self, fork: fork.Fork, cut_short: bool) -> None:
        pass

    def sever(self, forker: int | None) -> None:
        pass

    def settle_in_child(self, forker: int | None) -> None:
        global here
        if here.pid != os.getpid():  # else this comes again, after it was cut short
            leave_behind_threads()
            here.inbox.forsake()
            # Where another thread forks, CPython makes that one the main thread of the child; if
            # C code forks, without a word to CPython, this is not known.
            here = Monitor(is_adrift=threading.main_thread() is not _main_thread)


_main_thread = threading.main_thread()
here = Monitor()
_hook = _Hook()
fork.join(_hook)


def wake() -> None:
    """Have the monitor look again: something it planned for has changed."""
    here.inbox.ring()
