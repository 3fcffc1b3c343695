"""One thread that waits for a permit."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from random import uniform
from time import monotonic, monotonic_ns, sleep
from typing import TYPE_CHECKING

from nimue.error import NimueSemaphoreLost

if TYPE_CHECKING:
    from nimue.semaphore.presence import Presence, SharedPermit

#: Seconds after which a process looks again by itself: what it would miss is the wake-up of one
#: that was killed or stopped between its unlock and its look at the queue.
LOOK_AGAIN = 0.05

#: Seconds that a Ctrl-C which CPython has missed, or a leader that was cut short, can go unheard.
NAP = 2.0

#: Seconds that those asked for an idle connection have before the next ones are asked: the word
#: that there is one may be old, for who takes it does not take that back at once.
ASK_NEXT = 0.002

#: After so many looks those that were asked are asked anew: what comes back to them meanwhile they
#: give up by themselves, for they see who waits.
ASK_ANEW = 5

#: So many times in a row must nothing have happened before a process overtakes the head.
IDLE_ROUNDS = 2


class Waiter:
    """The thread's mailbox: what it is handed is a permit. ``bell`` guards nothing."""

    __slots__ = ("__weakref__", "bell", "permit", "since")

    def __init__(self) -> None:
        self.since = monotonic_ns()
        self.permit: SharedPermit | None = None
        self.bell = allocate_lock()
        self.bell.acquire()

    def ring(self) -> None:
        try:
            self.bell.release()
        except RuntimeError:  # it has rung already
            pass


def wait(
    presence: Presence,
    fault: Callable[[], str | None],
    timeout: float | None,
    give_up: Callable[[], bool] | None,
) -> SharedPermit | None:
    """Queue, and wait for a permit; None when the time is up, or ``give_up()`` says so.

    Raises:
        NimueSemaphoreLost: the files have a ``fault()``. Who began to use the name anew would know
            nothing of those who wait here.
    """
    waiter = Waiter()
    try:
        Wait(presence, fault, waiter, timeout, give_up).run(presence.join(waiter))
        presence.leave_queue(waiter)
        return waiter.permit
    except BaseException:
        presence.leave_queue(waiter)
        if waiter.permit is not None:
            waiter.permit.give_back()
        raise


class Wait:
    """One call that waits. One thread of a process, the leader, listens for all of them.

    The others sleep on their bells: whoever has a permit for one rings, and a leader that leaves
    rings for the next. The leader sleeps on the mailbox of the process.
    """

    def __init__(
        self,
        presence: Presence,
        fault: Callable[[], str | None],
        waiter: Waiter,
        timeout: float | None,
        give_up: Callable[[], bool] | None,
    ) -> None:
        self._presence, self._waiter, self._give_up = presence, waiter, give_up
        self._fault = fault
        self._deadline = None if timeout is None else monotonic() + timeout
        self._idle_rounds = 0
        self._head: int | None = None
        self._asked: set[int] = set()
        self._rounds = 0

    def run(self, queued: bool) -> None:
        while self._waiter.permit is None:
            if (fault := self._fault()) is not None:
                raise NimueSemaphoreLost(f"the lock file was lost during a wait: {fault}")
            if not queued:
                self._look_by_chance()
            elif self._presence.claims_lead(self._waiter):
                self._lead()
            else:
                self._follow()
            if self._deadline is not None and monotonic() >= self._deadline:
                return
            if self._give_up is not None and self._give_up():
                return

    def _left(self, seconds: float) -> float:
        if self._deadline is None:
            return seconds
        return max(0.0, min(seconds, self._deadline - monotonic()))

    def _follow(self) -> None:
        nap = NAP if self._give_up is None else 2 * LOOK_AGAIN
        self._waiter.bell.acquire(True, self._left(nap))

    def _lead(self) -> None:
        presence = self._presence
        try:
            with presence.lock:
                head = presence.serve_locked(self._idle_rounds >= IDLE_ROUNDS)
                if self._waiter.permit is not None:
                    return
                if head != self._head:
                    self._head, self._idle_rounds = head, 0
                presence.watch.choose_locked(head)
                asks = presence.queue.poke(len(presence.waiters), self._asked)
                mailbox = presence.members.mailbox
        finally:
            presence.settle()
        assert mailbox is not None
        # Jitter: those that wait together shall not look together. The head has the better claim.
        seconds = LOOK_AGAIN * uniform(0.75, 1.0) * (1.0 if head is None else 1.6)
        heard = presence.watch.sleep(mailbox, self._left(ASK_NEXT if asks else seconds))
        if not asks:
            self._rounds += 1
            if self._rounds % ASK_ANEW == 0:
                self._asked.clear()
            self._idle_rounds = 0 if heard else self._idle_rounds + 1

    def _look_by_chance(self) -> None:
        """There are more processes than places in the queue."""
        presence = self._presence
        try:
            with presence.lock:
                self._waiter.permit = presence.take_locked()
        finally:
            presence.settle()
        if self._waiter.permit is None:
            sleep(self._left(uniform(0.005, 0.02)))
