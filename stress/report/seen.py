"""What the drawings of one trial have in common, computed once."""

from __future__ import annotations

from functools import cached_property

from stress.report import bins
from stress.report.canvas import SEATS, C
from stress.report.figures import figures
from stress.report.marks import Mark, marks
from stress.trial.record import Question, Record


class Seen:
    """A record, in spans of time."""

    def __init__(self, record: Record, name: str, title: str = "") -> None:
        self.record = record
        self.figures = figures(record)
        #: Different for each trial of a page.
        self.name = name
        self.title = title or record.name
        self.end = bins.end_of(record)
        self.marks: list[Mark] = marks(record.happenings)

    @cached_property
    def questions(self) -> bins.Axis:
        most = max(bins.LEAST, len(self.record.questions) // bins.QUESTIONS)
        return bins.Axis.of(self.end, min(bins.MOST, most))

    @cached_property
    def latencies(self) -> list[bins.Spread | None]:
        return bins.latencies(self.record.questions, self.questions)

    @cached_property
    def rates(self) -> tuple[list[float], list[float]]:
        return bins.rates(self.record.questions, self.questions, self.end)

    @cached_property
    def waits(self) -> list[bins.Waits]:
        return bins.waits(self.record.questions)

    @cached_property
    def failed(self) -> list[tuple[str, Question]]:
        """Each that failed, and in which way."""
        every = ((bins.failure(one), one) for one in self.record.questions)
        return [(kind, one) for kind, one in every if kind]

    @cached_property
    def looks(self) -> bins.Axis:
        return bins.Axis.of(self.end, bins.MOST)

    @cached_property
    def seats(self) -> bins.Seats:
        return bins.seats(self.record.looks)

    def colour(self, pid: int) -> str:
        """That of a process, in all drawings."""
        seat = self.seats.seat.get(pid, SEATS)
        return C[f"s{seat}"] if seat < SEATS else C["others"]

    @cached_property
    def at_once(self) -> int:
        """The most processes with a session at one look."""
        looks = self.record.looks
        return max((sum(n > 0 for n in look.sessions.values()) for look in looks), default=0)

    @property
    def crowded(self) -> bool:
        """More processes at once than there are colours."""
        return any(seat >= SEATS for seat in self.seats.seat.values())
