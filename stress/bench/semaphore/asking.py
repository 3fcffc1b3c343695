"""(b) What it costs to ask whether another process waits."""

from __future__ import annotations

import inspect
from statistics import median

from stress.bench.report import Part
from stress.bench.runs import Context, repeat
from stress.bench.semaphore.crew import Line, crew, until
from stress.bench.semaphore.subjects import OURS, POSIX, Ours, Posix, Subject, closing, room
from stress.bench.semaphore.uncontended import ROUND, tell

LIMIT = 200.0
TITLE = "others_waiting(): does another process wait?"


def measure(ctx: Context) -> Part:
    """Counted: the call, and the `for` that repeats it. Once nobody waits, once another process
    does, which looks again by itself 20 times a second meanwhile. multiprocessing.Semaphore
    cannot be asked who waits; the price of its get_value(), how many permits are free, stands for
    it. Rounds are interleaved; the ratio is the median of those of each round.
    """
    part = Part("b", TITLE, inspect.getdoc(measure) or "")
    with room() as folder, closing(Ours(1, folder)) as ours, crew() as others:
        posix = Posix(1)
        for state in ("nobody waits", "another process waits"):
            if state != "nobody waits":
                ours.take()
                others.fork(lambda line: _wait(line, ours))
                until(ours.semaphore.others_waiting, "another process waits")
            times = repeat(ctx, {OURS: ours.ask, POSIX: posix.ask}, ctx.pick(201, 51), ROUND)
            tell(part, f"asked while {state}", times)
            part.at_most(f"others_waiting(), {state}, median", LIMIT, median(times[OURS]), "ns")
        if ours.waiting() != 1:
            raise RuntimeError("the process that should have waited did not do so to the end")
        ours.give_back()
    return part


def _wait(line: Line, subject: Subject) -> None:
    subject.take(1000)
    line.hear()
