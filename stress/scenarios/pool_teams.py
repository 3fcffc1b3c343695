"""The workers that one process has, by multiprocessing.Pool or by ProcessPoolExecutor."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stress.scenarios import pool_worker
from stress.trial.brief import Brief
from stress.trial.desk import Answer

#: Seconds beyond the wait for a connection after which nobody expects an answer any more.
PATIENCE = 5.0
#: That a caller waits at once, before it looks whether its task is lost.
GLANCE = 0.1
#: In which an answer comes through whose worker has ended.
GRACE = 1.0
#: Longer than a living worker keeps a lock of the queues, even if it is stopped meanwhile.
LOCKED = 1.0
#: For which a queue is looked after when a worker has died.
DOUBT = 3.0


@dataclass(frozen=True)
class Way:
    """How the workers are started: by which start method and whom, and after how many tasks anew.

    ``what``: a line that says so.
    """

    what: str
    method: str
    executor: bool = False
    tasks: int | None = None


WAYS: Mapping[str, Way] = {
    "fork": Way("Pool, forked", "fork"),
    "forkserver": Way("Pool, from a fork server", "forkserver"),
    "spawn": Way("Pool, spawned", "spawn"),
    "renewed": Way("Pool, forked, each worker replaced after a few tasks", "fork", tasks=20),
    "executor-fork": Way("ProcessPoolExecutor, forked", "fork", True),
    "executor-forkserver": Way("ProcessPoolExecutor, from a fork server", "forkserver", True),
    "executor-spawn": Way("ProcessPoolExecutor, spawned", "spawn", True),
}


class TaskLost(Exception):
    """Nobody will answer: whether the question was served is unknown."""


class Team(ABC):
    """So many workers, who are asked from any thread.

    Args:
        brief: of the trial.
        way: how they are started.
        processes: how many.
        tell: to be told of what befalls them (kind, detail).
    """

    def __init__(
        self, brief: Brief, way: Way, processes: int, tell: Callable[[str, str], None]
    ) -> None:
        self._folder, self._bound = Path(brief.folder), brief.timeout + PATIENCE
        self._way, self._processes, self._tell = way, processes, tell
        self._context: Any = multiprocessing.get_context(way.method)
        self._pids: set[int] = set()

    @abstractmethod
    def ask(self, token: str) -> Answer:
        """Raises: TaskLost, BrokenProcessPool."""

    @abstractmethod
    def end(self, bound: float) -> list[str]:
        """Have the workers end in order; what went wrong with that."""

    def tend(self) -> list[int]:
        """See who has died; returns who lives."""
        living = {child.pid for child in multiprocessing.active_children() if child.pid}
        dead, self._pids = self._pids - living, living
        if dead:
            self.mourn(dead)
        return sorted(living)

    def mourn(self, dead: set[int]) -> None:  # noqa: B027
        """These have ended, in order or not."""

    def put_down(self) -> list[str]:
        """End those that are left; each shows where its threads stand."""
        left = multiprocessing.active_children()
        for child in left:
            if child.pid:
                os.kill(child.pid, signal.SIGALRM)
        for child in left:
            child.join(2)
            child.kill()
            child.join(2)
        return [f"worker {child.pid} did not end in time" for child in left]


class ExecutorTeam(Team):
    """A ProcessPoolExecutor: when a worker is killed it is broken as a whole, and made anew."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.Lock()
        self._executor = self._make()

    def _make(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._processes, self._context, pool_worker.begin)

    def ask(self, token: str) -> Answer:
        executor = self._executor
        try:
            return executor.submit(pool_worker.answer, token).result(self._bound)
        except BrokenProcessPool:
            self._remake(executor)
            raise
        except FutureTimeout:
            raise TaskLost(f"no answer within {self._bound:g} s") from None

    def _remake(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._executor is not broken:  # another caller was faster
                return
            self._executor = self._make()
        broken.shutdown(wait=False)
        self._tell("remade", "the executor, broken by the death of a worker")

    def end(self, bound: float) -> list[str]:
        ender = threading.Thread(target=self._executor.shutdown, daemon=True)
        ender.start()
        ender.join(bound)
        return self.put_down() if ender.is_alive() else []


class PoolTeam(Team):
    """A multiprocessing.Pool, which replaces a killed worker, and forgets what that was at.

    It can be lost as a whole. A worker that is killed while it waits for a task holds the lock of
    the queue for ever (python/cpython#96062); half an answer in the pipe stops all others.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.Lock()
        #: Tokens that somebody waits for; and those lost with a worker, and since when for certain.
        self._awaited: set[str] = set()
        self._lost: dict[str, float] = {}
        self._doubted = 0.0
        self._pool = self._make()

    def _make(self) -> Any:
        self._answered = time.monotonic()
        return self._context.Pool(
            self._processes, pool_worker.begin, maxtasksperchild=self._way.tasks
        )

    def ask(self, token: str) -> Answer:
        pool = self._pool
        with self._lock:
            if not self._awaited:
                self._answered = time.monotonic()
            self._awaited.add(token)
        try:
            found = self._wait(pool, token)
            self._answered = time.monotonic()
            return found
        finally:
            with self._lock:
                self._awaited.discard(token)
                self._lost.pop(token, None)

    def _wait(self, pool: Any, token: str) -> Answer:
        result = pool.apply_async(pool_worker.answer, (token,))
        deadline = time.monotonic() + self._bound
        while True:
            try:
                found: Answer = result.get(GLANCE)
                return found
            except multiprocessing.TimeoutError:
                pass
            late = time.monotonic() > deadline
            lost = time.monotonic() > self._lost.get(token, deadline)
            if late or lost or pool is not self._pool:
                with suppress(KeyError):  # it has just come
                    del pool._cache[result._job]  # else the Pool's close would wait for it
                raise TaskLost("no answer in time" if late else "lost with its worker")

    def mourn(self, dead: set[int]) -> None:
        self._doubted = time.monotonic()
        for pid in dead:
            token = pool_worker.taken_by(self._folder, pid)
            with self._lock:
                if token in self._awaited:  # an answer may still be on its way
                    self._lost[token] = self._doubted + GRACE

    def tend(self) -> list[int]:
        living = super().tend()
        stuck = time.monotonic() < self._doubted + DOUBT and self._stuck()
        silent = self._awaited and time.monotonic() > self._answered + self._bound
        if stuck or silent:
            self._remake("a worker was killed that held a lock" if stuck else "nobody answers")
        return living

    def _stuck(self) -> list[Any]:
        """The locks of the queues that nobody who lives holds.

        Whoever waits for a task holds the first of them, but not while there is one.
        """
        tasks, answers = self._pool._inqueue, self._pool._outqueue
        held = [answers._wlock] if not _free(answers._wlock) else []
        if tasks._reader.poll() and not _free(tasks._rlock) and tasks._reader.poll():
            held.append(tasks._rlock)
        return held

    def _remake(self, why: str) -> None:
        old, self._pool = self._pool, self._make()
        self._doubted = 0.0
        self._tell("remade", f"the Pool: {why}")
        ender = threading.Thread(target=_terminate, args=(old,), daemon=True)
        ender.start()
        ender.join(3 * LOCKED)
        if ender.is_alive():
            for child in list(old._pool):
                child.kill()

    def end(self, bound: float) -> list[str]:
        deadline = time.monotonic() + bound
        self._pool.close()
        ender = threading.Thread(target=self._pool.join, daemon=True)
        ender.start()
        while ender.is_alive() and time.monotonic() < deadline:
            ender.join(GLANCE)
            if ender.is_alive():
                for lock in self._stuck():
                    lock.release()
        return self.put_down() if ender.is_alive() else []


def _free(lock: Any) -> bool:
    got: bool = lock.acquire(timeout=LOCKED)
    if got:
        lock.release()
    return got


def _terminate(pool: Any) -> None:
    """Of one that is lost, where ``terminate`` would wait for a lock that nobody gives back."""
    for lock in (pool._inqueue._rlock, pool._outqueue._wlock):
        lock.acquire(timeout=LOCKED)
        lock.release()
    pool.terminate()
