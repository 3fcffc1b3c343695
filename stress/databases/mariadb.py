"""MariaDB: one of our own, where it is installed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from nimue.cli.demo_verdict import DemoFailed
from stress.databases.admin import Admin, ServerAway
from stress.databases.base import (
    CONNECT_TIMEOUT,
    CONNECTIONS,
    STATEMENT_TIMEOUT,
    Database,
    Process,
    refuse,
)
from stress.servers import MariaDBServer, Server
from stress.trial.faults import WAY

USER = "stress"
#: Who takes the rest, and is no session of the trial.
OTHER = "others"
#: What the server answers with no such session, and with no room for another.
NO_SESSION, FULL = 1094, 1040
#: What it says to a session that it ends: shut down, killed; gone, lost.
LOST = (1053, 1927, 2006, 2013)


class MariaDB(Database):
    """Sessions are known by their user, who is the trial's own; whose process, nobody knows.

    The mark does not matter: this server has no other trial's sessions.
    """

    name = "MariaDB"
    server = "mariadb"
    is_ours = True

    @property
    def faults(self) -> frozenset[str]:
        return frozenset(WAY) | {"terminate", "restart", "full"}

    def open(self, dsn: str | None, folder: Path) -> None:
        refuse(dsn, self.name)
        try:
            import pymysql
        except ImportError as error:
            raise DemoFailed("PyMySQL is missing: pip install PyMySQL") from error
        # A commit is in the system's hands before it is acknowledged, so that a server which has
        # to be killed still has it.
        settings = {"max-connections": CONNECTIONS, "innodb-flush-log-at-trx-commit": 2}
        self._process = Process(MariaDBServer, self._noted, **settings)
        try:
            self._process.start()
            self.port = self._process.server.port
            self._administer()
            for user in (USER, OTHER):
                self._ask(f"create user '{user}'@'%'")
                self._ask(f"grant all on stress.* to '{user}'@'%'")
            [[version]] = self._ask("select version()")
        except (pymysql.Error, ServerAway) as error:
            raise DemoFailed(f"MariaDB cannot be used: {error}") from error
        self.version = version.partition("-")[0]

    def _administer(self) -> None:
        import pymysql

        assert self._process is not None
        server = self._process.server
        with contextlib.closing(server.connect()) as conn:
            conn.cursor().execute("create database stress")
        bounds = {"read_timeout": STATEMENT_TIMEOUT, "write_timeout": STATEMENT_TIMEOUT}
        self._admin = Admin(
            lambda: server.connect(database="stress", **bounds),
            (pymysql.Error, OSError),
            lambda conn, error: not conn.open or error.args[0] in LOST,
        )

    def address(self, dialect: str, port: int | None = None) -> dict[str, Any]:
        self._check(dialect)
        return self._address(dialect, USER) | {"port": port or self.port}

    def _address(self, dialect: str, user: str) -> dict[str, Any]:
        keywords = {
            "host": Server.host,
            "port": self.port,
            "user": user,
            "password": "",
            "database": "stress",
            "connect_timeout": CONNECT_TIMEOUT,
        }
        if dialect == "pymysql":  # which reads all certificates else, for 50 ms a connection
            keywords["ssl_disabled"] = True
        return keywords

    def sessions(self, mark: str) -> dict[int, int]:
        rows = self._ask("select id from information_schema.processlist where user = %s", USER)
        return {int(backend): 0 for (backend,) in rows}

    def terminate(self, backend: int) -> bool:
        import pymysql

        try:
            self._ask("kill connection %s", backend)
        except pymysql.OperationalError as error:
            if error.args[0] != NO_SESSION:
                raise
            return False
        return True

    def _another(self) -> Any | None:
        import pymysql

        try:
            return pymysql.connect(**self._address("pymysql", OTHER))
        except pymysql.OperationalError as error:
            if error.args[0] == FULL:
                return None
            raise ServerAway(str(error)) from error
