"""What the decisions ask for, to be done without the lock."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nimue.entry import Entry
    from nimue.state import State


#: Seconds after which a ``connect()``, or a check, that has not come back counts as stuck: it no
#: longer keeps others from trying, or waiters from being served otherwise.
CONNECT_STUCK = 30.0
CHECK_STUCK = 1.0


class Task(Enum):
    """What can be done to an entry; the value names the thread that does it."""

    CONNECT = "connect"
    CHECK = "check"
    TIDY = "tidy"
    CLOSE = "close"
    PATROL = "patrol"


class Work(NamedTuple):
    """A task, and the entry it is about; a patrol goes round all idle ones."""

    task: Task
    entry: Entry | None = None


class Stray(NamedTuple):
    """An entry that may be in nobody's hands, and when it had last been taken by then."""

    state: State
    entry: Entry
    since: float
