"""What nimue 0.0.3 has and promises: code written for it runs unchanged."""

from __future__ import annotations

import _thread
import contextlib
import functools
import inspect
import json
import logging
import sqlite3
import sys
import threading
import types
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import nimue
import nimue.callback
import nimue.error
from nimue import NimueConnection, NimueConnectionPool
from tests import fakes, servers
from tests.children import in_script
from tests.fakes import FakeDriver, FakeServer, spawn, until

OLD_PARAMETERS = {
    "connfunc": inspect.Parameter.empty,
    "connargs": None,
    "connkwargs": None,
    "poolinit": None,
    "poolmin": 10,
    "poolmax": 20,
    "cleanup_interval": 60,
    "idle_timeout": 300,
    "healthcheck_on_getconnection": True,
    "healthcheck_callback": nimue.callback.healthcheck_callback_std,
}


class Pool(NimueConnectionPool):
    """One whose ``with`` comes to an end although a test has failed inside it."""

    def __exit__(self, *exc_info: Any) -> None:
        self.close(timeout=10.0)


def make(server: FakeServer, **parameters: Any) -> NimueConnectionPool:
    given: dict[str, Any] = {"poolmin": 1, "poolmax": 4, "driver": FakeDriver(), **parameters}
    return Pool(server.connect, **given)


class TestConstructor:
    def test_parameters_in_their_order(self) -> None:
        parameters = list(inspect.signature(NimueConnectionPool).parameters.values())
        old, new = parameters[: len(OLD_PARAMETERS)], parameters[len(OLD_PARAMETERS) :]
        assert {p.name: p.default for p in old} == OLD_PARAMETERS
        assert [p.name for p in old] == list(OLD_PARAMETERS)
        assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in old)
        assert all(p.kind is p.KEYWORD_ONLY for p in new)

    def test_all_given_by_position(self, server: FakeServer) -> None:
        seen: list[Any] = []

        def check(conn: Any, dbmodule: Any, logger: Any) -> bool:
            seen.append(conn)
            return True

        args, kwargs = ("a", 2), {"check_same_thread": False}
        with Pool(server.connect, args, kwargs, 3, 2, 5, 30, 100, True, check) as pool:
            assert pool.connargs is args
            assert pool.connkwargs is kwargs
            assert pool.healthcheck_callback is check
            assert (pool.poolinit, pool.poolmin, pool.poolmax) == (3, 2, 5)
            assert (pool.cleanup_interval, pool.idle_timeout) == (30, 100)
            assert [s.args for s in server.sessions] == [args] * 3
            assert [s.kwargs for s in server.sessions] == [kwargs] * 3

    @pytest.mark.parametrize(
        ("poolinit", "poolmin", "due"), [(None, 2, 2), (3, 2, 3), (None, 0, 0)]
    )
    def test_opens_its_connections_in_the_calling_thread(
        self, server: FakeServer, poolinit: Any, poolmin: int, due: int
    ) -> None:
        threads = threading.active_count()
        with make(server, poolinit=poolinit, poolmin=poolmin) as pool:
            stats = pool.poolstats()
            assert (stats.poolsize, stats.poolfree, stats.poolused) == (due, due, 0)
            assert server.open == due
            here = threading.current_thread().name
            assert {s.thread for s in server.sessions} <= {here}
            assert threading.active_count() <= threads

    @pytest.mark.parametrize("error", [fakes.OperationalError("no"), KeyboardInterrupt()])
    def test_raises_what_connect_raises_and_leaves_nothing_open(
        self, server: FakeServer, error: BaseException
    ) -> None:
        server.fail("connect", error, after=2)
        with pytest.raises(type(error)) as caught:
            make(server, poolmin=4)
        assert caught.value is error
        assert (server.opened, server.open) == (2, 0)
        assert all(session.goodbye for session in server.sessions)

    def test_so_it_is_with_on_connect(self, server: FakeServer) -> None:
        def on_connect(raw: Any) -> None:
            if raw.serial == 3:
                raise LookupError("no such role")

        with pytest.raises(LookupError, match="no such role"):
            make(server, poolmin=4, on_connect=on_connect)
        assert (server.opened, server.open) == (3, 0)

    def test_defaults_read_back(self, server: FakeServer) -> None:
        with Pool(server.connect) as pool:
            for name, default in OLD_PARAMETERS.items():
                if hasattr(pool, name) and name not in ("connfunc", "connargs", "connkwargs"):
                    assert getattr(pool, name) == default
            assert pool.connfunc == server.connect
            assert list(pool.connargs) == []
            assert dict(pool.connkwargs) == {}
            assert pool.poolstats().poolsize == 10

    def test_what_is_no_dbapi_connection(self) -> None:
        with pytest.raises(nimue.NimueDBModuleFailure):
            NimueConnectionPool(NoConnection, poolmin=1)


