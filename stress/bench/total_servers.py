"""PgBouncer as the benchmark starts it: in its own folder, on a unix socket, not as root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from nimue.cli.demo_process import tail, until

PORT = 6432
STARTUP = 10.0
#: Log in as whoever the server trusts; eight server connections in all, lent per transaction.
SETTINGS = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr =
listen_port = {own_port}
unix_socket_dir = {folder}
logfile = {folder}/log
auth_type = any
pool_mode = transaction
default_pool_size = {limit}
max_db_connections = {limit}
max_client_conn = 200
log_connections = 0
log_disconnections = 0
"""


class RunFailed(Exception):
    """A contender could not be measured; says why."""


def program() -> str | None:
    """Where PgBouncer is, if it is installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("pgbouncer", path=path)


def version() -> str:
    """What it says of itself, without its name."""
    command = [program() or "pgbouncer", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.splitlines()[0].removeprefix("PgBouncer").strip()


class PgBouncer:
    """One of our own before the server at ``address``, in ``folder``, as the user of ``owned``.

    Raises: RunFailed when it does not start.
    """

    def __init__(self, folder: Path, address: dict[str, Any], owned: Path, limit: int) -> None:
        self.folder = folder
        self.address = {**address, "host": str(folder), "port": PORT}
        self._server = address
        self._owner = owned.stat()
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; ``wait`` waits until it answers."""
        found = program()
        if found is None:
            raise RunFailed("pgbouncer is not installed")
        self.folder.mkdir()
        file = self.folder / "pgbouncer.ini"
        server = {"port": 5432, "user": "postgres", **self._server}
        names = {"folder": self.folder, "own_port": PORT, "limit": self._limit}
        file.write_text(SETTINGS.format(**{**server, **names}))
        self._process = subprocess.Popen(
            [found, "-q", str(file)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **self._identity(),
        )

    def _identity(self) -> dict[str, Any]:
        """It refuses to run as root; who the server runs as may enter the server's folder."""
        if os.geteuid() != 0:
            return {}
        user, group = self._owner.st_uid, self._owner.st_gid
        os.chown(self.folder, user, group)
        return {"user": user, "group": group, "extra_groups": []}

    def wait(self) -> None:
        process = self._process
        assert process is not None
        until(lambda: process.poll() is not None or self._answers(), STARTUP)
        if not self._answers():
            raise RunFailed(f"PgBouncer did not start:\n{tail(self.folder / 'log')}")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(self.folder / f".s.PGSQL.{PORT}"))
            return True
        return False

    def stop(self) -> None:
        """At once; by force when it does not go."""
        process = self._process
        if process is None:
            return
        for end in (process.terminate, process.kill):
            end()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
                return
