"""Drawings of the questions: how long answers took, how many came, what processes waited."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stress.bench.runs import percentile
from stress.report import bins
from stress.report.canvas import NARROW, C, Paper, axes, cross, lengths, numbers
from stress.report.seen import Seen
from stress.report.words import listed, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAN = float("nan")
#: Failed questions that are drawn each by itself; more are drawn once in each field of a raster.
SINGLE = 300
PERCENTILES = ("p50", "p99", "longest")
#: How questions fail, as ``bins.failure`` says it, with shape, the same as a character, and colour.
Failed = tuple[str, str, str, str]
FAILED: tuple[Failed, ...] = (
    ("never ended", "^", "▲", "bad"),
    ("unknown", "d", "♦", "unsure"),
    ("refused", "x", "x", "high"),
    ("wrong", "X", "✖", "bad"),
)


def latency(seen: Seen, figure: Figure, paper: Paper, height: int) -> None:
    """Percentiles over time, on a logarithmic scale."""
    found = axes(figure, paper, (26, height - 12), seen.end)
    spans = seen.latencies
    middles = seen.questions.middles
    p50 = [one.p50 if one else NAN for one in spans]
    p99 = [one.p99 if one else NAN for one in spans]
    longest = [one.longest if one else NAN for one in spans]
    found.set_yscale("log")
    found.fill_between(middles, p50, p99, color=C["mid"], alpha=0.14, linewidth=0)
    single = {"marker": "o", "markersize": 3} if sum(map(bool, spans)) < 40 else {}
    found.plot(middles, longest, color=C["high"], linewidth=3, alpha=0.55, **single)  # type: ignore[arg-type]
    found.plot(middles, p99, color=C["mid"], linewidth=1.4, **single)  # type: ignore[arg-type]
    found.plot(middles, p50, color=C["ink"], linewidth=1.6, **single)  # type: ignore[arg-type]
    ended = [one.ended - one.began for _, one in seen.failed if one.ended is not None]
    low, high = _range([*p50, *longest, *ended])
    found.set_ylim(low, high)
    lengths(found.yaxis)
    cross(found, seen.marks)
    area = 22 if len(seen.failed) <= SINGLE else 11
    for (_, shape, _, colour), places in _failed(seen, low, high):
        x, y = zip(*places, strict=True)
        found.scatter(x, y, s=area, color=C[colour], marker=shape, zorder=3, clip_on=False)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The powers of ten between which there is room for all."""
    known = [max(value, bins.SHORTEST) for value in values if not math.isnan(value)]
    if not known:
        return 1e-3, 1.0
    low = 10.0 ** math.floor(math.log10(min(known)))
    return low, 10.0 ** math.ceil(math.log10(max(known)) + 0.02) * 1.3


Places = list[tuple[float, float]]


def _failed(seen: Seen, low: float, high: float) -> Iterator[tuple[Failed, Places]]:
    """Where the failed are marked: what never ended, at the upper edge."""
    raster = len(seen.failed) > SINGLE
    across = bins.Axis.of(seen.end, 80)
    for kind in FAILED:
        places: dict[tuple[float, float], None] = {}
        for what, one in seen.failed:
            if what != kind[0]:
                continue
            took = high / 1.3 if one.ended is None else max(one.ended - one.began, low)
            x, y = one.began, took
            if raster:
                x = across.middles[across.at(x)]
                y = 10 ** (round(math.log10(y) * 4) / 4)
            places[x, min(y, high)] = None
        if places:
            yield kind, list(places)


def told_latency(seen: Seen) -> str:
    known = seen.figures
    if not known["answered"]:
        return "No question was answered."
    half, most, longest = (span(known[f"latency_{one}_s"] or 0) for one in PERCENTILES)
    failed = Counter(kind for kind, _ in seen.failed)
    marked = [f"{failed[kind]:,} {kind}" for kind, _, _, _ in FAILED if failed[kind]]
    return (
        f"From asking to the answer, by when it was asked, in spans of {seen.questions.told}, on a"
        f" logarithmic scale. Half of all {known['answered']:,} answers came within {half}, 99 %"
        f" within {most}; the longest took {longest}. "
        + (f"Marked: {listed(marked)}." if marked else "No question failed.")
    )


def rate(seen: Seen, figure: Figure, paper: Paper, height: int) -> None:
    """Answered per second, and on top the failed."""
    found = axes(figure, paper, (26, height - 12), seen.end)
    answered, failed = seen.rates
    edges = [*seen.questions.begins, seen.end]
    found.stairs(answered, edges, fill=True, color=C["good"], alpha=0.28, linewidth=0)
    found.stairs(answered, edges, color=C["good"], linewidth=1.3, baseline=None)
    if any(failed):
        both = [one + other for one, other in zip(answered, failed, strict=True)]
        found.stairs(both, edges, baseline=answered, fill=True, color=C["bad"], linewidth=0)
    found.set_ylim(0, max(1.0, max(answered, default=0) * 1.12 + max(failed, default=0)))
    numbers(found)
    cross(found, seen.marks)


def told_rate(seen: Seen) -> str:
    known = seen.figures
    failed = (known["refused"] or 0) + (known["unknown"] or 0)
    answered, _ = seen.rates
    whole = answered[:-1] or answered
    return (
        f"Questions answered per second, in spans of {seen.questions.told}:"
        f" {known['answered_per_second'] or 0:,.0f} on average, {max(whole):,.0f} at best,"
        f" {min(whole):,.0f} at worst. "
        + (f"On top, in red, the {failed:,} that failed." if failed else "None failed.")
    )


def waits(seen: Seen, figure: Figure, paper: Paper, height: int) -> None:
    """Of each process a strip: half of its waits in the bar, nearly all on the line."""
    rows = seen.waits
    found = axes(figure, paper, (26, height - 6), None)
    found.grid(visible=False)
    found.grid(axis="x", color=C["grid"], linewidth=0.8)
    found.set_xscale("log")
    for n, (_, pid, values) in enumerate(rows):
        colour = seen.colour(pid)
        p1, p25, p50, p75, p99 = (percentile(values, p) for p in (1, 25, 50, 75, 99))
        found.hlines(n, p1, p99, color=colour, linewidth=1.6)
        found.hlines(n, p25, max(p75, p25 * 1.02), color=colour, linewidth=8)
        found.plot([p50], [n], "|", color=C["ink"], markersize=11, markeredgewidth=2)
        found.plot([values[-1]], [n], "o", color=colour, markersize=3.5)
    found.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    found.set_ylim(len(rows) - 0.4, -0.6)
    longest = max(values[-1] for _, _, values in rows)
    found.set_xlim(min(values[0] for _, _, values in rows) * 0.8, longest * 1.4)
    lengths(found.xaxis)
    if paper is NARROW:
        found.tick_params(labelsize=paper.text - 1)


def told_waits(seen: Seen) -> str:
    known = seen.figures
    half, most, longest = (span(known[f"wait_{one}_s"] or 0) for one in PERCENTILES)
    who, _, _ = max(seen.waits, key=lambda row: row[2][-1])
    count = sum(len(values) for _, _, values in seen.waits)
    return (
        "How long processes waited for a connection: the bar holds the middle half of the waits of"
        " one, the stroke is their median, the line reaches from 1 % to 99 %, the dot is the"
        f" longest. Of all {count:,} waits half were within {half} and 99 % within {most}; the"
        f" longest, {longest}, was that of {who}."
    )
