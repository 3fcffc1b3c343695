"""Whether a process is still there."""

from __future__ import annotations

import os


def gone(pid: int) -> bool:
    """True if there is no such process, or but a zombie; one that is ours is reaped."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        pass
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
