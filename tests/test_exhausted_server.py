"""The server has no room: what the caller hears, and what the pool does with what it has."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimuePoolTimeout
from stress.proxy import Proxy
from tests.fakes import spawn, until
from tests.servers import MARIADB_DRIVERS, POSTGRES_DRIVERS

ROOM = 4

# A connect() of pg8000 or PyMySQL that fails leaves its socket to the collector.
pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


class Site:
    """A server with room for four sessions of ours, and another program that takes some."""

    def __init__(self, driver: str, database: Any) -> None:
        self.driver, self.database = driver, database
        self.others: list[Any] = []
        self.pools: list[NimueConnectionPool] = []

    def occupy(self, n: int) -> None:
        for _ in range(n):
            self.others.append(until(self._another))

    def _another(self) -> Any:
        # The server's own start was seen over a session whose place may not be free yet.
        try:
            return self.database.connect(self.driver)
        except self.errors:
            return None

    def leave(self, n: int) -> None:
        for _ in range(n):
            self.others.pop().close()

    def pool(self, port: int | None = None, **kw: Any) -> NimueConnectionPool:
        connfunc = self.database.connector(self.driver, port=port or self.database.port)
        self.pools.append(NimueConnectionPool(connfunc, **{"poolmin": 0, "poolmax": 6, **kw}))
        return self.pools[-1]

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        if self.driver == "mysqlclient":
            import MySQLdb

            return (MySQLdb.OperationalError,)
        if self.driver == "pg8000":
            import pg8000.dbapi

            return (pg8000.dbapi.DatabaseError,)
        return (__import__(self.driver).OperationalError,)

    def finish(self) -> None:
        for pool in self.pools:
            pool.close(5)
        self.leave(len(self.others))
        self.pools.clear()
        gc.collect()


@pytest.fixture(params=(*POSTGRES_DRIVERS, *MARIADB_DRIVERS))
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param in POSTGRES_DRIVERS:
        database = request.getfixturevalue("private_postgres")
        database.stop()
        # One more is the administrator's.
        database.start(max_connections=ROOM + 1, superuser_reserved_connections=0)
        assert database.sessions() == []
    else:
        database = request.getfixturevalue("mariadb")
        database.connect(request.param).close()  # skips where the driver is missing
        database.expect_sessions(0)
        database.sql(f"ALTER USER '{database.user}'@'%' WITH MAX_USER_CONNECTIONS {ROOM}")
    site = Site(request.param, database)
    yield site
    site.finish()


def answer(pool: NimueConnectionPool, timeout: float = 20.0) -> int:
    with pool.connection(timeout=timeout) as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT 4711")
        (value,) = cursor.fetchone()
        cursor.close()
        return int(value)


def served(pool: NimueConnectionPool) -> bool:
    try:
        return answer(pool, 5.0) == 4711
    except Exception:
        return False


def test_from_none_to_one_to_all(site: Site) -> None:
    # Nothing to serve with: the driver's own error, at once and as it is.
    site.occupy(ROOM)
    pool = site.pool(poolmin=0)
    with pytest.raises(site.errors) as told:
        pool.getconnection(timeout=600)
    assert pool._state.known_driver is None
    # Room for one: it goes from hand to hand, and the error is the cause of timeouts alone.
    site.leave(1)
    until(lambda: served(pool))
    assert pool._state.driver.is_full(told.value)
    held = pool.getconnection()
    failed = pool.poolstats().failed
    asking = spawn(answer, pool)
    until(lambda: pool.poolstats().failed > failed)
    with pytest.raises(NimuePoolTimeout) as late:
        pool.getconnection(timeout=0.05)
    assert isinstance(late.value.__cause__, site.errors)
    assert "1 in use" in str(late.value)
    crowd = [asking, *(spawn(answer, pool) for _ in range(5))]
    until(lambda: pool.poolstats().waiting == 6)
    held.close()
    assert [one.result() for one in crowd] == [4711] * 6
    # An attempt for one of them may still be under way.
    until(lambda: pool.poolstats().connecting == 0)
    assert pool.poolstats().opened == 1
    # Room for all: nobody has to restart anything, and nobody hears of errors any more.
    site.leave(ROOM - 1)
    site.database.expect_sessions(1)
    held = [pool.getconnection() for _ in range(ROOM)]
    assert pool.poolstats().opened == ROOM
    for conn in held:
        conn.close()
    assert [answer(pool) for _ in range(8)] == [4711] * 8


@pytest.mark.parametrize("site", ["psycopg2", "pymysql"], indirect=True)
def test_the_constructor_opens_all_or_none(site: Site) -> None:
    site.occupy(ROOM - 2)
    with pytest.raises(site.errors):
        site.pool(poolmin=3)
    site.database.expect_sessions(ROOM - 2)
    pool = site.pool(poolmin=2)
    site.database.expect_sessions(ROOM)
    assert answer(pool) == 4711


@pytest.mark.parametrize("site", ["psycopg2", "pymysql"], indirect=True)
def test_a_crowd_shares_what_there_is(site: Site, make_proxy: Callable[[int], Proxy]) -> None:
    """Room for two of the six that the pool would like; the server is not stormed for more."""
    proxy = make_proxy(site.database.port)
    site.occupy(ROOM - 2)
    pool = site.pool(port=proxy.port, poolmin=2, cleanup_interval=0.05)
    done, rounds = threading.Event(), [0] * 8
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        while not done.is_set():
            try:
                assert answer(pool) == 4711
                rounds[number] += 1
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: pool.poolstats().failed >= 4 and min(rounds) >= 100)
        attempts, turns = proxy.accepted - 2, sum(rounds)
        # Hundreds of times somebody found nothing idle; the backoff let a few of them through.
        assert attempts < turns / 10
        site.leave(ROOM - 2)
        until(lambda: pool.poolstats().opened >= 3)
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
    assert wrong == []
    until(lambda: (s := pool.poolstats()).connecting == s.checking == 0)
    assert len(site.database.expect_sessions(pool.poolstats().poolsize)) <= ROOM
