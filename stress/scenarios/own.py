"""Scenarios whose processes drive themselves: threads, forks, spawn, prefork."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nimue.cli.demo_process import Family
from stress.ground import put_down_sessions
from stress.scenarios.base import Scenario, wait_until
from stress.trial.brief import Brief
from stress.trial.tickets import Tickets

#: Seconds in which the processes have to come to work.
STARTUP = 30.0
#: Forks a second, of the scenario that is about them.
FORKS = 10.0


class Own(Scenario):
    """So many interpreters of their own, each begun again when it dies."""

    #: Of the crew: what each interpreter is.
    role: tuple[str, ...] = ("alone",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._crew: list[subprocess.Popen[Any]] = []
        self._family = Family()
        self._log = open(self.log, "ab")  # noqa: SIM115
        self._is_over = False
        #: Ends by a signal that was no fault. Without a server, one may end with a status above 0.
        self._wrong: list[str] = []

    @property
    def interpreters(self) -> int:
        return self.processes

    def start(self) -> None:
        while len(self._crew) < self.interpreters:
            self._begin()
        diaries = self.folder / "diaries"
        wait_until(
            lambda: len(list(diaries.glob("w*"))) >= self.processes and bool(self.workers()),
            STARTUP,
            "the workers did not come to work",
            self.log,
        )

    def _begin(self) -> None:
        argv = [sys.executable, "-m", "stress.trial.crew", *self.role]
        self._crew.append(
            subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=self.environment(),
                start_new_session=True,  # a Ctrl-C at the terminal reaches the trial alone
            )
        )
        self._family.add(self._crew[-1].pid)

    def children(self) -> list[int]:
        return [process.pid for process in self._crew]

    def workers(self) -> list[int]:
        return [process.pid for process in self._crew if process.poll() is None]

    def tend(self) -> None:
        for process in list(self._crew):
            status = process.poll()
            if status is not None and not self._is_over:
                self._crew.remove(process)
                self._note_end(process.pid, status)
                self._begin()

    def _note_end(self, pid: int, status: int) -> None:
        if status != -signal.SIGKILL:
            told = f"process {pid} ended with status {status}"
            self.happened("ended", told)
            self._wrong += [told] if status < 0 else []

    def finish(self, bound: float) -> list[str]:
        self._is_over = True
        (self.folder / "over").touch()
        deadline = time.monotonic() + bound
        wrong = list(self._wrong)
        for process in self._crew:
            try:
                status = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                wrong.append(f"process {process.pid} did not end within {bound:g} s")
                continue
            if status not in (0, -signal.SIGKILL):
                wrong.append(f"process {process.pid} ended with status {status}")
        return wrong

    def close(self) -> None:
        self._is_over = True
        put_down_sessions(self._family, self._crew)
        with suppress(OSError):
            self._log.close()


class Threads(Own):
    """One process; all threads in it."""

    name = "threads"
    summary = "one process, all threads in it"
    fixed: Mapping[str, int] = {"processes": 1}

    def __init__(self, brief: Brief, processes: int, *args: Any) -> None:
        super().__init__(brief, 1, *args)


class Forks(Threads):
    """The same, and it forks all the time, from threads that hold connections."""

    name = "forks"
    summary = f"one process with threads, which forks {FORKS:g} times a second while they work"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tickets = Tickets(self.folder / "tickets")
        self._due = float("inf")

    def start(self) -> None:
        super().start()
        self._due = time.monotonic()

    def tend(self) -> None:
        super().tend()
        while time.monotonic() >= self._due:
            self._tickets.issue("fork")
            self._due += 1 / FORKS

    def calm(self) -> None:
        self._due = float("inf")


class Spawn(Own):
    """Interpreters of their own, which share a limit by its name alone."""

    name = "spawn"
    summary = "interpreters of their own, which share the limit by its name"


class Prefork(Own):
    """A parent that has made the pool and used it, and workers by os.fork()."""

    name = "prefork"
    summary = "a parent makes the pool, uses it, and forks workers, by os.fork()"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.role = ("prefork", str(self.processes))

    @property
    def interpreters(self) -> int:
        return 1

    def workers(self) -> list[int]:
        return [pid for process in self._crew for pid in self._family.children(process.pid)]

    def start(self) -> None:
        super().start()
        wait_until(
            lambda: len(self.workers()) == self.processes,
            STARTUP,
            "the parent did not fork its workers",
            self.log,
        )
