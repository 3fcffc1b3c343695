"""What the trials stand on: servers that are looked at, filled, and restarted beside the pool."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nimue.cli.demo_verdict import DemoFailed
from stress.databases import Database, ServerAway, make
from stress.proxy import Proxy
from stress.trial.brief import Brief
from stress.trial.dialects import DIALECTS
from stress.trial.faults import WAY
from tests import children
from tests.fakes import spawn, until
from tests.servers import require_mariadb

pytestmark = pytest.mark.harness

MARK = "trial"
DRIVERS = {"postgres": "psycopg2", "mariadb": "pymysql"}


@pytest.fixture(scope="module", params=DRIVERS)
def database(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Database]:
    if request.param == "mariadb":
        require_mariadb()
    database = make(request.param, noted=children.expected)
    try:
        database.open(None, tmp_path_factory.mktemp("trial"))
        folder, pid = database._process.server.folder, database._process.server.pid
        assert folder.exists() and not children.gone(pid)
        yield database
    finally:
        database.close()
        database.close()
    assert not folder.parent.exists() and children.gone(pid)
    with pytest.raises(ServerAway):
        database.tally()


@pytest.fixture
def connect(database: Database) -> Iterator[Callable[..., Any]]:
    """Opens a connection as a trial's process does, which is closed at the end."""
    made: list[Any] = []

    def connect(port: int | None = None, mark: str = MARK, dialect: str = "") -> Any:
        name = dialect or DRIVERS[database.server]
        address = json.loads(json.dumps(database.address(name, port)))
        made.append(DIALECTS[name].connect(Brief(name, name, mark, address, "", 1, 10)))
        return made[-1]

    database.create_ledger()
    yield connect
    for conn in made:
        with contextlib.suppress(Exception):
            conn.close()
    until(lambda: not database.sessions(MARK))


def backend_of(conn: Any, database: Database) -> int:
    cursor = conn.cursor()
    cursor.execute(DIALECTS[DRIVERS[database.server]].echo, ("x",))
    [(word, backend)] = cursor.fetchall()
    assert word == "x"
    return int(backend)


def write(conn: Any, database: Database, *tokens: str) -> None:
    for token in tokens:
        conn.cursor().execute(DIALECTS[DRIVERS[database.server]].write, (token, os.getpid()))


@pytest.mark.server
class TestServers:
    def test_sessions_are_listed_and_ended(
        self, database: Database, connect: Callable[..., Any]
    ) -> None:
        conn, another = connect(), connect()
        ours = os.getpid() if database.server == "postgres" else 0
        backends = [backend_of(conn, database), backend_of(another, database)]
        assert database.sessions(MARK) == dict.fromkeys(backends, ours)
        assert database.terminate(backends[0])
        until(lambda: database.sessions(MARK) == {backends[1]: ours})
        with pytest.raises(Exception, match=r"terminat|closed|Lost|gone away|killed"):
            write(conn, database, "never")
        assert not database.terminate(99_999_999)

    def test_the_ledger_is_tallied(self, database: Database, connect: Callable[..., Any]) -> None:
        conn = connect()
        write(conn, database, "one", "two", "two")
        assert database.tally() == {}
        conn.commit()
        assert database.tally() == {"one": 1, "two": 2}
        write(conn, database, "three")
        conn.rollback()
        conn.close()
        assert database.tally() == {"one": 1, "two": 2}
        database.create_ledger()
        assert database.tally() == {}

    def test_every_driver_is_told_its_address(
        self, database: Database, connect: Callable[..., Any]
    ) -> None:
        names = [one.name for one in DIALECTS.values() if one.server == database.server]
        for name in names:
            with contextlib.suppress(ImportError):
                backend = backend_of(connect(dialect=name), database)
                assert backend in database.sessions(MARK)
        with pytest.raises(ValueError, match=r"'sqlite3': for .* it is one of"):
            database.address("sqlite3")

    def test_it_is_restarted(self, database: Database, connect: Callable[..., Any]) -> None:
        conn, port = connect(), database.port
        write(conn, database, "kept")
        conn.commit()
        write(conn, database, "lost")
        database.tally()
        over, away, seen = threading.Event(), [], []

        def look() -> None:
            while not over.is_set():
                try:
                    seen.append(len(database.sessions(MARK)))
                except ServerAway:
                    away.append(1)

        looking = spawn(look)
        until(lambda: seen)
        database.restart(down=0.2)
        assert database.tally() == {"kept": 1}, "with the connection of before"
        until(lambda: seen[-1] == 0)
        over.set()
        looking.result()
        assert seen[0] == 1 and away
        with pytest.raises(Exception, match=r"terminat|closed|Lost|gone away|shut ?down|killed"):
            write(conn, database, "never")
        assert database.port == port
        assert backend_of(connect(), database) in database.sessions(MARK)

    def test_others_take_the_rest(self, database: Database, connect: Callable[..., Any]) -> None:
        conn = connect()
        with database.take_rest() as rest:
            assert len(rest) > 20
            with pytest.raises(Exception, match=r"too many|Too many|remaining connection slots"):
                connect()
            backend = backend_of(conn, database)
            assert list(spawn(database.sessions, MARK).result()) == [backend]
        assert len(rest) == 0
        until(lambda: _works(connect))

    def test_a_client_that_gives_up_leaves_no_session(
        self,
        database: Database,
        connect: Callable[..., Any],
        make_proxy: Callable[[int], Proxy],
    ) -> None:
        assert database.faults == {*WAY, "terminate", "restart", "full"}
        proxy = make_proxy(database.port or 0)
        conn = connect(port=proxy.port)
        assert proxy.accepted == len(database.sessions(MARK)) == 1
        proxy.mode = "held"
        with socket.socket(fileno=os.dup(_fileno(conn))) as sock:
            sock.shutdown(socket.SHUT_RDWR)
        until(lambda: not database.sessions(MARK))


