"""Who has the workers: ``python -m stress.scenarios.pool_parent <way> <processes>``.

It tells a line of JSON about whatever is new: ``["workers", pids]``, ``["happened", kind,
detail]``, ``["finished", what went wrong]``. Told ``finish <seconds>`` it has all end in order.
When nobody is there any more who could tell it, it ends them by force.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import sys
import threading
import time
from random import Random
from typing import Any

from stress.scenarios import pool_worker
from stress.scenarios.base import Callers
from stress.scenarios.pool_teams import WAYS, ExecutorTeam, PoolTeam, Team
from stress.trial.brief import Brief
from stress.trial.desk import Desk, guard

#: Seconds between two looks at the workers.
TICK = 0.02
#: Callers for each worker: so many that none is idle, even while some wait for what was lost.
CALLERS = 4


def _tell(*what: Any) -> None:
    # One write: several threads tell, and a fork may come in between.
    os.write(1, (json.dumps(what) + "\n").encode())


class Parent:
    """The workers, and the callers that ask them."""

    def __init__(self, brief: Brief, name: str, processes: int) -> None:
        way = WAYS[name]
        self._desk = Desk(brief)
        if way.method == "fork":
            pool_worker.Here.desk = self._desk
        self._desk.enter()
        # There is something idle in the pool to inherit.
        self._desk.ask(f"{self._desk.diary.name}.p", Random(brief.seed))
        self._told: list[int] = []
        kind = ExecutorTeam if way.executor else PoolTeam
        self._team: Team = kind(brief, way, processes, lambda *what: _tell("happened", *what))
        self._callers = Callers(brief, processes * CALLERS, self._team.ask)

    def run(self) -> None:
        """Until told to end."""
        self._callers.start()
        while True:
            self._tend()
            if select.select([0], [], [], TICK)[0]:
                words = os.read(0, 1000).split()
                if not words:
                    self._abandon()
                _tell("finished", self._finish(float(words[1])))
                return

    def _tend(self) -> None:
        living = self._team.tend()
        if living != self._told:
            self._told = living
            _tell("workers", living)

    def _finish(self, bound: float) -> list[str]:
        deadline = time.monotonic() + bound
        wrong: list[str] = []
        ender = threading.Thread(target=lambda: wrong.extend(self._callers.finish(bound)))
        ender.start()
        while ender.is_alive():
            self._tend()
            ender.join(TICK)
        wrong += self._team.end(max(1.0, deadline - time.monotonic()))
        self._desk.pool.close(self._desk.brief.timeout)
        return wrong

    def _abandon(self) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)


def main(name: str, processes: str) -> None:
    brief = Brief.here()
    guard(brief)
    Parent(brief, name, int(processes)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
