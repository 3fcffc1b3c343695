"""A finalizer, or a signal handler, that uses the pool while its own thread is inside the pool.

The collector runs wherever something is allocated, so also in the middle of a decision: what it
finalises may be a generator that was abandoned inside ``with pool.connection()``. Nothing of that
may wait for the lock that its own thread holds, nor change the tables under its feet.
"""

from __future__ import annotations

import gc
import math
import threading
import warnings
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimueError, NimuePoolClosedError, connection
from tests.fakes import FakeDriver, FakeServer, spawn, until


def make(server: FakeServer, **settings: Any) -> NimueConnectionPool:
    settings = {"poolmin": 1, "poolmax": 1, "healthcheck_idle": 1000.0, **settings}
    return NimueConnectionPool(server.connect, driver=FakeDriver(), **settings)


@pytest.mark.parametrize("dirty", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_connection_is_closed_inside(server: FakeServer, dirty: bool, waits: bool) -> None:
    with make(server) as pool:
        conn = pool.getconnection()
        if dirty:
            conn.cursor().execute("INSERT")
        asking = spawn(pool.getconnection) if waits else None
        until(lambda: len(pool._state.waiters) == waits)
        with pool._state.lock:
            conn.close()
            with pytest.raises(Exception, match="returned"):
                conn.cursor()
        if asking is not None:
            asking.result().close()
        until(lambda: pool.poolstats().poolfree == 1)
        assert not pool._state.idle[0][2].raw.in_transaction
        assert pool.poolstats().lost == 0


def test_a_generator_is_abandoned_inside(server: FakeServer) -> None:
    """Many times, so that the collector comes at all kinds of places."""

    def rows(pool: NimueConnectionPool) -> Any:
        with pool.connection() as conn:
            conn.cursor().execute("INSERT")
            yield conn

    def abandon() -> None:
        for _ in range(3000):
            generator = rows(pool)
            next(generator)
            cycle = [generator]
            cycle.append(cycle)  # type: ignore[arg-type]
            del generator, cycle

    server.allow.add("threads")
    before = gc.get_threshold()
    with make(server, poolmax=4) as pool:
        gc.set_threshold(7, 2, 2)
        try:
            spawn(abandon).result(60)
        finally:
            gc.set_threshold(*before)
            gc.collect()
        until(lambda: pool.poolstats().poolused == 0)


def collect(rows: Any) -> None:
    """Have a generator end in a cycle, of which the collector clears the weak references first."""
    generator = rows()
    next(generator)
    cycle = [generator]
    cycle.append(cycle)
    del generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del cycle
        gc.collect()


@pytest.mark.parametrize("hears_first", [True, False])
def test_what_the_collector_finalizes_comes_back_once(
    server: FakeServer, hears_first: bool
) -> None:
    """The word that a handle was dropped is sent before a generator's finalizer closes it."""

    def rows() -> Any:
        conn = pool.getconnection()
        try:
            yield conn
        finally:
            if hears_first:
                until(lambda: pool.poolstats().lost == 1)
            conn.close()

    server.allow.add("threads")
    with make(server, poolmax=4) as pool:
        collect(rows)
        until(lambda: pool.poolstats().poolused == pool.poolstats().checking == 0)
        taken = [pool.getconnection() for _ in range(2)]
        assert taken[0].raw is not taken[1].raw
        for conn in taken:
            conn.close()


def test_what_was_dropped_is_not_used_by_its_finalizer(server: FakeServer) -> None:
    """By then it may be with the next holder, whose work would be rolled back."""
    refused: list[str] = []

    def rows() -> Any:
        conn = pool.getconnection()
        cursor = conn.cursor()
        try:
            yield conn
        finally:
            held = spawn(pool.getconnection).result()
            held.cursor().execute("INSERT")
            for use in (conn.rollback, conn.cursor, lambda: conn.raw, lambda: cursor.execute("")):
                try:
                    use()
                except Exception as error:
                    refused.append(type(error).__name__)
            held.commit()
            held.close()

    server.allow.add("threads")
    with make(server) as pool:
        collect(rows)
        assert refused == ["NimueConnectionClosed"] * 4
        until(lambda: pool.poolstats().poolfree == 1)


@pytest.mark.parametrize("cleanup_interval", [0.01, 3600.0])
def test_what_a_finalizer_is_at_is_not_given_away(
    server: FakeServer, cleanup_interval: float
) -> None:
    """It is asked for again and again, however rare the rounds of checks are."""

    def rows() -> Any:
        conn = held.pop()
        try:
            yield conn
        finally:
            conn.rollback()

    server.allow.add("threads")
    options = {"cleanup_interval": cleanup_interval}
    with make(server, **options) as pool, server.hold("rollback") as gate:
        held = [pool.getconnection()]
        held[0].cursor().execute("INSERT")
        with pool._state.lock:  # so the finalizer is faster than the monitor
            collecting = spawn(collect, rows)
            gate.arrived()
        state = pool._state
        first = until(lambda: math.isfinite(state.next_drop) and state.next_drop)
        until(lambda: math.isfinite(state.next_drop) and state.next_drop > first)
        assert pool.poolstats().lost == 0
        gate.release()
        collecting.result()
        until(lambda: pool.poolstats().lost == pool.poolstats().poolfree == 1)


@pytest.mark.parametrize("by", ["connection", "cursor"])
def test_what_a_finalizer_is_about_to_use_is_refused(
    server: FakeServer, by: str, monkeypatch
) -> None:
    """It has looked what it holds, and has not said yet that it calls: the monitor comes then."""
    fine, others, inside = [], [], threading.Event()

    def late() -> int:
        if fine and fine[0] == threading.get_ident():
            fine.clear()
            inside.set()
            until(lambda: pool.poolstats().lost == 1)
            others.append(spawn(pool.getconnection).result())
            others[0].cursor().execute("INSERT")
        return threading.get_ident()

    def rows() -> Any:
        conn = held.pop()
        cursor = conn.cursor()
        try:
            yield
        finally:
            fine.append(threading.get_ident())
            with pytest.raises(NimueError):
                conn.rollback() if by == "connection" else cursor.execute("select 1")

    with make(server, poolmax=1) as pool:
        held = [pool.getconnection()]
        monkeypatch.setattr(connection, "get_ident", late)
        with pool._state.lock:  # so the finalizer is faster than the monitor
            collecting = spawn(collect, rows)
            assert inside.wait(10)
        collecting.result()
        (other,) = others
        is_whole = other.raw.in_transaction
        other.close()
        assert is_whole


def test_who_acquires_inside_is_told(server: FakeServer) -> None:
    with make(server) as pool:
        conn = pool.getconnection()
        with pool._state.lock:
            with pytest.raises(NimueError, match="cannot acquire a connection while its own"):
                pool.getconnection(timeout=1)
            with pytest.raises(NimueError, match="cannot detach a connection while its own"):
                conn.detach()
        conn.close()
        assert pool.poolstats().waiting == 0
        pool.getconnection().close()


def test_what_is_stale_goes_back(server: FakeServer) -> None:
    with make(server, healthcheck_idle=0) as pool:
        with pool._state.lock, pytest.raises(NimueError, match="cannot acquire"):
            pool.getconnection(timeout=1)
        until(lambda: pool.poolstats().poolfree == 1)
        pool.getconnection().close()


def test_the_pool_is_closed_inside(server: FakeServer) -> None:
    pool = make(server)
    pool.getconnection().close()
    with pool._state.lock:
        pool.close()
    until(lambda: server.open == 0)
    with pytest.raises(NimuePoolClosedError):
        pool.getconnection(timeout=0)


def test_another_thread_is_not_inside(server: FakeServer) -> None:
    with make(server) as pool:
        conn = pool.getconnection()
        conn.cursor().execute("INSERT")
        go_on = threading.Event()

        def hold() -> None:
            with pool._state.lock:
                go_on.wait(10)

        holding = spawn(hold)
        until(lambda: not pool._state.lock.acquire(False) or pool._state.lock.release())
        closing = spawn(conn.close)
        go_on.set()
        holding.result()
        closing.result()
        assert pool.poolstats().poolfree == 1
