"""What every process of a trial is told: one record, as JSON, in its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: The environment variable that carries it.
VARIABLE = "NIMUE_STRESS_BRIEF"


@dataclass(frozen=True)
class Brief:
    """The load of a trial.

    Args:
        contender: which pool, by its name in ``stress.trial.pools``.
        dialect: which driver, by its name in ``stress.trial.dialects``.
        mark: what the names of its sessions begin with.
        connect: the driver's keyword arguments; the mark is added to them where it can be.
        folder: of the trial: ``diaries/``, ``tickets/`` and the byte ``over``.
        seed: of all chance.
        bound: seconds after which a process of it ends by itself, and shows where it stood.
        threads: of a process that drives itself.
        poolmin, poolmax, totalmax: of the pool in each process.
        timeout: seconds that a wait for a connection may take.
        hold: the longest that a question holds its connection on purpose, in seconds.
        pause: that a driving thread rests between two questions, on average, in seconds.
        limits: where the files of the shared limit are; "": in the folder.
    """

    contender: str
    dialect: str
    mark: str
    connect: Mapping[str, Any]
    folder: str
    seed: int
    bound: float
    threads: int = 4
    poolmin: int = 1
    poolmax: int = 4
    totalmax: int | None = 6
    timeout: float = 10.0
    hold: float = 0.004
    pause: float = 0.0
    limits: str = ""
    #: What one contender alone is told.
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Brief:
        return cls(**json.loads(text))

    @classmethod
    def here(cls) -> Brief:
        """That of the trial which has started this process."""
        return cls.of(os.environ[VARIABLE])
