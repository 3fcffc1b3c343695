"""What a process writes down as it goes along, which survives any death of its own."""

from __future__ import annotations

import itertools
import json
import os
import stat
import time
from contextlib import suppress
from typing import Any


class Diary:
    """The diary of the running process. A line is one system call, and needs no lock.

    Where one of that name is there already, its process had the number that this one has now: then
    ``name`` is another, since questions are named by it.
    """

    def __init__(self, folder: str, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        for turn in itertools.count(1):
            self.name = name if turn == 1 else f"{name}-{turn}"
            with suppress(FileExistsError):
                self._fd = os.open(os.path.join(folder, self.name), flags, 0o600)
                return

    def note(self, what: str, *values: Any) -> None:
        os.write(self._fd, (json.dumps([what, *values]) + "\n").encode())

    def close(self) -> None:
        os.close(self._fd)

    def note_files(self, what: str) -> None:
        """``up`` or ``out``, with how many sockets and descriptors there are."""
        self.note(what, now(), *count_files())


def now() -> int:
    """Nanoseconds of the clock that all processes share."""
    return time.monotonic_ns()


def count_files() -> tuple[int, int]:
    """Sockets, and descriptors in all, of this process."""
    kinds = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            kinds.append(stat.S_ISSOCK(os.fstat(int(fd)).st_mode))
        except OSError:  # the one that lists them
            pass
    return sum(kinds), len(kinds)
