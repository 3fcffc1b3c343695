"""How matplotlib draws: SVG whose colours are the page's variables and whose text is text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stress.report.marks import COLOURS, Mark
from stress.report.svg import small
from stress.report.words import span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of processes that the page's style has, ``--s0`` and so on.
SEATS = 8
#: The page's variables. matplotlib is given a colour that stands for each.
NAMES = (
    *("ink", "muted", "grid", "card", "limit", "good", "bad", "unsure", "mid", "high", "others"),
    *(f"s{n}" for n in range(SEATS)),
    *(f"k{n}" for n in range(COLOURS)),
)
#: E.g. ``C["ink"]``.
C = {name: f"#00fe{n:02x}" for n, name in enumerate(NAMES)}

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.unicode_minus": False,
    "text.parse_math": False,
    "path.simplify_threshold": 0.2,
}


@dataclass(frozen=True)
class Paper:
    """A drawing's size in pixels: one for a desk, one for a phone."""

    name: str
    width: int
    left: int
    right: int
    text: float


WIDE = Paper("wide", 960, 96, 16, 11.5)
NARROW = Paper("narrow", 372, 74, 8, 11.0)
PAPERS = (WIDE, NARROW)


def draw(paper: Paper, height: int, name: str, paint: Callable[[Figure], None]) -> str:
    """What ``paint`` puts on a figure, as SVG. ``name`` makes its ids differ from all others."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**SETTINGS, "font.size": paper.text, "svg.hashsalt": name}):
        figure = Figure(figsize=(paper.width / 72, height / 72), facecolor="none")
        FigureCanvasSVG(figure)
        paint(figure)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    return _finished(out.getvalue(), paper)


def _finished(text: str, paper: Paper) -> str:
    """Small, and with the page's variables for colours."""
    text = re.sub(r"#00fe([0-9a-f]{2})", lambda found: _variable(found[1]), small(text))
    return text.replace("<svg", f'<svg class="{paper.name}" role="img"', 1)


def _variable(number: str) -> str:
    return f"var(--{NAMES[int(number, 16)]})"


def axes(figure: Figure, paper: Paper, box: tuple[float, float], end: float | None) -> Axes:
    """Axes between two heights, in pixels from below. ``end``: of time, if they show it."""
    width, height = paper.width, figure.get_size_inches()[1] * 72
    low, high = box
    across = (width - paper.left - paper.right) / width
    found = figure.add_axes((paper.left / width, low / height, across, (high - low) / height))
    found.set_facecolor("none")
    for side, spine in found.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(C["muted"])
        spine.set_linewidth(0.8)
    found.tick_params(which="both", colors=C["muted"], length=0, pad=6)
    found.grid(axis="y", color=C["grid"], linewidth=0.8)
    found.set_axisbelow(True)
    if end is not None:
        clock(found, end, paper)
    return found


def clock(found: Axes, end: float, paper: Paper) -> None:
    """Time across, the same in all drawings of a trial."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    most = 9 if paper is WIDE else 4
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600)
    step = next((one for one in steps if end / one <= most), 86400)
    found.set_xlim(0, end)
    found.xaxis.set_major_locator(FixedLocator([n * step for n in range(int(end / step) + 1)]))
    found.xaxis.set_major_formatter(FuncFormatter(lambda value, _: moment(value, end)))


def moment(value: float, end: float) -> str:
    """A time on an axis that ends there: ``12 s``, or ``3:20`` and ``1:03:20`` in long trials."""
    if end <= 180:
        return f"{value:g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def numbers(found: Axes, whole: bool = True) -> None:
    """Ticks of a linear axis upwards: ``whole`` numbers, or any."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    found.yaxis.set_major_locator(MaxNLocator(4, integer=whole, min_n_ticks=1))
    found.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.8g}"))


def lengths(axis: Any) -> None:
    """Ticks of a logarithmic axis of seconds, at powers of ten, as they are said."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: span(value)))
    axis.set_minor_formatter(NullFormatter())


def cross(found: Axes, marks: Sequence[Mark]) -> None:
    """A faint line at each happening that is rare enough."""
    for mark in marks:
        if mark.rare:
            for time in mark.times:
                found.axvline(time, color=C[mark.colour], linewidth=1, alpha=0.38, zorder=0.5)


def heading(figure: Figure, height: float, paper: Paper, text: str) -> None:
    """What axes show, above them, where one drawing has several."""
    total = figure.get_size_inches()[1] * 72
    figure.text(paper.left / paper.width, height / total, text, color=C["muted"], va="bottom")
