"""What a terminal shows of a trial: a live table while it runs, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nimue.cli.demo_screen import BLINK, EVERY, Screen
from stress.report.figures import figures
from stress.report.words import errors, listed, several, span
from stress.trial.record import Record

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

#: Distinct errors that the verdict names.
ERRORS = 5
#: Lines of a terminal that are not for processes, and the fewest that are.
FRAME, ROWS = 14, 3


@dataclass(frozen=True)
class Worker:
    """One process at one moment.

    Args:
        answered, errors: questions, since its begin.
        waited: seconds for a connection, last; None if it never did.
        lives: it is a worker now.
    """

    pid: int
    sessions: int
    answered: int
    errors: int
    waited: float | None = None
    lives: bool = True


@dataclass(frozen=True)
class Scene:
    """One moment of a trial.

    Args:
        elapsed, seconds: since the begin, and of the whole.
        name: of scenario and variant.
        sessions, most: now, and the most at one look until now.
        per_second: questions answered, lately.
        faults: how many were done, by kind.
        happened: all that befell the processes until now, the last at the end.
    """

    elapsed: float
    seconds: float
    name: str
    workers: tuple[Worker, ...]
    sessions: int
    most: int
    limit: int | None
    per_second: float
    faults: Mapping[str, int] = field(default_factory=dict)
    happened: tuple[str, ...] = ()

    def summary(self) -> str:
        limit = "" if self.limit is None else f" of {self.limit}"
        failed = sum(worker.errors for worker in self.workers)
        return (
            f"{self.name}   {self.elapsed:5.1f} s of {self.seconds:g}   {self.per_second:,.0f} /s"
            f"   {self.sessions}{limit} sessions, at most {self.most}"
            f"   {several(failed, 'error')}   {several(sum(self.faults.values()), 'fault')}"
        )


class Live:
    """A table that is drawn again and again; where there is no terminal, a line now and then.

    It is a context manager: what is shown last stays. Not for several threads.

    Args:
        console: where to; standard output without.
        last: happenings that are shown.
    """

    def __init__(self, console: Console | None = None, last: int = 4) -> None:
        from rich.console import Console

        self.console = console or Console(highlight=False)
        self._last = last
        self._live: Any = None
        self._shown = float("-inf")

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, scene: Scene) -> None:
        """Cheap to call often: it is drawn at most every tenth of a second."""
        pause = BLINK if self.console.is_terminal else EVERY
        if 0 <= scene.elapsed - self._shown < pause:
            return
        self._shown = scene.elapsed
        if not self.console.is_terminal:
            self.console.print(scene.summary(), markup=False, soft_wrap=True)
            return
        if self._live is None:
            from rich.live import Live as Drawing

            self._live = Drawing(console=self.console, auto_refresh=False)
            self._live.start()
        self._live.update(self._drawn(scene), refresh=True)

    def close(self) -> None:
        """Leave the table as it is. May be called twice."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _drawn(self, scene: Scene) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        kinds = [f"{kind} {count:,}" for kind, count in scene.faults.items() if count]
        lines = [Text(one, "yellow", no_wrap=True) for one in scene.happened[-self._last :]]
        faults = Text("faults: " + (", ".join(kinds) or "none yet"), "dim")
        rows = max(ROWS, self.console.height - FRAME)
        return Group("", board(scene, rows), Text(scene.summary(), "bold"), faults, *lines)


def board(scene: Scene, rows: int) -> Table:
    """A row per process: those that live, then the latest of those that have gone."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("process", no_wrap=True)
    for name in ("sessions", "answered", "errors", "last wait"):
        table.add_column(name, justify="right", no_wrap=True)
    order = sorted(scene.workers, key=lambda worker: (not worker.lives, -worker.pid))
    shown = order[:rows]
    for worker in sorted(shown, key=lambda worker: (not worker.lives, worker.pid)):
        counts = (f"{worker.sessions}", f"{worker.answered:,}", f"{worker.errors:,}")
        waited = "-" if worker.waited is None else span(worker.waited)
        name = f"{worker.pid}" if worker.lives else f"{worker.pid} gone"
        style = "red" if worker.errors and worker.lives else "" if worker.lives else "dim"
        table.add_row(name, *counts, waited, style=style)
    if len(order) > rows:
        rest = order[rows:]
        sums = (sum(one.sessions for one in rest), sum(one.answered for one in rest))
        failed = sum(one.errors for one in rest)
        table.add_row(
            f"{len(rest)} more", f"{sums[0]}", f"{sums[1]:,}", f"{failed:,}", "", style="dim"
        )
    return table


def verdict(record: Record, console: Console | None = None) -> None:
    """The checks, figures in a line, notes, and the most frequent errors."""
    from rich.markup import escape

    screen = Screen()
    screen.console = console or screen.console
    screen.say(record.name, "bold")
    screen.say(summary(record))
    lines = [*record.notes, *_told(record)]
    if not record.checks:
        for line in [*lines, "Nothing was checked."]:
            screen.say(line, "dim")
        return
    checks = [
        replace(one, what=escape(one.what), seen=escape(one.seen), wanted=escape(one.wanted))
        for one in record.checks
    ]
    screen.verdict(checks, lines)


def summary(record: Record) -> str:
    """A trial in one sentence."""
    known = figures(record)
    limit = "" if record.limit is None else f", under a limit of {record.limit}"
    slow = known["latency_p99_s"]
    parts = [
        f"{known['answered']:,} of {several(len(record.questions), 'question')} answered",
        *([] if slow is None else [f"99 % of them within {span(slow)}"]),
        f"{known['answered_per_second'] or 0:,.0f} per second",
        f"{several(record.sessions, 'session')} at most{limit}",
        f"{several(len(record.happenings), 'happening')}",
    ]
    return f"{listed(parts)}; seed {record.seed}."


def _told(record: Record) -> list[str]:
    found = errors(record.questions)
    lines = [f"{count:,} x {text}" for text, count in found[:ERRORS]]
    if len(found) > ERRORS:
        lines.append(f"and {several(len(found) - ERRORS, 'more distinct error')}")
    return lines
