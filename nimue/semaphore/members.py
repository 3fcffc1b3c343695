"""The processes that wait or show figures: each has a number, a row and mailboxes."""

from __future__ import annotations

from nimue.process import Identity
from nimue.semaphore.layout import MEMBER, MEMBERS, WAITS, Map
from nimue.semaphore.locks import RecordLocks
from nimue.semaphore.mailbox import POKE, WAKE, Mailbox, Post


class Members:
    """One process's place among the members, and what it can know of the others.

    A process is member k while it has byte MEMBER+k locked. The presence's lock guards all of it.
    """

    def __init__(self, base: str, locks: RecordLocks, map: Map, who: Identity) -> None:
        self._base, self._locks, self._map, self._who = base, locks, map, who
        #: This process's number; None while it is no member.
        self.number: int | None = None
        self.mailbox: Mailbox | None = None
        self.ear: Mailbox | None = None
        self.wakes, self.pokes = Post(base, WAKE), Post(base, POKE)

    def join(self) -> bool:
        """Become a member, if it is not one; False if all places are taken."""
        if self.number is not None:
            return True
        for number in range(MEMBERS):
            if self._locks.take(MEMBER + number):
                try:
                    self._map.sign_member(number, self._who)
                    self.mailbox = Mailbox(f"{self._base}.{WAKE}{number}")
                    self.number = number
                except BaseException:
                    self._locks.give_back(MEMBER + number)
                    raise
                return True
        return False

    def listen(self) -> Mailbox | None:
        """The mailbox for pokes, which is made at the first call; None without a place."""
        if self.ear is None and self.join():
            self.ear = Mailbox(f"{self._base}.{POKE}{self.number}")
        return self.ear

    def leave(self) -> None:
        number, self.number = self.number, None
        if number is not None:
            self._map.sign_member(number, self._who)
            self._locks.give_back(MEMBER + number)
        self.close()

    def close(self) -> None:
        """Let go of all descriptors: of a process that leaves, or of the parent in its child."""
        for mailbox in (self.mailbox, self.ear):
            if mailbox is not None:
                mailbox.close()
        self.mailbox = self.ear = None
        self.wakes.close()
        self.pokes.close()

    def is_live(self, number: int) -> bool:
        """Whether the process that had this number still does; a stopped one does."""
        return number == self.number or self._locks.other(MEMBER + number) is not None

    def live(self) -> list[int]:
        return [number for number in range(MEMBERS) if self.is_live(number)]

    def reap(self, number: int) -> None:
        """Clear what a dead member has left behind.

        Only under its lock: it is surely dead then, and nobody is becoming that member.
        """
        if number != self.number and self._locks.take(MEMBER + number):
            self._map.bytes[WAITS + number] = 0
            self._locks.give_back(MEMBER + number)
