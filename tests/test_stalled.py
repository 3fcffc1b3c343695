"""A server that is there and does not answer: drivers wait for minutes, callers do not."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from nimue import (
    NimueConnectionPool,
    NimuePoolClosedError,
    NimuePoolTimeout,
    fork,
)
from stress.proxy import Proxy
from tests.children import Child, in_script
from tests.fakes import FakeDriver, FakeServer, spawn, until
from tests.servers import MARIADB_DRIVERS, POSTGRES_DRIVERS, Postgres

EVERY = (*POSTGRES_DRIVERS, *MARIADB_DRIVERS)
#: Seconds; where a caller's timeout is not kept the drivers take minutes, or no end at all.
KEPT = 8.0

MakeProxy = Callable[[int], Proxy]

# A connect() of pg8000 or PyMySQL that fails leaves its socket to the collector.
pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


class Site:
    """A driver whose connections go through the proxy, or past it."""

    def __init__(self, driver: str, database: Any, proxy: Proxy) -> None:
        self.driver, self.database, self.proxy = driver, database, proxy
        self.pools: list[NimueConnectionPool] = []

    def pool(self, *, past: bool = False, **kw: Any) -> NimueConnectionPool:
        chosen = {"poolmin": 0, "poolmax": 4, "healthcheck_idle": 0.0, **kw}
        port = self.database.port if past else self.proxy.port
        connfunc = self.database.connector(self.driver, port=port)
        self.pools.append(NimueConnectionPool(connfunc, **chosen))
        return self.pools[-1]

    def recover(self) -> None:
        """The host is back. What it has forgotten meanwhile it resets."""
        self.proxy.mode = "pass"
        self.proxy.cut()

    def finish(self) -> None:
        self.recover()
        for pool in self.pools:
            pool.close(5)
        until(lambda: not labourers())
        self.database.expect_sessions(0)
        self.pools.clear()
        gc.collect()


def labourers() -> list[str]:
    """The pools' threads but for the monitor."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("nimue-") and thread.name != "nimue-monitor"
    ]


@pytest.fixture(params=EVERY)
def site(request: pytest.FixtureRequest, make_proxy: MakeProxy) -> Any:
    kind = "postgres" if request.param in POSTGRES_DRIVERS else "mariadb"
    database = request.getfixturevalue(kind)
    database.connect(request.param).close()  # skips where the driver is missing
    site = Site(request.param, database, make_proxy(database.port))
    yield site
    site.finish()


#: Every driver in one mode; one of each server in the other.
def modes(most: str, rest: str) -> pytest.MarkDecorator:
    cases = [(driver, most) for driver in EVERY] + [("psycopg2", rest), ("pymysql", rest)]
    return pytest.mark.parametrize(("site", "mode"), cases, indirect=["site"])


#: For what does not depend on the driver.
one_driver = pytest.mark.parametrize("site", ["psycopg2"], indirect=True)


def stuck_after(monkeypatch: pytest.MonkeyPatch, name: str, seconds: float) -> None:
    """Set the constant wherever it has been imported."""
    holders = [
        module
        for key, module in sys.modules.items()
        if key.startswith("nimue.") and hasattr(module, name)
    ]
    assert holders
    for module in holders:
        monkeypatch.setattr(module, name, seconds)


def works(conn: Any) -> bool:
    cursor = conn.cursor()
    cursor.execute("SELECT 4711")
    (answer,) = cursor.fetchone()
    cursor.close()
    conn.rollback()
    return bool(answer == 4711)


def served(pool: NimueConnectionPool, timeout: float = 5.0) -> bool:
    """Whether the pool serves; what stands in its way for a moment is waited for by ``until``."""
    try:
        conn = pool.getconnection(timeout=timeout)
    except Exception:
        return False
    try:
        return works(conn)
    finally:
        conn.close()


