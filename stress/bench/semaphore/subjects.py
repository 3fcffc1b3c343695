"""The semaphores that are measured, alike on the outside."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from nimue import SharedSemaphore

OURS, POSIX, BOUNDED = "nimue", "POSIX Semaphore", "POSIX BoundedSemaphore"

#: Nobody in a measurement waits longer, so that a lost wake-up is an error and no hang.
PATIENCE = 20.0


class Subject:
    """One semaphore, which processes forked after it was made share."""

    name = ""

    def loop(self, count: int) -> None:
        """Acquire and give back, with no call in between that is not the semaphore's."""
        raise NotImplementedError

    def ask(self, count: int) -> None:
        """Ask what can be asked without waiting or taking."""
        raise NotImplementedError

    def take(self, timeout: float = PATIENCE) -> bool:
        raise NotImplementedError

    def give_back(self) -> None:
        raise NotImplementedError

    def waiting(self) -> int | None:
        """How many threads of all processes wait, where that can be known."""
        return None

    def close(self) -> None:
        """Let go of it, in the process that made it."""


class Ours(Subject):
    """nimue's, by its own documentation."""

    name = OURS

    def __init__(self, limit: int, folder: str, name: str = "bench") -> None:
        self.semaphore = SharedSemaphore(name, limit, directory=folder)
        self._permits: list[Any] = []

    def loop(self, count: int) -> None:
        acquire = self.semaphore.acquire
        for _ in range(count):
            permit = acquire()
            permit.give_back()

    def with_loop(self, count: int) -> None:
        """The same, as a block."""
        semaphore = self.semaphore
        for _ in range(count):
            with semaphore:
                pass

    def ask(self, count: int) -> None:
        others_waiting = self.semaphore.others_waiting
        for _ in range(count):
            others_waiting()

    def take(self, timeout: float = PATIENCE) -> bool:
        permit = self.semaphore.take(timeout)
        if permit is not None:
            self._permits.append(permit)
        return permit is not None

    def give_back(self) -> None:
        self._permits.pop().give_back()

    def waiting(self) -> int:
        return sum(each.threads for each in self.semaphore.snapshot().waiters)

    def close(self) -> None:
        self.semaphore.destroy()


class Posix(Subject):
    """``multiprocessing.Semaphore``, inherited by fork: ``sem_wait`` and ``sem_post``."""

    name = POSIX

    def __init__(self, limit: int) -> None:
        self.semaphore = self._make(limit)

    def _make(self, limit: int) -> Any:
        return multiprocessing.get_context("fork").Semaphore(limit)

    def loop(self, count: int) -> None:
        acquire, release = self.semaphore.acquire, self.semaphore.release
        for _ in range(count):
            acquire()
            release()

    def ask(self, count: int) -> None:
        """How many permits are free: who waits cannot be asked."""
        get_value = self.semaphore.get_value
        for _ in range(count):
            get_value()

    def take(self, timeout: float = PATIENCE) -> bool:
        return bool(self.semaphore.acquire(True, timeout))

    def give_back(self) -> None:
        self.semaphore.release()


class Bounded(Posix):
    """``multiprocessing.BoundedSemaphore``: it looks at the value before each release."""

    name = BOUNDED

    def _make(self, limit: int) -> Any:
        return multiprocessing.get_context("fork").BoundedSemaphore(limit)


S = TypeVar("S", bound=Subject)


@contextmanager
def closing(subject: S) -> Iterator[S]:
    """The same, closed in the end, unless an error tells of something else."""
    yield subject
    subject.close()


def both(limit: int, folder: str, name: str = "bench") -> dict[str, Callable[[], Subject]]:
    """What makes each of the two, anew."""
    return {OURS: lambda: Ours(limit, folder, name), POSIX: lambda: Posix(limit)}


@contextmanager
def room() -> Iterator[str]:
    """A directory for the files, in memory like nimue's own choice where there is such a place."""
    shared = "/dev/shm"
    memory = shared if os.access(shared, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(
        dir=memory, prefix="nimue-bench-", ignore_cleanup_errors=True
    ) as folder:
        yield folder
