"""How many permits of a shared limit can be had: the only way to know that none is lost."""

from __future__ import annotations

from pathlib import Path

from nimue import SharedSemaphore
from nimue.semaphore.presence import SharedPermit


def count_permits(name: str, limit: int, directory: Path) -> tuple[int, int]:
    """How many can be taken at once, now that nobody else is there, and how many were reclaimed."""
    semaphore = SharedSemaphore(name, limit, directory=directory)
    permits: list[SharedPermit] = []
    while len(permits) <= limit and (permit := semaphore.take(0.2)) is not None:
        permits.append(permit)
    reclaimed = semaphore.reclaimed
    for permit in permits:
        permit.give_back()
    semaphore.close()
    return len(permits), reclaimed
