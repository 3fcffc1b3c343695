"""The server goes away and comes back: who is told what, and how the pool finds back."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimueNoConnectionAvailable, NimuePoolTimeout, backoff
from stress.proxy import Proxy
from tests.children import Child
from tests.fakes import FakeDriver, FakeServer, OperationalError, spawn, until
from tests.servers import POSTGRES_DRIVERS, Postgres

# A connect() of pg8000 that fails leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


FIRST_DELAY, LONGEST_DELAY = 0.05, 1.0
MAX_CONNECTING = 2


def answer(pool: NimueConnectionPool, timeout: float = 20.0) -> int:
    with pool.connection(timeout=timeout) as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT 4711")
        (value,) = cursor.fetchone()
        cursor.close()
        return int(value)


def outcome(pool: NimueConnectionPool, timeout: float = 20.0) -> BaseException | None:
    try:
        answer(pool, timeout)
    except Exception as error:
        return error
    return None


def connect_errors(driver: str) -> tuple[type[BaseException], ...]:
    if driver == "pg8000":
        import pg8000.dbapi

        return (pg8000.dbapi.Error, OSError)
    module = __import__(driver)
    return (module.OperationalError,)


def most_attempts(seconds: float) -> int:
    """How many connect() calls the backoff allows when each of its delays is the longest."""
    rounds, spent, delay = 1, 0.0, FIRST_DELAY
    while spent <= seconds:
        rounds, spent, delay = rounds + 1, spent + delay, min(LONGEST_DELAY, 2 * delay)
    return rounds * MAX_CONNECTING


@pytest.mark.server
@pytest.mark.parametrize("driver", POSTGRES_DRIVERS)
def test_a_restart(driver: str, private_postgres: Postgres) -> None:
    errors = connect_errors(driver)
    with NimueConnectionPool(
        private_postgres.connector(driver),
        poolmin=2,
        poolmax=4,
        cleanup_interval=0.1,
        healthcheck_idle=0,
    ) as pool:
        held = pool.getconnection()
        private_postgres.stop()
        until(lambda: outcome(pool, timeout=0.3) and pool.poolstats().failed)
        # One is out and might come back, so there are timeouts as well.
        seen = [outcome(pool, timeout=0.3) for _ in range(3)]
        for error in seen:
            told = error.__cause__ if isinstance(error, NimuePoolTimeout) else error
            assert isinstance(told, errors), seen
        with pytest.raises((pool._state.driver.dbmodule.Error, *errors)):
            held.cursor().execute("SELECT 1")
        held.close()
        until(lambda: pool.poolstats().poolsize == 0)
        # Without a connection in the pool, nothing else could serve.
        error = outcome(pool, timeout=20.0)
        assert isinstance(error, errors)
        assert not isinstance(error, NimueNoConnectionAvailable)
        private_postgres.start()
        until(lambda: outcome(pool) is None)
        # From here on, not one error more.
        assert [outcome(pool) for _ in range(10)] == [None] * 10
        until(lambda: pool.poolstats().poolsize == 2)
        private_postgres.expect_sessions(2)


@pytest.mark.server
def test_a_crash_under_eight_threads(private_postgres: Postgres) -> None:
    """Each thread goes on by itself; nobody restarts anything."""
    errors, rounds, done = [0] * 8, [0] * 8, threading.Event()
    wrong: list[BaseException] = []
    import psycopg2

    def work(number: int) -> None:
        while not done.is_set():
            error = outcome(pool, timeout=1.0)
            if error is not None:
                errors[number] += 1
                if not isinstance(error, (psycopg2.Error, NimuePoolTimeout)):
                    wrong.append(error)
            else:
                rounds[number] += 1

    with NimueConnectionPool(
        private_postgres.connector("psycopg2"), poolmin=4, poolmax=4, cleanup_interval=0.1
    ) as pool:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: min(rounds) > 2)
            private_postgres.stop(crash=True)
            until(lambda: min(errors) > 0)
            private_postgres.start()
            seen = list(rounds)
            until(lambda: all(now > was + 5 for now, was in zip(rounds, seen, strict=True)))
        finally:
            done.set()
            for thread in threads:
                thread.join(10)
        assert wrong == []
        until(lambda: pool.poolstats().poolfree == 4)
        private_postgres.expect_sessions(4)


@pytest.mark.server
def test_poolmin_is_refilled_though_nobody_asks(
    postgres: Postgres, make_proxy: Callable[[int], Proxy]
) -> None:
    proxy = make_proxy(postgres.port)
    connfunc = postgres.connector("psycopg2", port=proxy.port)
    with NimueConnectionPool(connfunc, poolmin=3, cleanup_interval=0.05) as pool:
        assert answer(pool) == 4711
        proxy.mode = "cut"
        until(lambda: pool.poolstats().poolsize == 0)
        until(lambda: pool.poolstats().failed > 3)
        proxy.mode = "pass"
        until(lambda: pool.poolstats().poolfree == 3)
        postgres.expect_sessions(3)


@pytest.mark.server
@pytest.mark.parametrize("poolmin", [0, 4])
def test_no_storm(
    poolmin: int,
    postgres: Postgres,
    make_proxy: Callable[[int], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixteen impatient threads: the proxy counts what reaches it."""
    monkeypatch.setattr(backoff, "chance", lambda: 1.0)
    proxy = make_proxy(postgres.port)
    done, tries = threading.Event(), [0] * 16

    def work(number: int) -> None:
        while not done.is_set():
            outcome(pool, timeout=0.02)
            tries[number] += 1

    connfunc = postgres.connector("psycopg2", port=proxy.port)
    with NimueConnectionPool(
        connfunc, poolmin=poolmin, poolmax=8, cleanup_interval=0.02, max_connecting=MAX_CONNECTING
    ) as pool:
        assert answer(pool) == 4711
        began = time.monotonic()
        before = proxy.accepted
        proxy.mode = "cut"
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: pool.poolstats().failed >= 8 and min(tries) > 10)
        finally:
            done.set()
            for thread in threads:
                thread.join(10)
        attempts = proxy.accepted - before
        bound = most_attempts(time.monotonic() - began)
        assert attempts <= bound, f"{attempts} attempts in {sum(tries)} requests, at most {bound}"
        assert pool.poolstats().timeouts > 0
        # The server is back: no more are opened than there is work for, and nobody need wait for
        # anything but the last delay.
        opened = pool.poolstats().opened
        proxy.mode = "pass"
        until(lambda: outcome(pool) is None)
        assert [outcome(pool) for _ in range(20)] == [None] * 20
        until(lambda: pool.poolstats().poolsize == max(1, poolmin))
        assert pool.poolstats().opened - opened <= max(MAX_CONNECTING, poolmin)


