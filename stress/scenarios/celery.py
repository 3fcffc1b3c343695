"""The scenario of tasks for a Celery worker whose children are forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from nimue.cli.demo_process import Family
from nimue.cli.demo_verdict import DemoFailed
from stress.ground import put_down_sessions
from stress.scenarios.base import Callers, Scenario, wait_until
from stress.trial.desk import Answer

#: Seconds in which the children have to come to work.
STARTUP = 60.0
#: Callers for each child: so many that none is idle.
CALLERS = 4
#: Seconds beyond the wait for a connection after which nobody expects an answer any more.
PATIENCE = 10.0
#: Seconds between two looks for an answer.
INTERVAL = 0.005
#: What the worker is told for it.
COMMAND = (
    *("-A", "stress.scenarios.celery_tasks", "worker", "--pool", "prefork", "-l", "warning"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat", "--prefetch-multiplier", "2"),
)


class Celery(Scenario):
    """A Celery worker, and tasks over files."""

    name = "celery"
    summary = "tasks for a Celery worker with forked children"
    variants: Mapping[str, str] = {
        "prefork": "children that stay",
        "renewed": "each child replaced after a few tasks",
    }
    needs = ("celery",)
    fixed: Mapping[str, int] = {"threads": 1}
    # Children ask in their main thread, where Celery's own code is above.
    without = frozenset({"interrupt"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._family = Family()
        self._worker: subprocess.Popen[bytes] | None = None
        self._leaders: list[subprocess.Popen[bytes]] = []
        self._callers: Callers | None = None
        self._app: Any = None

    def start(self) -> None:
        from stress.scenarios.celery_app import make_app

        self._app = make_app(self.folder / "celery")
        self._app.finalize()
        self._begin()
        wait_until(self._at_work, STARTUP, "the children did not come to work", self.log)
        self._callers = Callers(self.brief, self.processes * CALLERS, self._ask)
        self._callers.start()

    def _begin(self) -> None:
        some = ("--max-tasks-per-child", "20") if self.variant == "renewed" else ()
        argv = [sys.executable, "-m", "celery", *COMMAND, "-c", str(self.processes), *some]
        with open(self.log, "ab") as log:
            self._worker = subprocess.Popen(
                argv,
                cwd=self.folder,  # -m imports from where it is started
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment() | {"C_FORCE_ROOT": "1"},
                start_new_session=True,  # a Ctrl-C at the terminal reaches the trial alone
            )
        self._leaders.append(self._worker)
        self._family.add(self._worker.pid)

    def _at_work(self) -> bool:
        assert self._worker is not None
        if self._worker.poll() is not None:
            raise DemoFailed("celery ended", self.log.read_text()[-4000:])
        diaries = self.folder / "diaries"
        return sum((diaries / f"w{pid}").exists() for pid in self.workers()) >= self.processes

    def _ask(self, token: str) -> Answer:
        from stress.scenarios.celery_app import QUESTION

        result = self._app.send_task(QUESTION, [token])
        bound = self.brief.timeout + PATIENCE
        try:
            return Answer(**result.get(timeout=bound, interval=INTERVAL))
        finally:
            result.forget()

    def workers(self) -> list[int]:
        return self._family.children(self._worker.pid) if self._worker is not None else []

    def children(self) -> list[int]:
        return [process.pid for process in self._leaders]

    def tend(self) -> None:
        status = self._worker.poll() if self._worker is not None else None
        if status is not None:
            self.happened("ended", f"celery ended with status {status}")
            self._begin()

    def finish(self, bound: float) -> list[str]:
        assert self._worker is not None and self._callers is not None
        deadline = time.monotonic() + bound
        wrong = self._callers.finish(bound)
        self._worker.terminate()
        try:
            status = self._worker.wait(max(5.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            for pid in self.workers():
                os.kill(pid, signal.SIGALRM)  # it shows where every thread stands, and dies
            return [*wrong, f"celery did not end within {bound:g} s"]
        return [*wrong, f"celery ended with status {status}"] if status else wrong

    def close(self) -> None:
        if self._callers is not None:
            self._callers.finish(0.0)
        put_down_sessions(self._family, self._leaders)
        if self._app is not None:
            self._app.close()
