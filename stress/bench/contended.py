"""(b) Many threads for few connections: how much gets done, and who has to wait."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

from stress.bench import fake
from stress.bench.report import Part, Table, ratio
from stress.bench.runs import Context, Crowd, crowd, paired

THREADS = 64
SIZE = 8
HOLD = 0.001
TITLE = f"{THREADS} threads on {SIZE} connections, each held 1 ms"

#: The references, which are no pools.
ALONE = "bare: 8 threads, no pool"
HAND_OFF = "bare: hand-off by locks"
SEMAPHORE = "bare: Semaphore(8)"


def measure(ctx: Context) -> Part:
    """A use is acquire, time.sleep(0.001), release. Uses count that began in time; waits count
    however late they end, so a thread that gets nothing is seen. The ideal is 8 threads that only
    sleep, with no pool and nobody to wake: 8 connections never idle. Two more references have 64
    threads: a queue of bare locks served first come, first served, and threading.Semaphore.
    Fair is 64/8 times the mean hold, as measured. Rounds are interleaved; the figures are medians
    of the rounds, the worst wait is the worst of all. psycopg2.pool cannot wait: it stands behind
    a threading.Semaphore(8).
    """
    part = Part("b", TITLE, inspect.getdoc(measure) or "")
    runs = _run(ctx)
    _tell(part, runs)
    return part


def _run(ctx: Context) -> dict[str, list[Crowd]]:
    runners: dict[str, Callable[[float], Crowd]] = {
        ALONE: _alone,
        HAND_OFF: _handed,
        SEMAPHORE: _guarded,
    }
    for contender in ctx.contenders:
        runners[contender.name] = lambda seconds, c=contender: _pooled(c, seconds)  # type: ignore[misc]
    runs: dict[str, list[Crowd]] = {name: [] for name in runners}
    for name in ctx.interleaved(list(runners), ctx.pick(5, 1)):
        runs[name].append(runners[name](ctx.pick(0.8, 0.6)))
    return runs


def _pooled(contender: Any, seconds: float) -> Crowd:
    pool = contender(fake.Server(), SIZE, SIZE)
    try:
        return crowd(pool.acquire, pool.release, THREADS, seconds, HOLD)
    finally:
        pool.close()


def _alone(seconds: float) -> Crowd:
    return crowd(lambda: None, lambda _: None, SIZE, seconds, HOLD)


def _guarded(seconds: float) -> Crowd:
    room = threading.Semaphore(SIZE)
    return crowd(room.acquire, lambda _: room.release(), THREADS, seconds, HOLD)


def _handed(seconds: float) -> Crowd:
    """First come, first served, by one lock a waiter: the least that any fair pool must do."""
    guard = threading.Lock()
    waiters: deque[Any] = deque()
    free = SIZE

    def acquire() -> None:
        nonlocal free
        with guard:
            if free:
                free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            waiters.append(turn)
        turn.acquire()

    def release(_: object) -> None:
        nonlocal free
        with guard:
            if waiters:
                waiters.popleft().release()
            else:
                free += 1

    return crowd(acquire, release, THREADS, seconds, HOLD)


def _tell(part: Part, runs: dict[str, list[Crowd]]) -> None:
    done = {name: [run.throughput for run in rounds] for name, rounds in runs.items()}
    waits = {
        name: [run.longest_wait * SIZE / THREADS / run.mean_hold for run in rounds]
        for name, rounds in runs.items()
    }
    rows = []
    for name in sorted(runs, key=lambda name: -median(done[name])):
        rounds = runs[name]
        longest = median(run.longest_wait for run in rounds) * 1e3
        worst = max(run.longest_wait for run in rounds) * 1e3
        least = median(min(run.per_thread, default=0) for run in rounds)
        most = median(max(run.per_thread, default=0) for run in rounds)
        part.figure(name, "uses per second", median(done[name]), "/s")
        part.figure(name, "longest wait", longest, "ms")
        part.figure(name, "longest wait to fair", median(waits[name]), "x")
        part.figure(name, "least uses of a thread", least, "")
        part.figure(name, "most uses of a thread", most, "")
        rows.append(
            (
                name,
                f"{median(done[name]):,.0f} /s",
                ratio(paired(done[name], done[ALONE]), 1.0),
                f"{least:.0f} - {most:.0f}",
                f"{longest:,.1f} ms",
                ratio(median(waits[name]), 1.0),
                f"{worst:,.1f} ms",
            )
        )
        if stuck := sum(run.stuck for run in rounds):
            part.notes.append(f"{name}: {stuck} threads were still waiting 10 s after the end.")
        if errors := [error for run in rounds for error in run.errors]:
            part.notes.append(f"{name}: {len(errors)} threads ended early: {errors[0]!r}")
    head = ("pool", "uses", "to ideal", "per thread", "longest wait", "to fair", "worst")
    part.tables.append(Table(head, rows))
    _aim(part, done, waits)


def _aim(part: Part, done: dict[str, list[float]], waits: dict[str, list[float]]) -> None:
    ours = done.get("nimue")
    rival = done.get("psycopg_pool")
    both = paired(ours, rival) if ours and rival else None
    part.at_least("nimue's throughput to psycopg_pool's", 1.0, both, "x")
    ideal = paired(ours, done[ALONE]) if ours else None
    part.at_least("nimue's throughput to the bare ideal", 0.95, ideal, "x")
    wait = median(waits["nimue"]) if ours else None
    part.at_most("nimue's longest wait to the fair one", 2.0, wait, "x")
