"""What `nimue top` shows: one picture, or a picture that is drawn again and again."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING

from nimue.cli.top_columns import COLUMNS, COMMAND, Column, headline, plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.live import Live
    from rich.table import Table

    from nimue.cli.top_gather import Picture, Process, Semaphore

#: Where it is not a terminal, a line is as long as it has to be, but for long commands.
WIDE, LONGEST_COMMAND, SHORTEST_COMMAND = 500, 80, 10
STYLES = {"stopped": "yellow", "dead": "red"}


def is_terminal() -> bool:
    return sys.stdout.isatty()


def console() -> Console:
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a command line may hold anything
    return Console(highlight=False, width=None if is_terminal() else WIDE)


def show(picture: Picture) -> None:
    out = console()
    out.print(render(picture, out.width))


def render(picture: Picture, width: int, note: str = "") -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    if not picture.semaphores:
        return Text(f"No semaphores in {plain(picture.directory)}{note}")
    parts: list[RenderableType] = [Text(f"Semaphores in {plain(picture.directory)}{note}", "dim")]
    for semaphore in picture.semaphores:
        style = "red" if semaphore.error else ""
        title = Text.assemble((plain(semaphore.name), "bold"), (f"  {headline(semaphore)}", style))
        parts += ["", title]
        if semaphore.processes:
            grid, absent = table(semaphore, width)
            parts.append(grid)
            if absent:
                parts.append(Text(f"(no room for: {', '.join(absent)})", "dim"))
    return Group(*parts)


def table(semaphore: Semaphore, width: int) -> tuple[Table, list[str]]:
    """And the headings of the columns for which there is no room: half a number is a wrong one."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = [column for column in COLUMNS if column.is_shown(semaphore.processes)]
    kept, command = fit(shown, semaphore, width)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in kept:
        if column is COMMAND:
            grid.add_column(column.heading, width=command)
        elif column.heading == "state":
            grid.add_column(column.heading, no_wrap=True)
        else:
            heading = column.heading.replace(" ", "\n")
            grid.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for process in semaphore.processes:
        cells = [Text(column.cell(process), no_wrap=True, overflow="ellipsis") for column in kept]
        grid.add_row(*cells, style=_style(process))
    return grid, [column.heading for column in shown if column not in kept]


def fit(shown: list[Column], semaphore: Semaphore, width: int) -> tuple[list[Column], int]:
    """The columns for which there is room, and what the command has of it, which gives way."""
    kept: list[Column] = []
    room = width - 2
    for column in shown:
        cells = [column.cell(process) for process in semaphore.processes]
        need = max(map(len, [*cells, *column.heading.split()])) + 1
        command = min(need, LONGEST_COMMAND, room)
        if column is COMMAND and command >= min(need, SHORTEST_COMMAND):
            return [*kept, column], command
        if column is not COMMAND and need <= room:
            kept.append(column)
            room -= need
    return kept, 0


def _style(process: Process) -> str:
    return STYLES.get(process.state, "dim" if process.elsewhere else "")


class Page:
    """A picture on one screen: what does not fit is cut off at the end, and it says so."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment, Segments

        note = time.strftime("   %H:%M:%S   Ctrl-C ends")
        lines = console.render_lines(
            render(self._picture, options.max_width, note), options.update(height=None)
        )
        room = console.size.height
        if len(lines) > room:
            left = len(lines) - room + 1
            told = f"... {left} more lines: enlarge the window, or name one semaphore"
            lines = [*lines[: room - 1], [Segment(told)]]
        for line in lines:
            yield Segments([*line, Segment.line()])


def live() -> Live:
    from rich.live import Live

    return Live(console=console(), screen=True, auto_refresh=False)
