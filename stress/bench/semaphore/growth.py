"""(f) Does it cost more with a higher limit, or with more who wait?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from statistics import median

from stress.bench.report import Part, Table, number, ratio
from stress.bench.runs import Context, paired, percentile, repeat
from stress.bench.semaphore.crew import Crew, Line, crew
from stress.bench.semaphore.handover import hand_over
from stress.bench.semaphore.subjects import OURS, POSIX, Ours, Posix, Subject, both, closing, room
from stress.bench.semaphore.uncontended import ROUND

LIMITS = (5, 50, 500)
WAITING = (1, 8, 64)
FREE = "all free"
STATES = (FREE, "all but one held elsewhere")
TITLE = "growth: by the limit, and by the number of processes that wait"

Case = tuple[str, int]
Loop = Callable[[int], None]


def measure(ctx: Context) -> Part:
    """By the limit: acquire + give back as in (a) and asking as in (b), once with all permits
    free, once with all but one held by another process. By those who wait: hand-overs as in (c),
    each while so many processes wait, which all look again by themselves meanwhile; a permit
    that is given back goes to one of them. Growth is each size's ratio to the smallest:
    by the limit the median of those of each round, by those who wait that of the medians.
    """
    part = Part("f", TITLE, inspect.getdoc(measure) or "")
    with room() as folder:
        for state in STATES:
            _by_limit(ctx, part, folder, state)
        _by_waiting(ctx, part, folder)
    return part


def _by_limit(ctx: Context, part: Part, folder: str, state: str) -> None:
    with ExitStack() as stack:
        subjects: dict[Case, Subject] = {}
        for limit in LIMITS:
            ours = stack.enter_context(closing(Ours(limit, folder, f"limit-{limit}")))
            subjects |= {(OURS, limit): ours, (POSIX, limit): Posix(limit)}
        holders = stack.enter_context(crew())
        if state != FREE:
            for case, subject in subjects.items():
                _hold(holders, subject, case[1] - 1)
        takes: dict[Case, Loop] = {case: subject.loop for case, subject in subjects.items()}
        _by_loop(ctx, part, f"acquire + give back, {state}", takes)
        asks: dict[Case, Loop] = {case: subject.ask for case, subject in subjects.items()}
        _by_loop(ctx, part, f"asking, {state}", asks)


def _hold(holders: Crew, subject: Subject, count: int) -> None:
    def work(line: Line) -> None:
        line.tell(sum(subject.take() for _ in range(count)))
        line.hear()

    if holders.fork(work).hear() != count:
        raise RuntimeError(f"not all of {count} permits were free")


def _by_loop(ctx: Context, part: Part, what: str, loops: Mapping[Case, Loop]) -> None:
    times = repeat(ctx, loops, ctx.pick(101, 25), ROUND)
    rows = []
    for name in (OURS, POSIX):
        middles = [median(times[name, limit]) for limit in LIMITS]
        for limit, value in zip(LIMITS, middles, strict=True):
            part.figure(name, f"{what}, limit {limit}", value, "ns")
        grown = [ratio(paired(times[name, limit], times[name, LIMITS[0]]), 1) for limit in LIMITS]
        rows.append([name, *(f"{value:,.0f} ns" for value in middles), *grown[1:]])
    head = (f"{what}, limit", *map(str, LIMITS), *(f"{limit} to 5" for limit in LIMITS[1:]))
    part.tables.append(Table(head, rows))


def _by_waiting(ctx: Context, part: Part, folder: str) -> None:
    times: dict[str, dict[int, list[float]]] = {
        name: {waiting: [] for waiting in WAITING} for name in (OURS, POSIX)
    }
    cases = [(name, waiting) for name in times for waiting in WAITING]
    for name, waiting in ctx.interleaved(cases, ctx.pick(4, 1)):
        make = both(1, folder)[name]
        times[name][waiting] += hand_over(make, waiting, ctx.pick(50, 30), ctx.rng)
    rows = []
    for name, by_size in times.items():
        middles = [median(taken) for taken in by_size.values()]
        worst = [percentile(taken, 99) for taken in by_size.values()]
        for which, values in (("median", middles), ("p99", worst)):
            for waiting, value in zip(WAITING, values, strict=True):
                part.figure(name, f"wake-up, {waiting} waiting, {which}", value, "ms")
            shown = [f"{number(value)} ms" for value in values]
            grown = [ratio(value, values[0]) for value in values[1:]]
            rows.append([f"{name}, {which}", *shown, *grown])
    head = ("wake-up, processes waiting", *map(str, WAITING))
    part.tables.append(Table((*head, *(f"{size} to 1" for size in WAITING[1:])), rows))
