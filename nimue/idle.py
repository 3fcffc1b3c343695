"""What lies idle."""

from __future__ import annotations

from nimue.connection import Spare


class Idle(list[Spare]):
    """Connections ready to be lent, in the order of last use, the most recently used last.

    The short ways of acquire and release pop from it and append to it without the lock. Each is
    one step, so whoever holds the lock may find it changed from one call to the next, and no more.
    """

    __slots__ = ()

    def take(self) -> Spare | None:
        """The most recently used."""
        try:
            return self.pop()
        except IndexError:
            return None

    def shelve(self, spare: Spare) -> None:
        """Put in its place by last use: what was only checked has not become a used one."""
        place = len(self)
        for older in reversed(self):
            if older[2].since <= spare[2].since:
                break
            place -= 1
        self.insert(max(0, place), spare)

    def unshelve(self, spare: Spare) -> bool:
        """Take this one out; False if an acquire was faster."""
        try:
            self.remove(spare)
        except ValueError:
            return False
        return True
