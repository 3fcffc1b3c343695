"""Sessions that end under the pool: the holder hears of it once, and nobody after."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimueNoConnectionAvailable
from nimue.drivers.mysql import PyMySQL
from nimue.drivers.postgres import Psycopg2
from stress.proxy import Proxy
from tests.fakes import FakeDriver, FakeServer, OperationalError, spawn, until
from tests.servers import MARIADB_DRIVERS, POSTGRES_DRIVERS

EVERY = (*POSTGRES_DRIVERS, *MARIADB_DRIVERS)
NEVER_CHECK = 1000.0

# A close() of pg8000 that cannot speak any more leaves its socket to the collector.
pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


class Site:
    """A driver, its server, a table, and the pools that a test makes of them."""

    def __init__(self, driver: str, database: Any) -> None:
        self.driver, self.database = driver, database
        self.is_postgres = driver in POSTGRES_DRIVERS
        self.table = f"t_{database.name}" if self.is_postgres else f"nimue.t_{database.name}"
        self.pools: list[NimueConnectionPool] = []
        database.sql(f"CREATE TABLE {self.table} (i int primary key)")

    def pool(self, port: int | None = None, **kw: Any) -> NimueConnectionPool:
        chosen = {"poolmin": 0, "poolmax": 5, "healthcheck_idle": 0.0, "timeout": 20.0, **kw}
        connfunc = self.database.connector(self.driver, port=port or self.database.port)
        self.pools.append(NimueConnectionPool(connfunc, **chosen))
        return self.pools[-1]

    def session(self, conn: Any) -> int:
        return run(conn, f"SELECT {'pg_backend_pid' if self.is_postgres else 'connection_id'}()")

    def end(self, conn: Any) -> None:
        """Have the server end the session of ``conn``."""
        self.database.terminate(self.session(conn))

    def rows(self) -> list[int]:
        return [row[0] for row in self.database.sql(f"SELECT i FROM {self.table} ORDER BY i")]

    def alive(self) -> set[int]:
        return {session[0] for session in self.database.sessions()}

    def errors(self, pool: NimueConnectionPool) -> tuple[type[BaseException], ...]:
        # pg8000 lets some of the socket's own through.
        return (pool._state.driver.dbmodule.Error, OSError)

    def finish(self) -> None:
        for pool in self.pools:
            pool.close(5)
        # MariaDB's wait for the lock of a transaction that a test has failed in.
        self.database.terminate_all()
        self.database.sql(f"DROP TABLE {self.table}")
        self.pools.clear()
        gc.collect()


def run(conn: Any, sql: str) -> Any:
    """The first value of the first row, where there is one."""
    cursor = conn.cursor()
    try:
        cursor.execute(sql)
        row = cursor.fetchone() if cursor.description else None
    finally:
        cursor.close()
    return row[0] if row else None


def site_of(request: pytest.FixtureRequest, driver: str) -> Iterator[Site]:
    kind = "postgres" if driver in POSTGRES_DRIVERS else "mariadb"
    database = request.getfixturevalue(kind)
    database.connect(driver).close()  # skips where the driver is missing
    site = Site(driver, database)
    yield site
    site.finish()


@pytest.fixture(params=EVERY)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from site_of(request, request.param)


@pytest.fixture(params=POSTGRES_DRIVERS)
def on_postgres(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from site_of(request, request.param)


@pytest.fixture(params=MARIADB_DRIVERS)
def on_mariadb(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from site_of(request, request.param)


def works(pool: NimueConnectionPool, conn: Any) -> bool:
    answer: int = run(conn, "SELECT 4711")
    return answer == 4711


class TestEnded:
    def test_while_idle_nobody_hears_of_it(self, site: Site) -> None:
        pool = site.pool(poolmin=3)
        before = site.alive()
        site.database.terminate_all()
        held = [pool.getconnection() for _ in range(3)]
        assert all(works(pool, conn) for conn in held)
        assert not before & {site.session(conn) for conn in held}
        for conn in held:
            conn.close()
        stats = until(lambda: (s := pool.poolstats()).checking == 0 and s)
        assert (stats.connections_cleaned_dead, stats.closed, stats.failed) == (3, 3, 0)
        site.database.expect_sessions(stats.poolsize)

    def test_while_out_its_holder_hears_of_it_once(self, site: Site) -> None:
        pool = site.pool(healthcheck_idle=NEVER_CHECK)
        conn = pool.getconnection()
        site.end(conn)
        with pytest.raises(site.errors(pool)):
            run(conn, "SELECT 1")
        assert pool.poolstats().poolused == 1, "it stays its holder's until the release"
        conn.close()
        until(lambda: pool.poolstats().poolsize == 0)
        for _ in range(3):
            with pool.connection() as conn:
                assert works(pool, conn)
        stats = pool.poolstats()
        assert (stats.opened, stats.closed, stats.poolfree) == (2, 1, 1)

    def test_in_the_middle_of_a_transaction_nothing_of_it_stays(self, site: Site) -> None:
        pool = site.pool(healthcheck_idle=NEVER_CHECK)
        with pytest.raises(Exception) as told, pool.connection() as conn:
            run(conn, f"INSERT INTO {site.table} VALUES (1)")
            site.end(conn)
            run(conn, f"INSERT INTO {site.table} VALUES (2)")
        assert isinstance(told.value, site.errors(pool))
        with pool.connection() as conn:
            run(conn, f"INSERT INTO {site.table} VALUES (3)")
        assert site.rows() == [3]
        assert pool.poolstats().opened == 2

    def test_before_the_commit_the_commit_says_so(self, site: Site) -> None:
        pool = site.pool(healthcheck_idle=NEVER_CHECK)
        with pytest.raises(Exception) as told, pool.connection() as conn:
            run(conn, f"INSERT INTO {site.table} VALUES (1)")
            site.end(conn)
        assert isinstance(told.value, site.errors(pool))
        with pool.connection() as conn:
            assert works(pool, conn)
        assert site.rows() == []
        assert pool.poolstats().poolsize == 1

    def test_unnoticed_by_its_holder_the_release_is_silent(self, site: Site) -> None:
        pool = site.pool(healthcheck_idle=NEVER_CHECK)
        conn = pool.getconnection()
        run(conn, f"INSERT INTO {site.table} VALUES (1)")
        site.end(conn)
        conn.close()
        until(lambda: pool.poolstats().closed == 1)
        with pool.connection() as conn:
            assert works(pool, conn)

    def test_who_may_not_wait_gets_one_that_lives(self, site: Site) -> None:
        pool = site.pool(poolinit=2)
        old, new = pool.getconnection(), pool.getconnection()
        lives, dies = site.session(old), site.session(new)
        old.rollback()
        new.rollback()
        old.close()
        new.close()
        site.database.terminate(dies)
        conn = pool.getconnection(blocking=False)
        assert site.session(conn) == lives
        site.database.terminate(lives)
        conn.close()
        until(lambda: pool.poolstats().checking == 0)
        if pool.poolstats().poolfree:  # where the release had no reason to ask the server
            with pytest.raises(NimueNoConnectionAvailable):
                pool.getconnection(blocking=False)
        conn = pool.getconnection()
        assert works(pool, conn)
        conn.close()

    @pytest.mark.parametrize(
        ("site", "port"),
        [
            *((driver, "server") for driver in EVERY),
            *((driver, "proxy") for driver in ("psycopg2", "pg8000", "pymysql")),
        ],
        indirect=["site"],
    )
    def test_the_others_are_suspected(
        self, site: Site, port: str, make_proxy: Callable[[int], Proxy]
    ) -> None:
        """Two ways to die, the server's word and none at all; two of five live on."""
        proxy = make_proxy(site.database.port)
        pool = site.pool(
            port=proxy.port if port == "proxy" else None,
            poolmin=5,
            healthcheck_idle=NEVER_CHECK,
        )
        held = [pool.getconnection() for _ in range(5)]
        sessions = [site.session(conn) for conn in held]
        for conn in held:
            conn.rollback()
        for conn in held[1:]:
            conn.close()
        if port == "proxy":
            proxy.cut()
            survivors = set()
        else:
            survivors = set(sessions[3:])
            for session in sessions[:3]:
                site.database.terminate(session)
        with pytest.raises(site.errors(pool)):
            run(held[0], "SELECT 1")
        held[0].close()
        dead = 4 - len(survivors)
        until(lambda: pool.poolstats().connections_cleaned_dead == dead)
        again = [pool.getconnection() for _ in range(5)]
        assert all(works(pool, conn) for conn in again)
        assert survivors <= {site.session(conn) for conn in again}
        for conn in again:
            conn.close()
        assert pool.poolstats().connections_cleaned_dead == dead

    def test_a_suspect_is_not_lent_unchecked(self, server: FakeServer) -> None:
        """Who comes while the suspects are still being checked gets none of the others as it is."""
        with NimueConnectionPool(
            server.connect, poolinit=4, poolmin=0, healthcheck_idle=NEVER_CHECK, driver=FakeDriver()
        ) as pool:
            held = pool.getconnection()
            gone = OperationalError("gone", sqlstate="57P01")
            server.fail("execute", gone, on=held.raw, times=1)
            with server.hold("execute", when=lambda call: call.thread.startswith("nimue-")) as gate:
                with pytest.raises(OperationalError):
                    held.cursor().execute("SELECT 1")
                held.close()
                gate.arrived(1)
                assert pool.poolstats().poolfree == 2
                asking = spawn(pool.getconnection)
                until(lambda: pool.poolstats().waiting == 1)
                gate.release()
                conn = asking.result()
            conn.cursor().execute("SELECT 1")
            conn.close()

    @pytest.mark.parametrize("site", ["psycopg2", "pymysql"], indirect=True)
    def test_all_at_once_under_load(self, site: Site) -> None:
        """Eight threads go on; each session that ended is heard of at most once."""
        pool = site.pool(poolmin=4, poolmax=4)
        ended, done, errors = 0, threading.Event(), [0] * 8
        rounds = [0] * 8

        def work(number: int) -> None:
            while not done.is_set():
                try:
                    with pool.connection() as conn:
                        token = number * 1000 + rounds[number] % 1000
                        assert run(conn, f"SELECT {token}") == token
                except site.errors(pool):
                    errors[number] += 1
                rounds[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                seen = list(rounds)
                for session in site.database.sessions():
                    site.database.terminate(session[0])
                    ended += 1
                until(lambda seen=seen: all(r > s + 2 for r, s in zip(rounds, seen, strict=True)))
        finally:
            done.set()
            for thread in threads:
                thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert sum(errors) <= ended
        stats = until(lambda: (s := pool.poolstats()).checking == s.connecting == 0 and s)
        site.database.expect_sessions(stats.poolsize)
        assert stats.poolsize <= 4


def condemned_by(site: Site, pool: NimueConnectionPool, *statements: str) -> bool:
    """Whether the last statement, which must fail, has its connection discarded at release."""
    conn = pool.getconnection()
    session = site.session(conn)
    for statement in statements[:-1]:
        run(conn, statement)
    with pytest.raises(site.errors(pool)):
        run(conn, statements[-1])
    conn.close()
    until(lambda: pool.poolstats().checking == 0)
    again = pool.getconnection()
    kept = site.session(again) == session
    again.close()
    return not kept


def raising(code: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'so it is told' USING ERRCODE = '{code}'; END $$"


def signal(code: int, text: str) -> str:
    return f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = '{text}'"


READ_ONLY = "The server is running with the --read-only option so it cannot execute this statement"


class TestVerdicts:
    @pytest.mark.parametrize(
        "before",
        [
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET default_transaction_read_only = on",
        ],
    )
    def test_postgres_that_has_become_read_only(self, on_postgres: Site, before: str) -> None:
        pool = on_postgres.pool(healthcheck_idle=NEVER_CHECK)
        insert = f"INSERT INTO {on_postgres.table} VALUES (1)"
        assert condemned_by(on_postgres, pool, before, "COMMIT", insert)
        with pool.connection() as conn:
            run(conn, insert)
        assert on_postgres.rows() == [1]

    def test_postgres_says_that_the_session_is_of_no_use(self, on_postgres: Site) -> None:
        pool = on_postgres.pool(healthcheck_idle=NEVER_CHECK)
        codes = ("57P01", "57P02", "57P04", "57P05", "08006", "25006")
        kept = [code for code in codes if not condemned_by(on_postgres, pool, raising(code))]
        assert kept == []

    def test_a_transaction_idle_for_too_long(self, on_postgres: Site) -> None:
        pool = on_postgres.pool(healthcheck_idle=NEVER_CHECK)
        conn = pool.getconnection()
        run(conn, "SET idle_in_transaction_session_timeout = '20ms'")
        on_postgres.database.expect_sessions(0)
        with pytest.raises(on_postgres.errors(pool)):
            run(conn, "SELECT 1")
        conn.close()
        with pool.connection() as conn:
            assert works(pool, conn)
        assert pool.poolstats().opened == 2

    def test_postgres_and_ordinary_errors(self, on_postgres: Site) -> None:
        pool = on_postgres.pool(healthcheck_idle=NEVER_CHECK)
        table = on_postgres.table
        insert = f"INSERT INTO {table} VALUES (1)"
        ordinary = [
            ["SELEKT 1"],
            ["SELECT 1/0"],
            ["SELECT * FROM nowhere"],
            [insert, insert],
            ["SET LOCAL lock_timeout = '20ms'", f"LOCK TABLE {table}_held"],
            ["SET LOCAL statement_timeout = '20ms'", "SELECT pg_sleep(60)"],
            ["SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)"],
            *([raising(code)] for code in ("40001", "40P01", "57014", "53200", "P0001", "25P02")),
        ]
        blocker = on_postgres.database.connect("psycopg2")
        try:
            run(blocker, f"CREATE TABLE {table}_held ()")
            lost = [case for case in ordinary if condemned_by(on_postgres, pool, *case)]
            assert lost == []
            assert pool.poolstats().opened == 1
        finally:
            blocker.close()

    def test_a_serialization_failure(self, on_postgres: Site) -> None:
        pool = on_postgres.pool(healthcheck_idle=NEVER_CHECK)
        table = on_postgres.table
        on_postgres.database.sql(f"INSERT INTO {table} VALUES (1)")
        conn = pool.getconnection()
        session = on_postgres.session(conn)
        conn.rollback()
        run(conn, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        run(conn, f"SELECT i FROM {table}")
        on_postgres.database.sql(f"UPDATE {table} SET i = 2")
        with pytest.raises(on_postgres.errors(pool)):
            run(conn, f"UPDATE {table} SET i = 3")
        conn.close()
        with pool.connection() as conn:
            assert on_postgres.session(conn) == session

    def test_mariadb_says_that_the_session_is_of_no_use(self, on_mariadb: Site) -> None:
        pool = on_mariadb.pool(healthcheck_idle=NEVER_CHECK)
        told = [(1290, READ_ONLY), (1836, "Running in read-only mode"), (1053, "S"), (1927, "k")]
        kept = [one for one in told if not condemned_by(on_mariadb, pool, signal(*one))]
        assert kept == []

    def test_mariadb_that_has_become_read_only(self, on_mariadb: Site) -> None:
        pool = on_mariadb.pool(healthcheck_idle=NEVER_CHECK)
        insert = f"INSERT INTO {on_mariadb.table} VALUES (1)"
        begin = "SET SESSION TRANSACTION READ ONLY"
        assert condemned_by(on_mariadb, pool, begin, "START TRANSACTION", insert)
        with pool.connection() as conn:
            run(conn, insert)
        assert on_mariadb.rows() == [1]

    def test_mariadb_and_ordinary_errors(self, on_mariadb: Site) -> None:
        pool = on_mariadb.pool(healthcheck_idle=NEVER_CHECK)
        insert = f"INSERT INTO {on_mariadb.table} VALUES (1)"
        ordinary = [
            ["SELEKT 1"],
            ["SELECT * FROM nowhere"],
            [insert, insert],
            [f"SELECT i FROM {on_mariadb.table} WHERE i = 9 FOR UPDATE NOWAIT"],
            *([signal(code, "so it is told")] for code in (1205, 1213, 1969, 1317, 1062)),
            [signal(1290, "It runs with the --secure-file-priv option")],
        ]
        blocker = on_mariadb.database.connect("pymysql")
        try:
            run(blocker, f"INSERT INTO {on_mariadb.table} VALUES (9)")
            lost = [case for case in ordinary if condemned_by(on_mariadb, pool, *case)]
            assert lost == []
            assert pool.poolstats().opened == 1
        finally:
            blocker.close()

    def test_an_error_of_the_program_s_own(self, site: Site) -> None:
        pool = site.pool(healthcheck_idle=NEVER_CHECK)
        with pytest.raises(FileNotFoundError), pool.connection() as conn:
            session = site.session(conn)
            raise FileNotFoundError("this program's own")
        with pool.connection() as conn:
            assert site.session(conn) == session


class Impatient(Psycopg2):
    """A query that was cancelled condemns; a read-only server is what this program likes."""

    def is_disconnect(self, error: BaseException) -> bool:
        code = getattr(error, "pgcode", None)
        return code == "57014" or (code != "25006" and super().is_disconnect(error))


class Galera(PyMySQL):
    def is_disconnect(self, error: BaseException) -> bool:
        return error.args[:1] == (1205,) or super().is_disconnect(error)


class TestOwnVerdict:
    def test_postgres(self, request: pytest.FixtureRequest) -> None:
        import psycopg2

        for site in site_of(request, "psycopg2"):
            pool = site.pool(driver=Impatient(psycopg2), healthcheck_idle=NEVER_CHECK)
            assert condemned_by(site, pool, raising("57014"))
            assert condemned_by(site, pool, raising("57P01"))
            assert not condemned_by(site, pool, raising("25006"))
            assert not condemned_by(site, pool, raising("40001"))

    def test_mariadb(self, request: pytest.FixtureRequest) -> None:
        import pymysql

        for site in site_of(request, "pymysql"):
            pool = site.pool(driver=Galera(pymysql), healthcheck_idle=NEVER_CHECK)
            assert condemned_by(site, pool, signal(1205, "t"))
            assert condemned_by(site, pool, signal(1836, "t"))
            assert not condemned_by(site, pool, signal(1213, "t"))