def test_the_delay_grows_and_a_success_resets_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "chance", lambda: 1.0)
    times: list[float] = []

    def connect() -> Any:
        times.append(time.monotonic())
        return server.connect()

    server.stop()
    with NimueConnectionPool(
        connect, poolmin=0, poolmax=1, max_connecting=1, driver=FakeDriver()
    ) as pool:
        # One at a time, so that each attempt follows the last one's delay.
        for _ in range(6):
            assert isinstance(outcome(pool), OperationalError)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        for gap, delay in zip(gaps, [0.05, 0.1, 0.2, 0.4, 0.8], strict=True):
            assert gap >= delay - 0.001, gaps
        server.start()
        assert outcome(pool) is None
        server.stop()
        del times[:]
        outcome(pool)
        assert isinstance(outcome(pool), OperationalError)
        assert isinstance(outcome(pool), OperationalError)
        assert times[1] - times[0] < 0.4, "the next outage begins with the first delay"
        server.start()


def test_who_comes_during_the_backoff_is_served_when_it_ends(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "chance", lambda: 1.0)
    server.stop()
    with NimueConnectionPool(server.connect, poolmin=0, driver=FakeDriver()) as pool:
        for _ in range(4):
            # Nothing else could serve, so each of them hears of an attempt, and not of a timeout.
            assert isinstance(outcome(pool, timeout=5.0), OperationalError)
        server.start()
        pool.getconnection(timeout=5.0).close()


