"""Children whose parent was killed: they become this process's, which sees them to their end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress


def adopt() -> None:
    """Have orphans of this process's children become its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def reap(known: Collection[int]) -> set[int]:
    """The orphans that live, apart from ``known`` children; the dead are forgotten."""
    living = set()
    for pid in children() - set(known):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                living.add(pid)
    return living


def left(known: Collection[int], bound: float) -> set[int]:
    """Those that are still there after ``bound`` seconds, or earlier if there are none."""
    deadline = time.monotonic() + bound
    while (living := reap(known)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return living


def end(known: Collection[int]) -> None:
    """Put down the orphans that live, apart from ``known`` children."""
    for pid in reap(known):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    left(known, 5.0)


def children() -> set[int]:
    """Whatever this process is the parent of, by whichever thread."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
            found.update(map(int, file.read().split()))
    return found
