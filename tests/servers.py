"""Real servers for the tests: PostgreSQL from a wheel, MariaDB where it is installed.

Fixtures, each with a name of the test's own for its sessions, so that tests may run at once:

``postgres`` (one server for the whole run, shared by all workers) and ``private_postgres`` (the
test's own: ``stop()``, ``start(max_connections=5)``):

- ``.dsn .host .port .application_name``
- ``.connect("psycopg2" | "psycopg" | "pg8000", **kw)``: an open connection; ``kw`` are the
  driver's, ``port=proxy.port`` among them.
- ``.connector(driver, **kw)``: the same as a callable without arguments, which can be pickled.
- ``.sessions()``: rows of pg_stat_activity with this test's application_name, seen over a
  connection that nimue knows nothing of: ``pid application_name state query xact_start ...``;
  ``.sessions(name)`` of another one.
- ``.expect_sessions(n)``: waits until there are ``n``; returns them.
- ``.terminate(pid)``, ``.terminate_all()``, ``.sql(statement, *parameters)`` as administrator.

``mariadb``: likewise, with drivers ``"pymysql"`` and ``"mysqlclient"``; ``.user`` is the test's
own, and its sessions are known by it: ``id user state command info``. Skipped where ``mariadbd``
or the driver is missing; with NIMUE_REQUIRE_MARIADB=1 that is a failure.

A test that passes must leave no session, or say ``may_leave_sessions = True``.

The module's ``connect_psycopg2(dsn, application_name)`` and its like can be imported and pickled.

The processes are in ``stress.servers``; no server survives the run.
"""

from __future__ import annotations

import datetime
import fcntl
import functools
import importlib
import importlib.util
import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from stress import servers
from stress.servers import MariaDBServer, PostgresServer, Server, program
from tests import children
from tests.fakes import until

POSTGRES_DRIVERS = ("psycopg2", "psycopg", "pg8000")
MARIADB_DRIVERS = ("pymysql", "mysqlclient")

_numbers = itertools.count(1)


def connect_psycopg2(dsn: str, application_name: str | None = None, **kw: Any) -> Any:
    import psycopg2

    return psycopg2.connect(dsn, application_name=application_name, **kw)


def connect_psycopg(dsn: str, application_name: str | None = None, **kw: Any) -> Any:
    import psycopg

    return psycopg.connect(dsn, application_name=application_name, **kw)


def connect_pg8000(dsn: str, application_name: str | None = None, **kw: Any) -> Any:
    import pg8000.dbapi

    parts = urlsplit(dsn)
    given = {
        "user": parts.username,
        "host": parts.hostname,
        "port": parts.port,
        "database": parts.path.lstrip("/"),
        "application_name": application_name,
    }
    return pg8000.dbapi.connect(**{**given, **kw})


def connect_pymysql(**kw: Any) -> Any:
    import pymysql

    return pymysql.connect(**kw)


def connect_mysqlclient(**kw: Any) -> Any:
    import MySQLdb

    return MySQLdb.connect(**kw)


_CONNECTS: dict[str, Callable[..., Any]] = {
    "psycopg2": connect_psycopg2,
    "psycopg": connect_psycopg,
    "pg8000": connect_pg8000,
    "pymysql": connect_pymysql,
    "mysqlclient": connect_mysqlclient,
}


class Run(servers.Run):
    """One run of the tests, whose workers share a server of each kind."""

    def __init__(self, folder: str | Path, noted: set[int] | None = None) -> None:
        super().__init__(folder, children.expected if noted is None else noted)

    def end(self) -> None:
        for record in self.folder.glob("*.json"):
            kind = {"postgres": PostgresServer, "mariadb": MariaDBServer}[record.stem]
            server = self._load(kind, record)
            server.stop(server.quick)
        super().end()

    def shared(self, kind: type[Server], name: str) -> Any:
        """The run's one server of this kind, started by whoever asks first."""
        record = self.folder / f"{name}.json"
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if record.exists():
                return self._load(kind, record)
            server = self._started(kind, name)
            record.write_text(json.dumps({"port": server.port, "pid": server.pid}))
            return server

    def private(self, kind: type[Server]) -> Any:
        return self._started(kind, f"private-{os.getpid()}-{next(_numbers)}")

    def _load(self, kind: type[Server], record: Path) -> Server:
        server = kind(self, record.stem)
        facts = json.loads(record.read_text())
        server.port, server.pid = facts["port"], facts["pid"]
        return server

    def _started(self, kind: type[Server], name: str) -> Server:
        server = kind(self, name)
        server.create()
        server.start()
        return server

class PostgresSession(NamedTuple):
    pid: int
    application_name: str
    state: str | None
    query: str
    backend_start: datetime.datetime
    xact_start: datetime.datetime | None
    client_port: int
    wait_event_type: str | None
    wait_event: str | None


class MariaDBSession(NamedTuple):
    id: int
    user: str
    state: str | None
    command: str
    info: str | None


