"""PostgreSQL: one of our own from a wheel, or that of a DSN."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from nimue.cli.demo_verdict import DemoFailed
from stress.databases.admin import Admin, ServerAway
from stress.databases.base import (
    CONNECT_TIMEOUT,
    STATEMENT_TIMEOUT,
    Database,
    Process,
)
from stress.servers import PostgresServer, Server
from stress.trial.faults import WAY

#: Of CONNECTIONS, those kept for the oracle, who is a superuser; the trial's role is none.
RESERVED = 5
ROLE = "stress"
LOOPBACK = ("127.0.0.1", "localhost")
#: What a server says that takes no more clients.
FULL = ("too many clients", "remaining connection slots")


class PostgreSQL(Database):
    """Sessions are known by their application_name, ``<mark>.<process id>``."""

    name = "PostgreSQL"
    #: The ledger was there before.
    is_another = False
    server = "postgres"

    def __init__(self, noted: set[int] | None = None) -> None:
        super().__init__(noted)
        self._load: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    @property
    def faults(self) -> frozenset[str]:
        way = frozenset(WAY) if self.port is not None else frozenset()
        return way | {"terminate"} | ({"restart", "full"} if self.is_ours else set())

    def open(self, dsn: str | None, folder: Path) -> None:
        import psycopg2

        try:
            if dsn is None:
                self._start()
            else:
                self._reach(dsn)
            [[version]] = self._ask("show server_version")
        except (psycopg2.Error, ServerAway) as error:
            raise DemoFailed(f"PostgreSQL cannot be used: {error}") from error
        self.version = version.split(maxsplit=1)[0]

    def _start(self) -> None:
        self.is_ours = True
        # A commit is in the system's hands before it is acknowledged, so that a server which has
        # to be killed still has it.
        self._process = Process(
            *(PostgresServer, self._noted),
            max_connections=self.connections,
            superuser_reserved_connections=RESERVED,
            synchronous_commit="on",
        )
        self._process.start()
        self.port = self._process.server.port
        self._load = {"host": Server.host, "port": self.port, "user": ROLE, "dbname": "postgres"}
        self._administer({**self._load, "user": "postgres"})
        self._ask(f"create role {ROLE} login")

    def _reach(self, dsn: str) -> None:
        import psycopg2
        import psycopg2.extensions

        self._load = psycopg2.extensions.parse_dsn(dsn)
        conn = psycopg2.connect(**{"connect_timeout": CONNECT_TIMEOUT, **self._load})
        host, port = conn.info.host, conn.info.port
        conn.close()
        self.port = port if host in LOOPBACK else None
        self._administer(self._load)
        [[there]] = self._ask("select to_regclass('stress_ledger')")
        if there is not None:
            self.is_another = True
            raise DemoFailed("there is a table stress_ledger: drop it, or give another database")

    def _administer(self, address: dict[str, Any]) -> None:
        import psycopg2

        def connect() -> Any:
            bounds = {"connect_timeout": CONNECT_TIMEOUT, "application_name": "nimue stress"}
            conn = psycopg2.connect(**{**address, **bounds})
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute(f"set statement_timeout = '{STATEMENT_TIMEOUT}s'")
            return conn

        self._admin = Admin(connect, (psycopg2.Error,), lambda conn, error: bool(conn.closed))

    def address(self, dialect: str, port: int | None = None) -> dict[str, Any]:
        self._check(dialect)
        keywords = dict(self._load)
        if port is not None:
            keywords |= {"host": Server.host, "port": port}
            keywords.pop("hostaddr", None)
        if dialect != "pg8000":
            return {"connect_timeout": CONNECT_TIMEOUT, **keywords}
        names = {"host": "host", "user": "user", "password": "password", "dbname": "database"}
        found = {theirs: keywords[name] for name, theirs in names.items() if name in keywords}
        return {**found, "port": int(keywords.get("port", 5432))}

    def create_ledger(self) -> None:
        super().create_ledger()
        if self.is_ours:
            self._ask(f"grant select, insert on stress_ledger to {ROLE}")

    def sessions(self, mark: str) -> dict[int, int]:
        rows = self._ask(
            "select pid, application_name from pg_stat_activity"
            " where backend_type = 'client backend' and starts_with(application_name, %s)",
            f"{mark}.",
        )
        self._names = dict(rows)
        return {backend: _number(name[len(mark) + 1 :]) for backend, name in rows}

    def doing(self, backends: Collection[int]) -> list[str]:
        rows = self._ask(
            "select pid, state, wait_event, now() - state_change from pg_stat_activity"
            " where pid = any(%s) order by pid",
            list(backends),
        )
        return [
            f"{pid} {state}, waits for {event or 'nothing'}, for {since} so far"
            for pid, state, event, since in rows
        ]

    def terminate(self, backend: int) -> bool:
        """End a session that ``sessions`` has listed last, and no other that has its number."""
        rows = self._ask(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where pid = %s and application_name = %s",
            *(backend, self._names.get(backend)),
        )
        return bool(rows and rows[0][0])

    def _another(self) -> Any | None:
        import psycopg2

        try:
            return psycopg2.connect(**self._load, connect_timeout=CONNECT_TIMEOUT)
        except psycopg2.OperationalError as error:
            if any(words in str(error) for words in FULL):
                return None
            raise ServerAway(str(error)) from error

    def close(self) -> None:
        try:
            if self._admin is not None and not self.is_ours and not self.is_another:
                self._ask("drop table if exists stress_ledger")
        except ServerAway:  # and the ledger with it
            pass
        finally:
            super().close()


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
