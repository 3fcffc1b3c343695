"""Before and after a fork, for anyone: who is told, and how a process knows that it is new.

``os.fork`` runs the hooks registered here. uWSGI and other C code fork without them; there the
``door``, which reads 0 in every child, sends whoever comes first to :func:`settle`. After a hook,
too, most is left to that: a child that only runs another program has no use for it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol
from weakref import ref

from nimue.process import forked_here, make_door, uwsgi

logger = logging.getLogger("nimue.fork")

#: The longest that a fork is held up, in seconds: a ``connect()`` that has not come back by then
#: is forked over.
PATIENCE = 1.0

#: 1 while this process is the one it was and its monitor runs. The hot paths look at nothing else.
door = make_door()


class Member(Protocol):
    """Whoever wants to be told of forks. Nothing that it does may raise or wait without bound.

    ``before_fork`` answers whether a child would inherit something. If so, ``sever`` is called at
    once in a child of ``os.fork``, and ``fork_is_over`` in the parent; that also where the
    preparations were ``cut_short``, by Ctrl-C or an error, and may be half done: perhaps twice, in
    the thread that forked. ``settle_in_child`` is called in every child, when it first comes
    through a door or at once, and puts everything else right. ``forker`` is the thread that
    forked, if it is known to be the running one.
    """

    def before_fork(self, fork: Fork) -> bool: ...
    def fork_is_over(self, fork: Fork, cut_short: bool) -> None: ...
    def sever(self, forker: int | None) -> None: ...
    def settle_in_child(self, forker: int | None) -> None: ...


class Passage:
    """One thread's way through the gate, as a context manager."""

    __slots__ = ("__weakref__", "_gate", "_mark", "thread")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._mark = ref(self)
        self.thread = threading.get_ident()

    def __enter__(self) -> None:
        self._gate.let_in(self.thread, self._mark)

    def __exit__(self, *exc: object) -> None:
        self._gate.let_out(self._mark)


class Fork:
    """A fork under way in one thread; with a signal handler's, there may be two in one."""

    __slots__ = ("deadline", "failed", "heirs", "is_over", "spared", "thread")

    def __init__(self, deadline: float) -> None:
        self.thread = threading.get_ident()
        self.deadline = deadline
        #: Those whose connections a child inherits; None until all have been asked.
        self.heirs: list[Any] | None = None
        #: Those whose preparations an error has cut short.
        self.failed: list[Any] = []
        #: Of each pool that has begun to prepare, what outer frames of the thread have in hand.
        self.spared: dict[Any, list[Any]] = {}
        #: The parent has taken everything back.
        self.is_over = False

    @property
    def is_under_way(self) -> bool:
        """Not for ever, where it hangs in others' hooks, or Ctrl-C has cut ours short after it."""
        return not self.is_over and time.monotonic() < self.deadline + PATIENCE


