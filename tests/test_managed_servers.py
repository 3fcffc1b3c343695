"""Managed connections on real servers: the documented examples as they stand, and each driver."""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nimue import ManagedConnection, NimueInheritedConnectionError
from nimue.database import PooledPostgreSQLDatabase
from tests.children import Child, forked, gone
from tests.fakes import spawn, until
from tests.servers import POSTGRES_DRIVERS, Postgres

pytestmark = pytest.mark.server

README = Path(__file__).parent.parent / "README.md"

#: What psycopg2-managed-connection shows of itself, but for the line that imports it.
EXAMPLES = """
>>> from nimue import ManagedConnection
>>>
>>> dsn = 'postgres:///postgres'  # a libpq connection string
>>> manager = ManagedConnection(dsn)
>>> print(repr(manager))
<ManagedConnection: postgres:///postgres (closed)>

>>> with manager() as connection:
...     cursor = connection.cursor()
...     cursor.execute('SELECT 1')
...     cursor.fetchone()
...     connection.commit()
(1,)

>>> with manager() as connection:
...    cursor = connection.cursor()
...    cursor.execute('SELECT 1')
Traceback (most recent call last):
    ...
RuntimeError: Did not commit or rollback open transaction before releasing connection.

>>> import psycopg2
>>> with manager() as connection:
...    cursor = connection.cursor()
...    cursor.execute('SELECT 1')
...    assert manager.status is psycopg2.extensions.TRANSACTION_STATUS_INTRANS
...    raise NotImplementedError()
Traceback (most recent call last):
    ...
NotImplementedError
>>> manager.status is psycopg2.extensions.TRANSACTION_STATUS_IDLE
True
"""


