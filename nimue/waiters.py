"""The queue of those who wait for a connection."""

from __future__ import annotations

from _thread import allocate_lock
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimue.connection import NimueConnection

#: Seconds that a Ctrl-C which CPython has missed can go unheard.
NAP = 2.0


class Waiter:
    """One waiting thread's mailbox. What it is handed is a connection, or an error to raise.

    The giver holds the pool's lock, fills the mailbox, rings, and takes the waiter out of the
    queue, in that order. Where a giver is interrupted in between, a waiter in the queue has mail:
    whoever looks at the queue next rings for it. ``bell`` guards nothing.
    """

    __slots__ = ("bell", "error", "handle", "queued", "since", "wakes")

    def __init__(self, since: float) -> None:
        self.since = since
        self.queued = False
        #: The monitor has to look again sooner than it knows.
        self.wakes = False
        self.handle: NimueConnection | None = None
        self.error: BaseException | None = None
        self.bell = allocate_lock()
        self.bell.acquire()

    @property
    def has_mail(self) -> bool:
        return self.handle is not None or self.error is not None

    def wait(self, seconds: float | None, between: Callable[[], None] | None = None) -> bool:
        """Sleep until the bell rings, or for so many seconds; None sleeps until it rings.

        True if it has rung.

        In naps: CPython notices a signal that comes just before a sleep only after it. An error
        of ``between``, which is called between two, ends no wait: it is called again.
        """
        end = None if seconds is None else monotonic() + seconds
        left = NAP if seconds is None else seconds
        while not self.bell.acquire(True, min(left, NAP)):
            if end is not None:
                left = end - monotonic()
                if left <= 0:
                    return False
            if between is not None:
                with suppress(Exception):
                    between()
        return True

    def ring(self) -> None:
        try:
            self.bell.release()
        except RuntimeError:  # it has rung already
            pass


class Waiters(OrderedDict[Waiter, None]):
    """First come, first served. The pool's lock guards it."""

    __slots__ = ()

    def join(self, waiter: Waiter) -> None:
        self[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        self.pop(waiter, None)

    def deliver(self) -> None:
        """Ring for those who have mail, and let them go."""
        for waiter in list(self):
            if waiter.has_mail:
                waiter.ring()
                self.leave(waiter)

    def oldest(self) -> Waiter | None:
        """Whoever has waited longest and has no mail yet."""
        while self:
            waiter = next(iter(self))
            if not waiter.has_mail:
                return waiter
            waiter.ring()
            self.leave(waiter)
        return None

    def hand(self, waiter: Waiter, handle: NimueConnection) -> None:
        waiter.handle = handle
        waiter.ring()
        del self[waiter]

    def fail_all(self, make_error: Callable[[], BaseException]) -> None:
        for waiter in list(self):
            if not waiter.has_mail:
                waiter.error = make_error()
            waiter.ring()
            self.leave(waiter)
