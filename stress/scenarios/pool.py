"""The scenario of tasks for a multiprocessing.Pool, or for a ProcessPoolExecutor."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from nimue.cli.demo_process import Family
from nimue.cli.demo_verdict import DemoFailed
from stress.ground import put_down
from stress.scenarios.base import Scenario, wait_until
from stress.scenarios.pool_teams import WAYS
from stress.scenarios.pool_worker import TAKEN

#: Seconds in which the workers have to come to work.
STARTUP = 60.0


class Pools(Scenario):
    """A process with a Pool or an executor, whose threads submit questions as tasks."""

    name = "pool"
    summary = "tasks for a multiprocessing.Pool, or for a ProcessPoolExecutor"
    variants: Mapping[str, str] = {name: way.what for name, way in WAYS.items()}
    fixed: Mapping[str, int] = {"threads": 1}
    # Workers ask in their main thread, where the code of the Pool is above.
    without = frozenset({"interrupt"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._family = Family()
        self._parent: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self._pids: list[int] = []
        self._finished: list[str] | None = None

    def start(self) -> None:
        (self.folder / TAKEN).mkdir(exist_ok=True)
        argv = [sys.executable, "-m", "stress.scenarios.pool_parent", self.variant]
        with open(self.log, "ab") as log:
            self._parent = subprocess.Popen(
                [*argv, str(self.processes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment(),
                start_new_session=True,  # a Ctrl-C at the terminal reaches the trial alone
            )
        self._family.add(self._parent.pid)
        wait_until(self._at_work, STARTUP, "the workers did not come to work", self.log)

    def _at_work(self) -> bool:
        if not self._hear():
            raise DemoFailed("the parent of the workers ended", self.log.read_text()[-4000:])
        up = [pid for pid in self._pids if (self.folder / "diaries" / f"w{pid}").exists()]
        return len(up) >= self.processes

    def _hear(self) -> bool:
        """Take in what the parent has told so far; whether it is there."""
        assert self._parent is not None and self._parent.stdout is not None
        pipe = self._parent.stdout
        while not pipe.closed and select.select([pipe], [], [], 0)[0]:
            told = os.read(pipe.fileno(), 1 << 16)
            if not told:
                return False
            *lines, self._heard = (self._heard + told).split(b"\n")
            for line in lines:
                what, *values = json.loads(line)
                if what == "workers":
                    self._pids = values[0]
                elif what == "finished":
                    self._finished = values[0]
                else:
                    self.happened(*values)
        return not pipe.closed

    def workers(self) -> list[int]:
        if self._parent is None:
            return []
        self._hear()
        # It tells a moment late: by now a number may be nobody's, or somebody else's.
        return [pid for pid in self._pids if _lives_in(pid, self._parent.pid)]

    def children(self) -> list[int]:
        return [self._parent.pid] if self._parent is not None else []

    def tend(self) -> None:
        if not self._hear() and self._finished is None and not self._gone:
            self._gone = True
            self.happened("ended", "the parent of the workers has ended by itself")

    #: Whether it was told that the parent is.
    _gone = False

    def finish(self, bound: float) -> list[str]:
        assert self._parent is not None and self._parent.stdin is not None
        try:
            self._parent.stdin.write(f"finish {bound:g}\n".encode())
            self._parent.stdin.flush()
        except BrokenPipeError:
            return ["the parent of the workers has ended by itself"]
        deadline = time.monotonic() + bound + 2 * self.brief.timeout
        while self._hear() and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._finished is None:
            return [f"the workers and their parent did not end within {bound:g} s"]
        try:
            status = self._parent.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return [*self._finished, "the parent of the workers did not end"]
        wrong = [f"the parent of the workers ended with status {status}"] if status else []
        return self._finished + wrong

    def close(self) -> None:
        if self._parent is None:
            return
        if self._parent.returncode is None:  # else its number may be another's session by now
            self._family.adopt_session(self._parent.pid)
        self._family.signal(signal.SIGKILL)
        put_down(self._parent)


def _lives_in(pid: int, session: int) -> bool:
    """Whether there is such a process, not yet dead, in the session of that leader."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, _, _, leader = file.read().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX" and int(leader) == session
