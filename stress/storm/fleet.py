"""The workers of a storm: begun, stopped, killed by their own pids, begun again, and seen gone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from nimue.cli.demo_verdict import DemoFailed
from stress.bench.runs import environment
from stress.diary import now
from stress.ground import put_down
from stress.storm.order import Order

#: Seconds in which a process that was killed has to be gone, and the nursery to answer.
SOON = 30.0


class StormFailed(DemoFailed):
    """The storm itself could not go on; says why."""


class Spawned:
    """A worker in an interpreter of its own, which has made the pool itself."""

    def __init__(self, name: str, argv: list[str], errors: IO[bytes], variables: Any) -> None:
        self.name = name
        self._process = _popen([*argv, name], errors, variables, None)
        self.pid = self._process.pid

    def reap(self, bound: float) -> int | None:
        """Its exit status; None if it is still there."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(bound)
        return None


class Nursery:
    """The process that has preloaded the pool, and forks workers."""

    def __init__(self, argv: list[str], errors: IO[bytes], variables: Any) -> None:
        self._process = _popen(argv, errors, variables, subprocess.PIPE)
        self.pid = self._process.pid
        self.answer(SOON)

    def ask(self, line: str, bound: float = SOON) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise StormFailed("the preloading parent has left") from None
        return self.answer(bound)

    def answer(self, bound: float) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], bound)
        answer = stdout.readline().decode().strip() if ready else ""
        if not answer:
            raise StormFailed(f"the preloading parent {'has left' if ready else 'hangs'}")
        return answer

    def leave(self, bound: float) -> int | None:
        """Its exit status, once it has closed its pool; None if it is still there."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(bound)
        return None

    def stop(self) -> None:
        put_down(self._process)


class Forked:
    """A worker that the nursery has forked, and reaps when it is told to: its pid stays its own."""

    def __init__(self, name: str, nursery: Nursery, kind: str) -> None:
        self.name, self._nursery = name, nursery
        self.pid = int(nursery.ask(f"{kind} {name}"))

    def reap(self, bound: float) -> int | None:
        answer = self._nursery.ask(f"reap {self.pid} {bound}", bound + SOON)
        return None if answer == "None" else int(answer)


def _popen(
    argv: list[str], errors: IO[bytes], variables: Any, pipe: int | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-m", *argv],
        stdin=pipe or subprocess.DEVNULL,
        stdout=pipe or subprocess.DEVNULL,
        stderr=errors,
        env=environment(everything=True) | variables,
        start_new_session=True,  # a Ctrl-C at the terminal reaches the storm alone
    )


class Fleet:
    """So many places, each with a worker in it: those of even numbers are spawned, others forked.

    ``killed`` and ``stopped`` are for who reads the diaries: before SIGKILL was sent to whom, and
    from before SIGSTOP until after SIGCONT.
    """

    def __init__(self, order: Order, places: int, log: Path, variables: dict[str, str]) -> None:
        self._order, self._places, self._variables = order, places, variables
        self._errors = open(log, "ab")  # noqa: SIM115
        self._workers: dict[int, Spawned | Forked] = {}
        self._nursery: Nursery | None = None
        self._serial = 0
        #: Who is stopped, since when, and until when.
        self._asleep: dict[str, tuple[int, float]] = {}
        self.killed: dict[str, int] = {}
        self.stopped: dict[str, list[tuple[int, int]]] = defaultdict(list)

    @property
    def begun(self) -> int:
        return self._serial

    @property
    def pids(self) -> list[int]:
        """Who is waited for here, and by nobody else."""
        pids = [worker.pid for worker in self._workers.values()]
        return pids if self._nursery is None else [*pids, self._nursery.pid]

    def begin(self) -> None:
        argv = ["stress.storm.nursery", self._order.as_json()]
        self._nursery = Nursery(argv, self._errors, self._variables)
        for place in range(self._places):
            self._start(place)

    def _start(self, place: int) -> None:
        self._serial += 1
        name = f"w{self._serial}"
        if place % 2 == 0:
            argv = ["stress.storm.worker", self._order.as_json()]
            self._workers[place] = Spawned(name, argv, self._errors, self._variables)
            return
        assert self._nursery is not None
        # With and without hooks, from a pool with and without something idle in it.
        if self._serial % 3 == 0:
            self._nursery.ask("use")
        self._workers[place] = Forked(name, self._nursery, "C" if self._serial % 4 == 1 else "fork")

    def kill(self, place: int) -> None:
        """Kill the worker there at once, see it gone, and begin another."""
        worker = self._workers[place]
        self._note_awake(worker)
        self.killed[worker.name] = now()
        os.kill(worker.pid, signal.SIGKILL)
        if worker.reap(SOON) is None:
            raise StormFailed(f"{worker.name}, process {worker.pid}, survives SIGKILL")
        del self._workers[place]
        self._start(place)

    def stop(self, place: int, spell: float) -> None:
        """Stop the worker there, if it is not yet; ``wake`` has it go on in time."""
        worker = self._workers[place]
        if worker.name not in self._asleep:
            self._asleep[worker.name] = (now(), time.monotonic() + spell)
            os.kill(worker.pid, signal.SIGSTOP)

    def wake(self, all_of_them: bool = False) -> None:
        """Have those go on whose spell is over."""
        for worker in list(self._workers.values()):
            _, until = self._asleep.get(worker.name, (0, 0.0))
            if until and (all_of_them or time.monotonic() >= until):
                os.kill(worker.pid, signal.SIGCONT)
                self._note_awake(worker)

    def _note_awake(self, worker: Spawned | Forked) -> None:
        since, _ = self._asleep.pop(worker.name, (0, 0.0))
        if since:
            self.stopped[worker.name].append((since, now()))

    def next_waking(self) -> float:
        return min((until for _, until in self._asleep.values()), default=float("inf"))

    def leave(self, bound: float) -> list[str]:
        """Wait until all have left, who were told to; what went wrong with that."""
        wrong = []
        deadline = time.monotonic() + bound
        for place, worker in list(self._workers.items()):
            status = worker.reap(max(0.1, deadline - time.monotonic()))
            if status is None:
                wrong.append(f"{worker.name} did not end within {bound:g} s")
                continue
            del self._workers[place]
            if status:
                wrong.append(f"{worker.name} left with {status}")
        if self._nursery is not None and (status := self._nursery.leave(bound)) != 0:
            wrong.append(f"the preloading parent left with {status}")
        return wrong

    def close(self) -> None:
        """By force, if need be; by their own pids."""
        for worker in self._workers.values():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            with suppress(StormFailed):
                worker.reap(5.0)
        self._workers.clear()
        if self._nursery is not None:
            self._nursery.stop()
        self._errors.close()
