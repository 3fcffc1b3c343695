"""What the workers of a Pool or of an executor do: called by name, in the worker's process."""

from __future__ import annotations

import os
from multiprocessing.util import Finalize
from pathlib import Path
from random import Random

from stress.trial.brief import Brief
from stress.trial.desk import Answer, Desk

#: In the trial's folder: of each worker a file that has the token it took last.
TAKEN = "taken"
#: As long as no token is, so that the next one covers the last.
WIDTH = 100


class Here:
    """Of this process. What is forked inherits the desk, others make one."""

    desk: Desk | None = None
    taken: int


def begin() -> None:
    """Come to work: the initializer."""
    if Here.desk is None:
        Here.desk = Desk(Brief.here())
    brief = Here.desk.brief
    path = Path(brief.folder) / TAKEN / str(os.getpid())
    Here.taken = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    Here.desk.enter()
    Finalize(None, Here.desk.leave, exitpriority=10)


def answer(token: str) -> Answer:
    """The task."""
    assert Here.desk is not None
    os.pwrite(Here.taken, token.ljust(WIDTH).encode(), 0)
    return Here.desk.answer(token, Random(f"{Here.desk.brief.seed} {token}"))


def taken_by(folder: Path, pid: int) -> str:
    """The token that a worker took last; "" if none."""
    try:
        return (folder / TAKEN / str(pid)).read_text().strip()
    except FileNotFoundError:  # killed before it came to work
        return ""