@pytest.fixture
def libpq(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """``postgres:///postgres`` is the test's server."""
    import psycopg2.extensions

    told = psycopg2.extensions.parse_dsn(postgres.dsn)
    for variable, option in (("PGHOST", "host"), ("PGPORT", "port"), ("PGUSER", "user")):
        monkeypatch.setenv(variable, told[option])
    monkeypatch.setenv("PGAPPNAME", postgres.application_name)
    return postgres


def test_the_originals_examples(libpq: Postgres) -> None:
    names: dict[str, Any] = {}
    examples = doctest.DocTestParser().get_doctest(EXAMPLES, names, "examples", None, 0)
    told: list[str] = []
    result = doctest.DocTestRunner().run(examples, out=told.append, clear_globs=False)
    assert result.attempted > 5
    assert not result.failed, "".join(told)
    names.update(examples.globs)
    libpq.expect_sessions(1)
    names["manager"].close()
    libpq.expect_sessions(0)


def test_the_readmes_example(libpq: Postgres) -> None:
    section = README.read_text().partition("## ManagedConnection")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["answer"] == (42,)
    libpq.expect_sessions(0)


class Site:
    """A driver's manager, and a table, looked at with a connection of its own."""

    def __init__(self, manager: ManagedConnection, connfunc: Any, table: str) -> None:
        self.manager, self.connfunc, self.table = manager, connfunc, table

    def ask(self, statement: str) -> list[Any]:
        with contextlib.closing(self.connfunc()) as raw:
            cursor = raw.cursor()
            cursor.execute(statement)
            rows = list(cursor.fetchall()) if cursor.description else []
            cursor.close()
            raw.commit()
            return rows

    def insert(self, connection: Any, i: int) -> None:
        cursor = connection.cursor()
        cursor.execute(f"INSERT INTO {self.table} VALUES ({i})")
        cursor.close()

    def rows(self) -> list[int]:
        return [row[0] for row in self.ask(f"SELECT i FROM {self.table} ORDER BY i")]


@pytest.fixture(params=[*POSTGRES_DRIVERS, "pymysql", "mysqlclient", "sqlite3"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param == "sqlite3":
        options = {"check_same_thread": False}
        manager = ManagedConnection(sqlite3.connect, [tmp_path / "db"], options)
        site = Site(manager, lambda: sqlite3.connect(tmp_path / "db"), "t")
    else:
        kind = "postgres" if request.param in POSTGRES_DRIVERS else "mariadb"
        database = request.getfixturevalue(kind)
        connfunc = database.connector(request.param)
        site = Site(ManagedConnection(connfunc), connfunc, f"t_{database.name}")
    site.ask(f"CREATE TABLE {site.table} (i int primary key)")
    yield site
    site.manager.close()
    site.ask(f"DROP TABLE {site.table}")


def knows_transactions(connection: Any) -> bool:
    """mysqlclient does not tell."""
    return not type(connection).__module__.startswith("MySQLdb")


def test_each_driver(site: Site) -> None:
    manager = site.manager
    with manager() as first:
        site.insert(first, 1)
        first.commit()
    forgotten = pytest.raises(RuntimeError, match="Did not commit")
    told = forgotten if knows_transactions(first) else contextlib.nullcontext()
    with told, manager() as connection:
        site.insert(connection, 2)
    with pytest.raises(ZeroDivisionError), manager() as connection:
        assert connection is first
        site.insert(connection, 3)
        raise ZeroDivisionError
    assert not manager.closed
    assert site.rows() == [1]
    with manager() as connection:
        assert connection is first
        with pytest.raises(Exception, match=r"(?i)unique|duplicate") as refused:
            site.insert(connection, 1)
        connection.rollback()
    with pytest.raises(type(refused.value)), manager():
        raise refused.value
    assert manager.closed
    assert manager.status is None
    with manager(close=True) as connection:
        assert connection is not first
        site.insert(connection, 4)
        connection.commit()
    assert manager.closed
    assert site.rows() == [1, 4]


def test_each_driver_over_a_fork(site: Site) -> None:
    """The child leaves the parent's block, and has a connection of its own if it can have one."""
    manager = site.manager
    turn = manager()
    connection = turn.__enter__()
    site.insert(connection, 1)

    def child() -> list[int]:
        assert manager.closed
        with pytest.raises(NimueInheritedConnectionError):
            turn.__exit__(None, None, None)
        if isinstance(connection, sqlite3.Connection):
            with pytest.raises(NimueInheritedConnectionError, match="SQLite file"):
                manager().__enter__()
            return []
        with manager(close=True) as own:
            cursor = own.cursor()
            cursor.execute(f"SELECT i FROM {site.table}")
            rows = [row[0] for row in cursor.fetchall()]
            cursor.close()
            own.rollback()
        return rows

    assert forked(child, leave="sys.exit", expect_threads=True) == []
    connection.commit()
    turn.__exit__(None, None, None)
    assert site.rows() == [1]
    with manager() as again:
        assert again is connection


@pytest.mark.parametrize("driver", [*POSTGRES_DRIVERS, "pymysql", "mysqlclient"])
def test_a_fork_while_another_thread_is_inside_a_call(
    driver: str, request: pytest.FixtureRequest
) -> None:
    """With the connection that the forking thread took: the child waits for no lock of it."""
    is_postgres = driver in POSTGRES_DRIVERS
    database: Any = request.getfixturevalue("postgres" if is_postgres else "mariadb")
    manager = ManagedConnection(database.connector(driver))
    with pytest.raises(ZeroDivisionError), manager() as connection:

        def calls() -> None:
            with contextlib.suppress(Exception):
                sleeps = "select pg_sleep(30)" if is_postgres else "select sleep(30)"
                connection.cursor().execute(sleeps)

        thread = spawn(calls)
        until(lambda: any("sleep(" in str(session) for session in database.sessions()))

        def child() -> bool:
            with manager(close=True) as own:
                own.cursor().execute("select 1")
                own.rollback()
            return manager.closed

        assert forked(child, leave="sys.exit", expect_threads=True)
        (session,) = database.sessions()
        database.terminate(session[0])
        thread.result()
        raise ZeroDivisionError
    manager.close()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_session_that_the_server_has_ended(postgres: Postgres, driver: str) -> None:
    manager = ManagedConnection(postgres.connector(driver), healthcheck_idle=0.0)
    with manager() as connection:
        assert manager.status == 0
        cursor = connection.cursor()
        cursor.execute("SELECT pg_backend_pid()")
        assert manager.status == 2
        (before,) = cursor.fetchone()
        connection.rollback()
    postgres.terminate(before)
    with pytest.raises(Exception, match="terminat") as lost, manager() as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT pg_backend_pid()")
        (after,) = cursor.fetchone()
        assert after != before
        postgres.terminate(after)
        cursor.execute("SELECT 1")
    assert type(lost.value).__module__.startswith(driver)
    assert manager.closed
    postgres.expect_sessions(0)


def _die_beside_a_child(dsn: str, name: str, report: int, wait: int) -> None:
    """Has a managed connection and a thread's own in use, and a child that idles."""
    manager = ManagedConnection(dsn=dsn, connkwargs={"application_name": name})
    db = PooledPostgreSQLDatabase(dsn=dsn, application_name=name)

    def idle() -> None:
        os.write(report, b"%d\n" % os.getpid())
        os.read(wait, 1)

    with manager() as connection, db:
        connection.cursor().execute("select 1")
        db.sql("select 1")
        Child(idle)
        time.sleep(60)


def test_an_idle_child_of_a_killed_parent_pins_nothing(postgres: Postgres) -> None:
    report, theirs = os.pipe()
    wait, go_on = os.pipe()
    told = (postgres.dsn, postgres.name, theirs, wait)
    parent = Child(_die_beside_a_child, *told, timeout=30)
    idle = int(os.read(report, 100))
    postgres.expect_sessions(2)
    parent.signal(signal.SIGKILL)
    parent.wait()
    postgres.expect_sessions(0)
    assert not gone(idle)
    os.write(go_on, b"x")
    for fd in (report, theirs, wait, go_on):
        os.close(fd)
