"""(a) What one acquire and give back costs when nobody is in the way."""

from __future__ import annotations

import inspect
from statistics import median

from stress.bench.report import Part, Table, ratio
from stress.bench.runs import Context, paired, repeat
from stress.bench.semaphore.subjects import (
    BOUNDED,
    OURS,
    POSIX,
    Bounded,
    Ours,
    Posix,
    closing,
    room,
)

LIMIT = 5
MOST = 6.0
#: Milliseconds that one loop takes in a round.
ROUND = 2.0
WITH = "nimue, with block"
TITLE = f"uncontended acquire + give back, one thread, limit {LIMIT}, all free"


def measure(ctx: Context) -> Part:
    """Counted: acquire() and the permit's give_back(), or the with block, and the `for` that
    repeats them. nimue's make three system calls: to see that the lock file is still there, to
    lock a byte, to unlock it. Those of POSIX make none while permits are free. Rounds of some 2 ms,
    which a busy machine seldom cuts in two, are interleaved in random order, in one process; the
    ratio is the median of those of each round.
    """
    part = Part("a", TITLE, inspect.getdoc(measure) or "")
    with room() as folder, closing(Ours(LIMIT, folder)) as ours:
        loops = {
            OURS: ours.loop,
            WITH: ours.with_loop,
            POSIX: Posix(LIMIT).loop,
            BOUNDED: Bounded(LIMIT).loop,
        }
        times = repeat(ctx, loops, ctx.pick(401, 101), ROUND)
    tell(part, "acquire + give back", times)
    part.at_most("acquire + give back, median", MOST, median(times[OURS]) / 1e3, "us")
    return part


def tell(part: Part, what: str, times: dict[str, list[float]], base: str = POSIX) -> None:
    """Table and figures of what costs nanoseconds."""
    rows = []
    for name, taken in times.items():
        middle, least, most = median(taken), min(taken), max(taken)
        part.figure(name, f"{what}, median", middle, "ns")
        part.figure(name, f"{what}, least", least, "ns")
        shown = [f"{value:,.0f} ns" for value in (middle, least, most)]
        rows.append([name, *shown, ratio(paired(taken, times[base]), 1.0)])
    part.tables.append(Table((what, "median", "least", "most", f"to {base}"), rows))
