"""Children whose parent was killed: they become this process's, which sees them to their end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress


def adopt() -> None:
    """Have orphans of this process's children become its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def reap(
    known: Collection[int], tell: Callable[[int, int], object] = lambda pid, status: None
) -> set[int]:
    """The orphans that live, apart from ``known`` children; of the dead ``tell`` is told.

    Args:
        tell: is given the process id, and the exit status or the negative number of the signal.
    """
    living = set()
    for pid in children() - set(known):
        with suppress(ChildProcessError):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                tell(pid, os.waitstatus_to_exitcode(status))
            else:
                living.add(pid)
    return living


def left(known: Collection[int], bound: float) -> set[int]:
    """Those that are still there after ``bound`` seconds, or earlier if there are none."""
    deadline = time.monotonic() + bound
    while (living := reap(known)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return living


def end(known: Collection[int]) -> None:
    """Put down the orphans that live, apart from ``known`` children, and then theirs."""
    deadline = time.monotonic() + 5.0
    while (living := reap(known)) and time.monotonic() < deadline:
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def children() -> set[int]:
    """Whatever this process is the parent of, by whichever thread."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
            found.update(map(int, file.read().split()))
    return found