class Gate:
    """What must not be half done in another thread at a fork passes through here.

    That is ``connect()`` and a polite ``close()``: a child that inherits a TLS library in the
    middle of either hangs at its own first ``connect()``. A fork shuts the gate, waits for those
    inside, within a bound, and opens it again. A thread that forks while inside does not wait
    for itself. Passages are held weakly: one that an exception has cut short blocks nobody.

    Waiting here is looking again every millisecond: a fork takes few, and each page that a
    cleverer way would touch in the parent costs every fork more than that way would save.
    """

    def __init__(self) -> None:
        # Reentrant, like the other locks that a hook takes: a signal handler may fork while its
        # own thread is inside.
        # What is looked at without it is copied first, which is one step.
        self._lock = threading.RLock()
        self._inside: list[ref[Passage]] = []
        #: Each until the last hook after it, and longer if Ctrl-C has cut that short.
        self._forks: list[Fork] = []
        self._afterwards: deque[Callable[[], None]] = deque()
        self._pid = os.getpid()

    @property
    def is_shut(self) -> bool:
        return any(fork.is_under_way for fork in self._known())

    def _known(self, thread: int | None = None) -> list[Fork]:
        """The forks that have not been forgotten, or of these a thread's."""
        return [fork for fork in list(self._forks) if thread in (None, fork.thread)]

    def let_in(self, thread: int, mark: ref[Passage]) -> None:
        deadline = time.monotonic() + 2 * PATIENCE
        while True:
            with self._lock:
                late = time.monotonic() > deadline
                if not self.is_shut or self._forks_in(thread) or self._holds(thread) or late:
                    self._inside.append(mark)
                    return
            time.sleep(0.001)

    def let_out(self, mark: ref[Passage]) -> None:
        # A child that was forked from inside leaves a gate that its parent's threads may hold.
        if self._pid != os.getpid():
            return
        with self._lock:
            if mark in self._inside:
                self._inside.remove(mark)

    def _holds(self, thread: int) -> bool:
        passages = [mark() for mark in list(self._inside)]
        return any(passage is not None and passage.thread == thread for passage in passages)

    def _is_clear(self) -> bool:
        passages = [mark() for mark in list(self._inside)]
        return all(passage is None or self._forks_in(passage.thread) for passage in passages)

    def _forks_in(self, thread: int) -> bool:
        return any(fork.is_under_way for fork in self._known(thread))

    def latest(self) -> Fork | None:
        """The running thread's fork, of several the innermost, also if it is over."""
        mine = self._known(threading.get_ident())
        return mine[-1] if mine else None

    def shut(self, fork: Fork) -> bool:
        """Let nobody in, and wait for those inside; False if some are left at the deadline."""
        with self._lock:
            self._forks.append(fork)
        while self._inside and not self._is_clear():
            if time.monotonic() > fork.deadline:
                return False
            time.sleep(0.001)
        return True

    def open(self, fork: Fork) -> None:
        """Let everybody in again, if this fork was the last one under way."""
        with self._lock:
            fork.is_over = True
            fork.heirs, fork.failed = [], []  # no pool lives longer for it
            fork.spared.clear()

    def forget(self, fork: Fork) -> None:
        with self._lock:
            if fork in self._forks:
                self._forks.remove(fork)

    def put_off(self, call: Callable[[], None]) -> bool:
        """Have ``call`` made, perhaps twice, after the fork; False if none is under way."""
        with self._lock:
            if not self.is_shut:
                return False
            self._afterwards.append(call)
            return True

    def make_up(self) -> None:
        """Make the calls that were put off, unless a fork is under way still."""
        while True:
            with self._lock:
                if self.is_shut or not self._afterwards:
                    return
                call = self._afterwards[0]
            try:
                call()
            except Exception:
                logger.exception("process %d could not go on after a fork", os.getpid())
            with self._lock:
                if self._afterwards and self._afterwards[0] is call:
                    self._afterwards.popleft()


class _Process:
    """What the process knows about itself; a child gets a new one, whole."""

    def __init__(self, epoch: int) -> None:
        self.pid = os.getpid()
        self.epoch = epoch
        self.gate = Gate()
        self.lock = threading.RLock()
        self.connecting = threading.Lock()


_here = _Process(0)
#: The process for which everything is right. While a child is settled `_here` is new already.
_settled_in = _here.pid
#: Which thread, of which process, is settling it.
_settling = (0, 0)
#: In the order in which they joined, which is the order in which they are told.
_members: list[ref[Any]] = []
#: Whoever finds itself in a new child first brings the lock under which the child is settled. The
#: key holds the parent's epoch: no ancestor of this process can have made the same.
_settlers: dict[tuple[int, int], AbstractContextManager[bool]] = {}


def gate() -> Passage:
    """A way through this process's gate for ``connect()`` and ``close()``: ``with gate():``."""
    return Passage(_here.gate)


def is_near() -> bool:
    """Whether a fork has shut the gate."""
    return _here.gate.is_shut


def registry_lock() -> AbstractContextManager[bool]:
    """This process's lock for adding to, and copying, tables of the module level."""
    return _here.lock


def one_at_a_time() -> threading.Lock:
    """This process's lock for ``connect()`` calls that have to be made singly."""
    return _here.connecting


def join(member: Member) -> None:
    """Tell ``member`` of every fork from now on, for as long as it lives."""
    with _here.lock:
        _members[:] = [known for known in _members if known() is not None]
        _members.append(ref(member))


