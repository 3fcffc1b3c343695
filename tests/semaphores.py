"""What the tests of the semaphore have in common: where it is, and what is asked of it."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable
from typing import Any

from nimue.semaphore import SharedSemaphore
from nimue.semaphore.presence import SharedPermit
from tests.fakes import until


class Board:
    """Numbers that a process and its forks share. ``board[n]``; ``board.until(n, 1)``."""

    def __init__(self, size: int = 512) -> None:
        self._memory = mmap.mmap(-1, size * 8)

    def __getitem__(self, at: int) -> int:
        return struct.unpack_from("@q", self._memory, at * 8)[0]

    def __setitem__(self, at: int, value: int) -> None:
        struct.pack_into("@q", self._memory, at * 8, value)

    def until(self, at: int, value: int, timeout: float = 15) -> None:
        until(lambda: self[at] >= value, timeout, lambda: f"board[{at}] is {self[at]}, not {value}")


def take_all(semaphore: SharedSemaphore, wait: float = 0.0) -> list[SharedPermit]:
    """Every permit that can be had, each asked for with that patience."""
    taken = []
    while len(taken) < 1200 and (permit := semaphore.take(wait)) is not None:
        taken.append(permit)
    return taken


def give_all(permits: list[SharedPermit]) -> None:
    for permit in permits:
        permit.give_back()


def whole(semaphore: SharedSemaphore, limit: int) -> None:
    """Exactly ``limit`` permits can be had, nobody holds or waits, and no lock was left locked."""
    presence = semaphore._here()
    assert presence.lock.acquire(timeout=5), "the lock was left locked"
    presence.lock.release()
    seen = semaphore.snapshot()
    assert not seen.waiters, seen
    assert semaphore.limit == limit
    taken = take_all(semaphore)
    assert len(taken) == limit, semaphore.snapshot()
    give_all(taken)
    assert semaphore.snapshot().held == 0
    assert not presence.slots.held


def waiting(semaphore: SharedSemaphore, processes: int) -> None:
    until(lambda: len(semaphore.snapshot().waiters) == processes)


def threads_waiting(semaphore: SharedSemaphore, threads: int) -> None:
    until(lambda: sum(each.threads for each in semaphore.snapshot().waiters) == threads)


def hold_until_killed(
    semaphore: SharedSemaphore, board: Board, at: int = 0, count: int = 1
) -> None:
    """For a child: take permits, say so, and stay."""
    kept = [semaphore.acquire(10) for _ in range(count)]
    board[at] = 1
    time.sleep(60)
    give_all(kept)


def take_and_tell(
    semaphore: SharedSemaphore, board: Board, at: int = 0, timeout: float = 15
) -> None:
    """For a child: wait for a permit, write down when it came, and give it back."""
    permit = semaphore.acquire(timeout)
    board[at] = time.monotonic_ns()
    permit.give_back()


def seconds_since(then: int) -> float:
    return (time.monotonic_ns() - then) / 1e9


def refusal(fn: Callable[[], Any], kind: type[BaseException]) -> str:
    """What ``fn`` says when it refuses."""
    try:
        fn()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")
