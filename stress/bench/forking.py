"""(e) What a fork costs more because there is a pool."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from statistics import median

from stress.bench.report import Part, Table, ratio
from stress.bench.runs import Context, environment

TIMES = ("parent", "child", "next use, parent", "next use, child")
COLUMNS = (*TIMES, "pages, parent", "pages, child", "kept", "live")
SHOWN = {
    "plain": "20 sockets, no nimue",
    "idle": "20 idle, all closed",
    "lent": "20 idle, 1 out: severed",
    "dormant": "unused since a fork",
}
MODES = tuple(SHOWN)
POOLED = MODES[1:]
CONNECTIONS = 20
LIMIT = 300.0
TITLE = "what a fork costs more with 20 idle connections"


def measure(ctx: Context) -> Part:
    """Four processes fork in turns. One holds 20 socketpairs and never imported nimue. The others
    have a pool: one with 20 connections idle, which nimue closes before the fork; one with one
    more that is out, so that all 21 are inherited and severed; both are used before each fork, so
    that nimue's thread runs and has to be stopped; and one that is not used between its forks, like
    a preloading master's. Parent: from before os.fork() to its return there. Child: from the same
    moment to its return in the child. Of three forks in a row the least counts; the added cost is
    the median, over the rounds, of the difference to the first process. It includes copying
    nimue's own pages; those modules of the standard library that nimue imports are imported in
    all four. Children of the first have 20 live sockets, the others must have none. A goodbye to
    a real server is not counted: closing is one close(). Pages are those copied on the way: they
    depend less on the machine than the time does. What nimue puts off until the next use (a
    thread and connections in the parent, a new connection in the child) is shown, not added.
    """
    part = Part("e", TITLE, inspect.getdoc(measure) or "")
    if not any(contender.name == "nimue" for contender in ctx.contenders):
        part.notes.append("nimue is not there.")
        return part
    samples = _run(ctx)
    _tell(part, samples)
    return part


#: For each mode, for each round, for each column.
Samples = dict[str, list[list[float]]]


def _run(ctx: Context) -> Samples:
    helpers = {mode: _helper(mode) for mode in MODES}
    samples: Samples = {mode: [] for mode in MODES}
    try:
        for helper in helpers.values():
            _ask(helper, 5)
        for mode in ctx.interleaved(MODES, ctx.pick(120, 25)):
            forks = _ask(helpers[mode], 3)
            *times, live = zip(*forks, strict=True)
            samples[mode].append([*map(min, times), max(live)])
    finally:
        for helper in helpers.values():
            helper.communicate(timeout=30)
    return samples


def _helper(mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stress.bench.child", "forks", mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def _ask(helper: subprocess.Popen[str], count: int) -> list[list[float]]:
    assert helper.stdin and helper.stdout
    helper.stdin.write(f"{count}\n")
    helper.stdin.flush()
    answer: list[list[float]] = json.loads(helper.stdout.readline())
    return answer


def _middle(rows: Sequence[Sequence[float]]) -> dict[str, float]:
    return dict(zip(COLUMNS, map(median, zip(*rows, strict=True)), strict=True))


def _added(samples: Samples, mode: str, column: str) -> float:
    """The median, over the rounds, of what ``mode`` took longer than the plain process."""
    at = COLUMNS.index(column)
    return median(a[at] - b[at] for a, b in zip(samples[mode], samples["plain"], strict=True))


def _tell(part: Part, samples: Samples) -> None:
    middles = {mode: _middle(rows) for mode, rows in samples.items()}
    plain = middles["plain"]
    rows = []
    for mode in MODES:
        own = middles[mode]
        for column in TIMES:
            part.figure(SHOWN[mode], column, own[column], "us")
        for column in ("pages, parent", "pages, child"):
            part.figure(SHOWN[mode], column, own[column], "")
        added = [f"{_added(samples, mode, side):+,.0f} us" for side in ("parent", "child")]
        rows.append(
            [
                SHOWN[mode],
                *(f"{own[column]:,.0f} us" for column in ("parent", "child")),
                *(["-", "-"] if mode == "plain" else added),
                ratio(own["parent"], plain["parent"]),
                *(f"{own[column]:.0f}" for column in COLUMNS[4:]),
                *(f"{own[column]:,.0f} us" for column in ("next use, parent", "next use, child")),
            ]
        )
    head = ("process", "parent", "child", "added, parent", "added, child", "parent to plain")
    part.tables.append(
        Table((*head, "pages", "child", "kept", "live", "next use: parent", "child"), rows)
    )
    for column in ("parent", "child"):
        worst = max(_added(samples, mode, column) for mode in POOLED)
        part.figure("nimue", f"added in the {column}", worst, "us")
        part.at_most(f"added to a fork in the {column}, the worse case", LIMIT, worst, "us")
    live = max(row[-1] for mode in POOLED for row in samples[mode])
    part.at_most("live inherited sockets in any child", 0, live)
