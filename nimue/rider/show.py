"""Tables for people: by rich where it is installed, else plain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def show(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, whole even where the output is no terminal."""
    cells = [[_cell(value) for value in row] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(_plain(headers, cells))
        return
    table = Table()
    for header in headers:
        table.add_column(Text(header), overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    _print(Console(), table)


def _print(console: Any, table: Any) -> None:
    from rich.measure import Measurement

    if not console.is_terminal:
        options = console.options.update(max_width=1_000_000)
        console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)


def _plain(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (headers, *rows)
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "null" if value is None else str(value)