def refused_in_time(pool: NimueConnectionPool, timeout: float = 0.2) -> NimuePoolTimeout:
    began = time.monotonic()
    with pytest.raises(NimuePoolTimeout) as told:
        pool.getconnection(timeout=timeout)
    assert timeout <= time.monotonic() - began < KEPT
    return told.value


@modes("swallow", "stalled")
def test_a_connect_without_an_answer(site: Site, mode: str) -> None:
    site.proxy.mode = mode
    pool = site.pool()
    refused_in_time(pool)
    refused_in_time(pool)
    stats = pool.poolstats()
    assert (stats.timeouts, stats.waiting, stats.poolsize) == (2, 0, 0)
    assert 1 <= stats.connecting <= 2
    if mode == "stalled":
        site.proxy.mode = "pass"  # what slept goes on
        assert served(pool, 20.0)
        assert pool.poolstats().failed == 0
    else:
        site.recover()
        until(lambda: served(pool))
    assert all(served(pool) for _ in range(5))


@modes("swallow", "stalled")
def test_established_connections_without_an_answer(site: Site, mode: str) -> None:
    pool = site.pool(poolmin=2)
    assert served(pool)
    site.proxy.mode = mode
    refused_in_time(pool)
    refused_in_time(pool)
    if mode == "stalled":
        site.proxy.mode = "pass"
        assert served(pool, 20.0)
        assert pool.poolstats().closed == 0
    else:
        site.recover()
        until(lambda: served(pool))
    assert all(served(pool) for _ in range(5))


@modes("refuse", "cut")
def test_a_refusal_is_told_at_once(site: Site, mode: str) -> None:
    site.proxy.mode = mode
    pool = site.pool()
    began = time.monotonic()
    with pytest.raises(Exception) as told:
        pool.getconnection(timeout=600)
    assert time.monotonic() - began < 60
    assert not isinstance(told.value, NimuePoolTimeout)
    assert pool.poolstats().failed >= 1
    site.proxy.mode = "pass"
    assert served(pool, 20.0)


@one_driver
def test_who_may_not_wait_does_not(site: Site) -> None:
    pool = site.pool(poolmin=1)
    site.proxy.mode = "swallow"
    held = pool.getconnection(blocking=False)
    began = time.monotonic()
    for arguments in ({"blocking": False}, {"timeout": 0}):
        with pytest.raises(Exception, match="may not wait"):
            pool.getconnection(**arguments)
    assert time.monotonic() - began < KEPT
    held.close()


@one_driver
def test_sixteen_callers_at_once(site: Site) -> None:
    pool = site.pool(poolmin=1)
    site.proxy.mode = "swallow"
    asking = [spawn(refused_in_time, pool, 0.1 * (number % 4 + 1)) for number in range(16)]
    for one in asking:
        one.result()
    stats = pool.poolstats()
    assert (stats.waiting, stats.timeouts) == (0, 16)
    assert stats.connecting <= 2


@one_driver
def test_other_pools_go_on(site: Site) -> None:
    """The monitor serves both, and each of the other's duties needs it."""
    stuck = site.pool(poolmin=2, cleanup_interval=0.02)
    well = site.pool(past=True, poolmin=2, poolmax=2, cleanup_interval=0.02, leak_timeout=0.05)
    assert served(stuck)
    assert served(well)
    until(lambda: len(site.database.sessions()) == 4)
    site.proxy.mode = "swallow"
    # Both checked by a round; until then the answer to an earlier check may still be on its way.
    until(lambda: stuck.poolstats().checking == 2)
    refused_in_time(stuck)
    cycles = well.poolstats().cleanup_cycles
    until(lambda: well.poolstats().cleanup_cycles > cycles + 3)
    # Refilled, though nobody asks.
    dead = well.poolstats().connections_cleaned_dead
    for entry in list(well._state.entries):
        site.database.terminate(entry.raw.get_backend_pid())
    until(lambda: well.poolstats().connections_cleaned_dead >= dead + 2)
    until(lambda: well.poolstats().poolsize == 2)
    assert served(well)
    well.poolmax = 3
    began = time.monotonic()
    assert served(site.pool(past=True, poolmin=1))
    assert time.monotonic() - began < KEPT


