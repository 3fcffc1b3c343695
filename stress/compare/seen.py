"""What the processes of a trial wrote down, and what the ledger holds against it."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from stress.trial.desk import OK, REFUSED, UNKNOWN

#: How much of an error is told.
WIDTH = 90


@dataclass
class Question:
    """One question as its asker's diary tells it; ``ended`` is None where nobody came back."""

    token: str
    diary: str
    asked: float
    ended: float | None = None
    outcome: str = UNKNOWN
    pid: int = 0
    backend: int = 0
    error: str = ""
    wrong: bool = False

    @property
    def asker(self) -> int:
        """The process whose diary it is: ``w<pid>``, or ``w<pid>.<pid>`` for a fork of it."""
        return int(re.split(r"[w.]", self.diary)[-1])


@dataclass
class Diaries:
    """All of them.

    Args:
        questions: by their tokens.
        notes: what should never be.
        hung: workers that their parent had to put down.
        done: faults that processes did to themselves, by kind.
    """

    questions: dict[str, Question] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hung: int = 0
    done: Counter[str] = field(default_factory=Counter)


def read(folder: Path) -> Diaries:
    """Times are in seconds of the monotonic clock."""
    found = Diaries()
    for path in sorted(folder.iterdir()):
        for what, *values in _lines(path):
            if what == "ask":
                token, at = values
                found.questions[token] = Question(token, path.name, at / 1e9)
            elif what == "end":
                _end(found.questions[values[0]], values[1] / 1e9, values[2])
            elif what == "wrong":
                found.notes.append(values[2])
            elif what == "hung":
                found.hung += 1
            elif what == "did":
                found.done[values[2]] += 1
    return found


def _lines(path: Path) -> Iterator[list[Any]]:
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        if line.endswith("\n"):  # the last may be cut off
            yield json.loads(line)


def _end(question: Question, at: float, answer: Mapping[str, Any]) -> None:
    question.ended = at
    question.outcome, question.pid = answer["outcome"], answer["pid"]
    question.backend, question.error = answer["backend"], answer["error"]
    question.wrong = answer["wrong"]


def belied(questions: Mapping[str, Question], ledger: Mapping[str, int]) -> list[str]:
    """Where the ledger does not hold what was answered.

    Committed once if it was said so, never if it was refused, at most once where nobody knows; and
    nothing that nobody asked for.
    """
    wanted = {OK: (1, 1), REFUSED: (0, 0), UNKNOWN: (0, 1)}
    wrong = [f"{token} was never asked" for token in ledger if token not in questions]
    for question in questions.values():
        least, most = wanted[question.outcome]
        count = ledger.get(question.token, 0)
        if not least <= count <= most:
            wrong.append(f"{question.token} is {question.outcome}, and {count} times in the ledger")
    return wrong


def shared(questions: Mapping[str, Question]) -> int:
    """Sessions that two processes used in turn.

    One that was used by another process only before or after may be a later session of the same
    number, and is not counted.
    """
    spans: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    for one in questions.values():
        if one.backend and one.ended is not None:
            first, last = spans[one.backend].get(one.pid, (one.asked, one.ended))
            spans[one.backend][one.pid] = min(first, one.asked), max(last, one.ended)
    return sum(_overlap(sorted(users.values())) for users in spans.values())


def _overlap(spans: list[tuple[float, float]]) -> bool:
    return any(later[0] < first[1] for first, later in pairwise(spans))


def kind(error: str) -> str:
    """What an error is, without where it came from, and without names and numbers of its own."""
    text = re.sub(r" \([\w.<>: ]*\)$", "", error)
    text = re.sub(r"\d[\d.]*", "#", re.sub(r"nimue-cmp-\w+", "...", text))
    return text[:WIDTH].strip()
