"""Where all entrants meet: one server, one ledger, and a folder for each trial."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from nimue.cli.demo_process import until
from stress import orphans
from stress.compare.entrants import Seat
from stress.trial import site
from stress.trial.brief import VARIABLE, Brief

#: Seconds for a process that was killed to be gone.
SOON = 10.0
#: What the server takes at once: all entrants may be tried at the same time.
CONNECTIONS = 200


class Site(site.Site):
    """The ground of a comparison."""

    name = "compare"

    def open(self, dsn: str | None = None) -> None:
        self.prepare("postgres", dsn, with_proxy=False, connections=CONNECTIONS)

    def connect_timeout(self, patience: float) -> int:
        """What libpq is told for so many seconds: whole ones, and at least 2."""
        return max(2, round(patience))

    def brief(self, seat: Seat, timeout: float, port: int | None = None, **load: Any) -> Brief:
        """What an entrant's processes are told, with a folder of their own.

        Args:
            timeout: of the pool, and of all waits on the server, in seconds.
            port: of a proxy, if there is one.
            load: the rest of it.
        """
        mark = f"nimue-cmp-{secrets.token_hex(4)}"
        folder = self.folder / mark
        for part in ("diaries", "tickets", "limits"):
            (folder / part).mkdir(parents=True)
        dialect = seat.entrant.dialect
        address = self.database.address(dialect, port)
        bound = f"-c statement_timeout={int(timeout * 1000)}"
        connect = {
            **address,
            "options": f"{address.get('options', '')} {bound}".strip(),
            "connect_timeout": self.connect_timeout(timeout),
            "tcp_user_timeout": int(timeout * 1000),
        }
        return Brief(
            seat.entrant.contender, dialect, mark, connect, str(folder), timeout=timeout, **load
        )

    def begin(self, seat: Seat, brief: Brief, argv: Sequence[str]) -> Group:
        """Start one entrant's processes."""
        folder = Path(brief.folder)
        variables = {
            **seat.variables,
            VARIABLE: brief.as_json(),
            "NIMUE_DIR": str(folder / "limits"),
            "PYTHONWARNINGS": "ignore::DeprecationWarning",
        }
        with self.held():
            return Group([seat.python, *argv], variables, folder)

    def reap(self) -> None:
        """Forget those who died without a parent. Only when no group and no proxy is left."""
        orphans.reap(self.children())


class Group:
    """A process in a session of its own, and all that come of it."""

    def __init__(self, argv: Sequence[str], variables: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        #: What they print.
        self.log = folder / "processes.log"
        with open(self.log, "wb") as log:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=folder,  # which is searched for modules first: it has no nimue
                start_new_session=True,  # a Ctrl-C at the terminal reaches the comparison alone
            )
        self.pid = self._process.pid

    @property
    def diaries(self) -> Path:
        return self.folder / "diaries"

    def children(self) -> list[psutil.Process]:
        """The living workers of the first process, as what can be signalled without a mistake."""
        try:
            every = psutil.Process(self.pid).children()
            return [child for child in every if child.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []

    def members(self) -> list[int]:
        """Who still lives. The first one is not reaped before ``end``, so the number is its own."""
        return [pid for pid in psutil.pids() if self._has(pid)]

    def _has(self, pid: int) -> bool:
        try:
            found = os.getsid(pid) == self.pid
            return found and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except (OSError, psutil.NoSuchProcess):
            return False

    def tell_over(self) -> None:
        (self.folder / "over").touch()

    def settle(self, bound: float) -> int:
        """Wait until all have ended; how many have not, in so many seconds.

        The first one does not hang where it waits for others.
        """
        if until(lambda: not self.members(), bound, 0.1):
            return 0
        members = self.members()
        return len(members) - (self.pid in members and len(members) > 1)

    def end(self) -> None:
        """Kill whoever is left of them. Those without a parent are for ``Site.reap``."""
        if self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        until(lambda: not self.members(), SOON)
        self._process.wait(SOON)


def sleep_until(when: float) -> None:
    """``when``: of the monotonic clock."""
    time.sleep(max(0.0, when - time.monotonic()))
