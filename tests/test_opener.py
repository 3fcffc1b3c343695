"""Connections are opened and checked in the background, as many as are wanted, and no more."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimueNoConnectionAvailable, NimuePoolTimeout
from tests.fakes import Call, FakeDriver, FakeServer, OperationalError, is_locked, spawn, until

LONG = 60.0


def make(server: FakeServer, **settings: Any) -> NimueConnectionPool:
    settings = {"poolmin": 0, "poolmax": 5, "healthcheck_idle": 1000.0, **settings}
    return NimueConnectionPool(server.connect, driver=FakeDriver(), **settings)


def make_stale(pool: NimueConnectionPool) -> None:
    """All that is idle is due for a check."""
    with pool._state.lock:
        for _, _, entry in pool._state.idle:
            entry.since = -1e9


def threads_of(server: FakeServer, *steps: str) -> set[str]:
    return {call.thread for call in server.calls if call.step in steps}


def background() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("nimue-") and thread.name != "nimue-monitor"
    ]


def take(pool: NimueConnectionPool) -> None:
    pool.getconnection(timeout=LONG).close()


class TestWhoConnects:
    def test_the_constructor_connects_in_its_own_thread(self, server: FakeServer) -> None:
        with make(server, poolmin=3):
            assert server.open == 3
            assert threads_of(server, "connect") == {threading.current_thread().name}

    def test_later_a_caller_never_connects_or_checks(self, server: FakeServer) -> None:
        with make(server, poolmin=1, healthcheck_idle=0.0) as pool:
            server.calls.clear()
            held = [pool.getconnection() for _ in range(5)]
            for conn in held:
                conn.close()
            asked = threads_of(server, "connect", "execute")
            assert asked
            assert all(name.startswith("nimue-") for name in asked)
            assert threading.current_thread().name not in asked

    def test_these_are_daemon_threads(self, server: FakeServer) -> None:
        with make(server) as pool, server.hold("connect") as gate:
            waiting = spawn(take, pool)
            gate.arrived()
            found = [t for t in threading.enumerate() if t.name.startswith("nimue-connect")]
            assert len(found) == 1
            assert found[0].daemon
            gate.release()
            waiting.result()


class TestHowMany:
    @pytest.mark.parametrize("limit", [1, 2, 3])
    def test_at_most_max_connecting_at_once(self, server: FakeServer, limit: int) -> None:
        with make(server, poolmax=8, max_connecting=limit) as pool, server.hold("connect") as gate:
            going = threading.Event()

            def hold() -> None:
                conn = pool.getconnection(timeout=LONG)
                going.wait(10)
                conn.close()

            holders = [spawn(hold) for _ in range(8)]
            until(lambda: len(pool._state.waiters) == 8)
            for number in range(1, 9):
                gate.arrived(min(number + limit - 1, 8))
                assert gate.waiting <= limit
                gate.release(1)
            until(lambda: pool.poolstats().poolused == 8)
            going.set()
            for holder in holders:
                holder.result()
            assert server.max_connecting == limit

    def test_none_when_nobody_waits(self, server: FakeServer) -> None:
        with make(server, poolmin=1) as pool:
            for _ in range(50):
                take(pool)
            assert server.opened == 1
            assert not background()

    def test_no_thread_is_left_when_there_is_no_demand(self, server: FakeServer) -> None:
        with make(server, poolmin=1, healthcheck_idle=0.0) as pool:
            held = [pool.getconnection() for _ in range(5)]
            for conn in held:
                conn.close()
            until(lambda: not background())

    def test_one_waiter_has_one_connection_opened(self, server: FakeServer) -> None:
        with make(server) as pool, server.hold("connect") as gate:
            waiting = spawn(take, pool)
            gate.arrived()
            with pytest.raises(NimueNoConnectionAvailable):
                pool.getconnection(blocking=False)
            gate.release()
            waiting.result()
            until(lambda: not background())
            # The one who would not wait had a wish too.
            assert server.opened <= 2

    def test_repeated_wishes_open_one_connection(self, server: FakeServer) -> None:
        with make(server) as pool, server.hold("connect") as gate:
            for _ in range(20):
                with pytest.raises(NimueNoConnectionAvailable):
                    pool.getconnection(blocking=False)
            gate.arrived()
            gate.release()
            until(lambda: pool.poolstats().connecting == 0)
            assert server.opened == 1

    def test_a_spike_is_served_by_those_who_return(self, server: FakeServer) -> None:
        """50 threads, 5 idle connections, and a ``connect()`` that takes longer than the work."""
        with make(server, poolmin=5, poolmax=50) as pool, server.hold("connect") as gate:
            workers = [spawn(take, pool) for _ in range(50)]
            for worker in workers:
                worker.result()
            assert gate.came <= 2
            gate.release()
            until(lambda: not background())
            assert server.opened <= 7
            assert server.open == pool.poolstats().poolsize

    def test_a_late_connection_goes_idle(self, server: FakeServer) -> None:
        with make(server, poolmin=1, poolmax=2) as pool, server.hold("connect") as gate:
            held = pool.getconnection()
            waiting = spawn(take, pool)
            gate.arrived()
            held.close()
            waiting.result()
            assert pool.poolstats().connecting == 1
            gate.release()
            until(lambda: pool.poolstats().poolfree == 2)
            assert server.open == 2

    def test_a_late_connection_serves_who_waits_by_then(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool, server.hold("connect") as gate:
            with pytest.raises(NimuePoolTimeout):
                pool.getconnection(timeout=0.01)
            gate.arrived()
            waiting = spawn(take, pool)
            until(lambda: pool._state.waiters)
            assert gate.came == 1
            gate.release()
            waiting.result()
            assert server.opened == 1

    def test_a_connection_that_comes_after_close_is_closed(self, server: FakeServer) -> None:
        pool = make(server)
        with server.hold("connect") as gate:
            with pytest.raises(NimuePoolTimeout):
                pool.getconnection(timeout=0.01)
            gate.arrived()
            pool.close()
            gate.release()
        until(lambda: server.opened == 1 and server.open == 0)


class TestTimeouts:
    """With no bound of its own a hanging driver would hold a caller for the gate's 30 seconds."""

    def late(self, pool: NimueConnectionPool, timeout: float = 0.05) -> NimuePoolTimeout:
        start = time.monotonic()
        with pytest.raises(NimuePoolTimeout) as caught:
            pool.getconnection(timeout=timeout)
        assert time.monotonic() - start < 5
        return caught.value

    def test_kept_while_connect_hangs(self, server: FakeServer) -> None:
        with make(server) as pool, server.hold("connect") as gate:
            self.late(pool)
            gate.arrived()
            self.late(pool)
            workers = [spawn(self.late, pool) for _ in range(5)]
            for worker in workers:
                worker.result()
            gate.release()

    def test_kept_while_a_health_check_hangs(self, server: FakeServer) -> None:
        with make(server, poolmin=1, poolmax=1, healthcheck_idle=0.0) as pool:
            with server.hold("execute") as gate:
                self.late(pool)
                gate.arrived()
                gate.release()
            until(lambda: pool.poolstats().poolfree == 1)

    def test_kept_while_close_hangs(self, server: FakeServer) -> None:
        """One that fails its check is closed before another is opened in its place."""
        with make(server, poolmin=1, poolmax=1) as pool:
            make_stale(pool)
            server.fail("execute", OperationalError("gone", sqlstate="57P01"), times=1)
            with server.hold("close") as gate:
                self.late(pool)
                gate.arrived()
                gate.release()
            take(pool)

    def test_kept_while_on_connect_hangs(self, server: FakeServer) -> None:
        pool = make(server, on_connect=lambda raw: raw.cursor().execute("SET"))
        with pool, server.hold("execute") as gate:
            self.late(pool)
            gate.arrived()
            gate.release()

    def test_others_are_served_meanwhile(self, server: FakeServer) -> None:
        with make(server, poolmin=2) as pool:
            stuck = pool._state.idle[-1][2]
            stuck.since = -1e9
            with server.hold("execute", on=stuck.raw) as gate:
                waiting = spawn(take, pool)
                gate.arrived()
                for _ in range(3):
                    spawn(take, pool).result()
                waiting.result()
                assert gate.waiting == 1
                gate.release()


