"""The error of a request that was not served tells why, and no log tells a secret."""

from __future__ import annotations

import logging
import re
import sys
import threading
from typing import Any

import pytest

import nimue
from nimue import (
    NimueConnectionPool,
    NimueError,
    NimueNoConnectionAvailable,
    NimuePoolTimeout,
)
from tests.fakes import FakeDriver, FakeServer, OperationalError, spawn, until

LONG = 60.0


def make(server: FakeServer, **settings: Any) -> NimueConnectionPool:
    settings = {"poolmin": 0, "poolmax": 2, "healthcheck_idle": 1000.0, **settings}
    return NimueConnectionPool(server.connect, driver=FakeDriver(), **settings)


def late(pool: NimueConnectionPool) -> str:
    """What a thread that holds nothing is told."""

    def ask() -> str:
        with pytest.raises(NimuePoolTimeout) as caught:
            pool.getconnection(timeout=0.01)
        return str(caught.value)

    text: str = spawn(ask).result()
    return text


def line() -> int:
    return sys._getframe(1).f_lineno


def test_its_kinds(server: FakeServer) -> None:
    assert issubclass(NimuePoolTimeout, NimueNoConnectionAvailable)
    assert issubclass(NimuePoolTimeout, TimeoutError)
    assert issubclass(NimuePoolTimeout, NimueError)
    assert nimue.error.NimuePoolTimeout is NimuePoolTimeout


def test_which_limit_was_hit_how_many_are_in_use_and_wait(server: FakeServer) -> None:
    with make(server, poolmax=3, name="orders") as pool:
        held = [pool.getconnection() for _ in range(3)]
        waiting = [spawn(lambda: pool.getconnection(timeout=LONG).close()) for _ in range(2)]
        until(lambda: len(pool._state.waiters) == 2)
        text = late(pool)
        assert "'orders'" in text
        assert "poolmax=3" in text
        assert "3 in use" in text
        assert "2 waiting" in text
        assert "0.0 s" in text
        for conn in held:
            conn.close()
        for one in waiting:
            one.result()


def test_when_no_limit_was_hit(server: FakeServer) -> None:
    with make(server, poolmax=3) as pool, server.hold("connect") as gate:
        text = late(pool)
        assert "1 of poolmax=3" in text
        assert "0 in use" in text
        assert "1 being opened" in text
        gate.release()


def test_the_longest_holders(server: FakeServer) -> None:
    """Each with seconds, thread, file and line of the acquire."""
    pool = make(server, poolmax=2)
    places: dict[str, int] = {}
    go = threading.Event()
    held = threading.Barrier(3)

    def direct() -> None:
        threading.current_thread().name = "worker-direct"
        conn = pool.getconnection(); places["direct"] = line()  # noqa: E702
        held.wait(10)
        go.wait(10)
        conn.close()

    def block() -> None:
        threading.current_thread().name = "worker-block"
        with pool.connection(): places["block"] = line(); held.wait(10); go.wait(10)  # noqa: E701, E702

    threads = [spawn(direct), spawn(block)]
    held.wait(10)
    text = late(pool)
    for name in ("direct", "block"):
        place = re.escape(f"{__file__}:{places[name]}")
        assert re.search(rf"\d+\.\d s by worker-{name} \({place}\)", text), text
    go.set()
    for thread in threads:
        thread.result()
    pool.close()


@pytest.mark.parametrize("way", ["fresh", "waited for", "stale", "not waited for"])
def test_the_place_is_known_whatever_way_it_was_taken(server: FakeServer, way: str) -> None:
    with make(server, poolmin=int(way != "waited for"), poolmax=1) as pool:
        if way in ("stale", "not waited for"):
            pool._state.idle[0][2].since = -1e9
        timeout = 0 if way == "not waited for" else LONG
        conn = pool.getconnection(timeout=timeout); there = line()  # noqa: E702
        assert f"({__file__}:{there})" in late(pool)
        conn.close()
        # The same connection, taken elsewhere.
        conn = pool.getconnection(); there = line()  # noqa: E702
        assert f"({__file__}:{there})" in late(pool)
        conn.close()


