"""(a) What one acquire and release costs when nobody is in the way."""

from __future__ import annotations

import inspect
from statistics import median

from stress.bench import fake
from stress.bench.contenders import Contender
from stress.bench.report import Part, Table, ratio
from stress.bench.runs import Context, paired, repeat

SIZE = 10
TITLE = "uncontended acquire + release, one thread, 10 idle connections"


def measure(ctx: Context) -> Part:
    """Counted: the pool's own calls, its normal reset of a connection that is outside a
    transaction, and the `for` that repeats them (some 10 ns, the same for all). Every pool has
    its default checks on. Not counted: a driver or a server; rolling back is a Python call that
    sets one attribute. Rounds are short and interleaved in random order, all pools live in this
    process, and the collector runs as always. The ratio is the median of those of each round.
    Two habits are measured: dropped, where nobody holds the connection's handle any more at the
    next acquire (a web request has returned), and named, where a variable still does (a script's
    loop). Some pools can reuse a handle in the first case.
    """
    part = Part("a", TITLE, inspect.getdoc(measure) or "")
    pools = {c.name: c(fake.Server(), SIZE, SIZE) for c in ctx.contenders}
    try:
        for habit in ("dropped", "named"):
            _tell(part, habit, pools, _time(ctx, pools, habit))
    finally:
        for pool in pools.values():
            pool.close()
    return part


def _time(ctx: Context, pools: dict[str, Contender], habit: str) -> dict[str, list[float]]:
    """Nanoseconds per use: for each contender, one figure a round."""
    loops = {
        name: pool.loop if habit == "named" else pool.loop_dropped for name, pool in pools.items()
    }
    return repeat(ctx, loops, ctx.pick(81, 21))


def _tell(
    part: Part, habit: str, pools: dict[str, Contender], times: dict[str, list[float]]
) -> None:
    ours = times.get("nimue")
    ratios = {name: paired(taken, ours) for name, taken in times.items()} if ours else {}
    rows = []
    for name in sorted(times, key=lambda name: median(times[name])):
        middle, least = median(times[name]), min(times[name])
        part.figure(name, f"{habit}, median", middle, "ns")
        part.figure(name, f"{habit}, least", least, "ns")
        shown = [f"{middle:,.0f} ns", f"{least:,.0f} ns", pools[name].reset]
        to_ours = [ratio(ratios[name], 1.0), ratio(least, min(ours))] if ours else ["-", "-"]
        rows.append([name, *shown, *to_ours])
    head = (f"pool ({habit})", "median", "least", "reset by", "to nimue", "least to least")
    part.tables.append(Table(head, rows))

    rival = ratios.get("psycopg2.pool")
    ours_to_rival = 1 / rival if rival else None
    part.at_most(f"{habit}: nimue's time to psycopg2.pool's", 1.0, ours_to_rival, "x")
    part.at_least(f"{habit}: SQLAlchemy's time to nimue's", 7.0, ratios.get("SQLAlchemy"), "x")
    part.at_least(f"{habit}: psycopg_pool's time to nimue's", 3.0, ratios.get("psycopg_pool"), "x")