def test_a_short_timeout_has_its_cause(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "chance", lambda: 1.0)
    server.stop()
    with NimueConnectionPool(
        server.connect, poolmin=0, max_connecting=1, driver=FakeDriver()
    ) as pool:
        until(lambda: outcome(pool) and pool.poolstats().failed >= 5)
        # The next attempt is most of a second away.
        with pytest.raises(NimuePoolTimeout) as told:
            pool.getconnection(timeout=0.01)
        assert isinstance(told.value.__cause__, OperationalError)
        server.start()
        pool.getconnection(timeout=5.0).close()
        # What is over is no cause.
        held = [pool.getconnection() for _ in range(20)]
        with pytest.raises(NimuePoolTimeout) as told:
            pool.getconnection(timeout=0.01)
        assert told.value.__cause__ is None
        for conn in held:
            conn.close()


@pytest.mark.server
@pytest.mark.parametrize("driver", POSTGRES_DRIVERS)
def test_what_is_out_still_serves(
    driver: str, postgres: Postgres, make_proxy: Callable[[int], Proxy]
) -> None:
    """New connections are refused; the one in use goes from hand to hand."""
    proxy = make_proxy(postgres.port)
    connfunc = postgres.connector(driver, port=proxy.port)
    with NimueConnectionPool(connfunc, poolmin=1, poolmax=3) as pool:
        held = pool.getconnection()
        proxy.mode = "refuse"
        until(lambda: outcome(pool, timeout=0.3) and pool.poolstats().failed)
        with pytest.raises(NimuePoolTimeout) as told:
            pool.getconnection(timeout=0.3)
        assert isinstance(told.value.__cause__, connect_errors(driver))
        assert "1 in use" in str(told.value)
        asking = [spawn(answer, pool) for _ in range(5)]
        until(lambda: pool.poolstats().waiting == 5)
        held.close()
        assert [one.result() for one in asking] == [4711] * 5
        assert pool.poolstats().opened == 1
        proxy.mode = "pass"
        held = [pool.getconnection() for _ in range(3)]
        for conn in held:
            conn.close()


def test_each_waiter_has_an_error_of_its_own(server: FakeServer) -> None:
    server.fail("connect", OperationalError("the one cause"))
    with (
        NimueConnectionPool(server.connect, poolmin=0, poolmax=9, driver=FakeDriver()) as pool,
        server.hold("connect") as gate,
    ):
        asking = [spawn(outcome, pool) for _ in range(5)]
        gate.arrived(2)
        until(lambda: pool.poolstats().waiting == 5)
        gate.release()
        errors = [one.result() for one in asking]
        assert {str(error) for error in errors} == {"the one cause"}
        assert len({id(error) for error in errors}) == 5
        server.recover()
        assert outcome(pool) is None


def _outlast(pool: NimueConnectionPool, told: int) -> tuple[Any, int]:
    first = outcome(pool, timeout=5.0)
    os.write(told, b"!")
    until(lambda: outcome(pool) is None)
    after = [outcome(pool) for _ in range(5)]
    pool.close()
    return type(first).__name__, after.count(None)


@pytest.mark.server
@pytest.mark.parametrize("out", [False, True], ids=["idle", "out"])
def test_a_fork_during_an_outage(out: bool, private_postgres: Postgres) -> None:
    ours, theirs = os.pipe()
    with NimueConnectionPool(
        private_postgres.connector("psycopg2"), poolmin=2, poolmax=4, cleanup_interval=0.1
    ) as pool:
        held = [pool.getconnection() for _ in range(2 if out else 0)]
        private_postgres.stop()
        assert outcome(pool, timeout=1.0) is not None
        with Child(_outlast, pool, theirs, expect_threads=True) as child:
            assert os.read(ours, 1) == b"!"
            assert outcome(pool, timeout=1.0) is not None
            private_postgres.start()
            assert child.result() == ("OperationalError", 5)
        for conn in held:
            conn.close()
        until(lambda: outcome(pool) is None)
        assert [outcome(pool) for _ in range(5)] == [None] * 5
        until(lambda: pool.poolstats().poolfree == 2)
        private_postgres.expect_sessions(2)
    os.close(ours)
    os.close(theirs)
