"""(e) What those cost who only wait."""

from __future__ import annotations

import inspect
import threading
import time
from statistics import fmean

from stress.bench.report import Part, Table
from stress.bench.runs import Context
from stress.bench.semaphore.crew import Child, Line, crew, until
from stress.bench.semaphore.subjects import OURS, POSIX, Subject, both, closing, room

WAITERS = 32
#: Processes; the threads of each are 32 divided by them.
SHAPES = (8, 32)
LIMIT = 3.0
SETTLE = 0.5
TITLE = f"{WAITERS} waiters, and nothing happens"

Case = tuple[str, int]


def measure(ctx: Context) -> Part:
    """One process has the only permit; 32 threads wait for it, in 8 processes of 4 or in 32 of one.
    Counted: the processor time of all these processes, as the kernel has it, over some seconds
    that begin half a second after all wait; in percent of one core. Starting them is not counted.
    nimue has one thread a process look again by itself, less than 20 times a second; that all 32
    waited to the end is looked up. The verdict is on 8 processes of 4 threads.
    """
    part = Part("e", TITLE, inspect.getdoc(measure) or "")
    cases = [(name, processes) for name in (OURS, POSIX) for processes in SHAPES]
    seen: dict[Case, list[float]] = {case: [] for case in cases}
    with room() as folder:
        for name, processes in ctx.interleaved(cases, ctx.pick(3, 1)):
            with closing(both(1, folder)[name]()) as subject:
                share = _rest(subject, processes, ctx.pick(3.0, 1.0))
            seen[name, processes].append(share)
    _tell(part, seen)
    return part


def _rest(subject: Subject, processes: int, seconds: float) -> float:
    """Percent of a core that all of them take."""
    subject.take()
    with crew() as made:
        threads = WAITERS // processes
        children = [made.fork(lambda line: _wait(line, subject, threads)) for _ in range(processes)]
        for child in children:
            child.hear()
        _all_wait(subject)
        time.sleep(SETTLE)
        begun = time.monotonic_ns()
        before = _spent(children)
        time.sleep(seconds)
        after = _spent(children)
        taken = time.monotonic_ns() - begun
        _all_wait(subject)
    subject.give_back()
    return (after - before) / taken * 100


def _all_wait(subject: Subject) -> None:
    if subject.waiting() is not None:
        until(lambda: subject.waiting() == WAITERS, f"{WAITERS} threads wait")


def _wait(line: Line, subject: Subject, threads: int) -> None:
    """Wait by so many threads, and say what it costs when asked."""
    for _ in range(threads):
        threading.Thread(target=subject.take, args=(1000.0,), daemon=True).start()
    while True:
        line.tell(time.process_time_ns())
        line.hear()


def _spent(children: list[Child]) -> int:
    """Nanoseconds of processor time that they have taken in all."""
    for child in children:
        child.tell(0)
    return sum(child.hear() for child in children)


def _tell(part: Part, seen: dict[Case, list[float]]) -> None:
    rows = []
    for (name, processes), shares in seen.items():
        shape = f"{processes} x {WAITERS // processes}"
        part.figure(name, f"idle, {shape}", fmean(shares), "% of a core")
        shown = [f"{value:.2f} %" for value in (fmean(shares), min(shares), max(shares))]
        rows.append([name, shape, *shown])
    head = ("who waits", "processes x threads", "of a core", "least", "most")
    part.tables.append(Table(head, rows))
    ours = fmean(seen[OURS, SHAPES[0]])
    part.at_most(f"{WAITERS} idle waiters, 8 x 4, of one core", LIMIT, ours, "%")
