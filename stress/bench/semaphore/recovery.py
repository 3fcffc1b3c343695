"""(d) How soon a waiter has the permit of a process that is killed."""

from __future__ import annotations

import inspect
import os
import time
from statistics import median

from nimue.semaphore import watch
from stress.bench.report import Part, Table, number
from stress.bench.runs import Context, percentile
from stress.bench.semaphore.crew import Line, crew, until
from stress.bench.semaphore.subjects import OURS, POSIX, Subject, both, closing, room

#: Where the kernel tells of a process's death; and how those do it who are not told.
TOLD, UNTOLD = "nimue, told by pidfd", "nimue, without pidfd"
LIMITS = {TOLD: 5.0, UNTOLD: 60.0}
#: Seconds that a waiter of POSIX's is given, which is as good as for ever.
BOUND = 0.2
TITLE = "recovery after SIGKILL: from the kill of the holder to the waiter's permit"


def measure(ctx: Context) -> Part:
    """One process holds the only permit, another waits for it since 20 to 80 ms, the first one is
    killed. Counted: from just before os.kill() to when the waiter's acquire() has returned. Without
    pidfd, as on macOS, the waiter only looks again by itself, 20 times a second: that is this same
    waiter with pidfds switched off in its process. POSIX's semaphore does not know who holds
    it: its waiter is given 0.2 s, in the same rounds, and what it got is counted.
    """
    part = Part("d", TITLE, inspect.getdoc(measure) or "")
    names = [UNTOLD, POSIX]
    if hasattr(os, "pidfd_open"):
        names.insert(0, TOLD)
    else:
        part.notes.append("There are no pidfds here.")
    times: dict[str, list[float]] = {name: [] for name in names}
    rounds = ctx.pick(60, 10)
    with room() as folder:
        for name in ctx.interleaved(names, rounds):
            taken = _kill(ctx, name, folder)
            times[name] += [] if taken is None else [taken]
    _tell(part, times, rounds)
    return part


def _kill(ctx: Context, name: str, folder: str) -> float | None:
    """One recovery, in milliseconds; None if there was none."""
    make = both(1, folder)[POSIX if name == POSIX else OURS]
    with closing(make()) as subject, crew() as made:
        holder = made.fork(lambda line: _hold(line, subject))
        holder.hear()
        waiter = made.fork(lambda line: _wait(line, subject, name))
        waiter.hear()
        if subject.waiting() is not None:
            until(lambda: subject.waiting() == 1, "the other waits")
        time.sleep(ctx.rng.uniform(0.02, 0.08))
        begun = time.monotonic_ns()
        holder.kill()
        got = waiter.hear()
    return (got - begun) / 1e6 if got else None


def _hold(line: Line, subject: Subject) -> None:
    subject.take()
    line.tell(1)
    line.hear()


def _wait(line: Line, subject: Subject, name: str) -> None:
    if name == UNTOLD:
        vars(watch)["open_pidfd"] = lambda pid: None
    line.tell(0)
    served = subject.take(BOUND + 0.08) if name == POSIX else subject.take()
    line.tell(time.monotonic_ns() if served else 0)
    line.hear()


def _tell(part: Part, times: dict[str, list[float]], rounds: int) -> None:
    rows = []
    for name, taken in times.items():
        part.figure(name, "recovered", len(taken), f"of {rounds}")
        shown = ["never"] * 3 if not taken else []
        if taken:
            seen = median(taken), percentile(taken, 90), max(taken)
            for which, value in zip(("median", "p90", "most"), seen, strict=True):
                part.figure(name, f"recovery, {which}", value, "ms")
            shown = [f"{number(value)} ms" for value in seen]
        rows.append([name, f"{len(taken)} of {rounds}", *shown])
    part.tables.append(Table(("recovery", "recovered", "median", "p90", "most"), rows))
    part.notes.append(
        f"{POSIX}: {rounds - len(times[POSIX])} of {rounds} waiters were still waiting "
        f"{BOUND:g} s after the kill. A permit that was lost so never comes back."
    )
    for name, limit in LIMITS.items():
        if name in times:
            ours = times[name]
            part.at_most(f"{name}: recovery, median", limit, median(ours) if ours else None, "ms")
            part.at_least(f"{name}: recovered", rounds, len(ours))
