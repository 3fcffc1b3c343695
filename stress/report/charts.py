"""Which drawings a trial has, each with the sentence that says how to read it and what is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stress.report import flow, load
from stress.report.canvas import PAPERS, Paper, draw
from stress.report.seen import Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Paint = Callable[[Seen, "Figure", Paper, int], None]


@dataclass(frozen=True)
class Kind:
    """One drawing that a trial may have.

    Args:
        height: in pixels, of a trial.
        there: whether the trial has what it shows.
    """

    key: str
    title: str
    paint: Paint
    told: Callable[[Seen], str]
    height: Callable[[Seen], int]
    there: Callable[[Seen], bool]


@dataclass(frozen=True)
class Chart:
    """A drawing as SVG, in both sizes."""

    key: str
    title: str
    svg: str
    told: str


def _asked(seen: Seen) -> bool:
    return bool(seen.record.questions)


KINDS = (
    Kind("faults", "What befell the processes", load.faults, load.told_faults,
         lambda seen: 32 + load.ROW * len(seen.marks), lambda seen: bool(seen.marks)),
    Kind("sessions", "Sessions, by process", load.sessions, load.told_sessions,
         lambda seen: 270, lambda seen: bool(seen.record.looks)),
    Kind("latency", "Time to the answer", flow.latency, flow.told_latency,
         lambda seen: 260, _asked),
    Kind("rate", "Answers per second", flow.rate, flow.told_rate, lambda seen: 180, _asked),
    Kind("health", "Memory, descriptors, threads", load.health, load.told_health,
         lambda seen: 460, lambda seen: bool(seen.record.health)),
    Kind("waits", "Wait for a connection", flow.waits, flow.told_waits,
         lambda seen: 40 + 22 * len(seen.waits), lambda seen: bool(seen.waits)),
)


def charts(seen: Seen) -> Iterator[Chart]:
    """All that the trial has something for."""
    for kind in KINDS:
        if kind.there(seen):
            height = kind.height(seen)
            svg = "".join(
                draw(paper, height, f"{seen.name}-{kind.key}-{paper.name}",
                     partial(_paint, kind.paint, seen, paper, height))
                for paper in PAPERS
            )
            yield Chart(kind.key, kind.title, svg, kind.told(seen))


def _paint(paint: Paint, seen: Seen, paper: Paper, height: int, figure: Figure) -> None:
    paint(seen, figure, paper, height)
