"""Faults that a process does to itself: whoever takes the ticket, in the middle of a question.

A ticket is a file. Who removes it has it, so none is served twice, whatever dies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stress.trial.desk import Desk

#: What serves a ticket: told the desk, the connection that the question holds, and the dice. True:
#: that connection is to be lost.
Deed = Callable[["Desk", Any, Random], bool | None]


class Tickets:
    """The folder of those that were issued, and not taken yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def issue(self, kind: str) -> None:
        self._count += 1
        (self._folder / f"{kind}.{self._count}").touch()

    def take(self) -> str | None:
        """The kind of one, which is this process's now."""
        for name in os.listdir(self._folder):
            try:
                os.unlink(self._folder / name)
            except FileNotFoundError:  # another has it
                continue
            return name.partition(".")[0]
        return None

    def serve(self, desk: Desk, conn: Any, dice: Random) -> bool:
        """Do what a ticket asks for, if there is one; whether ``conn`` is to be lost."""
        kind = self.take()
        if kind is None:
            return False
        from stress.trial import deeds

        return bool(deeds.DEEDS[kind](desk, conn, dice))


#: The kinds there are: see ``stress.trial.deeds``.
KINDS: Mapping[str, str] = {
    "fork": "a child that uses its own pool, or does not, and exits in some way",
    "crossed": "a child that tries the connection its parent holds",
    "leak": "a connection that is dropped without being closed",
    "interrupt": "KeyboardInterrupt in another thread of the process",
    "clock": "a step of the wall clock",
}
