"""A million questions and looks, in a few hundred spans of time. Nothing is drawn here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stress.bench.runs import percentile
from stress.report.words import span
from stress.trial.desk import OK
from stress.trial.record import Health, Look, Question, Record

#: The most spans on an axis.
MOST = 240
#: Questions that a span has on average, since fewer make no 99th percentile, and the fewest spans.
QUESTIONS = 100
LEAST = 20
#: The shortest wait that is drawn, in seconds.
SHORTEST = 1e-6
#: Processes whose waits are drawn each by itself.
ALONE = 16


@dataclass(frozen=True)
class Axis:
    """Time from 0 on, in ``count`` spans of ``width`` seconds."""

    width: float
    count: int

    @classmethod
    def of(cls, end: float, most: int) -> Axis:
        """At most so many spans, of a width that can be said: 1, 2 or 5 of a power of ten."""
        end = max(end, 1e-3)
        least = end / max(1, most)
        power = 10.0 ** math.floor(math.log10(least))
        width = next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))
        return cls(width, max(1, math.ceil(end / width - 1e-9)))

    def at(self, time: float) -> int:
        """The number of the span; what is before or after all of them is in the first or last."""
        return min(self.count - 1, max(0, int(time / self.width)))

    @property
    def told(self) -> str:
        """How long a span is."""
        return span(self.width)

    @property
    def begins(self) -> list[float]:
        return [n * self.width for n in range(self.count)]

    @property
    def middles(self) -> list[float]:
        return [(n + 0.5) * self.width for n in range(self.count)]


@dataclass(frozen=True)
class Spread:
    """Of the questions of one span: seconds until the answer."""

    p50: float
    p99: float
    longest: float


def end_of(record: Record) -> float:
    """When the last thing was seen, or the trial was to end."""
    return max(
        record.seconds,
        max((one.ended or one.began for one in record.questions), default=0.0),
        max((look.at for look in record.looks), default=0.0),
        max((one.at for one in record.happenings), default=0.0),
    )


def latencies(questions: Iterable[Question], axis: Axis) -> list[Spread | None]:
    """Of those answered, by when they were asked; None where none was."""
    spans: list[list[float]] = [[] for _ in range(axis.count)]
    for question in questions:
        if question.outcome == OK and question.ended is not None:
            spans[axis.at(question.began)].append(question.ended - question.began)
    return [_spread(sorted(span)) if span else None for span in spans]


def _spread(ranked: Sequence[float]) -> Spread:
    return Spread(percentile(ranked, 50), percentile(ranked, 99), ranked[-1])


def rates(questions: Iterable[Question], axis: Axis, end: float) -> tuple[list[float], list[float]]:
    """Answered, and failed, per second, by when they ended; the last span may be a part of one."""
    answered, failed = [0] * axis.count, [0] * axis.count
    for question in questions:
        ended = question.began if question.ended is None else question.ended
        (answered if question.outcome == OK else failed)[axis.at(ended)] += 1
    widths = [min(axis.width, max(end - begin, axis.width / 10)) for begin in axis.begins]
    return _over(answered, widths), _over(failed, widths)


def _over(counts: Sequence[int], widths: Sequence[float]) -> list[float]:
    return [count / width for count, width in zip(counts, widths, strict=True)]


def failure(question: Question) -> str:
    """In which way it failed, or "" for an answered one."""
    if question.wrong:
        return "wrong"
    if question.ended is None:
        return "never ended"
    return "" if question.outcome == OK else question.outcome


#: What a row is called, the process (0 for several), and its waits in order.
Waits = tuple[str, int, list[float]]


def waits(questions: Iterable[Question]) -> list[Waits]:
    """Of each process, in order: those with the most waits; then the others together."""
    by_pid: dict[int, list[float]] = {}
    for one in questions:
        if one.outcome == OK or one.waited > 0:
            by_pid.setdefault(one.pid, []).append(max(one.waited, SHORTEST))
    most = sorted(by_pid, key=lambda pid: (-len(by_pid[pid]), pid))
    alone = most[:ALONE] if len(most) > ALONE + 1 else most
    found = [(str(pid) if pid else "not told", pid, sorted(by_pid[pid])) for pid in sorted(alone)]
    if len(alone) < len(most):
        rest = [value for pid in most[len(alone) :] for value in by_pid[pid]]
        found.append((f"{len(most) - len(alone)} others", 0, sorted(rest)))
    return found


def fullest(looks: Iterable[Look], axis: Axis) -> list[Mapping[int, int]]:
    """Of each span the sessions when there were most. What a look saw is so until the next."""
    best: list[Look] = []
    now = Look(0.0, {})
    for look in looks:
        n = axis.at(look.at)
        best += [now] * (n + 1 - len(best))
        if look.total >= best[n].total:
            best[n] = look
        now = look
    best += [now] * (axis.count - len(best))
    return [look.sessions for look in best]


@dataclass
class Seats:
    """Processes that come and go, on as few seats as there are processes at once.

    A seat is a colour: who comes takes the first that is free. ``turn``: how many sat there before.
    """

    seat: dict[int, int] = field(default_factory=dict)
    turn: dict[int, int] = field(default_factory=dict)


def seats(looks: Iterable[Look]) -> Seats:
    """Each process has its seat from the first look with a session of its own to the last."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for n, look in enumerate(looks):
        for pid, number in look.sessions.items():
            if number:
                first.setdefault(pid, n)
                last[pid] = n
    found, free_from, turns = Seats(), list[int](), Counter[int]()
    for pid in sorted(first, key=lambda one: (first[one], one)):
        seat = next((n for n, free in enumerate(free_from) if free <= first[pid]), len(free_from))
        free_from[seat : seat + 1] = [last[pid] + 1]
        found.seat[pid], found.turn[pid] = seat, turns[seat]
        turns[seat] += 1
    return found


def thinned(samples: Iterable[Health], axis: Axis) -> dict[int, list[Health]]:
    """Of each process the last sample in each span."""
    found: dict[int, dict[int, Health]] = {}
    for sample in samples:
        found.setdefault(sample.pid, {})[axis.at(sample.at)] = sample
    return {pid: [spans[n] for n in sorted(spans)] for pid, spans in found.items()}
