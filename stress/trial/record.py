"""All that was seen of one trial: plain data, in seconds since its begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nimue.cli.demo_verdict import Check


@dataclass(frozen=True, slots=True)
class Question:
    """One question, and what came of it as far as anybody knows.

    Args:
        ended: when; None where nobody came back to tell.
        outcome: ``ok``, ``refused``, or ``unknown``, also where it never ended.
        pid: of the process that took it; 0 if unknown.
        waited: seconds for a connection, or until it was refused.
        wrong: it got somebody else's answer.
    """

    token: str
    began: float
    ended: float | None
    outcome: str
    pid: int
    waited: float
    error: str = ""
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What the server listed at one moment: so many sessions of each process.

    Looks that saw the same as the one before are left out.
    """

    at: float
    sessions: Mapping[int, int]

    @property
    def total(self) -> int:
        return sum(self.sessions.values())


@dataclass(frozen=True, slots=True)
class Happening:
    """One fault that was done, or one thing that befell the processes: ``detail`` says to whom."""

    at: float
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Health:
    """One process at one moment: bytes resident, open descriptors, threads."""

    at: float
    pid: int
    memory: int
    descriptors: int
    threads: int


@dataclass
class Record:
    """One trial.

    Args:
        scenario, variant: what ran.
        versions: of Python, nimue, driver, server.
        settings: what was asked for, as the command line would say it.
        limit: ``totalmax``; None without.
        sessions: the most at one look; ``lasting``: the most of them that a look a moment later
            still saw, since a closed session is listed until its server process has ended.
        reclaimed: permits that were taken back from the dead.
        checks: the verdict.
        notes: what a reader is to know beside it.
    """

    scenario: str
    variant: str
    contender: str
    seed: int
    seconds: float
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    limit: int | None
    poolmax: int
    questions: list[Question] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    health: list[Health] = field(default_factory=list)
    sessions: int = 0
    lasting: int = 0
    reclaimed: int | None = None
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return bool(self.checks) and all(check.right for check in self.checks)

    @property
    def name(self) -> str:
        return f"{self.scenario} {self.variant}".strip()

    def as_json(self) -> dict[str, Any]:
        """Everything but the single questions, looks and samples, of which there are too many."""
        whole = asdict(self) | {"good": self.good}
        for many in ("questions", "looks", "health"):
            whole[many] = len(whole[many])
        return whole
