"""(c) How long it takes from one process's give back to another's permit."""

from __future__ import annotations

import inspect
from statistics import median

from stress.bench.report import Part, Table, number, ratio
from stress.bench.runs import Context, percentile
from stress.bench.semaphore.handover import hand_over
from stress.bench.semaphore.subjects import OURS, POSIX, both, room

ROUNDS = 10
MEDIAN, WORST = 0.3, 2.0
TITLE = "wake-up across processes: from give back in one to the permit in another"


def measure(ctx: Context) -> Part:
    """Two processes and one permit, which goes back and forth. Counted: from just before the one
    gives back to when the acquire() of the other, which waits, has returned. The other has gone to
    sleep 2 to 6 ms before, so what is counted includes waking the process. Rounds are interleaved,
    each with new processes, and every hand-over counts, the first of a round as well.
    """
    part = Part("c", TITLE, inspect.getdoc(measure) or "")
    times: dict[str, list[float]] = {OURS: [], POSIX: []}
    with room() as folder:
        makers = both(1, folder)
        for name in ctx.interleaved(list(makers), ROUNDS):
            times[name] += hand_over(makers[name], 1, ctx.pick(100, 20), ctx.rng)
    tell(part, "wake-up", times)
    part.at_most("wake-up, median", MEDIAN, median(times[OURS]), "ms")
    part.at_most("wake-up, p99", WORST, percentile(times[OURS], 99), "ms")
    return part


def tell(part: Part, what: str, times: dict[str, list[float]], base: str = POSIX) -> None:
    """Table and figures of what takes milliseconds."""
    rows = []
    ground = median(times[base]) if times.get(base) else None
    for name, taken in times.items():
        seen = {
            "median": median(taken),
            "p90": percentile(taken, 90),
            "p99": percentile(taken, 99),
            "most": max(taken),
        }
        for which, value in seen.items():
            part.figure(name, f"{what}, {which}", value, "ms")
        shown = [f"{number(value)} ms" for value in (min(taken), *seen.values())]
        rows.append([name, f"{len(taken):,}", *shown, ratio(seen["median"], ground)])
    head = (what, "count", "least", "median", "p90", "p99", "most", f"to {base}")
    part.tables.append(Table(head, rows))
