"""What an owner of connections is granted."""

from __future__ import annotations

from typing import Protocol


class Permit(Protocol):
    """The right to one connection. Whoever holds it gives it back once, after closing."""

    def give_back(self) -> None: ...
