"""Thread-bound databases, over SQLite and the fake driver: who has a connection, and how long."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nimue
from nimue import NimueConnectionPool, NimueInvalidParameterValue
from nimue.database import (
    MaxConnectionsExceeded,
    PooledDatabase,
    PooledMySQLDatabase,
    PooledPostgreSQLDatabase,
    PooledSQLiteDatabase,
    borrow,
    force,
)
from nimue.error import NimueConnectionClosed, NimueError, NimueNoConnectionAvailable
from tests.fakes import FakeDriver, FakeServer, OperationalError, spawn, until


def over(server: FakeServer, max_connections: int = 2, **options: Any) -> PooledDatabase:
    timeout = options.pop("timeout", None)
    pool = NimueConnectionPool(
        server.connect, driver=FakeDriver(), poolmin=0, poolmax=max_connections, **options
    )
    return PooledDatabase.over(pool, timeout)


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[PooledSQLiteDatabase]:
    db = PooledSQLiteDatabase(database=str(tmp_path / "db"), max_connections=3)
    with db:
        db.sql("create table t (i integer primary key, word text)")
    yield db
    db.pool.close(5)


class TestBinding:
    def test_each_thread_has_its_own(self, server: FakeServer) -> None:
        db = over(server)
        assert db.is_closed()
        db.connect()
        mine = db.conn.raw
        db.connect()  # it has one
        assert db.conn.raw is mine
        assert not db.is_closed()

        def other() -> tuple[bool, bool, bool]:
            before = db.is_closed()
            db.connect()
            return before, db.conn.raw is mine, db.close()

        assert spawn(other).result() == (True, False, True)
        assert db.conn.raw is mine
        assert (db.close(), db.is_closed(), db.close()) == (True, True, False)
        db.connect()
        assert server.opened == 2
        db.close()
        db.pool.close()

    def test_nothing_without_connect(self, lite: PooledSQLiteDatabase) -> None:
        uses: list[Callable[[], Any]] = [
            lambda: lite.conn,
            lambda: lite.cursor,
            lambda: lite.sql("select 1"),
            lambda: lite.atomic().__enter__(),
            lambda: lite.mogrify("select 1"),
        ]
        for use in uses:
            with pytest.raises(NimueConnectionClosed, match=r"call connect\(\) first"):
                use()
        assert lite.autoconnect is False
        lite.autoconnect = False  # as some do to be sure
        with pytest.raises(NimueInvalidParameterValue, match="autoconnect"):
            lite.autoconnect = True

    def test_a_block_within_a_block(self, server: FakeServer) -> None:
        db = over(server)
        with db:
            outer = db.conn.raw
            with db:
                assert db.conn.raw is outer
            assert db.conn.raw is outer
            db.close()
            with db:
                pass
            assert db.is_closed()
        db.connect()
        with pytest.raises(ZeroDivisionError), db:
            raise ZeroDivisionError
        assert not db.is_closed()
        assert db.close()
        db.pool.close()

    def test_a_thread_that_ends_gives_it_back(self, server: FakeServer) -> None:
        db = over(server, 1)
        for _ in range(3):
            spawn(db.connect).result()
        db.connect()  # though timeout is None: it is nobody's any more
        assert server.opened == 1
        db.close()
        db.pool.close()

    def test_it_is_rolled_back(self, lite: PooledSQLiteDatabase) -> None:
        lite.connect()
        lite.cursor.execute("insert into t values (1, 'a')")
        lite.close()
        with lite:
            assert lite.select("select * from t") == []

    def test_returned_behind_its_back(self, server: FakeServer) -> None:
        db = over(server, 1)
        db.connect()
        db.conn.close()
        assert db.is_closed()
        db.connect()
        assert server.opened == 1
        db.close()
        db.pool.close()


class TestExhausted:
    def test_at_once(self, server: FakeServer) -> None:
        db = over(server, 1)
        db.connect()
        with pytest.raises(MaxConnectionsExceeded, match="all 1 connections") as caught:
            spawn(db.connect).result()
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, NimueNoConnectionAvailable)
        assert db.pool.poolstats().timeouts == 0
        db.close()
        spawn(db.connect).result()
        db.pool.close(5)

    def test_the_last_place_is_one_threads(self, server: FakeServer) -> None:
        """Though nothing is lent yet, when the second comes."""
        db = over(server, 1)
        with server.hold("connect") as gate:
            first = spawn(lambda: (db.connect(), db.close()))
            gate.arrived(1)
            with pytest.raises(MaxConnectionsExceeded):
                db.connect()
            gate.release()
        first.result()
        assert server.opened == 1
        db.pool.close()

    def test_after_a_while(self, server: FakeServer) -> None:
        db = over(server, 1, timeout=0.05)
        db.connect()
        with pytest.raises(MaxConnectionsExceeded, match="no connection came within") as caught:
            spawn(db.connect).result()
        assert isinstance(caught.value.__cause__, nimue.NimuePoolTimeout)
        db.close()
        db.pool.close()

    @pytest.mark.parametrize("timeout", [0, 10, "10"])
    def test_first_come_first_served(self, server: FakeServer, timeout: Any) -> None:
        db = over(server, 1, timeout=timeout)
        served: list[int] = []
        db.connect()

        def ask(number: int) -> None:
            with db:
                served.append(number)

        threads = []
        for number in range(4):
            threads.append(spawn(ask, number))
            until(lambda n=number: db.pool.poolstats().waiting == n + 1)
        db.close()
        for thread in threads:
            thread.result()
        assert served == [0, 1, 2, 3]
        db.pool.close()

    def test_a_connect_that_fails(self, server: FakeServer) -> None:
        db = over(server, 1)
        server.fail("connect", OperationalError("down"), times=1)
        with pytest.raises(OperationalError, match="down"):
            db.connect()
        assert db.is_closed()
        db.connect()
        db.close()
        db.pool.close()

    def test_other_processes_have_all(
        self, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Here it is another pool of the same name; an idle one of its is given up."""
        ours, theirs = (over(server, 2, name="t", totalmax=1) for _ in range(2))
        theirs.connect()
        monkeypatch.setattr(borrow, "HANDOVER", 0.05)
        with pytest.raises(MaxConnectionsExceeded, match=r"within \d+\.\d s: .*totalmax"):
            ours.connect()
        theirs.close()
        monkeypatch.setattr(borrow, "HANDOVER", 20.0)
        ours.connect()
        assert ours.pool.totalmax == 1
        ours.close()
        ours.pool.close()
        theirs.pool.close()

    def test_a_slow_connect_is_no_exhaustion(
        self, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(borrow, "HANDOVER", 0.05)
        db = over(server, 2, name="t", totalmax=1)
        with server.hold("connect") as gate:
            with pytest.raises(NimueNoConnectionAvailable):
                db.pool.getconnection(blocking=False)
            gate.arrived(1)  # with the permit
            slow = spawn(lambda: (db.connect(), db.close()))
            until(lambda: db.pool.poolstats().timeouts == 1)
            gate.release()
        assert slow.result() == (None, True)
        db.pool.close()


@pytest.mark.parametrize(
    "given",
    [{"max_connections": "secret"}, {"timeout": ["secret"]}, {"stale_timeout": "secret"}],
)
def test_what_was_meant_for_the_driver_is_not_repeated(given) -> None:
    with pytest.raises(NimueInvalidParameterValue, match=f"^{next(iter(given))} must be") as caught:
        PooledPostgreSQLDatabase(**given)
    assert "secret" not in str(caught.value)


class TestClosing:
    def test_mine_for_good(self, server: FakeServer) -> None:
        db = over(server)
        assert not db.manual_close()
        db.connect()
        assert db.manual_close()
        assert (db.is_closed(), server.open, server.closed) == (True, 0, 1)
        db.connect()
        assert server.opened == 2
        db.close()
        db.pool.close()

    def test_idle_ones(self, server: FakeServer) -> None:
        db = over(server)
        db.connect()
        spawn(lambda: (db.connect(), db.close())).result()
        db.close_idle()
        assert (server.open, server.closed) == (1, 1)
        assert not db.is_closed()
        db.close()
        db.pool.close()

    @pytest.mark.parametrize("everything", [False, True])
    def test_those_of_others(self, server: FakeServer, everything: bool) -> None:
        db = over(server, 1)
        go = server.hold("commit")

        def holder() -> None:
            db.connect()
            holds.append(1)
            until(lambda: len(holds) == 2)
            with pytest.raises(NimueConnectionClosed):
                db.conn.commit()
            assert db.is_closed()
            assert not db.close()
            db.connect()
            db.close()

        holds: list[int] = []
        thread = spawn(holder)
        until(lambda: holds)
        assert db.close_stale() == 0
        if everything:
            db.close_all()
        else:
            assert db.close_stale(age=0) == 1
        until(lambda: server.closed == 1)
        db.connect()  # its place is free
        db.close()
        holds.append(2)
        thread.result()
        go.release()
        db.pool.close()

    def test_not_under_a_statement(
        self, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The driver is not called beside another call: it is closed when it comes back."""
        monkeypatch.setattr(force, "PATIENCE", 0.05)
        db = over(server, 1)

        def holder() -> None:
            with db:
                db.cursor.execute("select 1")

        with server.hold("execute") as gate:
            thread = spawn(holder)
            gate.arrived(1)
            assert db.close_stale(age=0) == 1
            assert server.closed == 0
            gate.release()
        thread.result()
        until(lambda: server.closed == 1)
        db.pool.close()

    @pytest.mark.parametrize("age", ["old", -1, float("nan"), True])
    def test_bad_age(self, lite: PooledSQLiteDatabase, age: Any) -> None:
        with pytest.raises(NimueInvalidParameterValue, match="age must be a number of seconds"):
            lite.close_stale(age)

    def test_stale_ones_are_not_used_again(self, tmp_path: Path) -> None:
        db = PooledSQLiteDatabase(database=str(tmp_path / "db"), stale_timeout="0.05")
        db.connect()
        db.close()
        until(lambda: db.pool.poolstats().poolsize == 0)
        db.pool.close()


class TestStatements:
    def test_rows(self, lite: PooledSQLiteDatabase) -> None:
        with lite:
            assert lite.insert("insert into t (word) values (%s)", ("a",)) == 1
            returning = "insert into t (word) values (%s) returning word"
            assert lite.insert(returning, ("b",)) == "b"
            assert lite.sql("update t set word = %(word)s where i = 2", {"word": "c"}) is None
            assert lite.cursor.rowcount == 1
            rows = [{"i": 1, "word": "a"}, {"i": 2, "word": "c"}]
            assert lite.select("select * from t order by i") == rows
            assert lite.select("delete from t where i > 7") == []
            assert lite.get("select * from t where i = ?", (2,)) == rows[1]
            assert lite.get_or_none("select * from t where i = %s", (3,)) is None
            with pytest.raises(IndexError, match="no row"):
                lite.get("select * from t where i = %s", (3,))

    def test_what_is_quoted_is_no_parameter(self, lite: PooledSQLiteDatabase) -> None:
        query = """select '%s?' as "%s", %s as a /* %s */, ? as b -- %s"""
        row = {"%s": "%s?", "a": 1, "b": "it's"}
        with lite:
            assert lite.get(query, (1, "it's")) == row
            told = lite.mogrify(query, (1, "it's"))
            assert told == b"""select '%s?' as "%s", 1 as a /* %s */, 'it''s' as b -- %s"""
            assert lite.get(told.decode()) == row
            assert lite.mogrify("select %(a)s, :b", {"a": None, "b": b"x"}) == b"select NULL, X'78'"

    def test_an_error_leaves_nothing_open(self, lite: PooledSQLiteDatabase) -> None:
        with lite:
            lite.insert("insert into t values (1, 'a')")
            with pytest.raises(sqlite3.IntegrityError):
                lite.insert("insert into t values (1, 'b')")
            assert not lite.conn.in_transaction

    def test_closed_within_atomic(self, lite: PooledSQLiteDatabase) -> None:
        lite.connect()
        with pytest.raises(NimueConnectionClosed, match="in its block"), lite.atomic():
            lite.sql("insert into t values (1, 'a')")
            lite.close()
        with lite:
            assert not lite.is_trans
            assert lite.select("select * from t") == []

    def test_atomic_is_a_decorator(self, lite: PooledSQLiteDatabase) -> None:
        @lite.atomic()
        def add(number: int) -> None:
            assert lite.is_trans
            lite.sql("insert into t values (%s, 'a')", (number,))
            lite.sql("insert into t values (%s, 'a')", (1,))

        with lite:
            with pytest.raises(sqlite3.IntegrityError):
                add(1)
            assert lite.select("select * from t") == []


class TestParameters:
    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            ("max_connections", 0),
            ("max_connections", None),
            ("max_connections", "many"),
            ("stale_timeout", -1),
            ("timeout", -1),
            ("timeout", float("nan")),
            ("totalmax", 0),
            ("dialect", "oracle"),
        ],
    )
    def test_refused(self, parameter: str, value: Any) -> None:
        with pytest.raises(NimueInvalidParameterValue, match=f"{parameter} must be"):
            PooledDatabase(sqlite3.connect, **{parameter: value})

    def test_passed_on(self) -> None:
        seen: list[Any] = []

        def connect(*args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            return sqlite3.connect(":memory:", check_same_thread=False)

        db = PooledDatabase(connect, "3", None, 7, 1, 2, name="mine", word="w")
        assert (db.pool.name, db.pool.poolmax, db.pool.connfunc) == ("mine", 3, connect)
        with pytest.raises(NimueError, match="dialect="):
            db.dialect  # noqa: B018
        with db:
            assert (db.dialect, db.placeholder, db.paramstyle) == ("sqlite", "?", "qmark")
        assert seen == [((1, 2), {"word": "w"})]
        assert repr(db) == "<PooledDatabase 'mine'>"
        db.pool.close()

    def test_the_dialect_is_known_beforehand(self) -> None:
        import psycopg
        import pymysql

        assert PooledDatabase(sqlite3.connect).dialect == "sqlite"
        assert PooledDatabase(pymysql.connect).dialect == "mysql"
        assert PooledDatabase(psycopg.connect).dialect == "postgres"
        assert PooledDatabase(print, dialect="mysql").dialect == "mysql"
        assert PooledMySQLDatabase(user="x").dialect == "mysql"
        db = PooledPostgreSQLDatabase(connfunc=psycopg.connect, database="x")
        assert db.pool.connkwargs == {"dbname": "x"}
        assert (db.dialect, db.placeholder, db.paramstyle) == ("postgres", "%s", "format")

    @pytest.mark.parametrize("database", [":memory:", "", "file:x?mode=memory"])
    def test_in_memory(self, database: str) -> None:
        db = PooledSQLiteDatabase(database=database, uri=True)
        assert db.pool.poolmax == 1
        with db:
            db.sql("create table t (i)")
        assert spawn(lambda: (db.connect(), db.select("select * from t"))[1]).result() == []
        with pytest.raises(NimueInvalidParameterValue, match="max_connections must be 1"):
            PooledSQLiteDatabase(2, database=database)
        db.pool.close()

    def test_other_threads_must_be_let_in(self, tmp_path: Path) -> None:
        db = PooledSQLiteDatabase(database=str(tmp_path / "db"), check_same_thread=True)
        with pytest.raises(NimueInvalidParameterValue, match="check_same_thread"):
            db.connect()
        db.pool.close()

    def test_it_does_not_travel(self, lite: PooledSQLiteDatabase) -> None:
        with pytest.raises(TypeError, match="cannot be pickled: make it at import"):
            pickle.dumps(lite)
