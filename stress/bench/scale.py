"""(d) Does a use cost more with more threads, or with more connections?"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Sequence
from statistics import median

from stress.bench import fake
from stress.bench.contenders import Contender
from stress.bench.report import Part, Table, ratio
from stress.bench.runs import Context, paired, start

THREADS = (1, 4, 16, 64, 256)
CONNECTIONS = (1, 10, 100, 1000)
#: Two loops of the same code differ by as much on a machine that is not quiet.
NOISE = 1.15
TITLE = "nanoseconds per use, by threads and by connections"

#: For each contender: for each size, the samples.
Samples = dict[str, dict[int, list[float]]]


def measure(ctx: Context) -> Part:
    """By threads: T threads in a tight loop on T connections, so that nobody ever waits for one;
    wall time over uses, which under the interpreter's one lock is the cost of each plus that of
    threads in each other's way. By connections: one thread, N connections, either all idle or
    half of them out (at least one is in); the least of three loops. The loops are those of (a).
    Opening the connections is not counted. Cells are medians of the rounds; growth is the median
    of each round's last size to its first. Up to 1.15 is taken for noise.
    """
    part = Part("d", TITLE, inspect.getdoc(measure) or "")
    threads = ctx.pick(THREADS, THREADS[:-1])
    crowds = _collect(ctx, threads, ctx.pick(3, 1), _by_threads(ctx.pick(0.15, 0.05)))
    _tell(part, "by threads", crowds, threads)
    for title, out in (("all idle", False), ("half of them out", True)):
        sizes = _collect(ctx, CONNECTIONS, ctx.pick(7, 3), _by_connections(out))
        growth = _tell(part, f"by connections, {title}", sizes, CONNECTIONS)
        part.at_most(f"nimue's growth from 1 to 1,000, {title}", NOISE, growth.get("nimue"), "x")
    return part


def _collect(
    ctx: Context,
    sizes: Sequence[int],
    rounds: int,
    sample: Callable[[type[Contender], int], float],
) -> Samples:
    found: Samples = {c.name: {size: [] for size in sizes} for c in ctx.contenders}
    for contender in ctx.interleaved(ctx.contenders, rounds):
        for size in ctx.interleaved(sizes, 1):
            found[contender.name][size].append(sample(contender, size))
    return found


def _by_threads(seconds: float) -> Callable[[type[Contender], int], float]:
    def sample(contender: type[Contender], threads: int) -> float:
        pool = contender(fake.Server(), threads, threads)
        try:
            return _tight(pool, threads, seconds)
        finally:
            pool.close()

    return sample


def _tight(pool: Contender, threads: int, seconds: float) -> float:
    gate = threading.Event()
    clock = time.perf_counter
    used: list[int] = []
    end = 0.0

    def work() -> None:
        gate.wait()
        count = 0
        while clock() < end:
            pool.loop(100)
            count += 100
        used.append(count)

    workers = start(work, threads)
    begin = clock()
    end = begin + seconds
    gate.set()
    for worker in workers:
        worker.join(30)
    return (clock() - begin) * 1e9 / max(1, sum(used))


def _by_connections(out: bool) -> Callable[[type[Contender], int], float]:
    def sample(contender: type[Contender], size: int) -> float:
        pool = contender(fake.Server(), size, size)
        kept = pool.keep_out(size // 2) if out else []
        try:
            pool.loop(1000)
            return min(_loop(pool, 1500) for _ in range(3))
        finally:
            for conn in kept:
                pool.put_back(conn)
            pool.close()

    return sample


def _loop(pool: Contender, count: int) -> float:
    begin = time.perf_counter_ns()
    pool.loop(count)
    return (time.perf_counter_ns() - begin) / count


def _tell(part: Part, title: str, found: Samples, sizes: Sequence[int]) -> dict[str, float]:
    """Add the table and return each contender's growth."""
    growth = {}
    rows = []
    middles = {name: [median(samples[size]) for size in sizes] for name, samples in found.items()}
    for name, values in sorted(middles.items(), key=lambda item: item[1][0]):
        growth[name] = paired(found[name][sizes[-1]], found[name][sizes[0]])
        for size, value in zip(sizes, values, strict=True):
            part.figure(name, f"{title}: {size}", value, "ns")
        last = middles["nimue"][-1] if "nimue" in middles else None
        shown = [f"{value:,.0f}" for value in values]
        rows.append([name, *shown, ratio(growth[name], 1.0), ratio(values[-1], last)])
    head = (title, *(f"{size:,}" for size in sizes), "growth", "to nimue")
    part.tables.append(Table(head, rows))
    return growth