class NoConnection:
    closed_by_pool: list[bool] = []  # noqa: RUF012

    def close(self) -> None:
        self.closed_by_pool.append(True)


NoConnection.__module__ = "no_such_module"


class TestProperties:
    @pytest.mark.parametrize(
        "name", ["connfunc", "connargs", "connkwargs", "poolinit", "healthcheck_callback"]
    )
    def test_some_are_read_only(self, server: FakeServer, name: str) -> None:
        with make(server) as pool, pytest.raises(AttributeError):
            setattr(pool, name, getattr(pool, name))

    @pytest.mark.parametrize(
        ("name", "value"),
        [("poolmin", 3), ("poolmax", 9), ("cleanup_interval", 2.5), ("idle_timeout", 0)],
    )
    def test_some_can_be_set(self, server: FakeServer, name: str, value: Any) -> None:
        with make(server) as pool:
            setattr(pool, name, value)
            assert getattr(pool, name) == value
            pool.getconnection().close()


class TestGetconnection:
    def test_signature(self) -> None:
        parameters = inspect.signature(NimueConnectionPool.getconnection).parameters
        assert list(parameters) == ["self", "blocking", "timeout"]
        assert parameters["blocking"].default is True

    def test_by_position_and_by_name(self, server: FakeServer) -> None:
        with make(server, poolmin=2) as pool:
            for args, kwargs in (
                ((), {}),
                ((True,), {}),
                ((False,), {}),
                ((True, 5), {}),
                ((), {"blocking": True, "timeout": None}),
            ):
                with closing(pool.getconnection(*args, **kwargs)) as conn:
                    assert isinstance(conn, NimueConnection)

    def test_figures_at_each_step(self, server: FakeServer) -> None:
        with make(server, poolmin=1, poolmax=3) as pool, contextlib.ExitStack() as stack:
            for n in range(1, 4):
                stack.enter_context(closing(pool.getconnection()))
                stats = pool.poolstats()
                assert (stats.poolsize, stats.poolused, stats.poolfree) == (n, n, 0)

    @pytest.mark.parametrize("how", [{"blocking": False}, {"timeout": 0}])
    def test_none_free_and_no_wait(self, server: FakeServer, how: dict[str, Any]) -> None:
        with make(server, poolmax=1) as pool, closing(pool.getconnection()):
            with pytest.raises(nimue.NimueNoConnectionAvailable):
                pool.getconnection(**how)
            stats = pool.poolstats()
            assert (stats.poolsize, stats.poolused, stats.waiting) == (1, 1, 0)

    def test_none_free_within_the_timeout(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool, closing(pool.getconnection()):
            with pytest.raises(nimue.NimuePoolTimeout) as caught:
                pool.getconnection(timeout=0.01)
            assert isinstance(caught.value, nimue.NimueNoConnectionAvailable)
            assert isinstance(caught.value, TimeoutError)

    def test_called_by_no_python_code(self, server: FakeServer) -> None:
        """As by ``gevent.spawn(pool.getconnection)``: fresh from the idle ones, and opened."""
        handles: list[NimueConnection] = []
        with make(server, poolmin=1, poolmax=2) as pool:
            _thread.start_new_thread(handles.extend, (map(pool.getconnection, [True, True]),))
            until(lambda: len(handles) == 2)
            assert pool.poolstats().poolused == 2
            for handle in handles:
                handle.close()

    def test_waits_for_one_to_come_back(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            first = pool.getconnection()
            asking = spawn(pool.getconnection)
            until(lambda: pool.poolstats().waiting == 1)
            first.close()
            asking.result().close()


class TestPoolstats:
    def test_fields(self, server: FakeServer) -> None:
        with make(server, poolmin=2) as pool, closing(pool.getconnection()):
            stats = pool.poolstats()
            assert isinstance(stats, nimue.NimueConnectionPoolStats)
            assert (stats.poolsize, stats.poolused, stats.poolfree) == (2, 1, 1)
            assert stats.connections_cleaned_dead == 0
            assert stats.connections_cleaned_idle == 0
            assert isinstance(stats.cleanup_cycles, int)
            with pytest.raises(AttributeError):
                stats.poolsize = 5


class TestWhereItWasWrong:
    """What its documentation promises and its code does not keep."""

    def test_one_that_fails_its_check_is_replaced(self, server: FakeServer) -> None:
        with make(server, poolmin=2, healthcheck_idle=0) as pool:
            server.kill_all()
            conn = pool.getconnection(timeout=10)
            conn.cursor().execute("SELECT 1")
            assert conn.raw.serial > 2
            conn.close()

    def test_a_check_that_meets_something_unexpected_says_unfit(self, server: FakeServer) -> None:
        with make(server, poolmin=1, healthcheck_idle=0) as pool:
            server.fail("execute", ZeroDivisionError("what?"), times=1)
            conn = pool.getconnection(timeout=10)
            assert conn.raw.serial == 2
            conn.close()

    def test_close_waits_for_borrowers_and_closes_the_idle(self, server: FakeServer) -> None:
        pool = make(server, poolmin=3)
        conn = pool.getconnection()
        closer = spawn(pool.close)
        until(lambda: server.open == 1)
        assert not closer.done
        with pytest.raises(nimue.NimuePoolClosedError):
            pool.getconnection()
        conn.close()
        closer.result()
        assert server.open == 0

    def test_checks_do_not_keep_others_waiting(self, server: FakeServer) -> None:
        with make(server, poolmin=2, poolmax=3, healthcheck_idle=0) as pool:
            with server.hold("execute") as gate:
                asking = spawn(pool.getconnection)
                gate.arrived(1)
                pool.poolstats()
                pool.poolmin = 1
                with pytest.raises(nimue.NimuePoolTimeout):
                    pool.getconnection(timeout=0.01)
            asking.result().close()


CHECKS: list[tuple[Callable[..., Any], str]] = [
    (nimue.callback.healthcheck_callback_std, "SELECT 1"),
    (nimue.callback.healthcheck_callback_oracle, "SELECT 1 FROM DUAL"),
    (
        functools.partial(nimue.callback.healthcheck_callback_base, query="SELECT 2"),
        "SELECT 2",
    ),
]


class TestCallbacks:
    logger = logging.getLogger("tests.compat")

    @pytest.mark.parametrize(("check", "sql"), CHECKS, ids=[sql for _, sql in CHECKS])
    def test_run_a_query_and_end_the_transaction(
        self, server: FakeServer, check: Any, sql: str
    ) -> None:
        raw = server.connect()
        assert check(raw, fakes, self.logger) is True
        assert [call.sql for call in server.calls if call.step == "execute"] == [sql]
        assert not raw.in_transaction
        raw.close()

    @pytest.mark.parametrize("error", [fakes.OperationalError, fakes.InterfaceError])
    @pytest.mark.parametrize("step", ["cursor", "execute", "rollback"])
    @pytest.mark.parametrize(("check", "sql"), CHECKS, ids=[sql for _, sql in CHECKS])
    def test_the_drivers_error_says_unfit(
        self, server: FakeServer, check: Any, sql: str, step: str, error: Any, caplog: Any
    ) -> None:
        raw = server.connect()
        server.fail(step, error("gone"))
        assert check(raw, fakes, self.logger) is False
        assert not caplog.records
        server.recover()
        raw.rollback()
        raw.close()

    def test_any_other_says_so_too_and_is_logged(self, server: FakeServer, caplog: Any) -> None:
        raw = server.connect()
        server.fail("execute", ZeroDivisionError("what?"))
        assert nimue.callback.healthcheck_callback_std(raw, fakes, self.logger) is False
        assert "what?" in caplog.text
        assert [record.name for record in caplog.records] == ["tests.compat"]
        raw.close()

    @pytest.mark.parametrize("kind", ["function", "method", "object", "partial", "starred"])
    def test_of_the_users_get_three(self, server: FakeServer, kind: str) -> None:
        seen: list[tuple[Any, ...]] = []

        class Check:
            def method(self, conn: Any, dbmodule: Any, logger: Any) -> bool:
                seen.append((conn, dbmodule, logger))
                return True

            __call__ = method

        def starred(*args: Any) -> bool:
            return Check().method(*args)

        def function(conn: Any, dbmodule: Any, logger: Any) -> bool:
            return Check().method(conn, dbmodule, logger)

        def four(word: str, conn: Any, dbmodule: Any, logger: Any) -> bool:
            return Check().method(conn, dbmodule, logger)

        check = {
            "function": function,
            "method": Check().method,
            "object": Check(),
            "partial": functools.partial(four, "word"),
            "starred": starred,
        }[kind]
        with make(server, healthcheck_idle=0, healthcheck_callback=check) as pool:
            conn = pool.getconnection()
            ((raw, dbmodule, logger),) = seen
            assert raw is conn.raw
            assert dbmodule is fakes
            assert isinstance(logger, logging.Logger)
            conn.close()

    def test_of_the_users_with_two_get_two(self, server: FakeServer) -> None:
        seen: list[tuple[Any, Any]] = []

        def check(conn: Any, dbmodule: types.ModuleType) -> bool:
            seen.append((conn, dbmodule))
            return True

        with make(server, healthcheck_idle=0, healthcheck_callback=check) as pool:
            conn = pool.getconnection()
            assert seen == [(conn.raw, fakes)]
            conn.close()

    @pytest.mark.parametrize("answer", [False, None, 0])
    def test_what_is_not_true_says_unfit(self, server: FakeServer, answer: Any) -> None:
        def check(conn: Any, dbmodule: Any) -> Any:
            return answer if conn.serial == 1 else True

        with make(server, healthcheck_idle=0, healthcheck_callback=check) as pool:
            conn = pool.getconnection(timeout=10)
            assert conn.raw.serial == 2
            conn.close()
            assert pool.poolstats().connections_cleaned_dead == 1

    def test_none_is_said_to_be_a_mistake_once(self, server: FakeServer, caplog: Any) -> None:
        seen: list[Any] = []

        def forgetful(conn: Any, dbmodule: Any) -> None:
            seen.append(conn.serial)

        for name in ("one", "two"):
            given = {"healthcheck_idle": 0, "healthcheck_callback": forgetful, "name": name}
            with make(server, **given) as pool:
                for _ in range(3):
                    pool.getconnection(timeout=10).close()
                assert len(seen) >= 3
                seen.clear()
        (told, other) = (line for line in caplog.messages if "returned None" in line)
        assert "forgetful returned None, which counts as unfit" in told
        assert "'one'" in told
        assert "'two'" in other

    def test_a_type_error_within_one_is_not_taken_for_its_signature(
        self, server: FakeServer
    ) -> None:
        seen: list[int] = []

        def check(conn: Any, dbmodule: Any, logger: Any) -> bool:
            seen.append(conn.serial)
            if conn.serial == 1:
                raise TypeError("mine")
            return True

        with make(server, healthcheck_idle=0, healthcheck_callback=check) as pool:
            pool.getconnection(timeout=10).close()
        assert seen.count(1) == 1

    def test_none_when_it_is_switched_off(self, server: FakeServer) -> None:
        with make(server, healthcheck_idle=0, healthcheck_on_getconnection=False) as pool:
            pool.getconnection().close()
            pool.getconnection().close()
            assert server.count("execute") == 0


class TestErrors:
    @pytest.mark.parametrize(
        "name",
        [
            "NimueError",
            "NimueInvalidParameterValue",
            "NimueDBModuleFailure",
            "NimuePoolClosedError",
            "NimueNoConnectionAvailable",
            "NimuePoolTimeout",
            "NimueConnectionClosed",
            "NimueInheritedConnectionError",
        ],
    )
    def test_in_both_places(self, name: str) -> None:
        found = getattr(nimue.error, name)
        assert getattr(nimue, name) is found
        assert issubclass(found, nimue.NimueError)
        assert name in nimue.__all__

    def test_all_names_are_there_after_the_one_import(self) -> None:
        assert in_script(_reach) == ["healthcheck_callback_std", "NimueError"]

    def test_star_import(self) -> None:
        names: dict[str, Any] = {}
        exec("from nimue import *", names)
        for name in ("NimueConnectionPool", "NimueConnection", "NimueConnectionPoolStats"):
            assert names[name] is getattr(nimue, name)


def _reach() -> list[str]:
    namespace: dict[str, Any] = {}
    exec("import nimue", namespace)
    module = namespace["nimue"]
    return [module.callback.healthcheck_callback_std.__name__, module.error.NimueError.__name__]


# sqlite3, as 0.0.3's own tests use it.


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = str(tmp_path / "testdb")
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("CREATE TABLE updtest (id integer)")
    return path


class TestSqlite:
    def pool(self, file: str, **parameters: Any) -> NimueConnectionPool:
        given = {"poolmin": 2, "poolmax": 4, **parameters}
        return Pool(sqlite3.connect, (file,), {"check_same_thread": False}, **given)

    def test_getters(self, file: str) -> None:
        with self.pool(file) as pool:
            assert pool.connfunc is sqlite3.connect
            assert pool.connargs == (file,)
            assert pool.connkwargs == {"check_same_thread": False}
            assert pool.poolstats().poolsize == 2

    def test_with_rolls_back_or_commits(self, file: str) -> None:
        with self.pool(file) as pool:
            with closing(pool.getconnection()) as conn, conn:
                conn.cursor().execute("INSERT INTO updtest VALUES (1)")
            with (
                pytest.raises(LookupError),
                closing(pool.getconnection()) as conn,
                conn,
            ):
                conn.cursor().execute("INSERT INTO updtest VALUES (2)")
                raise LookupError
            with closing(pool.getconnection()) as conn:
                assert list(conn.execute("SELECT id FROM updtest")) == [(1,)]

    def test_close_rolls_back(self, file: str) -> None:
        with self.pool(file, poolmin=1, poolmax=1) as pool:
            conn = pool.getconnection()
            conn.cursor().execute("INSERT INTO updtest VALUES (1)")
            conn.close()
            conn.close()
            with closing(pool.getconnection()) as conn:
                assert conn.execute("SELECT count(*) FROM updtest").fetchone() == (0,)

    def test_threads_share_them(self, file: str) -> None:
        with self.pool(file) as pool:

            def insert(n: int) -> None:
                with closing(pool.getconnection()) as conn, conn:
                    conn.execute("INSERT INTO updtest VALUES (?)", (n,))

            workers = [spawn(insert, n) for n in range(12)]
            for worker in workers:
                worker.result()
            with closing(pool.getconnection()) as conn:
                found = conn.execute("SELECT id FROM updtest ORDER BY id").fetchall()
            assert found == [(n,) for n in range(12)]
            assert pool.poolstats().poolsize <= 4

    def test_returned_after_the_pool_was_closed(self, file: str) -> None:
        pool = self.pool(file, poolmin=1)
        conn = pool.getconnection()
        raw = conn.raw
        conn.cursor().execute("INSERT INTO updtest VALUES (1)")
        pool.close(timeout=0)
        conn.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            raw.execute("SELECT 1")

    @pytest.mark.parametrize("poolmin", [0, 1])
    def test_without_check_same_thread_the_error_is_clear(self, file: str, poolmin: int) -> None:
        with (
            pytest.raises(nimue.NimueInvalidParameterValue, match="check_same_thread=False"),
            Pool(sqlite3.connect, (file,), poolmin=poolmin) as pool,
        ):
            pool.getconnection(timeout=10).close()


# A web application, as its documentation shows one.

APPLICATION = """
import bottle
import psycopg2
from contextlib import closing
from nimue import NimueConnectionPool

def connect():
    return psycopg2.connect(dsn, application_name=application_name)

@bottle.route("/")
def catalogue():
    names = []
    with closing(pool.getconnection()) as conn:
        with conn:
            with conn.cursor() as cursor:
                cursor.execute("SELECT tablename FROM pg_tables ORDER BY tablename")
                for row in cursor:
                    names.append(row[0])
    return {"tables": names}

with NimueConnectionPool(connect, poolmin=10, poolmax=20) as pool:
    bottle.run(host="localhost", port=8080)
"""


def _get(app: Callable[..., Any]) -> tuple[str, Any]:
    """One request to a WSGI application."""
    from wsgiref.util import setup_testing_defaults

    status: list[str] = []
    environ: dict[str, Any] = {"wsgi.errors": sys.stderr}
    setup_testing_defaults(environ)
    body = app(environ, lambda line, headers, exc_info=None: status.append(line))
    return status[0], json.loads(b"".join(body))


@pytest.mark.server
def test_the_example_application(postgres: servers.Postgres, monkeypatch: Any) -> None:
    bottle = pytest.importorskip("bottle")
    seen: dict[str, Any] = {}
    app = bottle.Bottle()

    def run(host: str, port: int) -> None:
        seen["address"] = (host, port)
        seen["sessions"] = len(postgres.sessions())
        seen["answers"] = [spawn(_get, app) for _ in range(40)]
        for answer in seen["answers"]:
            answer.wait()
        seen["busy"] = len(postgres.sessions())
        seen["states"] = {session.state for session in postgres.sessions()}

    monkeypatch.setattr(bottle, "run", run)
    monkeypatch.setattr(bottle, "route", app.route)
    exec(APPLICATION, {"dsn": postgres.dsn, "application_name": postgres.application_name})

    # Those of the system: other tests of the run make and drop tables here.
    catalog = "SELECT tablename FROM pg_tables WHERE schemaname = 'pg_catalog' ORDER BY 1"
    tables = [row[0] for row in postgres.sql(catalog)]
    assert seen["address"] == ("localhost", 8080)
    assert seen["sessions"] == 10
    assert 10 <= seen["busy"] <= 20
    assert seen["states"] == {"idle"}
    assert len(tables) > 10
    for answer in seen["answers"]:
        status, shown = answer.result()
        assert status == "200 OK"
        assert [name for name in shown["tables"] if name in tables] == tables
    postgres.expect_sessions(0)