def put_off(call: Callable[[], None]) -> bool:
    """Have ``call`` made in this process, perhaps twice, when the fork is over.

    Returns False if none is under way.
    """
    return _here.gate.put_off(call)


def settle() -> None:
    """Make sure that this process is itself. Comes before any lock that a parent could hold."""
    if _settled_in == os.getpid():
        return
    me = (os.getpid(), threading.get_ident())
    if _settling == me:
        return  # a finalizer, in the middle of it
    # Threads of a child that was forked without hooks can come here together; none may take an
    # inherited lock to agree on who is first.
    here = _here
    epoch = here.epoch if here.pid != me[0] else here.epoch - 1
    lock = _settlers.setdefault((epoch, me[0]), threading.RLock())
    with lock:
        if _settled_in != me[0]:
            _become_child(me[1] if forked_here(me[1]) else None)


def _become_child(forker: int | None) -> None:
    global _here, _settled_in, _settling
    _settling = (os.getpid(), threading.get_ident())
    try:
        if _here.pid != _settling[0]:
            _here = _Process(_here.epoch + 1)
        for member in _living():
            try:
                member.settle_in_child(forker)
            except Exception:
                logger.exception("process %d could not let go of what it inherited", _here.pid)
        _settled_in = _here.pid
    finally:
        _settling = (0, 0)


def _living() -> list[Any]:
    with _here.lock:
        return [member for known in _members if (member := known()) is not None]


def _before() -> None:
    settle()  # a child of a C fork may fork again before it came through any door
    fork = Fork(time.monotonic() + PATIENCE)
    if not _here.gate.shut(fork):
        logger.warning(
            "process %d forks while a connect() or close() has been under way for %.1f s",
            _here.pid,
            PATIENCE,
        )
    heirs = []
    for member in _living():
        try:
            if member.before_fork(fork):
                heirs.append(member)
        except Exception:
            logger.exception("process %d could not prepare for a fork", _here.pid)
            heirs.append(member)
            fork.failed.append(member)
    fork.heirs = heirs


def _take_back(fork: Fork) -> None:
    """In the parent. Ctrl-C may cut it short anywhere, and then it runs again."""
    for member in _living() if fork.heirs is None else fork.heirs:
        try:
            member.fork_is_over(fork, fork.heirs is None or member in fork.failed)
        except Exception:
            logger.exception("process %d could not go on after a fork", _here.pid)
    _here.gate.open(fork)
    _here.gate.make_up()


def _after_in_parent() -> None:
    if _here.pid != os.getpid():
        return
    fork = _here.gate.latest()
    if fork is not None:
        _take_back(fork)


def _make_sure() -> None:
    """A second hook after it, for CPython goes on to the next when Ctrl-C has cut one short.

    One thing it cannot tell: a signal handler forks in the middle of the preparations for a fork,
    and its own are cut short at once. Then it takes back the other fork's, early.
    """
    if _here.pid != os.getpid():
        return
    gate = _here.gate
    fork = gate.latest()
    if fork is not None and not fork.is_over:
        _take_back(fork)
    # With it go those that Ctrl-C has kept here.
    while (fork := gate.latest()) is not None and not fork.is_under_way:
        gate.forget(fork)
    gate.make_up()


def _after_in_child() -> None:
    """Only what cannot wait: each page that is touched here is copied first.

    Some servers call this hook alone, without the one before: then all is done at once.
    """
    if _here.pid == os.getpid():
        return
    forker = threading.get_ident()
    fork = _here.gate.latest()
    if fork is None or not fork.is_under_way or fork.heirs is None:
        _become_child(forker)
        return
    for member in fork.heirs:
        try:
            member.sever(forker)
        except Exception:
            logger.exception("process %d could not sever what it inherited", os.getpid())


def _chain_uwsgi() -> None:
    """uWSGI runs no hooks of Python's, but one of its own in each worker, before any request."""
    server = uwsgi()
    if server is None:
        return
    previous = getattr(server, "post_fork_hook", None)

    def post_fork_hook() -> None:
        settle()
        if previous is not None:
            previous()

    server.post_fork_hook = post_fork_hook


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before,
        after_in_parent=_after_in_parent,
        after_in_child=_after_in_child,
    )
    os.register_at_fork(after_in_parent=_make_sure)
_chain_uwsgi()