def _works(connect: Callable[..., Any]) -> bool:
    try:
        connect()
    except Exception:
        return False
    return True


def _fileno(conn: Any) -> int:
    return int(conn.fileno() if hasattr(conn, "fileno") else conn._sock.fileno())


@pytest.mark.server
class TestGiven:
    """A server that was there before is only looked at, and stays as it was."""

    def test_a_dsn(self, postgres: Any, tmp_path: Path) -> None:
        database = make("postgres")
        try:
            database.open(postgres.dsn, tmp_path)
            assert database.faults == {*WAY, "terminate"} and database.version
            for refused in (database.restart, database.take_rest):
                with pytest.raises(NotImplementedError, match="not started here cannot be"):
                    refused()
            database.create_ledger()
            other = postgres.connect("psycopg2")
            [session] = postgres.expect_sessions(1)
            assert not database.terminate(session.pid), "none of the trial's"
            other.close()
        finally:
            database.close()
        assert postgres.sql("select to_regclass('stress_ledger')") == [(None,)]

    def test_no_server_there(self, tmp_path: Path) -> None:
        database = make("postgres")
        for dsn in ("host=127.0.0.1 port=1", "nonsense"):
            with pytest.raises(DemoFailed, match="cannot be used"):
                database.open(dsn, tmp_path)
        database.close()


class TestSQLite:
    def test_a_file(self, tmp_path: Path) -> None:
        database = make("sqlite")
        database.open(None, tmp_path)
        database.create_ledger()
        dialect = DIALECTS["sqlite3"]
        address = database.address("sqlite3")
        conn = dialect.connect(Brief("", "sqlite3", MARK, address, "", 1, 10))
        conn.execute(dialect.write, ("one", 1))
        assert database.tally() == {}
        conn.commit()
        conn.close()
        assert database.tally() == {"one": 1}
        assert database.sessions(MARK) == {} and database.faults == frozenset()
        with pytest.raises(NotImplementedError, match="SQLite cannot be restarted"):
            database.restart()
        with pytest.raises(NotImplementedError, match="SQLite cannot end a session"):
            database.terminate(1)
        database.close()
        assert list(tmp_path.iterdir()) == []

    def test_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="'oracle': it is one of postgres"):
            make("oracle")
        database = make("sqlite")
        with pytest.raises(DemoFailed, match="only; SQLite is started here"):
            database.open("file", tmp_path)
        database.close()
