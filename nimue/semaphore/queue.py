"""The order in which processes get permits: who has waited longest, first."""

from __future__ import annotations

from nimue.semaphore.layout import (
    ATTACH,
    FREE,
    HINTS,
    HINTS_END,
    IDLE,
    IDLE_END,
    MEMBERS,
    NOBODY,
    SUSPECT,
    WAITS,
    Map,
)
from nimue.semaphore.locks import RecordLocks
from nimue.semaphore.members import Members


class Queue:
    """The waiting members, by the time since which their oldest thread waits (the *ticket*).

    There is no lock around it, in any process. A member announces that it waits, then tries for a
    slot; who frees a slot unlocks it, then looks who waits. The kernel puts the try and the unlock
    in one order: if the try failed, it came first, and the freeing process sees the announcement.
    So the *head*, who may try, needs no other wake-up; whoever leaves the head passes on what it
    leaves. What gets lost because somebody died or stopped in between, a waiter finds when it
    looks again by itself.

    A head that leaves a free slot lie becomes *suspect* and goes to the end until it runs again.
    """

    def __init__(self, locks: RecordLocks, map: Map, members: Members) -> None:
        self._locks, self._map, self._members = locks, map, members
        self._ticket = 0
        #: What WAITS shows if nobody but this process waits.
        self.alone = NOBODY

    def order(self) -> list[int]:
        """The members that wait, or seem to, the first one first."""
        suspect = self._map.bytes[SUSPECT : SUSPECT + MEMBERS]
        waiting = self._map.places(WAITS, WAITS + MEMBERS, 1)
        return sorted(waiting, key=lambda k: (suspect[k], self._map.ticket(k), k))

    def head(self) -> int | None:
        """The live member that comes before this process; None if none does."""
        for member in self.order():
            if member == self._members.number:
                return None
            if self._members.is_live(member):
                return member
            self._members.reap(member)
        return None

    def is_clear(self) -> bool:
        """Whether somebody who has not queued may try: nobody waits, or only suspects do."""
        if self._map.bytes[WAITS:HINTS] == NOBODY:
            return True
        member = self.head()
        return member is None or self._map.bytes[SUSPECT + member] == 1

    def announce(self, ticket: int, threads: int) -> None:
        """Tell all how many threads wait here, and since when the oldest does; 0 if none."""
        number = self._members.number
        if number is None:
            return
        self._map.set_threads(number, threads)
        before = self._ticket
        if ticket:
            if ticket != before:
                self._map.set_ticket(number, ticket)
            self._map.bytes[WAITS + number] = 1
            self.alone = NOBODY[:number] + b"\1" + NOBODY[number + 1 :]
        elif before:
            self._map.bytes[WAITS + number] = 0
            self.alone = NOBODY
        if before and ticket != before:
            self._pass_on()
        self._ticket = ticket  # last: what an interrupt cuts short is done again

    def _pass_on(self) -> None:
        """This process may have been the head: what lies free is for the next.

        Two that free a slot each may both have woken this one, which has taken but one.
        """
        if self._map.bytes[WAITS:HINTS] != NOBODY:
            self._locks.other(ATTACH)  # orders the announcement before the look at the slots
            if self._map.bytes.find(bytes((FREE,)), HINTS, HINTS_END) >= 0:
                self.wake()

    def wake(self) -> None:
        """Wake the first live one of those who wait."""
        if self._map.bytes[WAITS:HINTS] == NOBODY:
            return
        for member in self.order():
            if not self._members.is_live(member):
                self._members.reap(member)
            elif self._members.wakes.send(member):
                return

    def stand_up(self) -> None:
        """This process runs: it is under no suspicion."""
        number = self._members.number
        if number is not None and self._map.bytes[SUSPECT + number]:
            self._map.bytes[SUSPECT + number] = 0

    def suspect(self, member: int) -> None:
        self._map.bytes[SUSPECT + member] = 1

    def poke(self, wanted: int, asked: set[int]) -> bool:
        """Ask so many of those with idle connections to give one up, who has most of them first.

        Not those that were ``asked`` before, which now grows; False if there are no others.
        """
        found = set(self._map.places(IDLE, IDLE_END, 1)) - asked - {self._members.number}
        for member in sorted(found, key=lambda k: -self._map.figures(k).idle):
            if wanted <= 0:
                break
            asked.add(member)
            if self._members.is_live(member):
                wanted -= self._members.pokes.send(member)
        return bool(found)
