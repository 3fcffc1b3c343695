"""What a process writes down as it goes along, which survives any death of its own."""

from __future__ import annotations

import json
import os
import stat
import time
from typing import Any


class Diary:
    """The diary of the running process. A line is one system call, and needs no lock."""

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(os.path.join(folder, name), flags, 0o600)

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