@one_driver
def test_the_monitor_hears_of_a_new_pool(site: Site) -> None:
    first = site.pool(past=True)
    assert served(first)
    first.close()
    second = site.pool(past=True, poolmin=1, cleanup_interval=0.02)
    assert served(second)
    until(lambda: second.poolstats().cleanup_cycles > 3)


@pytest.mark.parametrize("site", ["psycopg2", "pg8000", "mysqlclient"], indirect=True)
def test_a_connect_that_hangs_does_not_hold_up_other_pools(site: Site) -> None:
    """Nor when neither pool has ever had a connection."""
    site.proxy.mode = "swallow"
    stuck = site.pool()
    refused_in_time(stuck)
    began = time.monotonic()
    well = site.pool(past=True, poolmin=1)
    assert served(well)
    assert time.monotonic() - began < KEPT
    # Nor its own other attempts.
    asking = [spawn(stuck.getconnection, timeout=600) for _ in range(2)]
    until(lambda: site.proxy.accepted == 2)
    stuck.close(0)
    for one in asking:
        with pytest.raises(NimuePoolClosedError):
            one.result()


@one_driver
def test_a_check_that_hangs_does_not_keep_the_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall has forgotten one connection: the rest serve, and there is room for a new one."""
    stuck_after(monkeypatch, "CHECK_STUCK", 0.1)
    pool = site.pool(poolmin=3, poolmax=5)
    assert served(pool)
    lost, *_ = [spare[2] for spare in reversed(pool._state.idle)]
    # The next bytes of this one go nowhere for ever; the others have said nothing meanwhile.
    site.proxy.mode = "swallow"
    refused_in_time(pool, 0.05)
    site.proxy.mode = "pass"
    until(lambda: lost in pool._state.checking)
    for _ in range(5):
        conn = pool.getconnection(timeout=20.0)
        assert works(conn)
        conn.close()
    held = [pool.getconnection(timeout=20.0) for _ in range(4)]
    assert all(works(conn) for conn in held)
    assert pool.poolstats().poolsize == 5
    for conn in held:
        conn.close()
    site.proxy.cut()
    until(lambda: lost not in pool._state.entries)


def test_who_waits_behind_a_hanging_patrol_is_served(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck_after(monkeypatch, "CHECK_STUCK", 0.3)
    with NimueConnectionPool(
        server.connect, poolmin=1, cleanup_interval=0.02, driver=FakeDriver()
    ) as pool:
        pool.getconnection().close()
        with server.hold("execute") as gate:
            gate.arrived(1)
            cycles = pool.poolstats().cleanup_cycles
            pool.cleanup_interval = 600.0
            until(lambda: pool.poolstats().cleanup_cycles > cycles)
            pool.getconnection(timeout=10.0).close()
            assert pool.poolstats().opened == 2
            gate.release()


@one_driver
def test_a_connect_that_hangs_does_not_keep_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = site.pool(poolmax=4)
    site.proxy.mode = "swallow"
    asking = [spawn(refused_in_time, pool, 0.05) for _ in range(2)]
    for one in asking:
        one.result()
    assert pool.poolstats().connecting == 2
    until(lambda: site.proxy.silenced == 2)
    # Not before: on a busy machine the first would count as stuck when the second begins.
    stuck_after(monkeypatch, "CONNECT_STUCK", 0.1)
    site.proxy.mode = "pass"
    assert served(pool, 10.0)
    assert pool.poolstats().connecting >= 2, "those that hang still do"


def test_with_a_connect_timeout_it_recovers_alone(
    postgres: Postgres, make_proxy: MakeProxy
) -> None:
    """Nothing cuts what hangs: the driver itself gives up."""
    proxy = make_proxy(postgres.port)
    connfunc = postgres.connector("psycopg2", port=proxy.port, connect_timeout=2)
    with NimueConnectionPool(connfunc, poolmin=0, poolmax=2) as pool:
        proxy.mode = "swallow"
        with pytest.raises(Exception, match="timeout expired") as told:
            pool.getconnection(timeout=60)
        assert not isinstance(told.value, NimuePoolTimeout)
        proxy.mode = "pass"
        until(lambda: served(pool))
        until(lambda: not labourers())
        assert pool.poolstats().connecting == 0


def test_close_returns(site: Site) -> None:
    """With a hanging check, hanging connects, a borrower and a waiter."""
    pool = site.pool(poolmin=2)
    held = pool.getconnection()
    site.proxy.mode = "swallow"
    waiters = [spawn(pool.getconnection, timeout=600) for _ in range(3)]
    until(lambda: (s := pool.poolstats()).checking == 1 and s.connecting >= 1 and s.waiting == 3)
    closing = spawn(pool.close, 0.2)
    closing.result(KEPT)
    for waiter in waiters:
        with pytest.raises(NimuePoolClosedError):
            waiter.result()
    with pytest.raises(NimuePoolClosedError):
        pool.getconnection()
    stats = pool.poolstats()
    assert (stats.poolused, stats.poolfree, stats.waiting) == (1, 0, 0)
    site.recover()
    # The borrower closes late, and all that hung ends.
    spawn(held.close).result(KEPT)
    until(lambda: (s := pool.poolstats()).poolsize == s.connecting == 0)
    spawn(pool.close).result(KEPT)


@one_driver
def test_a_fork_is_held_up_for_its_bound_alone(site: Site) -> None:
    pool = site.pool(poolmin=1)
    held = pool.getconnection()
    site.proxy.mode = "swallow"
    refused_in_time(pool)
    began = time.monotonic()
    with Child(_ask_in_child, pool, expect_threads=True) as child:
        assert time.monotonic() - began < fork.PATIENCE + KEPT
        assert child.result() == "NimuePoolTimeout"
    site.recover()
    held.close()
    until(lambda: served(pool))


def _ask_in_child(pool: NimueConnectionPool) -> str:
    try:
        pool.getconnection(timeout=0.2)
    except Exception as error:
        return type(error).__name__
    return "a connection"


def _leave_hanging(connfunc: Callable[[], Any], steer: Callable[[str], None]) -> None:
    pool = NimueConnectionPool(connfunc, poolmin=2, poolmax=4, healthcheck_idle=0)
    held = pool.getconnection()
    assert works(held)
    steer("swallow")
    asking = [spawn(pool.getconnection, timeout=0.5) for _ in range(3)]
    until(lambda: {"nimue-check", "nimue-connect"} <= set(labourers()))
    for one in asking:
        one.wait()
        assert isinstance(one.error, NimuePoolTimeout)
    global _kept
    _kept = pool, held


_kept: Any = None


class _Steer:
    """The proxy's handle stays with the test: a file tells it what to do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, mode: str) -> None:
        import pathlib

        wish, done = pathlib.Path(self.path), pathlib.Path(f"{self.path}.done")
        wish.write_text(mode)
        until(done.exists)


@pytest.mark.parametrize("site", EVERY, indirect=True)
def test_the_interpreter_ends(site: Site, tmp_path: Any) -> None:
    """Hanging threads are daemons, and the goodbyes do not wait for an answer."""
    wish = tmp_path / "wish"

    def obey() -> None:
        until(lambda: wish.exists() and wish.read_text(), 30)
        site.proxy.mode = wish.read_text()
        (tmp_path / "wish.done").touch()

    connfunc = site.database.connector(site.driver, port=site.proxy.port)
    obeying = spawn(obey)
    in_script(_leave_hanging, connfunc, _Steer(str(wish)), timeout=30)
    obeying.result()
