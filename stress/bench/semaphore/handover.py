"""One permit that goes round, and how long each hand-over takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from stress.bench.semaphore.crew import Child, Crew, Line, crew, first, until
from stress.bench.semaphore.subjects import Subject, closing

#: What a member is told to do, and what it says when it did not get the permit.
QUEUE, GIVE_BACK, NOTHING = 1, 2, -1
#: Seconds, at random between these, from when all have queued to the next hand-over.
REST = 0.002, 0.006


class Ring:
    """Processes with one permit among them: one has it, all others wait.

    Who has it writes down the time and gives it back; who gets it writes down the time, and keeps
    it. Only then does the first one queue again, so nobody is there to take a permit that another
    has waited for. The clock is the monotonic one, which all processes of a host share.
    """

    def __init__(self, subject: Subject, waiting: int, made: Crew, rng: random.Random) -> None:
        self._subject, self._waiting, self._rng = subject, waiting, rng
        self._holder = made.fork(self._live)
        self._holder.tell(QUEUE)
        self._holder.hear()
        self._got(self._holder)
        self._queue: list[Child] = []
        for _ in range(waiting):
            self._join(made.fork(self._live))

    def _live(self, line: Line) -> None:
        """A member's life."""
        clock, subject = time.monotonic_ns, self._subject
        while True:
            if line.hear() == QUEUE:
                line.tell(0)
                line.tell(clock() if subject.take() else NOTHING)
            else:
                start = clock()
                subject.give_back()
                line.tell(start)

    def _join(self, child: Child) -> None:
        child.tell(QUEUE)
        child.hear()
        self._queue.append(child)

    @staticmethod
    def _got(child: Child) -> int:
        at = child.hear()
        if at == NOTHING:
            raise TimeoutError("a process that waits for a permit is not served")
        return at

    def settle(self) -> None:
        """Until all wait, where that can be known."""
        if self._subject.waiting() is not None:
            until(lambda: self._subject.waiting() == self._waiting, f"{self._waiting} wait")

    def turn(self) -> float:
        """One hand-over, in milliseconds."""
        time.sleep(self._rng.uniform(*REST))
        before = self._holder
        before.tell(GIVE_BACK)
        begun = before.hear()
        self._holder = first(self._queue)
        got = self._got(self._holder)
        self._queue.remove(self._holder)
        self._join(before)
        return (got - begun) / 1e6


def hand_over(
    make: Callable[[], Subject], waiting: int, count: int, rng: random.Random
) -> list[float]:
    """Milliseconds of so many hand-overs, each while so many processes wait."""
    with closing(make()) as subject, crew() as made:
        ring = Ring(subject, waiting, made, rng)
        ring.settle()
        times = [ring.turn() for _ in range(count)]
        ring.settle()
    return times
