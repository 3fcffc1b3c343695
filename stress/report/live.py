"""What a terminal shows of a trial: a live table while it runs, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nimue.cli.demo_screen import BLINK, EVERY, Screen
from stress.report.figures import figures
from stress.report.scene import Scene, Scenes
from stress.report.words import errors, listed, several, span
from stress.trial.record import Record

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from stress.trial.course import Course, Plan

#: Distinct errors that the verdict names.
ERRORS = 5
#: Lines of a terminal that are not for processes, and the fewest that are.
FRAME, ROWS = 14, 3


class Live:
    """A table that is drawn again and again; where there is no terminal, a line now and then.

    It is a context manager: what is shown last stays. Not for several threads.

    Args:
        plan: of the trial.
        console: where to; standard output without.
    """

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(highlight=False)
        self._plan = plan
        self._scenes = Scenes()
        self._live: Any = None
        self._shown = float("-inf")

    def __enter__(self) -> Live:
        plan = self._plan
        limit = "no limit" if plan.totalmax is None else f"a limit of {plan.totalmax}"
        name = f"{plan.scenario} {plan.variant}".strip()
        self.console.print(
            f"{name}: {plan.processes} processes of {plan.threads} threads, {limit},"
            f" {plan.dialect}, {plan.seconds:g} s, seed {plan.seed}",
            markup=False,
            soft_wrap=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, course: Course) -> None:
        """Cheap to call often: it is drawn at most every tenth of a second."""
        pause = BLINK if self.console.is_terminal else EVERY
        elapsed = course.elapsed
        if not 0 <= elapsed - self._shown < pause:
            self._shown = elapsed
            self.draw(self._scenes.of(course))

    def draw(self, scene: Scene) -> None:
        """Now."""
        if not self.console.is_terminal:
            self.console.print(scene.summary(), markup=False, soft_wrap=True)
            return
        if self._live is None:
            from rich.live import Live as Drawing

            self._live = Drawing(console=self.console, auto_refresh=False)
            self._live.start()
        self._live.update(self._drawn(scene), refresh=True)

    def verdict(self, record: Record) -> None:
        """Nothing more is shown live; then what came of it."""
        self.close()
        verdict(record, self.console)

    def close(self) -> None:
        """Leave the table as it is. May be called twice."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _drawn(self, scene: Scene) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        kinds = [f"{kind} {count:,}" for kind, count in scene.faults.items() if count]
        lines = [Text(one, "yellow", no_wrap=True) for one in scene.happened]
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
    limit = "" if record.limit is None else f" under a limit of {record.limit}"
    slow = known["latency_p99_s"]
    parts = [
        f"{known['answered']:,} of {several(len(record.questions), 'question')} answered",
        *([] if slow is None else [f"99 % of them within {span(slow)}"]),
        f"{known['answered_per_second'] or 0:,.4g} per second",
        f"{several(len(record.happenings), 'happening')}",
        f"at most {several(record.lasting, 'lasting session')}{limit}",
    ]
    return f"{listed(parts)}; seed {record.seed}."


def _told(record: Record) -> list[str]:
    found = errors(record.questions)
    lines = [f"{count:,} x {text}" for text, count in found[:ERRORS]]
    if len(found) > ERRORS:
        lines.append(f"and {several(len(found) - ERRORS, 'more distinct error')}")
    return lines
