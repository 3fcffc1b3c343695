"""What the processes of a storm are told: one record, as JSON, for all of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

#: Seconds that any wait for a connection may take: longer ones are errors.
PATIENCE = 20.0
#: Seconds after which a child of a worker is put down by itself.
CHILD_BOUND = 60.0
#: Seconds after which one of a C fork is, if the interpreter's lock was born dead.
BIRTH_BOUND = 1.0


@dataclass(frozen=True)
class Order:
    """The load of a storm. ``pool`` and ``connect`` go to the pool as they are."""

    connect: dict[str, Any]
    pool: dict[str, Any]
    threads: int
    folder: str
    seed: int
    bound: float
    #: The longest hold, in seconds; the time that a slow ``close()`` takes; and how many holds out
    #: of a hundred end in one, contain a fork, or contain a fork that no hook sees.
    hold: float = 0.005
    goodbye: float = 0.3
    slow: float = 0.5
    forks: float = 0.6
    c_forks: float = 0.2

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Order:
        return cls(**json.loads(text))
