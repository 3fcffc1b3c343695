"""The diaries of a trial, read while they are written and at the end: who asked, and what came."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stress.trial.desk import UNKNOWN
from stress.trial.record import Happening, Question

#: What is read of one diary at a time, in bytes.
PORTION = 1 << 20
#: Seconds between two looks at all of them, of which there are thousands in an hour; and after
#: which one that is still is not looked at in between.
EVERY, STILL = 0.5, 5.0


class Diaries:
    """What all processes wrote down so far. ``read`` takes in what is new.

    Args:
        folder: of the diaries.
        begun: nanoseconds of the clock that all processes share, when the trial began.
    """

    def __init__(self, folder: Path, begun: int) -> None:
        self._folder, self._begun = folder, begun
        #: How far each has been read.
        self._read: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        #: Those that grow, and until when each counts as such; and when to look at all.
        self._young: dict[str, float] = {}
        self._due = 0.0
        #: Questions without an end so far, and when they began.
        self._asked: dict[str, float] = {}
        self.questions: list[Question] = []
        self.happenings: list[Happening] = []
        #: What must never be, and workers that hung.
        self.wrong: list[str] = []
        self.hung: list[str] = []
        #: Descriptors that a process had more at its end than at its begin, and sockets at its end.
        self.grown: list[int] = []
        self.sockets: list[int] = []
        self._files: dict[int, int] = {}
        self.answered: Counter[int] = Counter()
        #: The last question of each voice, which is the token up to the question's number, and the
        #: diary; and when a question last began or ended in each diary.
        self._latest: dict[str, tuple[str, str]] = {}
        self._heard: dict[str, float] = {}
        #: Of the questions that never ended: how long their processes went on without it. Not of
        #: those whose thread has asked again, after KeyboardInterrupt.
        self.stuck: list[float] = []

    @property
    def unanswered(self) -> int:
        return len(self._asked)

    def read(self) -> list[Question]:
        """Take in what was written since; the questions that ended in it."""
        before = len(self.questions)
        for name in self._grown():
            for what, *values in self._lines(self._folder / name):
                note: Callable[..., None] = getattr(self, f"_{what}")
                note(*values)
                if what in ("ask", "end"):
                    self._latest[values[0].rpartition(".")[0]] = name, values[0]
                    self._heard[name] = self._seconds(values[1])
        return self.questions[before:]

    def _grown(self) -> list[str]:
        """The names of those that are longer than they were; a new one is seen at the next look."""
        now = time.monotonic()
        names: Iterable[str] = self._young
        if now >= self._due:
            self._due, names = now + EVERY, os.listdir(self._folder)
        sizes = {name: os.stat(self._folder / name).st_size for name in names}
        found = sorted(name for name, size in sizes.items() if size > self._sizes.get(name, 0))
        self._sizes |= sizes
        self._young = {name: until for name, until in self._young.items() if until > now}
        self._young |= dict.fromkeys(found, now + STILL)
        return found

    def finish(self) -> None:
        """Whatever was asked and never ended, nobody knows what became of."""
        self._due = 0.0
        self.read()
        for name, token in self._latest.values():
            if token in self._asked:
                self.stuck.append(self._heard[name] - self._asked[token])
        for token, began in self._asked.items():
            self.questions.append(Question(token, began, None, UNKNOWN, 0, 0.0))
        self._asked.clear()

    def _lines(self, path: Path) -> Iterator[list[Any]]:
        """The whole lines that are new; what has no end yet is left, or was cut by a death."""
        with open(path, "rb") as file:
            file.seek(self._read.get(path.name, 0))
            while text := file.read(PORTION):
                whole = text.rfind(b"\n") + 1
                if not whole:
                    return
                self._read[path.name] = self._read.get(path.name, 0) + whole
                file.seek(self._read[path.name])
                yield from map(json.loads, text[:whole].splitlines())

    def _seconds(self, when: int) -> float:
        return (when - self._begun) / 1e9

    def _ask(self, token: str, when: int) -> None:
        self._asked[token] = self._seconds(when)

    def _end(self, token: str, when: int, answer: dict[str, Any]) -> None:
        self.questions.append(
            Question(
                token,
                self._asked.pop(token),
                self._seconds(when),
                answer["outcome"],
                answer["pid"],
                answer["waited"] / 1e9,
                answer["error"],
                answer["wrong"],
            )
        )
        self.answered[answer["pid"]] += 1

    def _did(self, when: int, pid: int, kind: str, detail: str) -> None:
        self.happenings.append(Happening(self._seconds(when), kind, f"{pid}: {detail}"))

    def _wrong(self, when: int, pid: int, text: str) -> None:
        self.wrong.append(f"process {pid}, at {self._seconds(when):.2f} s: {text}")

    def _hung(self, when: int, pid: int, text: str) -> None:
        self.hung.append(f"process {pid}, at {self._seconds(when):.2f} s: {text}")

    def _up(self, when: int, pid: int, sockets: int, files: int) -> None:
        self._files[pid] = files

    def _out(self, when: int, pid: int, sockets: int, files: int) -> None:
        self.grown.append(files - self._files.get(pid, files))
        self.sockets.append(sockets)