class Database:
    """What a test gets of a server: its own name there, and the administrator's eyes."""

    drivers: tuple[str, ...] = ()

    def __init__(self, server: Any, name: str) -> None:
        self.server = server
        self.host, self.port = server.host, server.port
        self.name = name
        self.may_leave_sessions = False
        self._admins: dict[int, Any] = {}

    def connector(self, driver: str, **kw: Any) -> Callable[[], Any]:
        """A callable that connects, and that can be pickled: a ``connfunc``."""
        if driver not in self.drivers:
            raise ValueError(f"{driver!r} is not one of {', '.join(self.drivers)}")
        return functools.partial(_CONNECTS[driver], **{**self._address(), **kw})

    def connect(self, driver: str, **kw: Any) -> Any:
        return self.connector(driver, **kw)()

    def expect_sessions(self, n: int, timeout: float = 10.0) -> list[Any]:
        seen: list[Any] = []

        def right() -> bool:
            seen[:] = self.sessions()
            return len(seen) == n

        until(right, timeout, lambda: f"{n} sessions of {self.name}; there are {seen}")
        return list(seen)

    def terminate_all(self) -> None:
        for session in self.sessions():
            self.terminate(session[0])

    def sql(self, statement: str, *parameters: Any) -> list[Any]:
        """As administrator, outside any transaction."""
        with self._admin().cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def finish(self, check: bool) -> None:
        try:
            if check and not self.may_leave_sessions:
                self.expect_sessions(0, 5.0)
        finally:
            try:
                self.terminate_all()
            finally:
                self._forget_admin()

    def _admin(self) -> Any:
        # A forked child opens its own; the parent's stays referenced there, and untouched.
        admin = self._admins.get(os.getpid())
        if admin is None:
            admin = self._admins[os.getpid()] = self._connect_admin()
        return admin

    def _forget_admin(self) -> None:
        admin = self._admins.pop(os.getpid(), None)
        if admin is not None:
            admin.close()

    def _address(self) -> dict[str, Any]:
        raise NotImplementedError

    def _connect_admin(self) -> Any:
        raise NotImplementedError

    def sessions(self, name: str | None = None) -> list[Any]:
        raise NotImplementedError

    def terminate(self, pid: int) -> None:
        raise NotImplementedError


class Postgres(Database):
    drivers = POSTGRES_DRIVERS

    @property
    def application_name(self) -> str:
        return self.name

    @property
    def dsn(self) -> str:
        return str(self.server.dsn)

    def _address(self) -> dict[str, Any]:
        return {"dsn": self.dsn, "application_name": self.name}

    def _connect_admin(self) -> Any:
        admin = connect_psycopg2(self.dsn, "nimue-tests-admin")
        admin.autocommit = True
        return admin

    def sessions(self, name: str | None = None) -> list[Any]:
        rows = self.sql(
            f"SELECT {', '.join(PostgresSession._fields)} FROM pg_stat_activity"
            " WHERE application_name = %s AND backend_type = 'client backend'"
            " ORDER BY backend_start",
            name or self.name,
        )
        return [PostgresSession(*row) for row in rows]

    def terminate(self, pid: int) -> None:
        """End a session, and wait until it is gone."""
        self.sql("SELECT pg_terminate_backend(%s, 5000)", pid)

    def stop(self, *, crash: bool = False) -> None:
        """Only for a private server: ends all sessions and refuses new ones."""
        assert self.server.name.startswith("private")
        self._forget_admin()
        self.server.stop(self.server.quick if crash else signal.SIGINT)

    def start(self, **settings: Any) -> None:
        self.server.start(**settings)


class MariaDB(Database):
    drivers = MARIADB_DRIVERS
    password = "pass-nimue"

    def __init__(self, server: Any, name: str) -> None:
        super().__init__(server, name)
        self.sql("CREATE DATABASE IF NOT EXISTS nimue")
        self.sql(f"CREATE USER '{name}'@'%' IDENTIFIED BY '{self.password}'")
        self.sql(f"GRANT ALL ON nimue.* TO '{name}'@'%'")

    @property
    def user(self) -> str:
        return self.name

    def connector(self, driver: str, **kw: Any) -> Callable[[], Any]:
        if driver == "mysqlclient":
            require_module("MySQLdb")
        return super().connector(driver, **kw)

    def _address(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "port": self.port,
            "user": self.name,
            "password": self.password,
            "database": "nimue",
        }

    def _connect_admin(self) -> Any:
        return self.server.connect()

    def sessions(self, name: str | None = None) -> list[Any]:
        rows = self.sql(
            f"SELECT {', '.join(MariaDBSession._fields)} FROM information_schema.processlist"
            " WHERE USER = %s ORDER BY ID",
            name or self.name,
        )
        return [MariaDBSession(*row) for row in rows]

    def terminate(self, pid: int) -> None:
        """End a session, and wait until it is gone."""
        import pymysql

        try:
            self.sql("KILL CONNECTION %s", pid)
        except pymysql.OperationalError as error:
            if error.args[0] != 1094:  # no such thread
                raise
        until(lambda: pid not in [session.id for session in self.sessions()])

    def finish(self, check: bool) -> None:
        try:
            super().finish(check)
        finally:
            self.sql(f"DROP USER IF EXISTS '{self.name}'@'%'")
            self._forget_admin()


def missing(what: str) -> None:
    """Skip the test, or fail it where MariaDB is required."""
    if os.environ.get("NIMUE_REQUIRE_MARIADB") == "1":
        pytest.fail(f"{what} is missing, and NIMUE_REQUIRE_MARIADB=1")
    pytest.skip(f"{what} is not installed")


def require_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing(f"{name} ({error})")


def require_mariadb() -> None:
    for name in ("mariadbd", "mariadb-install-db"):
        if not program(name):
            missing(name)
    require_module("pymysql")







def unique_name(prefix: str) -> str:
    """A name for one test's sessions in the run."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"{prefix}_{worker}_{os.getpid()}_{next(_numbers)}"
