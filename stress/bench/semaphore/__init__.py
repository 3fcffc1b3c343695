"""``python -m stress bench semaphore``: ``nimue.SharedSemaphore`` beside multiprocessing's.

::

    subjects.py      the semaphores, alike         crew.py        forked processes, surely ended
    uncontended (a)  asking (b)  wakeup (c)  recovery (d)  idle (e)  growth (f)

The peer is ``multiprocessing.Semaphore``, which is one of POSIX's. It counts, and does no more: it
serves whom the kernel wakes, does not know its holders, and loses a permit with a killed one. So
it tells what the kernel and the interpreter can do at best, not what a shared limit should cost.
"""

from __future__ import annotations

from collections.abc import Callable

from stress.bench.report import Part
from stress.bench.runs import Context
from stress.bench.semaphore import asking, growth, idle, recovery, uncontended, wakeup

PARTS: dict[str, Callable[[Context], Part]] = {
    "a": uncontended.measure,
    "b": asking.measure,
    "c": wakeup.measure,
    "d": recovery.measure,
    "e": idle.measure,
    "f": growth.measure,
}
TITLES = {
    "a": uncontended.TITLE,
    "b": asking.TITLE,
    "c": wakeup.TITLE,
    "d": recovery.TITLE,
    "e": idle.TITLE,
    "f": growth.TITLE,
}
