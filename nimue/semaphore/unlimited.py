"""What an owner of connections asks of a limit, and the answer where there is none."""

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
