"""How things are run so that the comparison is fair on a machine that is not quiet."""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

from stress.bench.contenders import Contender

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Context:
    """What every measurement is given.

    Args:
        contenders: those that can take part, nimue first.
        quick: spend less time, and be less exact.
        rng: the only source of chance.
    """

    contenders: Sequence[type[Contender]]
    quick: bool
    rng: random.Random

    def pick(self, full: T, quick: T) -> T:
        """The one or the other size of a measurement."""
        return quick if self.quick else full

    def interleaved(self, names: Sequence[T], rounds: int) -> Iterator[T]:
        """Everybody once per round, in a new order each round: a noisy spell hits them alike."""
        for _ in range(rounds):
            yield from self.rng.sample(names, len(names))


def paired(values: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios taken round by round."""
    return median(value / other for value, other in zip(values, base, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that so many percent of them do not exceed (the nearest rank).

    Raises:
        ValueError: there are none, or no such percentage.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no {percent:g} % of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def once(loop: Callable[[int], None], count: int) -> float:
    """Nanoseconds for each of so many repetitions."""
    start = time.perf_counter_ns()
    loop(count)
    return (time.perf_counter_ns() - start) / count


def repeat(
    ctx: Context, loops: Mapping[K, Callable[[int], None]], rounds: int, ms: float = 10.0
) -> dict[K, list[float]]:
    """Nanoseconds per repetition, one figure a round, in which every loop takes about ``ms``."""
    counts = {name: calibrate(loop, ms) for name, loop in loops.items()}
    times: dict[K, list[float]] = {name: [] for name in loops}
    for name in ctx.interleaved(list(loops), rounds):
        times[name].append(once(loops[name], counts[name]))
    return times


def calibrate(loop: Callable[[int], None], ms: float) -> int:
    """How many repetitions take about so long; it warms the code up as well."""
    loop(2000)
    return max(100, int(ms * 1e6 / once(loop, 1000)))


@dataclass
class Crowd:
    """What a crowd of threads got done, and how long each of its waits was."""

    seconds: float
    per_thread: list[int] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    holds: list[float] = field(default_factory=list)
    #: What ended threads early, and threads that were still waiting 10 s after the end.
    errors: list[Exception] = field(default_factory=list)
    stuck: int = 0

    @property
    def throughput(self) -> float:
        """Uses per second that began within the time."""
        return sum(self.per_thread) / self.seconds

    @property
    def longest_wait(self) -> float:
        return max(self.waits, default=0.0)

    @property
    def mean_hold(self) -> float:
        return fmean(self.holds) if self.holds else 0.0


def start(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Daemon threads, so that a pool that lets one wait for ever does not keep the process."""
    workers = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    return workers


def crowd(
    acquire: Callable[[], Any],
    release: Callable[[Any], None],
    threads: int,
    seconds: float,
    hold: float,
) -> Crowd:
    """Threads that acquire, hold and release in a loop until the time is over.

    A use counts if it was acquired in time; a wait counts whenever it ends, so that a thread that
    gets nothing for the whole run is seen.
    """
    answer = Crowd(seconds)
    gate, clock, end = threading.Event(), time.perf_counter, 0.0

    def work() -> None:
        used = 0
        gate.wait()
        try:
            while (asked := clock()) < end:
                conn = acquire()
                got = clock()
                time.sleep(hold)
                done = clock()
                release(conn)
                answer.waits.append(got - asked)
                answer.holds.append(done - got)
                used += got < end
        except Exception as error:
            answer.errors.append(error)
        answer.per_thread.append(used)

    workers = start(work, threads)
    end = clock() + seconds
    gate.set()
    for worker in workers:
        worker.join(max(0.0, end + 10 - clock()))
    answer.stuck = sum(worker.is_alive() for worker in workers)
    return answer


def environment(everything: bool = False) -> dict[str, str]:
    """For a process of its own that must import the same nimue, and this package, as this one.

    ``everything`` names all places that this process imports from, for one that runs no site.
    """
    files = [getattr(sys.modules.get(name), "__file__", None) for name in ("nimue", "stress")]
    roots = [str(Path(file).parent.parent) for file in files if file]
    roots += [path for path in sys.path if path] if everything else []
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(roots))}