class TestChecks:
    def test_failure_leads_to_the_next_connection(self, server: FakeServer) -> None:
        """Three idle ones, of which two are dead: the caller gets the third and knows nothing."""
        with make(server, poolmin=3, poolmax=3) as pool:
            make_stale(pool)
            dead = [spare[2].raw for spare in pool._state.idle][1:]
            alive = pool._state.idle[0][2].raw
            for raw in dead:
                server.kill(raw)
            with server.hold("connect") as gate:
                conn = pool.getconnection(timeout=LONG)
                assert conn.raw is alive
                conn.close()
                gate.release()
            until(lambda: all(raw.closed for raw in dead))

    def test_all_dead_leads_to_a_new_one(self, server: FakeServer) -> None:
        with make(server, poolmin=3, poolmax=3) as pool:
            make_stale(pool)
            server.kill_all()
            conn = pool.getconnection(timeout=LONG)
            assert conn.raw in server.connections
            conn.cursor().execute("SELECT 1")
            conn.close()

    def test_with_the_time_that_is_left(self, server: FakeServer) -> None:
        """One check fails at once and the next hangs: the timeout is one for all of it."""
        with make(server, poolmin=2, poolmax=2) as pool:
            make_stale(pool)
            server.kill(pool._state.idle[-1][2].raw)
            with server.hold("execute", on=pool._state.idle[0][2].raw) as gate:
                with server.hold("connect") as connecting:
                    start = time.monotonic()
                    with pytest.raises(NimuePoolTimeout):
                        pool.getconnection(timeout=0.2)
                    assert time.monotonic() - start < 5
                    connecting.release()
                gate.release()

    def test_a_check_that_raises_anything_counts_as_unfit(self, server: FakeServer) -> None:
        def check(conn: Any, dbmodule: Any) -> bool:
            raise ZeroDivisionError

        with make(server, poolmin=1, poolmax=1, healthcheck_callback=check) as pool:
            first = server.connections[0]
            make_stale(pool)
            take(pool)
            assert first.closed
            assert server.opened == 2

    def test_none_within_healthcheck_idle(self, server: FakeServer) -> None:
        with make(server, poolmin=1) as pool:
            for _ in range(5):
                take(pool)
            assert server.count("execute") == 0
            make_stale(pool)
            take(pool)
            assert server.count("execute") == 1
            take(pool)
            assert server.count("execute") == 1

    def test_none_if_not_wanted(self, server: FakeServer) -> None:
        with make(server, poolmin=1, healthcheck_on_getconnection=False) as pool:
            make_stale(pool)
            take(pool)
            assert server.count("execute") == 0

    def test_not_under_the_lock(self, server: FakeServer) -> None:
        with make(server, poolmin=1) as pool:
            seen: list[bool] = []
            server.hold("execute", when=lambda call: seen.append(is_locked(pool._state)))
            make_stale(pool)
            take(pool)
            assert seen == [False]


