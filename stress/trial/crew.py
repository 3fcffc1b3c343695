"""Processes that drive themselves: ``python -m stress.trial.crew alone | prefork <count>``.

``alone``: one process, whose threads ask until it is over. ``prefork``: a parent that has made the
pool and used it forks workers that do so, and another for each that dies.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from random import Random

from stress.diary import now
from stress.trial.brief import Brief
from stress.trial.desk import Desk, guard
from stress.trial.words import told

#: Seconds in which all workers have to be gone when it is over, beyond the wait for a connection.
END = 5.0
#: That one which has to be put down has to show where it stands.
SHOWN = 1.0
#: That the parent sleeps between two looks at its children.
TICK = 0.01


def alone(brief: Brief) -> None:
    """Be one process without any others to care for."""
    desk = Desk(brief)
    desk.enter()
    desk.drive()
    desk.leave()


class Parent:
    """Forks so many workers, and begins another for each that ends too early."""

    def __init__(self, brief: Brief, count: int) -> None:
        self._count, self._asked = count, 0
        self._workers: set[int] = set()
        self._desk = Desk(brief)
        self._dice = Random(f"{brief.seed} parent")

    def run(self) -> None:
        self._desk.enter()
        while not self._desk.is_over:
            self._reap()
            while len(self._workers) < self._count:
                self._begin()
            time.sleep(TICK)
        self._end()
        self._desk.leave()

    def _begin(self) -> None:
        """Fork one, with something idle in the pool to inherit."""
        self._asked += 1
        self._desk.ask(f"{self._desk.diary.name}.p.{self._asked}", self._dice)
        pid = os.fork()
        if pid:
            self._workers.add(pid)
            return
        status = 1
        try:
            self._desk.enter()
            self._desk.drive()
            self._desk.leave()
            status = 0
        except BaseException as error:
            self._desk.note_wrong(f"a worker ended: {told(error)}")
        finally:
            os._exit(status)

    def _reap(self) -> None:
        for pid in list(self._workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._workers.discard(pid)
                self._note_end(pid, os.waitstatus_to_exitcode(status))

    def _note_end(self, pid: int, status: int) -> None:
        """A worker that was put down by its own alarm had hung. No fault sends but SIGKILL."""
        if status == -signal.SIGALRM:
            self._desk.diary.note("hung", now(), pid, "a worker hung, and was put down")
        elif status < 0 and status != -signal.SIGKILL:
            self._desk.note_wrong(f"worker {pid} ended by signal {-status}")

    def _end(self) -> None:
        deadline = time.monotonic() + self._desk.brief.timeout + END
        while self._workers and time.monotonic() < deadline:
            self._reap()
            time.sleep(TICK)
        for pid in self._workers:
            os.kill(pid, signal.SIGALRM)  # it shows where every thread stands, and dies
        time.sleep(SHOWN)
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._note_end(pid, -signal.SIGALRM)


def main(argv: list[str]) -> None:
    brief = Brief.here()
    guard(brief)
    if argv[0] == "alone":
        alone(brief)
    else:
        Parent(brief, int(argv[1])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
