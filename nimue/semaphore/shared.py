"""The semaphore as its users see it."""

from __future__ import annotations

import atexit
import os
from _thread import get_ident
from collections.abc import Callable
from typing import Literal

from nimue.error import (
    NimueInvalidParameterValue,
    NimueSemaphoreError,
    NimueSemaphoreLimitMismatch,
    NimueSemaphoreLost,
    NimueSemaphoreTimeout,
    NimueSemaphoreUnsupported,
)
from nimue.process import has_record_locks
from nimue.semaphore import change, epoch
from nimue.semaphore.core import Core, attach, check_limit
from nimue.semaphore.family import Family
from nimue.semaphore.files import PRIVATE, check_name, guard, make_name, open_directory
from nimue.semaphore.layout import NOBODY, WAITS
from nimue.semaphore.presence import Presence, SharedPermit
from nimue.semaphore.snapshot import Snapshot, take_snapshot
from nimue.semaphore.waiter import wait

Mismatch = Literal["error", "adopt", "resize"]

#: How often a semaphore that vanishes while it is attached to is tried again.
_ATTEMPTS = 5

_tidies = False


class SharedSemaphore:
    """At most ``limit`` permits at a time, over all processes of this user on this host.

    Whoever gives the same name, in the same directory, shares it: related by fork, by spawn, or not
    at all. Without a name it belongs to this process, its forks, and whom it is sent to by pickle.
    Any number of these objects, in any process, may stand for one semaphore.

        with semaphore: ...                  # or, for more than one block:
        permit = semaphore.acquire(timeout=5)
        permit.give_back()

    The permits are locks of the kernel's. A process that ends, in whatever way, has given back all
    of its own; one that is stopped keeps its own, and keeps nobody from the others. A forked child
    has none of its parent's and cannot give them back. Who has waited longest comes first.

    The files are in ``directory``, or ``$NIMUE_DIR``, or ``/dev/shm/nimue-<uid>``, or the same in
    the directory for temporary files; processes in different containers share what is in a
    directory that they share. Only one user can use them, and only on a filesystem of this host.

    What it cannot do: a permit is not a socket. When a process is killed its permits are free some
    microseconds before the server knows that its connections are gone; leave one or two of the
    server's free.

    Args:
        name: 1 to 64 of A-Z a-z 0-9 _ . -, no dot at the beginning; None for a private one.
        limit: 1 to 1024; None takes the limit of a semaphore that exists.
        directory: see above.
        on_mismatch: what to do when others use it with another limit: ``"error"``, ``"adopt"``
            theirs, or ``"resize"`` it for all (the last one wins: what a rolling deploy wants).
            If nobody uses it, the limit is what is asked.

    Raises:
        NimueInvalidParameterValue: a parameter has a value that is not allowed.
        NimueSemaphoreError: one of its children says what is wrong with files or limit.
    """

    def __init__(
        self,
        name: str | None = None,
        limit: int | None = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        on_mismatch: Mismatch = "error",
    ) -> None:
        if not has_record_locks():
            raise NimueSemaphoreUnsupported(
                "a shared limit needs record locks and named pipes, as 64-bit Linux and macOS have "
                "them; without one, set poolmax for each process"
            )
        if limit is not None:
            check_limit(limit)
        if on_mismatch not in ("error", "adopt", "resize"):
            raise NimueInvalidParameterValue(
                f"on_mismatch={on_mismatch!r} is not allowed: 'error', 'adopt' or 'resize'"
            )
        if name is None and limit is None:
            raise NimueInvalidParameterValue("a semaphore without a name needs a limit")
        folder = open_directory(directory)
        change.let_unused_go()
        if name is None:
            name = make_name()
            change.sweep(folder)
            _tidy_at_exit()
        self._core: Core | None = None
        self._prepare(check_name(name), limit, folder, on_mismatch)
        self._attach()

    def _prepare(self, name: str, limit: int | None, folder: str, on_mismatch: Mismatch) -> None:
        self.name, self.directory = name, folder
        self._base = os.path.join(folder, name)
        self._limit, self._on_mismatch = limit, on_mismatch
        #: The permits of ``with`` blocks, innermost last, by thread.
        self._entered: dict[int, list[SharedPermit]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """Its name, for another process; that takes the limit which it finds."""
        limit = self._limit if self._core is None else self._core.map.limit
        return _rebuild, (self.name, limit, self.directory)

    def __repr__(self) -> str:
        limit = self._limit if self._core is None else self._core.map.limit
        return f"<SharedSemaphore {self.name!r}, limit {limit}>"

    # -- being there

    def _attach(self) -> Core:
        core = attach(self._base, self._limit)
        try:
            self._agree(core)
        except BaseException:
            if not core.handles:
                change.leave(core)
            raise
        core.handles.add(self)
        self._core = core
        return core

    def _agree(self, core: Core) -> None:
        limit, theirs = self._limit, core.map.limit
        if limit is None or limit == theirs or self._on_mismatch == "adopt":
            self._limit = limit or theirs
        elif self._on_mismatch == "resize" or core.is_unused():
            change.resize(core, limit)
        else:
            raise NimueSemaphoreLimitMismatch(
                f"semaphore {self.name!r} in {self.directory} is in use with limit {theirs}, not "
                f"{limit}; use that, or on_mismatch='adopt' or 'resize'"
            )

    def _here(self) -> Presence:
        """The door: this process's own presence, at files that are still there."""
        core = self._core
        if core is not None:
            presence = core.here
            if presence.epoch is epoch.here() and presence.is_in and core.fault() is None:
                return presence
        return self._arrive()

    def _arrive(self) -> Presence:
        """The door, if it does not stand open: attach, or attach anew."""
        for _ in range(_ATTEMPTS):
            core = self._core
            if core is None or core.locks.fd < 0:
                core = self._attach()
            presence = core.here
            if presence.epoch is epoch.here() and presence.is_in:
                fault = core.fault()
                if fault is None:
                    return presence
            else:
                fault = core.fault() or self._enter(core)
            if fault is not None:
                core.part(fault)
                self._core = None
        raise NimueSemaphoreLost(f"semaphore {self.name!r} is removed again and again")

    def _enter(self, core: Core) -> str | None:
        """Attach. What was there a moment ago may be gone when that has happened."""
        try:
            core.presence()
        except NimueSemaphoreLost:
            with guard(self._base):  # whoever destroys it is at it; then look again
                pass
        return core.fault()

    def _mapped(self) -> Core:
        """For what needs no more than the map."""
        core = self._core
        return self._attach() if core is None else core

    # -- permits

    def try_acquire(self) -> SharedPermit | None:
        """A permit, if one is free and nobody has waited for it."""
        return self._here().try_take()

    def take(
        self, timeout: float | None = None, give_up: Callable[[], bool] | None = None
    ) -> SharedPermit | None:
        """As ``acquire``, but None when the time is up, or when ``give_up()`` says so.

        That is asked each time that the thread looks again: at ``nudge``, and at least ten times a
        second.
        """
        presence = self._here()
        permit = presence.try_take()
        return self._wait(presence, timeout, give_up) if permit is None else permit

    def _wait(
        self, presence: Presence, timeout: float | None, give_up: Callable[[], bool] | None = None
    ) -> SharedPermit | None:
        if timeout is not None and timeout <= 0:
            return None
        if presence.is_inside():
            raise NimueSemaphoreError(
                "a finalizer or a signal handler cannot wait for a permit while its own thread is "
                "in the middle of taking or giving back one"
            )
        try:
            return wait(presence, self._mapped().fault, timeout, give_up)
        except NimueSemaphoreLost:
            self._here()  # says more of it, unless nobody else is concerned
            raise

    def nudge(self) -> None:
        """Have this process's threads that wait ask their ``give_up`` at once."""
        presence = self._here()
        if presence.waiters:
            presence.nudge()

    def stand_back(self) -> None:
        """Let this process's threads queue again, behind all that wait now.

        For one that is about to give back a permit, although it wants more itself, because it has
        more than others.
        """
        presence = self._here()
        if presence.waiters:
            presence.stand_back()

    def acquire(self, timeout: float | None = None) -> SharedPermit:
        """A permit, as soon as it is this thread's turn.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            NimueSemaphoreTimeout: there was none in time; the message says who holds them.
            NimueSemaphoreLost: the files have gone.
        """
        presence = self._here()
        permit = presence.try_take() or self._wait(presence, timeout)
        if permit is None:
            raise NimueSemaphoreTimeout(
                f"no permit of semaphore {self.name!r} within {timeout:g} s: {self.snapshot()}"
            )
        return permit

    def release(self, permit: SharedPermit) -> None:
        """As ``permit.give_back()``."""
        permit.give_back()

    def __enter__(self) -> SharedPermit:
        permit = self.acquire()
        self._entered.setdefault(get_ident(), []).append(permit)
        return permit

    def __exit__(self, *exc: object) -> None:
        mine = self._entered[get_ident()]
        permit = mine.pop()
        if not mine:
            del self._entered[get_ident()]
        permit.give_back()

    # -- who else there is

    def others_waiting(self) -> bool:
        """Whether another process seems to wait: one look at shared memory.

        What a process that was killed has left behind counts until somebody clears it; ask
        ``others_wait`` before acting upon this again and again.
        """
        return self.who_waits() is not None

    def who_waits(self) -> bytes | None:
        """None if no other process seems to wait; else what differs when other ones do."""
        core = self._core or self._attach()
        waiting = core.map.bytes[WAITS : WAITS + 256]
        return None if waiting in (NOBODY, core.here.queue.alone) else waiting

    @property
    def is_inside(self) -> bool:
        """Whether the running thread is in the middle of an edit, further down its stack."""
        core = self._core
        return core is not None and core.here.is_inside()

    @property
    def waits_here(self) -> bool:
        """Whether threads of this process seem to wait."""
        core = self._core
        return core is not None and bool(core.here.waiters)

    def others_wait(self) -> bool:
        """Whether another process waits, by the kernel's word; clears what the dead have left."""
        return self._here().others_wait()

    @property
    def family(self) -> Family:
        """What the processes tell each other beside: figures, wishes, generations, turns."""
        return Family(self._here, self._mapped, lambda: self._core)

    def snapshot(self) -> Snapshot:
        """Who holds and who waits; takes no lock that another process needs."""
        self._here()
        return take_snapshot(self._mapped())

    # -- one limit for all

    @property
    def limit(self) -> int:
        return self._mapped().map.limit

    def resize(self, limit: int) -> None:
        """Let this be the limit for all, from now on.

        A lower one is reached as permits come back: ``snapshot().excess`` says how many are still
        above it.

        Raises:
            NimueInvalidParameterValue: it is no limit.
            NimueSemaphoreInUse: a process has been stopped while it did the same.
        """
        check_limit(limit)
        self._here()
        change.resize(self._mapped(), limit)
        self._limit = limit

    @property
    def excess(self) -> int:
        """How many permits above the limit are still to come back."""
        return self._mapped().map.excess

    @property
    def reclaimed(self) -> int:
        """How many permits were taken from dead holders, in all."""
        return self._mapped().map.reclaimed()

    # -- the end

    def close(self) -> None:
        """Leave, with this process; the next use comes back.

        Nothing happens while other objects of this process stand for the same semaphore. Who
        leaves a private one as the last takes its files along.

        Raises:
            NimueSemaphoreInUse: this process holds permits, or waits for one.
        """
        core = self._core
        if core is None or core.locks.fd < 0:
            return
        # Counted, never looked through: other threads may be here, as a pool's monitor.
        core.handles.discard(self)
        if len(core.handles):
            return
        try:
            change.let_go(core)
        except BaseException:
            if core.locks.fd >= 0:  # else another thread was faster
                core.handles.add(self)
                raise

    def destroy(self) -> None:
        """Remove the files. A later use would make them anew.

        Raises:
            NimueSemaphoreInUse: others are attached, or this process holds permits.
        """
        self._here()
        change.destroy(self._mapped())

    @property
    def is_private(self) -> bool:
        return self.name.startswith(PRIVATE)


def _rebuild(name: str, limit: int, directory: str) -> SharedSemaphore:
    """What unpickling gives. It attaches at its first use.

    An error here would end a worker process that unpickles its task, unheard.
    """
    semaphore = SharedSemaphore.__new__(SharedSemaphore)
    semaphore._core = None
    semaphore._prepare(name, limit, directory, "adopt")
    if semaphore.is_private:
        _tidy_at_exit()
    return semaphore


def _tidy_at_exit() -> None:
    global _tidies
    if not _tidies:
        _tidies = True
        atexit.register(change.remove_private)
