"""The right to be connected: an entry owns one permit from before it connects until it is closed.

Without a shared limit there is nothing to ask, and a permit is always granted.
"""

from __future__ import annotations

from typing import Protocol


class Permit(Protocol):
    """The right to one connection. Whoever holds it gives it back once, after closing."""

    def give_back(self) -> None: ...


class Unlimited:
    """No shared limit: every permit is granted, and giving it back changes nothing."""

    def take(self) -> Permit:
        return self

    def give_back(self) -> None:
        pass


#: All that an unlimited pool ever needs, in any process.
UNLIMITED = Unlimited()
