"""What the demo shows: a live table on a terminal, plain lines elsewhere, and the verdict."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nimue.cli.demo_verdict import Check, Worker

if TYPE_CHECKING:
    from rich.table import Table

    from nimue.stats import NimueProcessStats, NimueTotalStats

COLUMNS = ("requests", "used", "free", "waiting", "opened", "inherited", "severed", "sessions")
TOTAL_COLUMNS = (
    *("permits", "in\nuse", "idle", "waiting", "opened", "given\nup", "timed\nout"),
    *("longest\nhold", "sessions"),
)
EVERY = 2.0
BLINK = 0.1


@dataclass
class Scene:
    """One moment of the demo."""

    elapsed: float
    seconds: float
    master: int
    team: list[int]
    workers: dict[int, Worker]
    sessions: dict[int, int]
    errors: int
    total: "NimueTotalStats | None" = None
    killed: int | None = None
    events: list[str] = field(default_factory=list)

    def title(self, pid: int) -> str:
        if pid == self.master:
            return f"master {pid}"
        if pid in self.team:
            return f"worker {pid}"
        return f"killed {pid}" if pid == self.killed else f"gone {pid}"

    def summary(self) -> str:
        requests = sum(worker.requests for worker in self.workers.values())
        return (
            f"{self.elapsed:5.1f} s of {self.seconds:g}   {requests:,} requests   "
            f"{sum(self.sessions.values())} sessions   {self.errors} errors"
        )


class Screen:
    """Where the demo speaks. Not a terminal: no colours, no cursor movement, a line now and then.

    All text is plain ASCII but for the lines of tables, which rich replaces where they cannot be
    shown.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.console: Console = Console(highlight=False)
        self._live: Any = None
        self._spoken = 0.0
        self._events = 0

    def say(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style or None, markup=False, soft_wrap=True)

    def intro(self, workers: int, threads: int, together: str, server: str) -> None:
        self.say("nimue demo", "bold")
        self.say(
            f"{server}, gunicorn --preload with {workers} workers of {threads} threads,\n"
            f"one pool made in the master: {together}."
        )
        self.say(
            "The master keeps one connection in use, in the middle of a transaction. A worker\n"
            "inherits all of the master's: it severs them and acquires its own.",
            "dim",
        )

    def show(self, scene: Scene) -> None:
        if not self.console.is_terminal:
            self._lines(scene)
            return
        if self._live is not None and 0 <= scene.elapsed - self._spoken < BLINK:
            return
        self._spoken = scene.elapsed
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        events = [Text(event, style="yellow") for event in scene.events]
        group = Group("", board(scene), Text(scene.summary()), *events)
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        self._live.update(group, refresh=True)

    def _lines(self, scene: Scene) -> None:
        for event in scene.events[self._events :]:
            self.say(event)
        self._events = len(scene.events)
        if scene.elapsed - self._spoken >= EVERY:
            self._spoken = scene.elapsed
            self.say(scene.summary())

    def last(self, scene: Scene) -> None:
        """The table as it is now stays; nothing more is shown live."""
        if self.console.is_terminal:
            self._spoken = 0.0
            self.show(scene)
        else:
            self._lines(scene)
            self.console.print(board(scene))
        self.freeze()

    def freeze(self) -> None:
        """Leave the table as it is; nothing more is shown live."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def verdict(self, checks: list[Check], notes: list[str]) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name, justify in (("verdict", "left"), ("seen", "right"), ("must be", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        table.add_column("")
        for check in checks:
            mark, style = ("ok", "green") if check.right else ("WRONG", "bold red")
            table.add_row(check.what, check.seen, check.wanted, f"[{style}]{mark}[/]")
        self.console.print(table)
        for note in notes:
            self.say(note, "dim")
        failed = sum(not check.right for check in checks)
        if failed:
            self.say(f"Not right: {failed} of {len(checks)} checks failed.", "bold red")
        else:
            self.say("All right.", "bold green")

    def failed(self, message: str, log: str) -> None:
        self.freeze()
        if log:
            self.say("The log ends with:", "dim")
            self.say(log, "dim")
        self.say(f"nimue demo: {message}", "bold red")


def board(scene: Scene) -> "Table":
    """A row per process; under a limit of all, what they tell each other, and the sums."""
    return _board_of_one(scene) if scene.total is None else _board_of_all(scene, scene.total)


def _board_of_all(scene: Scene, total: "NimueTotalStats") -> "Table":
    table = _table(TOTAL_COLUMNS)
    known = {one.pid: one for one in total.processes}
    gone = {scene.killed} if scene.killed else set()
    for pid in sorted({scene.master, *known, *scene.team, *scene.sessions, *gone}):
        sessions = str(scene.sessions.get(pid, 0))
        style = "dim" if pid == scene.master else "" if pid in scene.team else "red"
        told = _told(known[pid]) if pid in known else ["-"] * (len(TOTAL_COLUMNS) - 1)
        table.add_row(scene.title(pid), *told, sessions, style=style)
    table.add_section()
    longest = max((one.longest_hold for one in total.processes), default=0.0)
    counts = (total.poolused, total.poolfree, total.waiting, total.opened, total.shed)
    held = f"{total.held} of {total.totalmax}"
    sums = [*map(str, (*counts, total.timeouts)), span(longest)]
    table.add_row("all", held, *sums, str(sum(scene.sessions.values())), style="bold")
    table.caption = (
        "Permits: the kernel's word. Sessions: the server's.\n"
        "The rest is what each process told, up to half a second ago."
    )
    table.caption_justify = "left"
    return table


def _told(one: "NimueProcessStats") -> list[str]:
    counts = (one.permits, one.poolused, one.poolfree, one.waiting, one.opened, one.shed)
    return [*map(str, (*counts, one.timeouts)), span(one.longest_hold)]


def span(seconds: float) -> str:
    if not seconds:
        return "-"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _table(columns: tuple[str, ...]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("process", no_wrap=True, vertical="bottom")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    return table


def _board_of_one(scene: Scene) -> "Table":
    """What each worker served, its pool, and its sessions as the server counts them."""
    table = _table(COLUMNS)
    own = str(scene.sessions.get(scene.master, 0))
    table.add_row(scene.title(scene.master), *[""] * (len(COLUMNS) - 1), own, style="dim")
    for pid in sorted({*scene.workers, *scene.team}):
        worker = scene.workers.get(pid, Worker())
        figures = [f"{worker.requests:,}", *map(str, worker.figures)]
        lives = pid in scene.team
        if not lives:
            figures[1:4] = ["-", "-", "-"]
        sessions = str(scene.sessions.get(pid, 0))
        table.add_row(scene.title(pid), *figures, sessions, style="" if lives else "red")
    return table