class TestNoThread:
    """What cannot be done in the background is given up, and nothing is left half done."""

    @pytest.fixture
    def no_threads(self, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
        start = threading.Thread.start

        def refuse(self: threading.Thread) -> None:
            # The monitor, and the threads of the test, have theirs.
            if self.name.startswith("nimue-") and self.name != "nimue-monitor":
                raise RuntimeError("can't start new thread")
            start(self)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        return monkeypatch

    def after(self, server: FakeServer, pool: NimueConnectionPool, size: int) -> None:
        stats = pool.poolstats()
        assert (stats.connecting, stats.checking, stats.poolused, stats.waiting) == (0, 0, 0, 0)
        assert not background()
        assert server.open == stats.poolsize
        held = [pool.getconnection(timeout=LONG) for _ in range(size)]
        for conn in held:
            conn.close()

    def test_to_connect(self, server: FakeServer, no_threads: pytest.MonkeyPatch) -> None:
        with make(server) as pool:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.getconnection(timeout=LONG)
            assert server.opened == 0
            no_threads.undo()
            self.after(server, pool, 5)

    def test_to_connect_while_another_may_come_back(
        self, server: FakeServer, no_threads: pytest.MonkeyPatch
    ) -> None:
        with make(server, poolmin=1, poolmax=2) as pool:
            held = pool.getconnection()
            waiting = spawn(take, pool)
            until(lambda: pool._state.waiters)
            held.close()
            waiting.result()
            no_threads.undo()
            self.after(server, pool, 2)

    def test_to_connect_for_a_wish(
        self, server: FakeServer, no_threads: pytest.MonkeyPatch
    ) -> None:
        with make(server) as pool:
            with pytest.raises(NimueNoConnectionAvailable):
                pool.getconnection(blocking=False)
            no_threads.undo()
            self.after(server, pool, 5)

    def test_to_check(self, server: FakeServer, no_threads: pytest.MonkeyPatch) -> None:
        with make(server, poolmin=2, poolmax=2) as pool:
            make_stale(pool)
            with pytest.raises((RuntimeError, NimuePoolTimeout)):
                pool.getconnection(timeout=0.2)
            no_threads.undo()
            self.after(server, pool, 2)


def test_a_failed_connect_thread_is_told_by_name(server: FakeServer) -> None:
    """The threads can be told apart in a debugger: by what they do."""
    seen: list[Call] = []
    server.hold("connect", when=seen.append)
    with make(server) as pool:
        take(pool)
    assert [call.thread for call in seen] == ["nimue-connect"]


def test_a_log_that_fails_at_each_close_costs_one_thread(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What raises after a close is not tried again for ever, and the place is free."""
    started = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    def refuse(record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("pool %r: closed"):
            raise OSError("the log is full")
        return True

    logger = logging.getLogger("nimue")
    monkeypatch.setattr(threading.Thread, "start", counted)
    caplog.set_level(logging.INFO, "nimue")
    logger.addFilter(refuse)
    try:
        pool = make(server, poolmin=1, poolmax=1)
        server.kill_all()
        conn = pool.getconnection(timeout=0)
        with pytest.raises(OperationalError):
            conn.cursor().execute("SELECT 1")
        with contextlib.suppress(OSError):
            conn.close()
        pool.getconnection(timeout=LONG).close()
        until(lambda: pool.poolstats().checking == 0)
        assert started.count("nimue-close") <= 2
    finally:
        logger.removeFilter(refuse)
    pool.close()
