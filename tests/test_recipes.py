"""The ways in which programs use a pool, whole: what the README shows, on real servers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nimue import NimueConnectionPool
from tests.children import in_script
from tests.fakes import until
from tests.servers import MARIADB_DRIVERS, POSTGRES_DRIVERS, Postgres

pytestmark = pytest.mark.server

START_METHODS = ("fork", "forkserver", "spawn")
SERVERS = (*POSTGRES_DRIVERS, *MARIADB_DRIVERS)


class Boom(Exception):
    pass


class Site:
    """A driver, a pool of two, a table, and another session to look at it with."""

    def __init__(self, driver: str, connfunc: Any, table: str, database: Any) -> None:
        self.driver, self.connfunc, self.table, self.database = driver, connfunc, table, database
        self.admin(f"CREATE TABLE {table} (i int primary key)")
        self.pool = NimueConnectionPool(connfunc, poolmin=0, poolmax=2, timeout=20.0)

    def admin(self, statement: str) -> list[Any]:
        if self.database is not None:
            return list(self.database.sql(statement))
        with contextlib.closing(self.connfunc()) as raw, raw:
            return raw.execute(statement).fetchall()

    def rows(self) -> list[int]:
        return [row[0] for row in self.admin(f"SELECT i FROM {self.table} ORDER BY i")]

    def insert(self, conn: Any, i: int) -> None:
        cursor = conn.cursor()
        cursor.execute(f"INSERT INTO {self.table} VALUES ({i})")
        cursor.close()

    def all_home(self) -> bool:
        stats = self.pool.poolstats()
        return stats.poolused == stats.checking == 0

    def finish(self) -> None:
        self.pool.close(5)
        self.admin(f"DROP TABLE {self.table}")


def connect_sqlite(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, check_same_thread=False)


@pytest.fixture(params=(*SERVERS, "sqlite3"))
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    driver = request.param
    if driver == "sqlite3":
        site = Site(driver, lambda: connect_sqlite(str(tmp_path / "db")), "t", None)
    else:
        postgres = driver in POSTGRES_DRIVERS
        database = request.getfixturevalue("postgres" if postgres else "mariadb")
        database.connect(driver).close()  # skips where the driver is missing
        table = f"{'' if postgres else 'nimue.'}t_{database.name}"
        site = Site(driver, database.connector(driver), table, database)
    yield site
    site.finish()


class TestBorrowing:
    """``with pool.connection() as conn:``, the same on every driver."""

    def test_commits(self, site: Site) -> None:
        with site.pool.connection() as conn:
            site.insert(conn, 1)
            site.insert(conn, 2)
        assert site.rows() == [1, 2]
        assert site.all_home()
        with site.pool.connection() as conn:
            site.insert(conn, 3)
        assert site.rows() == [1, 2, 3]
        assert site.pool.poolstats().opened == 1

    def test_rolls_back(self, site: Site) -> None:
        for error in (Boom, KeyboardInterrupt, SystemExit, GeneratorExit):
            with pytest.raises(error), site.pool.connection() as conn:
                site.insert(conn, 1)
                raise error
            assert site.rows() == []
            assert site.all_home()
        with site.pool.connection() as conn:
            site.insert(conn, 1)
        assert site.rows() == [1]
        assert site.pool.poolstats().opened == 1

    def test_rolls_back_after_an_error_of_the_database(self, site: Site) -> None:
        with site.pool.connection() as conn:
            site.insert(conn, 1)
        errors = site.pool._state.driver.dbmodule.Error
        with pytest.raises(errors), site.pool.connection() as conn:
            site.insert(conn, 2)
            site.insert(conn, 1)
        assert site.rows() == [1]
        assert site.all_home()
        assert site.pool.poolstats().opened == 1

    def test_leaves_early(self, site: Site) -> None:
        def first() -> int:
            for i in (1, 2):
                with site.pool.connection() as conn:
                    site.insert(conn, i)
                    return i
            return 0

        assert first() == 1
        assert site.rows() == [1]
        assert site.all_home()

    def test_closed_or_committed_inside(self, site: Site) -> None:
        with site.pool.connection() as conn:
            site.insert(conn, 1)
            conn.commit()
            site.insert(conn, 2)
            conn.close()
        assert site.rows() == [1]
        with site.pool.connection() as conn:
            site.insert(conn, 3)
            conn.rollback()
        assert site.rows() == [1]
        assert site.all_home()

    def test_one_in_another(self, site: Site) -> None:
        if site.driver == "sqlite3":
            site.admin("PRAGMA journal_mode=WAL")
        with site.pool.connection() as outer:
            with site.pool.connection() as inner:
                site.insert(inner, 1)
            assert site.rows() == [1]
            site.insert(outer, 2)
            assert site.rows() == [1]
        assert site.rows() == [1, 2]
        assert site.all_home()


# What the processes below run has to be importable by name.

_pool: NimueConnectionPool | None = None


def adopt(pool: NimueConnectionPool) -> None:
    global _pool
    _pool = pool


def square(n: int) -> tuple[int, int, int]:
    assert _pool is not None
    with _pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT %s::int * %s::int, pg_backend_pid()", (n, n))
        product, session = cursor.fetchone()
        return product, session, os.getpid()


def square_by(pool: NimueConnectionPool, n: int) -> tuple[int, int, int]:
    adopt(pool)
    return square(n)


def _pool_of(connfunc: Any, name: str) -> NimueConnectionPool:
    return NimueConnectionPool(connfunc, poolmin=1, poolmax=2, name=name, timeout=20.0)


def _verdict(answers: list[tuple[int, int, int]], own: int, many: int) -> None:
    assert [product for product, _, _ in answers] == [n * n for n in range(len(answers))]
    processes: dict[int, set[int]] = {}
    for _, session, process in answers:
        processes.setdefault(process, set()).add(session)
    sessions = [session for some in processes.values() for session in some]
    assert own not in processes, "the work was done elsewhere"
    assert len(sessions) == len(set(sessions)), "no session was used by two processes"
    assert len(processes) <= many


def _multiprocessing_pool(method: str, connfunc: Any) -> None:
    """The pool goes to each worker once, by the initializer."""
    pool = _pool_of(connfunc, "recipes")
    adopt(pool)
    assert square(3)[0] == 9
    context = multiprocessing.get_context(method)
    with context.Pool(2, initializer=adopt, initargs=(pool,)) as workers:
        answers = workers.map(square, range(20), chunksize=1)
        assert square(4)[0] == 16, "the parent goes on meanwhile"
        workers.close()
        workers.join()
    _verdict(answers, os.getpid(), 2)
    pool.close()


def _process_pool_executor(method: str, connfunc: Any) -> None:
    """The pool goes along with each task, and is one pool in each worker."""
    pool = _pool_of(connfunc, "recipes")
    adopt(pool)
    assert square(3)[0] == 9
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as workers:
        answers = [
            future.result() for future in [workers.submit(square_by, pool, n) for n in range(20)]
        ]
        assert square(4)[0] == 16
    _verdict(answers, os.getpid(), 2)
    assert len({session for _, session, _ in answers}) <= 2, "rebuilt once per worker"
    pool.close()


def _processes(method: str, connfunc: Any) -> None:
    """Plain processes with the pool as an argument."""
    pool = _pool_of(connfunc, "recipes")
    context = multiprocessing.get_context(method)
    adopt(pool)
    assert square(3)[0] == 9
    crowd = [context.Process(target=square_by, args=(pool, n)) for n in range(2)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(30)
    assert [process.exitcode for process in crowd] == [0, 0]
    assert square(4)[0] == 16
    # No close(): the end of the interpreter says goodbye.


@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        *((_multiprocessing_pool, method) for method in START_METHODS),
        *((_process_pool_executor, method) for method in START_METHODS),
        (_processes, "fork"),
    ],
)
def test_processes(recipe: Any, method: str, postgres: Postgres) -> None:
    """In a program of its own, whose warnings are errors: what the pool does is no reason to."""
    connfunc = postgres.connector("psycopg2")
    in_script(recipe, method, connfunc, options=("-W", "error"))
    postgres.expect_sessions(0)


def _plain_script(connfunc: Any, close: bool) -> int:
    """Many threads, few connections; each answer is its question's."""
    pool = NimueConnectionPool(connfunc, poolmin=2, poolmax=4)
    answers: dict[int, int] = {}

    def work(number: int) -> None:
        for step in range(20):
            with pool.connection() as conn, conn.cursor() as cursor:
                cursor.execute("SELECT %s::int", (number * 100 + step,))
                answers[number * 100 + step] = cursor.fetchone()[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 640
    assert all(question == answer for question, answer in answers.items())
    stats = pool.poolstats()
    assert stats.opened <= 4
    if close:
        pool.close()
        until(lambda: not [t for t in threading.enumerate() if t.name in _WORKERS])
    return stats.opened


_WORKERS = ("nimue-connect", "nimue-check", "nimue-close", "nimue-patrol", "nimue-tidy")


@pytest.mark.parametrize("close", [True, False], ids=["closed", "left"])
def test_a_script_with_many_threads(close: bool, postgres: Postgres) -> None:
    opened = in_script(
        _plain_script, postgres.connector("psycopg2"), close, options=("-W", "error")
    )
    assert 2 <= opened <= 4
    postgres.expect_sessions(0)


@pytest.mark.parametrize("site", ["psycopg2"], indirect=True)
def test_the_example_of_0_0_3(site: Site) -> None:
    """Bottle, ``closing(pool.getconnection())`` and ``with conn:``, as that README had it."""
    bottle = pytest.importorskip("bottle")
    pool = site.pool
    app = bottle.Bottle()

    @app.route("/insert/<value:int>")
    def insert(value: int) -> str:
        with contextlib.closing(pool.getconnection()) as conn:
            with conn:
                cur = conn.cursor()
                cur.execute(f"INSERT INTO {site.table} VALUES (%s)", (value,))
            with conn:
                cur.execute(f"SELECT count(*) FROM {site.table}")
                return str(cur.fetchone()[0])

    def request(path: str) -> tuple[str, str]:
        said: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            "wsgi.errors": open(os.devnull, "w"),  # noqa: SIM115
        }
        with environ["wsgi.errors"]:
            body = b"".join(app(environ, lambda status, headers, *rest: said.append(status)))
        return said[0][:3], body.decode()

    assert request("/insert/1") == ("200", "1")
    assert request("/insert/2") == ("200", "2")
    assert request("/insert/2")[0] == "500"
    assert request("/insert/3") == ("200", "3")
    assert site.rows() == [1, 2, 3]
    assert site.all_home()
    assert pool.poolstats().opened == 1
