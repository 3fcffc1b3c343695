"""What each process of a storm writes down, which survives any death, and how that is judged.

A diary is a file of one process's own, of lines that are appended one by one::

    up ns sockets fds        it is at work          ask thread ns
    fork kind                it forks in a hold     got thread ns backend
    out ns sockets fds       it has closed its      end thread ns
                             pool, and leaves       open ns backend
    err thread text                                 bye ns backend
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Hold(NamedTuple):
    """From when until when, in nanoseconds, somebody had a session, or there was one."""

    began: int
    ended: int
    backend: int


class Wait(NamedTuple):
    """From asking to getting, or to the death of who asked."""

    process: str
    asked: int
    ended: int


@dataclass
class Findings:
    """What the diaries of a storm say, taken together."""

    holds: list[Hold] = field(default_factory=list)
    #: What was open, in somebody's hands or not.
    connections: list[Hold] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    #: The most descriptors that a process has had more at its end than at its beginning.
    grown: int = 0


def read(folder: Path, killed: Mapping[str, int]) -> Findings:
    """Read all diaries. ``killed``: when SIGKILL was about to be sent to whom."""
    found = Findings()
    for path in sorted(folder.iterdir()):
        _Reader(found, path.name, killed.get(path.name)).read(path.read_text())
    return found


class _Reader:
    """One process's diary. Nothing in it that is open may stay so, but what its death has cut."""

    def __init__(self, found: Findings, name: str, killed: int | None) -> None:
        self.found, self.name, self.killed = found, name, killed
        self.asked: dict[int, int] = {}
        self.began: dict[int, tuple[int, int]] = {}
        self.opened: dict[int, int] = {}
        self.files = 0
        self.is_up = self.is_out = False

    def read(self, text: str) -> None:
        lines = text.split("\n")
        for line in lines[:-1]:  # what has no end is what a death has cut short
            what, *values = json.loads(line)
            getattr(self, f"_{what}")(*values)
        self._finish()

    def _finish(self) -> None:
        if self.killed is not None:
            for asked in self.asked.values():
                self._waited(asked, self.killed)
            for began, backend in self.began.values():
                self._held(began, self.killed, backend)
            for backend in list(self.opened):
                self._bye(self.killed, backend)
        elif not self.is_out:
            stage = "it forked" if not self.is_up else "it was at work"
            self.found.errors.append(f"{self.name} vanished after {stage}, and nobody killed it")
        elif self.asked or self.began:
            self.found.errors.append(f"{self.name} left with threads still waiting or holding")

    def _waited(self, asked: int, ended: int) -> None:
        if ended > asked:
            self.found.waits.append(Wait(self.name, asked, ended))

    def _held(self, began: int, ended: int, backend: int) -> None:
        if ended > began:
            self.found.holds.append(Hold(began, ended, backend))

    def _up(self, when: int, sockets: int, files: int) -> None:
        self.is_up, self.files = True, files
        _, _, child = self.name.partition(".")
        kind = "C" if child.startswith("C") else "hooked"
        self.found.counts[f"{kind}, came to life" if child else "up"] += 1

    def _out(self, when: int, sockets: int, files: int) -> None:
        self.is_out = True
        for backend in list(self.opened):
            self._bye(when, backend)
        self.found.grown = max(self.found.grown, files - self.files)
        if sockets:
            self.found.errors.append(f"{self.name} has closed its pool and has {sockets} sockets")

    def _ask(self, thread: int, when: int) -> None:
        self.asked[thread] = when

    def _got(self, thread: int, when: int, backend: int) -> None:
        self._waited(self.asked.pop(thread), when)
        self.began[thread] = (when, backend)

    def _end(self, thread: int, when: int) -> None:
        began, backend = self.began.pop(thread)
        self._held(began, when, backend)

    def _open(self, when: int, backend: int) -> None:
        self.opened[backend] = when

    def _bye(self, when: int, backend: int) -> None:
        began = self.opened.pop(backend)
        if when > began:
            self.found.connections.append(Hold(began, when, backend))

    def _fork(self, kind: str) -> None:
        self.found.counts[kind] += 1

    def _err(self, thread: int, text: str) -> None:
        self.found.errors.append(f"{self.name}: {text}")
        self.asked.pop(thread, None)


def most_at_once(holds: Iterable[Hold]) -> int:
    """How many held at one moment. One that ends as another begins does not overlap it."""
    changes = [(hold.began, 1) for hold in holds]
    changes += [(hold.ended, -1) for hold in holds]
    most = current = 0
    for _, change in sorted(changes):
        current += change
        most = max(most, current)
    return most


def shared_backends(holds: Iterable[Hold]) -> int:
    """Sessions that two had at one moment."""
    by_backend = defaultdict(list)
    for hold in holds:
        by_backend[hold.backend].append(hold)
    return sum(most_at_once(each) > 1 for each in by_backend.values())


def seconds_waited(
    waits: Iterable[Wait], stopped: Mapping[str, Sequence[tuple[int, int]]]
) -> list[float]:
    """In ascending order; but for those whose process was stopped in the middle."""
    return sorted(
        (wait.ended - wait.asked) / 1e9
        for wait in waits
        if not any(
            begin < wait.ended and end > wait.asked for begin, end in stopped.get(wait.process, ())
        )
    )
