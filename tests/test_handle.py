"""The handle: the driver's connection in all but ``close()``, and never again after it."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import operator
import pickle
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nimue import (
    NimueConnection,
    NimueConnectionClosed,
    NimueConnectionPool,
    NimueCursor,
    NimueError,
)
from tests import fakes, servers
from tests.children import in_script
from tests.fakes import FakeDriver, FakeServer, spawn, until

EXCEPTIONS = (
    "Warning",
    "Error",
    "InterfaceError",
    "DatabaseError",
    "DataError",
    "OperationalError",
    "IntegrityError",
    "InternalError",
    "ProgrammingError",
    "NotSupportedError",
)


class Pool(NimueConnectionPool):
    """One whose ``with`` comes to an end although a test has failed inside it."""

    def __exit__(self, *exc_info: Any) -> None:
        self.close(timeout=10.0)


def make(server: FakeServer, **parameters: Any) -> NimueConnectionPool:
    given: dict[str, Any] = {"poolmin": 1, "poolmax": 4, "driver": FakeDriver(), **parameters}
    return Pool(server.connect, **given)


class Real:
    """A pool on a real database, with the driver's module and a table of the test's own."""

    def __init__(self, name: str, pool: NimueConnectionPool, module: Any) -> None:
        self.name, self.pool, self.module = name, pool, module
        self.table = servers.unique_name("handle")
        self.mark = "?" if name == "sqlite3" else "%s"

    def insert(self, conn: Any, n: int) -> None:
        conn.cursor().execute(f"INSERT INTO {self.table} VALUES ({self.mark})", (n,))

    def rows(self) -> list[int]:
        with closing(self.pool.getconnection()) as conn:
            cursor = conn.cursor()
            cursor.execute(f"SELECT n FROM {self.table} ORDER BY n")
            return [row[0] for row in cursor.fetchall()]


NEEDS_SERVER = [pytest.param(name, marks=pytest.mark.server) for name in servers.POSTGRES_DRIVERS]


@pytest.fixture(params=[*NEEDS_SERVER, "sqlite3"])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Real]:
    name = request.param
    if name == "sqlite3":
        module: Any = sqlite3
        connect: Callable[[], Any] = lambda: sqlite3.connect(  # noqa: E731
            tmp_path / "file", check_same_thread=False
        )
    else:
        database: servers.Postgres = request.getfixturevalue("postgres")
        connect = database.connector(name)
        module = pytest.importorskip("pg8000.dbapi" if name == "pg8000" else name)
        if name == "pg8000":
            import pg8000.dbapi as module
    with Pool(connect, poolmin=1, poolmax=3) as pool:
        found = Real(name, pool, module)
        with closing(pool.getconnection()) as conn:
            conn.cursor().execute(f"CREATE TABLE {found.table} (n integer)")
            conn.commit()
        yield found
        with closing(pool.getconnection()) as conn:
            conn.cursor().execute(f"DROP TABLE {found.table}")
            conn.commit()


class TestReal:
    def test_with_is_the_drivers_own(self, real: Real) -> None:
        conn = real.pool.getconnection()
        with conn as entered:
            assert entered is conn
            real.insert(conn, 1)
        # psycopg 3 closes its connection at the end of `with`, pg8000 too, and without a commit.
        closes = real.name in ("psycopg", "pg8000")
        commits = real.name != "pg8000"
        if closes:
            with pytest.raises(real.module.InterfaceError):
                conn.cursor()
        else:
            conn.cursor().close()
        conn.close()
        assert real.rows() == ([1] if commits else [])
        assert real.pool.poolstats().opened == 1

    def test_with_rolls_back_at_an_error(self, real: Real) -> None:
        with (
            pytest.raises(LookupError),
            closing(real.pool.getconnection()) as conn,
            conn,
        ):
            real.insert(conn, 1)
            raise LookupError
        assert real.rows() == []
        assert real.pool.poolstats().opened == 1

    def test_the_pools_own_block_commits_for_all_drivers(self, real: Real) -> None:
        with real.pool.connection() as conn:
            real.insert(conn, 1)
        with pytest.raises(LookupError), real.pool.connection() as conn:
            real.insert(conn, 2)
            raise LookupError
        assert real.rows() == [1]
        assert real.pool.poolstats().poolused == 0

    def test_cursors_lead_back(self, real: Real) -> None:
        with closing(real.pool.getconnection()) as conn:
            cursor = conn.cursor()
            assert isinstance(cursor, NimueCursor)
            assert cursor.connection is conn
            assert type(cursor.raw).__module__.partition(".")[0] == real.name
            cursor.execute("SELECT 1")
            assert [tuple(row) for row in cursor] == [(1,)]
            cursor.arraysize = 7
            assert cursor.raw.arraysize == 7
            assert cursor.description[0][0] is not None
            cursor.close()

    @pytest.mark.filterwarnings("ignore:DB-API extension")
    def test_exception_classes(self, real: Real) -> None:
        with closing(real.pool.getconnection()) as conn:
            for name in EXCEPTIONS:
                assert getattr(conn, name) is getattr(real.module, name)
            with pytest.raises(conn.Error):
                conn.cursor().execute("SELEKT 1")

    def test_execute_on_the_connection_returns_a_cursor(self, real: Real) -> None:
        if real.name not in ("psycopg", "sqlite3"):
            pytest.skip("not a method of this driver's connections")
        with closing(real.pool.getconnection()) as conn:
            cursor = conn.execute("SELECT 1")
            assert isinstance(cursor, NimueCursor)
            assert cursor.connection is conn
            assert cursor.fetchone() == (1,)
            again = cursor.execute("SELECT 2")
            assert again is cursor
        with pytest.raises(NimueError):
            cursor.fetchone()
        with pytest.raises(NimueError):
            conn.execute("SELECT 1")

    def test_use_after_close(self, real: Real) -> None:
        conn = real.pool.getconnection()
        cursor = conn.cursor()
        conn.close()
        for use in _uses(conn, cursor):
            with pytest.raises(real.module.InterfaceError) as caught:
                use()
            assert isinstance(caught.value, NimueError)
            with pytest.raises(real.module.Error, match="returned to the pool"):
                use()
            with pytest.raises(NimueConnectionClosed, match="returned to the pool") as caught:
                use()
            assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)
        conn.close()
        cursor.close()

    def test_autocommit_is_set_back(self, real: Real) -> None:
        if real.name == "sqlite3":
            name, value = "isolation_level", None
        else:
            name, value = "autocommit", True
        with closing(real.pool.getconnection()) as conn:
            before = getattr(conn.raw, name)
            setattr(conn, name, value)
            assert getattr(conn.raw, name) == value
            conn.cursor().execute("SELECT 1")
        with closing(real.pool.getconnection()) as conn:
            assert getattr(conn.raw, name) == before
        assert real.pool.poolstats().opened == 1

    def test_raw_is_for_functions_in_c(self, real: Real) -> None:
        if real.name != "psycopg2":
            pytest.skip("no such functions")
        from psycopg2 import extensions

        with closing(real.pool.getconnection()) as conn:
            with pytest.raises(TypeError):
                extensions.register_type(extensions.UNICODE, conn)
            extensions.register_type(extensions.UNICODE, conn.raw)
            assert extensions.quote_ident("a b", conn.raw) == '"a b"'


def _uses(conn: Any, cursor: Any) -> list[Callable[[], Any]]:
    def calls(of: Any, *names: str) -> list[Callable[[], Any]]:
        return [functools.partial(operator.methodcaller(name), of) for name in names]

    return [
        *calls(conn, "cursor", "commit", "rollback", "detach", "cancel", "__enter__"),
        lambda: conn.raw,
        lambda: conn.autocommit,
        lambda: setattr(conn, "autocommit", True),
        lambda: conn.Error,
        *calls(cursor, "fetchone", "fetchall", "__enter__"),
        lambda: cursor.execute("SELECT 1"),
        lambda: cursor.executemany("SELECT 1", [()]),
        lambda: cursor.callproc("f"),
        lambda: next(cursor),
        lambda: list(cursor),
        lambda: cursor.rowcount,
        lambda: setattr(cursor, "arraysize", 2),
        lambda: cursor.raw,
    ]


class TestAttributes:
    def test_reach_the_raw_connection(self, server: FakeServer) -> None:
        with make(server) as pool, closing(pool.getconnection()) as conn:
            raw = conn.raw
            assert type(raw) is fakes.Connection
            assert conn.serial == raw.serial
            conn.autocommit = True
            assert raw.autocommit is True
            raw.note = "seen"
            assert conn.note == "seen"
            with pytest.raises(AttributeError, match="nothing_of_the_kind"):
                conn.nothing_of_the_kind  # noqa: B018
            assert hasattr(conn, "cancel")
            assert not hasattr(conn, "uncancel")

    def test_exception_classes_come_from_the_module_if_need_be(self, server: FakeServer) -> None:
        class Bare:
            def __init__(self) -> None:
                self._inner = server.connect()

            def __getattr__(self, name: str) -> Any:
                if name in EXCEPTIONS:
                    raise AttributeError(name)
                return getattr(self._inner, name)

        Bare.__module__ = "tests.fakes"
        with Pool(Bare, poolmin=1) as pool, closing(pool.getconnection()) as conn:
            for name in EXCEPTIONS:
                assert getattr(conn, name) is getattr(fakes, name)

    def test_isinstance_and_identity(self, server: FakeServer) -> None:
        with make(server) as pool, closing(pool.getconnection()) as conn:
            assert isinstance(conn, NimueConnection)
            assert conn == conn  # noqa: PLR0124
            assert len({conn, conn}) == 1
            with closing(pool.getconnection()) as other:
                assert other != conn
                assert other.raw is not conn.raw


class TestCursor:
    def test_is_the_drivers_in_all_else(self, server: FakeServer) -> None:
        with make(server) as pool, closing(pool.getconnection()) as conn:
            with conn.cursor() as cursor:
                assert cursor.execute("SELECT ?", (5,)) is cursor
                assert cursor.rowcount == 1
                assert cursor.fetchone() == (5,)
                cursor.arraysize = 3
                assert cursor.raw.arraysize == 3
                assert isinstance(cursor.raw, fakes.Cursor)
                assert not cursor.closed
                cursor.executemany("SELECT ?", [(1,), (2,)])
                assert list(cursor) == [(2,)]
            assert cursor.closed

    def test_arguments_of_cursor_pass(self, server: FakeServer) -> None:
        seen: list[Any] = []

        class Named(fakes.Connection):
            def cursor(self, *args: Any, **kwargs: Any) -> fakes.Cursor:
                seen.append((args, kwargs))
                return super().cursor()

        with make(server) as pool, closing(pool.getconnection()) as conn:
            conn.raw.__class__ = Named
            conn.cursor("name", scrollable=True)
            assert seen == [(("name",), {"scrollable": True})]

    def test_of_another_borrower_stays_dead(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            first = pool.getconnection()
            cursor = first.cursor()
            cursor.execute("SELECT 1")
            raw = first.raw
            first.close()
            with closing(pool.getconnection()) as second:
                assert second.raw is raw
                with pytest.raises(fakes.InterfaceError):
                    cursor.fetchone()
                cursor.close()
                with pytest.raises(fakes.InterfaceError):
                    first.rollback()
                first.close()
                second.cursor().execute("SELECT 1")
                assert pool.poolstats().poolused == 1


class TestClose:
    def test_a_second_does_nothing(self, server: FakeServer) -> None:
        with make(server) as pool:
            conn = pool.getconnection()
            conn.close()
            conn.close()
            stats = pool.poolstats()
            assert (stats.poolsize, stats.poolfree, stats.poolused) == (1, 1, 0)

    def test_of_a_handle_of_the_past_does_nothing(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            first = pool.getconnection()
            first.close()
            second = pool.getconnection()
            first.close()
            assert pool.poolstats().poolused == 1
            second.close()

    @pytest.mark.parametrize("dirty", [False, True])
    def test_two_threads_at_once(self, server: FakeServer, dirty: bool) -> None:
        with make(server, poolmin=2, poolmax=2, healthcheck_on_getconnection=False) as pool:
            for _ in range(300):
                conn = pool.getconnection()
                if dirty:
                    conn.autocommit = True
                start = threading.Barrier(2)

                def close(conn: Any = conn, start: threading.Barrier = start) -> None:
                    start.wait(10)
                    conn.close()

                other = spawn(close)
                close()
                other.result()
                stats = pool.poolstats()
                assert (stats.poolfree, stats.poolused, stats.poolsize) == (2, 0, 2)

    @pytest.mark.parametrize("dirty", [False, True])
    def test_two_threads_while_others_borrow(self, server: FakeServer, dirty: bool) -> None:
        over = threading.Event()
        # One that closes a moment late may ask the driver about the next holder's connection.
        server.allow.add("threads")

        def borrow(pool: NimueConnectionPool) -> int:
            rounds = 0
            while not over.is_set():
                with closing(pool.getconnection()) as conn:
                    cursor = conn.cursor()
                    cursor.execute("SELECT ?", (rounds,))
                    assert cursor.fetchone() == (rounds,)
                    conn.commit()
                rounds += 1
            return rounds

        with make(server, poolmin=2, poolmax=2, healthcheck_on_getconnection=False) as pool:
            borrowers = [spawn(borrow, pool) for _ in range(2)]
            for _ in range(60):
                conn = pool.getconnection()
                if dirty:
                    conn.autocommit = True
                closers = [spawn(conn.close) for _ in range(2)]
                for closer in closers:
                    closer.result()
            over.set()
            for borrower in borrowers:
                assert borrower.result() > 0
            stats = pool.poolstats()
            assert (stats.poolfree, stats.poolused, stats.poolsize) == (2, 0, 2)
            assert server.max_open == 2


class TestDetach:
    def test_takes_it_out_and_the_pool_opens_another_at_need(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            conn = pool.getconnection()
            raw = conn.detach()
            assert type(raw) is fakes.Connection
            assert pool.poolstats().poolsize == 0
            for use in (conn.cursor, conn.commit, conn.detach, lambda: conn.raw):
                with pytest.raises(fakes.InterfaceError):
                    use()
            conn.close()
            raw.cursor().execute("SELECT 1")
            raw.commit()
            with closing(pool.getconnection()) as other:
                assert other.raw.serial == 2
            assert server.open == 2
        assert server.open == 1
        raw.close()

    def test_makes_room_for_who_waits(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            conn = pool.getconnection()
            asking = spawn(pool.getconnection)
            until(lambda: pool.poolstats().waiting == 1)
            raw = conn.detach()
            asking.result().close()
            raw.close()

    def test_dropped_afterwards_is_nobodys_loss(self, server: FakeServer) -> None:
        with make(server) as pool:
            raw = pool.getconnection().detach()
            gc.collect()
            pool.getconnection().close()
            assert pool.poolstats().lost == 0
            assert not raw.closed
            raw.close()

    def test_close_of_the_pool_does_not_wait_for_it(self, server: FakeServer) -> None:
        pool = make(server)
        conn = pool.getconnection()
        closer = spawn(pool.close)
        until(lambda: pool._state.is_shut)
        raw = conn.detach()
        closer.result()
        raw.close()


class TestPickle:
    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_is_refused(self, server: FakeServer, protocol: int) -> None:
        with make(server) as pool, closing(pool.getconnection()) as conn:
            with pytest.raises(TypeError, match="pickle the pool"):
                pickle.dumps(conn, protocol)
            with pytest.raises(TypeError):
                pickle.dumps(conn.cursor(), protocol)

    def test_so_is_a_copy(self, server: FakeServer) -> None:
        with make(server) as pool, closing(pool.getconnection()) as conn:
            for duplicate in (copy.copy, copy.deepcopy):
                with pytest.raises(TypeError):
                    duplicate(conn)


def _frame(conn: Any) -> Iterator[Any]:
    yield conn


def _keep_itself(conn: Any) -> Any:
    return conn


def _keep_weakly(conn: Any) -> Any:
    return weakref.ref(conn)


def _keep_weak_proxy(conn: Any) -> Any:
    return weakref.proxy(conn)


def _keep_in_a_set(conn: Any) -> Any:
    return weakref.WeakSet([conn])


def _keep_a_cursor(conn: Any) -> Any:
    return conn.cursor()


def _keep_a_method(conn: Any) -> Any:
    return conn.rollback


def _keep_a_generator(conn: Any) -> Any:
    generator = _frame(conn)
    next(generator)
    return generator


def _keep_a_frame(conn: Any) -> Any:
    return inspect.currentframe()


def _keep_a_closure(conn: Any) -> Any:
    return lambda: conn


def _keep_a_traceback(conn: Any) -> Any:
    try:
        raise LookupError(conn)
    except LookupError as error:
        return error


def _keep_an_attribute(conn: Any) -> Any:
    return conn.cursor().execute


def _keep_a_finalizer(conn: Any) -> Any:
    return weakref.finalize(conn, str)


def _keep_a_container(conn: Any) -> Any:
    return {"conn": [conn]}


WEAK = (_keep_weakly, _keep_weak_proxy, _keep_in_a_set, _keep_a_finalizer)
KEEPERS = [fn for name, fn in sorted(globals().items()) if name.startswith("_keep_")]


class TestReuse:
    """The pool may lend the same handle again, but only if nobody else knows it."""

    @pytest.mark.parametrize("keep", KEEPERS, ids=lambda fn: fn.__name__[6:])
    def test_who_is_known_to_somebody_never_comes_back_to_life(
        self, server: FakeServer, keep: Callable[[Any], Any]
    ) -> None:
        with make(server, poolmax=1, healthcheck_on_getconnection=False) as pool:
            conn = pool.getconnection()
            raw = conn.raw
            address = id(conn)
            kept = keep(conn)
            conn.rollback()
            conn.close()
            del conn
            for _ in range(6):
                new = pool.getconnection()
                assert new.raw is raw
                # The old one, if anything still leads to it, is another object, and closed.
                _expect_dead(_handles_behind(kept), new)
                if keep not in WEAK:
                    assert _handles_behind(kept)
                    assert id(new) != address
                assert pool.poolstats().poolused == 1
                new.cursor().execute("SELECT 1")
                new.close()

    def test_a_handle_that_nobody_knows_may(self, server: FakeServer) -> None:
        with make(server, poolmax=1, healthcheck_on_getconnection=False) as pool:
            for _ in range(5):
                pool.getconnection().close()
            conn = pool.getconnection()
            assert gc.get_referrers(conn) is not None
            conn.cursor().execute("SELECT 1")
            conn.close()

    def test_another_threads_stack_knows_it_too(self, server: FakeServer) -> None:
        proceed, closed = threading.Event(), threading.Event()

        def keeper(pool: NimueConnectionPool) -> str:
            conn = pool.getconnection()
            conn.close()
            closed.set()
            assert proceed.wait(10)
            with pytest.raises(fakes.InterfaceError):
                conn.cursor()
            conn.close()
            return "dead"

        with make(server, poolmax=1, healthcheck_on_getconnection=False) as pool:
            other = spawn(keeper, pool)
            assert closed.wait(10)
            with closing(pool.getconnection()):
                proceed.set()
                assert other.result() == "dead"
                assert pool.poolstats().poolused == 1

    def test_stale_handles_never_disturb_while_many_borrow(self, server: FakeServer) -> None:
        def work(pool: NimueConnectionPool, me: int) -> int:
            old: list[Any] = []
            for n in range(200):
                conn = pool.getconnection()
                cursor = conn.cursor()
                cursor.execute("SELECT ?, ?", (me, n))
                for stale in old[-3:]:
                    with contextlib.suppress(fakes.InterfaceError):
                        stale.rollback()
                        raise AssertionError("a closed handle came back to life")
                    stale.close()
                assert cursor.fetchone() == (me, n)
                conn.close()
                if n % 2:
                    old.append(conn)
                del conn, cursor
            return len(old)

        with make(server, poolmin=3, poolmax=3, healthcheck_on_getconnection=False) as pool:
            workers = [spawn(work, pool, me) for me in range(4)]
            for worker in workers:
                assert worker.result(30) == 100
            stats = pool.poolstats()
            assert (stats.poolfree, stats.poolused, stats.lost) == (3, 0, 0)


def _expect_dead(handles: list[NimueConnection], new: Any) -> None:
    for old in handles:
        assert old is not new
        with pytest.raises(fakes.InterfaceError):
            old.cursor()
        old.close()


def _handles_behind(kept: Any) -> list[NimueConnection]:
    if type(kept) is weakref.ProxyType:  # of a handle that is gone, to look at it would raise
        return []
    if isinstance(kept, NimueConnection):
        return [kept]
    if isinstance(kept, weakref.ref):
        found = kept()
        return [] if found is None else [found]
    if isinstance(kept, weakref.finalize):
        alive = kept.peek()
        return [] if alive is None else [alive[0]]
    if isinstance(kept, weakref.WeakSet):
        return list(kept)
    if isinstance(kept, NimueCursor):
        return [kept.connection]
    if isinstance(kept, BaseException):
        return list(kept.args)
    if isinstance(kept, dict):
        return list(kept["conn"])
    if inspect.isgenerator(kept):
        return [kept.gi_frame.f_locals["conn"]]
    if inspect.isframe(kept):
        return [kept.f_locals["conn"]]
    if inspect.ismethod(kept):
        owner = kept.__self__
        return [owner.connection if isinstance(owner, NimueCursor) else owner]
    if inspect.isfunction(kept):
        return [kept()]
    return []


def take(pool: NimueConnectionPool) -> Any:
    return pool.getconnection()  # the place that is to be named


PLACE = take.__code__.co_firstlineno + 1


class TestDropped:
    """A handle that is dropped goes back, reset, with a ResourceWarning that says where."""

    def test_plainly(self, server: FakeServer, caplog: Any) -> None:
        with make(server, poolmax=1, leak_timeout=1000) as pool:
            conn = take(pool)
            conn.cursor().execute("INSERT")
            raw = conn.raw
            del conn
            until(lambda: pool.poolstats().poolfree == 1)
            assert not raw.in_transaction
            assert pool.poolstats().lost == 1
            with closing(pool.getconnection()) as other:
                assert other.raw is raw
        # The filter of this run makes an error of the warning, which nobody can catch there.
        until(lambda: "dropped without close()" in caplog.text)
        assert f"{__file__}:{PLACE}" in caplog.text

    def test_though_the_word_of_it_was_cut_short(self, server: FakeServer, caplog: Any) -> None:
        """A signal handler raised in the callback of the weak reference: nobody heard."""
        with make(server, poolmax=1) as pool:
            conn = take(pool)
            (entry,) = pool._state.entries
            entry.watch = weakref.ref(conn)
            del conn
            pool.cleanup_interval = 60.0  # which looks at once
            until(lambda: pool.poolstats().poolfree == 1)
            assert pool.poolstats().lost == 1
        until(lambda: "dropped without close()" in caplog.text)

    def test_who_waits_gets_it(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            conn = take(pool)
            raw = conn.raw
            asking = spawn(pool.getconnection)
            until(lambda: pool.poolstats().waiting == 1)
            del conn
            with closing(asking.result()) as other:
                assert other.raw is raw

    def test_in_a_reference_cycle(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            gc.disable()
            try:
                cycle: list[Any] = [take(pool)]
                cycle.append(cycle)
                del cycle
                assert pool.poolstats().poolused == 1
            finally:
                gc.enable()
            gc.collect()
            until(lambda: pool.poolstats().poolfree == 1)
            assert pool.poolstats().lost == 1

    def test_while_its_cursor_lives(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            cursor = take(pool).cursor()
            gc.collect()
            cursor.execute("SELECT ?", (7,))
            assert cursor.fetchone() == (7,)
            assert pool.poolstats().poolused == 1
            del cursor
            until(lambda: pool.poolstats().poolfree == 1)

    def test_with_attributes_changed(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            conn = take(pool)
            raw = conn.raw
            conn.autocommit = True
            del conn
            until(lambda: pool.poolstats().poolfree == 1)
            assert raw.autocommit is False

    def test_broken(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            conn = take(pool)
            server.kill(conn.raw)
            with pytest.raises(fakes.OperationalError):
                conn.commit()
            del conn
            with closing(pool.getconnection(timeout=10)) as other:
                assert other.raw.serial == 2

    def test_many_at_once_from_many_threads(self, server: FakeServer) -> None:
        def drop(pool: NimueConnectionPool) -> None:
            for _ in range(25):
                conn = pool.getconnection(timeout=20)
                conn.cursor().execute("INSERT")
                del conn

        with make(server, poolmin=3, poolmax=3) as pool:
            droppers = [spawn(drop, pool) for _ in range(4)]
            for dropper in droppers:
                dropper.result(30)
            until(lambda: pool.poolstats().poolfree == 3)
            assert pool.poolstats().lost == 100
            assert server.max_open == 3

    def test_closed_ones_are_no_loss(self, server: FakeServer, caplog: Any) -> None:
        with make(server, poolmax=2) as pool:
            for _ in range(20):
                conn = pool.getconnection()
                conn.close()
                del conn
            gc.collect()
            assert pool.poolstats().lost == 0
        told = [line for line in caplog.text.splitlines() if pool.name in line]
        assert not [line for line in told if "dropped" in line]

    def test_the_warning_by_default_and_when_it_is_asked_for(self) -> None:
        assert in_script(_drop_one, options=("-W", "ignore")) == []
        told = in_script(_drop_one, options=("-W", "always"))
        assert len(told) == 1
        assert f"{__file__}:{PLACE}" in told[0][1] or "leak_timeout would tell" in told[0][1]

    def test_the_warning_says_where_it_was_taken(self) -> None:
        told = in_script(_drop_one, 1000.0, options=("-W", "always"))
        assert len(told) == 1
        category, message, filename, line = told[0]
        assert category == "ResourceWarning"
        assert "dropped without close()" in message
        assert f"{__file__}:{PLACE}" in message
        assert (filename, line) == (__file__, PLACE)


def _drop_one(leak_timeout: float | None = None) -> list[tuple[str, str, str, int]]:
    import warnings

    told: list[tuple[str, str, str, int]] = []
    show = warnings.showwarning

    def note(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        told.append((category.__name__, str(message), filename, lineno))

    warnings.showwarning = note
    server = FakeServer()
    with make(server, poolmax=1, leak_timeout=leak_timeout) as pool:
        take(pool).cursor().execute("INSERT")
        until(lambda: pool.poolstats().poolfree == 1)
        if "ignore" not in sys.warnoptions:
            until(lambda: told)
        pool.getconnection().close()
    warnings.showwarning = show
    server.verify()
    return told


def test_cursors_long_gone_are_not_kept(server: FakeServer) -> None:
    """Of a loan that runs for ever, with a driver whose open cursors a release has to close."""
    driver = FakeDriver(close_cursors=True)
    with NimueConnectionPool(server.connect, poolmin=1, poolmax=1, driver=driver) as pool:
        conn = pool.getconnection()
        (entry,) = pool._state.entries
        kept = conn.cursor()
        for _ in range(1000):
            conn.cursor().execute("SELECT 1")
        assert entry.cursors is not None and len(entry.cursors) <= 2
        raw = kept.raw
        conn.close()
        assert raw.closed