def test_only_the_longest_are_named_and_the_longest_first(server: FakeServer) -> None:
    with make(server, poolmax=20) as pool:
        held = [pool.getconnection() for _ in range(20)]
        for age, conn in enumerate(held):
            conn._lease[0].since -= age * 10.0
        text = late(pool)
        ages = [float(found) for found in re.findall(r"(\d+\.\d) s by", text)]
        assert ages == sorted(ages, reverse=True)
        assert 1 <= len(ages) < 20
        assert ages[0] == pytest.approx(190, abs=5)
        for conn in held:
            conn.close()


def test_those_given_back_are_not_named(server: FakeServer) -> None:
    with make(server, poolmax=2) as pool:
        first, second = pool.getconnection(), pool.getconnection()
        first.close()
        with server.hold("execute") as gate:
            pool._state.idle[0][2].since = -1e9
            text = late(pool)
            assert text.count(" s by ") == 1
            assert "1 in use" in text
            gate.release()
        second.close()


def test_a_nested_wait_is_told_so(server: FakeServer) -> None:
    with make(server, poolmax=1) as pool:
        conn = pool.getconnection(); there = line()  # noqa: E702
        with pytest.raises(NimuePoolTimeout) as caught:
            pool.getconnection(timeout=0.01)
        text = str(caught.value)
        assert "this very thread holds 1" in text
        assert f"{__file__}:{there}" in text
        assert "this very thread" not in late(pool)
        conn.close()


def test_a_nested_request_that_may_not_wait_is_told_so(server: FakeServer) -> None:
    with make(server, poolmax=1) as pool:
        conn = pool.getconnection()
        with pytest.raises(NimueNoConnectionAvailable, match="this very thread holds 1"):
            pool.getconnection(blocking=False)
        conn.close()


def test_it_counts(server: FakeServer) -> None:
    with make(server, poolmax=1) as pool:
        conn = pool.getconnection()
        for _ in range(3):
            late(pool)
        with pytest.raises(NimueNoConnectionAvailable):
            pool.getconnection(blocking=False)
        assert pool.poolstats().timeouts == 3
        conn.close()


SECRETS = ["s3cret-arg", "s3cret-password", "s3cret-dsn"]


def test_no_secret_in_any_log_record_repr_or_error(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver's own exceptions are the driver's, and are raised as they are; logs name them."""
    caplog.set_level(logging.DEBUG)
    told: list[str] = []

    def tell(thing: object) -> None:
        told.extend((repr(thing), str(thing)))

    pool = NimueConnectionPool(
        server.connect,
        ("s3cret-arg",),
        {"password": "s3cret-password", "dsn": "host=h password=s3cret-dsn"},
        poolmin=1,
        poolmax=1,
        leak_timeout=0.001,
        cleanup_interval=0.01,
        driver=FakeDriver(),
    )
    conn = pool.getconnection()
    until(lambda: any("has been out" in record.getMessage() for record in caplog.records))
    cursor = conn.cursor()
    for thing in (pool, pool._state, pool._state.settings, pool.poolstats(), conn, cursor):
        tell(thing)
    tell(late(pool))
    with pytest.raises(NimueNoConnectionAvailable) as refused:
        pool.getconnection(blocking=False)
    tell(refused.value)
    server.kill(conn.raw)
    with pytest.raises(OperationalError):
        cursor.execute("SELECT 1")
    server.fail("connect", OperationalError("no user with s3cret-password", sqlstate="28P01"))
    conn.close()
    with pytest.raises((OperationalError, NimuePoolTimeout)) as failed:
        pool.getconnection(timeout=0.2)
    if isinstance(failed.value, NimueError):
        tell(failed.value)
    until(lambda: any("connect() failed" in record.getMessage() for record in caplog.records))
    for bad in ({"poolmin": -1}, {"connfunc": 5}, {"connargs": 5}, {"connkwargs": ["s3cret-arg"]}):
        arguments = {
            "connfunc": server.connect,
            "connargs": ["s3cret-arg"],
            "connkwargs": {"password": "s3cret-password"},
            **bad,
        }
        with pytest.raises(NimueError) as wrong:
            NimueConnectionPool(**arguments)
        tell(wrong.value)
    pool.close()
    tell(pool)
    for record in caplog.records:
        told.append(record.getMessage())
        if record.exc_info:
            told.append(logging.Formatter().formatException(record.exc_info))
    assert len(caplog.records) > 5
    for secret in SECRETS:
        assert not [text for text in told if secret in text]
