"""(c) Fifty threads at once, five idle connections, and connect() takes long."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from stress.bench import fake
from stress.bench.contenders import Contender
from stress.bench.report import Part, Table, ratio
from stress.bench.runs import Context, start

THREADS, IDLE, MOST = 50, 5, 50
CONNECT, QUERY = 0.150, 0.002
REST = 0.3
TITLE = "the spike: 50 threads at once, 5 idle, at most 50, connect 150 ms, query 2 ms"
BARE = "bare: Semaphore(5)"


@dataclass(frozen=True)
class Served:
    """How a spike ended."""

    seconds: float
    count: int
    opened: int


def measure(ctx: Context) -> Part:
    """Time is counted from the moment the 50 waiting threads are let go (their start is not
    counted) to the last release. Connections are all connect() calls begun, the first 5 included,
    until 0.3 s after the last release, so those opened too late count as well. The bare
    reference shares 5 tokens by threading.Semaphore. SQLAlchemy has pool_size=5, max_overflow=45;
    psycopg2.pool closes what comes back above its minimum of 5. A run is cut off after 12 s
    (--quick: 1 s), and the rest let through at once; pools that take a second or more run once.
    """
    part = Part("c", TITLE, inspect.getdoc(measure) or "")
    runs: dict[str, list[Served]] = {BARE: [], **{c.name: [] for c in ctx.contenders}}
    pools = {c.name: c for c in ctx.contenders}
    cutoff = ctx.pick(12.0, 1.0)
    for name in ctx.interleaved(list(runs), ctx.pick(7, 3)):
        earlier = runs[name]
        if earlier and earlier[-1].seconds >= 1:
            continue
        earlier.append(_bare(cutoff) if name == BARE else _pooled(pools[name], cutoff))
    _tell(part, runs, cutoff)
    return part


def _pooled(contender: type[Contender], cutoff: float) -> Served:
    server = fake.Server()
    pool = contender(server, IDLE, MOST)
    server.latency = CONNECT
    seconds, count = _spike(pool.acquire, pool.release, cutoff, server.hurry)
    time.sleep(REST)
    pool.close()
    return Served(seconds, count, server.opened)


def _bare(cutoff: float) -> Served:
    room = threading.Semaphore(IDLE)
    seconds, count = _spike(room.acquire, lambda _: room.release(), cutoff, lambda: None)
    return Served(seconds, count, IDLE)


def _spike(
    acquire: Callable[[], Any],
    release: Callable[[Any], None],
    cutoff: float,
    hurry: Callable[[], None],
) -> tuple[float, int]:
    """Seconds until all were served and how many were, in time."""
    gate = threading.Event()
    ready = threading.Barrier(THREADS + 1)
    ends: list[float] = []
    errors: list[Exception] = []

    def work() -> None:
        ready.wait()
        gate.wait()
        try:
            conn = acquire()
            time.sleep(QUERY)
            release(conn)
        except Exception as error:
            errors.append(error)
        else:
            ends.append(time.perf_counter())

    workers = start(work, THREADS)
    ready.wait()
    time.sleep(0.02)
    begin = time.perf_counter()
    gate.set()
    for worker in workers:
        worker.join(max(0.0, begin + cutoff - time.perf_counter()))
    in_time = list(ends)
    hurry()
    for worker in workers:
        worker.join(10)
    if errors:
        raise errors[0]
    complete = len(in_time) == THREADS
    return (max(in_time) - begin if complete else cutoff), len(in_time)


def _tell(part: Part, runs: dict[str, list[Served]], cutoff: float) -> None:
    taken = {name: median(run.seconds for run in rounds) * 1e3 for name, rounds in runs.items()}
    opened = {name: median(run.opened for run in rounds) for name, rounds in runs.items()}
    rows = []
    for name in sorted(runs, key=lambda name: taken[name]):
        served = min(run.count for run in runs[name])
        least = min(run.seconds for run in runs[name]) * 1e3
        cut = served < THREADS
        part.figure(name, "until all are served", taken[name], "ms")
        part.figure(name, "opened", opened[name], "connections")
        rows.append(
            (
                name,
                f"> {taken[name]:,.0f} ms" if cut else f"{taken[name]:,.1f} ms",
                "-" if cut else f"{least:,.1f} ms",
                f"{served} of {THREADS}",
                "-" if cut else f"{opened[name]:.0f}",
                ratio(taken[name], taken.get("nimue")),
            )
        )
    head = ("pool", "all served", "least", "served", "opened", "to nimue")
    part.tables.append(Table(head, rows))
    if any(run.count < THREADS for rounds in runs.values() for run in rounds):
        part.notes.append(f"> : cut off after {cutoff:g} s.")
    complete = all(run.count == THREADS for run in runs.get("nimue", []))
    ours = taken.get("nimue") if complete else None
    part.at_most("nimue's spike, until all are served", 25.0, ours, "ms")
    part.at_most("nimue's spike, connections opened", 7, opened.get("nimue"), "")
