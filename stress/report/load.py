"""Drawings of the processes: what befell them, their sessions, and what they took up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stress.report import bins
from stress.report.canvas import NARROW, SEATS, C, Paper, axes, cross, heading, numbers
from stress.report.marks import Mark
from stress.report.seen import Seen
from stress.report.words import listed, several, size, span
from stress.trial.record import Health

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Pixels for a row of faults.
ROW = 21
#: Happenings of a kind that are marked with its shape; more are strokes.
SHAPED = 120
#: Processes whose health is drawn.
LINES = 40
HEALTH: tuple[tuple[str, Callable[[Health], float]], ...] = (
    ("memory, MiB", lambda one: one.memory / 2**20),
    ("descriptors", lambda one: one.descriptors),
    ("threads", lambda one: one.threads),
)


def faults(seen: Seen, figure: Figure, paper: Paper, height: int) -> None:
    """A row for each kind."""
    found = axes(figure, paper, (26, height - 4), seen.end)
    for n, mark in enumerate(seen.marks):
        _row(found, n, mark, bins.Axis.of(seen.end, bins.MOST * 2))
    names = [mark.kind for mark in seen.marks]
    found.set_yticks(range(len(names)), names)
    found.set_ylim(len(names) - 0.5, -0.5)
    cross(found, seen.marks)
    for label, mark in zip(found.get_yticklabels(), seen.marks, strict=True):
        label.set_color(C[mark.colour])
        label.set_fontsize(paper.text - (1 if paper is NARROW else 0))


def _row(found: Axes, n: int, mark: Mark, axis: bins.Axis) -> None:
    colour = C[mark.colour]
    if len(mark.times) <= SHAPED:
        found.scatter(mark.times, [n] * len(mark.times), marker=mark.shape, s=30, color=colour,
                      linewidths=0, clip_on=False, alpha=0.9)
        return
    counts: dict[int, int] = {}
    for time in mark.times:
        counts[axis.at(time)] = counts.get(axis.at(time), 0) + 1
    for many in (False, True):  # strokes that stand for several are darker
        times = [axis.middles[one] for one, count in counts.items() if (count > 1) is many]
        found.vlines(times, n - 0.34, n + 0.34, color=colour, linewidth=1.2,
                     alpha=0.95 if many else 0.5)


def told_faults(seen: Seen) -> str:
    every = len(seen.record.happenings)
    crossed = [mark.kind for mark in seen.marks if mark.rare]
    reclaimed = seen.record.reclaimed
    text = f"{several(every, 'happening')} of {several(len(seen.marks), 'kind')}, a row for each. "
    if len(crossed) == len(seen.marks):
        text += "Each is a faint line through the plots below, too. "
    elif crossed:
        text += f"The rare ones, {listed(crossed)}, are faint lines through the plots below, too. "
    if reclaimed is not None:
        text += f"{several(reclaimed, 'permit')} were taken back from the dead."
    return text.strip()


def sessions(seen: Seen, figure: Figure, paper: Paper, height: int) -> None:
    """Stacked by process, under the limit."""
    found = axes(figure, paper, (26, height - 14), seen.end)
    axis = seen.looks
    spans = bins.fullest(seen.record.looks, axis)
    edges = [*axis.begins, seen.end]
    below = [0.0] * axis.count
    for (seat, turn), counts in _layers(seen.seats, spans).items():
        above = [low + count for low, count in zip(below, counts, strict=True)]
        colour = C[f"s{seat}"] if seat < SEATS else C["others"]
        if any(counts):
            found.fill_between(edges, [*below, below[-1]], [*above, above[-1]], step="post",
                               where=_where(counts), color=colour, alpha=(0.9, 0.62)[turn],
                               linewidth=0)
        below = above
    limit = seen.record.limit
    if limit is not None:
        found.axhline(limit, color=C["limit"], linewidth=1.4, linestyle=(0, (5, 3)))
        found.annotate(f"limit {limit}", (1, limit), (-2, 3), xycoords=("axes fraction", "data"),
                       textcoords="offset points", ha="right", va="bottom", color=C["limit"])
    found.set_ylim(0, max([limit or 1, *below]) * 1.18)
    numbers(found)
    cross(found, seen.marks)


def _where(counts: list[float]) -> list[bool]:
    """The edges of the spans that have something: steps need that on their right, too."""
    some = [count > 0 for count in counts]
    return [one or before for one, before in zip([*some, False], [False, *some], strict=True)]


def _layers(
    seats: bins.Seats, spans: Sequence[Mapping[int, int]]
) -> dict[tuple[int, int], list[float]]:
    """Of each seat two layers, for those who sit there by turns; above them all the others."""
    found: dict[tuple[int, int], list[float]] = {}
    for n, sessions in enumerate(spans):
        for pid, number in sessions.items():
            if number:
                seat = min(seats.seat[pid], SEATS)
                turn = seats.turn[pid] % 2 if seat < SEATS else 0
                found.setdefault((seat, turn), [0.0] * len(spans))[n] += number
    return dict(sorted(found.items()))


def told_sessions(seen: Seen) -> str:
    record, looks = seen.record, seen.record.looks
    processes, limit = len(seen.seats.seat), record.limit
    most = f"{several(record.sessions, 'session')} at one look"
    text = (
        f"What the server listed, in steps of {seen.looks.told}, each as it was at its fullest;"
        f" {len(looks):,} changes were seen. Colours are processes: {processes:,} were seen,"
        f" {seen.at_once} at most at once, and who follows another takes over its colour in another"
        f" shade{'; grey: those for whom no colour was left' if seen.crowded else ''}. "
    )
    if limit is None:
        return text + f"There was no limit; the most were {most}."
    over = sum(look.total > limit for look in looks)
    return text + (
        f"The most were {most}, {record.lasting} of them lasting, under a limit of {limit}"
        + (f"; {several(over, 'look')} saw more." if over else ".")
    )


def health(seen: Seen, figure: Figure, paper: Paper, height: int) -> None:
    """Three small plots, a line for each process."""
    lines = bins.thinned(seen.record.health, bins.Axis.of(seen.end, bins.MOST))
    longest = sorted(lines.values(), key=lambda one: one[0].at - one[-1].at)[:LINES]
    each = height / len(HEALTH)
    for n, (what, value) in enumerate(HEALTH):
        top = height - n * each
        found = axes(figure, paper, (top - each + 26, top - 22), seen.end)
        heading(figure, top - 16, paper, what)
        for samples in longest:
            found.plot([one.at for one in samples], [value(one) for one in samples],
                       color=seen.colour(samples[0].pid), linewidth=1.2, alpha=0.85)
        found.set_ylim(*_room([value(one) for one in seen.record.health]))
        found.tick_params(labelbottom=n == len(HEALTH) - 1)
        numbers(found, whole=n > 0)
        cross(found, seen.marks)


def _room(values: list[float]) -> tuple[float, float]:
    """From 0, or from a little below where all are far above it: what grows is to be seen."""
    least, most = min(values), max(1.0, *values)
    room = max((most - least) * 0.2, 1.0)
    return (0.0 if least < most / 2 else least - room), most + room


def told_health(seen: Seen) -> str:
    samples = seen.record.health
    lines = bins.thinned(samples, bins.Axis.of(seen.end, 20))
    longest = max(lines.values(), key=lambda one: one[-1].at - one[0].at)
    first, last = longest[0], longest[-1]
    most = [max(samples, key=value) for _, value in HEALTH]
    drawn = f", the {LINES} that lived longest" if len(lines) > LINES else ""
    processes = several(len(lines), "process", "processes")
    return (
        f"{processes}{drawn}, in the colours of the sessions. At most {size(most[0].memory)},"
        f" {several(most[1].descriptors, 'descriptor')} and {several(most[2].threads, 'thread')} in"
        f" one process. {first.pid}, which lived longest, had {size(first.memory)} when"
        f" {span(last.at - first.at)} began and {size(last.memory)} at their end; descriptors"
        f" {first.descriptors} and {last.descriptors}, threads {first.threads} and {last.threads}."
        " The scales need not begin at 0."
    )
