"""First come, first served: nobody overtakes, and nobody waits who said that he would not."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest

from nimue import (
    NimueConnection,
    NimueConnectionPool,
    NimueInvalidParameterValue,
    NimueNoConnectionAvailable,
    NimuePoolTimeout,
    waiters,
)
from nimue.waiters import Waiter, Waiters
from tests.fakes import FakeDriver, FakeServer, OperationalError, Spawned, spawn, until

LONG = 60.0


def make(server: FakeServer, **settings: Any) -> NimueConnectionPool:
    settings = {"poolmin": 1, "poolmax": 1, "healthcheck_idle": 1000.0, **settings}
    return NimueConnectionPool(server.connect, driver=FakeDriver(), **settings)


class Queue:
    """Threads that come one after the other; ``served`` tells in which order they had theirs."""

    def __init__(self, pool: NimueConnectionPool) -> None:
        self.pool = pool
        self.served: list[int] = []
        self.threads: list[Spawned] = []

    def join(self, count: int, timeout: float | None = LONG) -> None:
        for _ in range(count):
            waiting = len(self.pool._state.waiters)
            self.threads.append(spawn(self._one, len(self.threads), timeout))
            until(lambda: len(self.pool._state.waiters) == waiting + 1)  # noqa: B023

    def _one(self, number: int, timeout: float | None) -> None:
        conn = self.pool.getconnection(timeout=timeout)
        self.served.append(number)
        conn.close()

    def end(self) -> None:
        for thread in self.threads:
            thread.result()


def test_waiters_are_served_in_the_order_in_which_they_came(server: FakeServer) -> None:
    with make(server) as pool:
        held = pool.getconnection()
        queue = Queue(pool)
        queue.join(8)
        held.close()
        queue.end()
        assert queue.served == list(range(8))


def test_a_release_hands_over_and_who_comes_then_finds_nothing(server: FakeServer) -> None:
    """The connection is the waiter's before ``close()`` returns: the releaser cannot take it."""
    with make(server) as pool:
        held = pool.getconnection()
        with_it, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            conn = pool.getconnection()
            with_it.set()
            assert may_go.wait(10)
            conn.close()

        waiting = spawn(hold)
        until(lambda: pool._state.waiters)
        held.close()
        with pytest.raises(NimueNoConnectionAvailable):
            pool.getconnection(blocking=False)
        assert with_it.wait(10)
        may_go.set()
        waiting.result()


@pytest.mark.parametrize("ask", ["waits", "does not wait"])
def test_nobody_overtakes_a_queue(server: FakeServer, ask: str) -> None:
    """While one waits behind a hanging ``connect()``, who comes later is behind him."""
    with make(server, poolmin=0, poolmax=1) as pool, server.hold("connect") as gate:
        queue = Queue(pool)
        queue.join(1)
        gate.arrived()
        if ask == "waits":
            queue.join(3)
        else:
            for _ in range(3):
                with pytest.raises(NimueNoConnectionAvailable):
                    pool.getconnection(blocking=False)
        gate.release()
        queue.end()
        assert queue.served == list(range(len(queue.threads)))


def test_what_passes_its_check_goes_to_the_oldest_waiter(server: FakeServer) -> None:
    """One check hangs on; the connection that passed the other goes through the whole queue."""
    with make(server, poolmin=2, poolmax=2) as pool:
        for _, _, entry in pool._state.idle:
            entry.since = -1e9
        with server.hold("execute") as gate:
            queue = Queue(pool)
            queue.join(4)
            gate.arrived(2)
            with pytest.raises(NimueNoConnectionAvailable):
                pool.getconnection(blocking=False)
            gate.release(1)
            queue.end()
            assert gate.waiting == 1
            assert queue.served == list(range(4))


def test_a_new_connection_goes_to_the_oldest_waiter(server: FakeServer) -> None:
    with make(server, poolmin=1, poolmax=2) as pool:
        held = pool.getconnection()
        with server.hold("connect") as gate:
            queue = Queue(pool)
            queue.join(3)
            gate.arrived()
            gate.release()
        queue.end()
        assert queue.served == [0, 1, 2]
        held.close()


def test_who_gives_up_is_passed_over(server: FakeServer) -> None:
    with make(server) as pool:
        held = pool.getconnection()
        queue = Queue(pool)
        queue.join(1)
        hasty = spawn(pool.getconnection, timeout=0.05)
        queue.join(2)
        with pytest.raises(NimuePoolTimeout):
            hasty.result()
        held.close()
        queue.end()
        assert queue.served == [0, 1, 2]


def test_a_waiter_that_timed_out_as_it_was_served_loses_nothing(server: FakeServer) -> None:
    with make(server) as pool:
        for _ in range(100):
            held = pool.getconnection()
            hasty = spawn(pool.getconnection, timeout=0.0005)
            until(lambda: pool._state.waiters or hasty.done)  # noqa: B023
            held.close()
            with contextlib.suppress(NimuePoolTimeout):
                hasty.result().close()
            assert pool.poolstats().poolfree == 1
            assert not pool._state.waiters


@pytest.mark.parametrize("seconds", [None, LONG])
def test_what_is_done_between_two_naps_ends_no_wait(monkeypatch, seconds: float | None) -> None:
    monkeypatch.setattr(waiters, "NAP", 0.01)
    waiter, calls = Waiter(0.0), []

    def between() -> None:
        calls.append(1)
        if len(calls) == 2:
            waiter.ring()
        raise RuntimeError("can't start new thread")

    assert waiter.wait(seconds, between)
    assert len(calls) == 2


def test_nothing_is_done_when_the_time_is_up() -> None:
    calls: list[int] = []
    assert not Waiter(0.0).wait(0.01, lambda: calls.append(1))
    assert not calls


class Recorded(Waiters):
    """Remembers, under the pool's lock, who joined the queue and who was handed a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.joined: list[Waiter] = []
        self.handed: list[Waiter] = []

    def join(self, waiter: Waiter) -> None:
        self.joined.append(waiter)
        super().join(waiter)

    def hand(self, waiter: Waiter, handle: NimueConnection) -> None:
        self.handed.append(waiter)
        super().hand(waiter, handle)


def test_each_of_many_threads_has_its_turn(server: FakeServer) -> None:
    """16 threads in a race for 2 connections: each is handed one in the order in which it came."""
    threads, rounds = 16, 50
    with make(server, poolmin=2, poolmax=2) as pool:
        queue = pool._state.waiters = Recorded()
        together = threading.Barrier(threads)

        def work() -> None:
            together.wait(10)
            for _ in range(rounds):
                with pool.connection(timeout=LONG):
                    # Whoever goes on at once would find no queue behind it. Of three that are not
                    # through, one holds nothing: it joins the queue.
                    until(lambda: queue or len(through) >= threads - 2)
            through.append(True)

        through: list[bool] = []
        workers = [spawn(work) for _ in range(threads)]
        for worker in workers:
            worker.result(30)
        assert server.max_open == 2
    assert queue.handed == queue.joined
    assert len(queue.handed) > threads * rounds // 2


def test_more_waiters_than_max_waiting_are_refused_at_once(server: FakeServer) -> None:
    with make(server, max_waiting=2) as pool:
        held = pool.getconnection()
        queue = Queue(pool)
        queue.join(2)
        with pytest.raises(NimueNoConnectionAvailable) as caught:
            pool.getconnection(timeout=None)  # would wait for ever
        assert not isinstance(caught.value, NimuePoolTimeout)
        assert len(pool._state.waiters) == 2
        held.close()
        queue.end()
        assert queue.served == [0, 1]
        pool.getconnection(timeout=None).close()


def test_max_waiting_of_zero_gives_what_is_idle_and_makes_no_one_wait(server: FakeServer) -> None:
    with make(server, max_waiting=0) as pool:
        held = pool.getconnection(timeout=None)
        with pytest.raises(NimueNoConnectionAvailable):
            pool.getconnection(timeout=None)
        held.close()
        pool.getconnection(timeout=None).close()


NO_WAIT = pytest.mark.parametrize("how", [{"blocking": False}, {"timeout": 0}, {"timeout": 0.0}])


@NO_WAIT
def test_who_does_not_wait_gets_what_is_idle(server: FakeServer, how: dict[str, Any]) -> None:
    with make(server) as pool:
        conn = pool.getconnection(**how)
        with pytest.raises(NimueNoConnectionAvailable) as caught:
            pool.getconnection(**how)
        assert not isinstance(caught.value, NimuePoolTimeout)
        assert not pool._state.waiters
        conn.close()
        pool.getconnection(**how).close()


@NO_WAIT
def test_who_does_not_wait_does_not_wait_for_connect(
    server: FakeServer, how: dict[str, Any]
) -> None:
    """Its wish is known, though: a connection is opened for whoever comes again."""
    with make(server, poolmin=0) as pool, server.hold("connect") as gate:
        with pytest.raises(NimueNoConnectionAvailable):
            pool.getconnection(**how)
        gate.arrived()
        gate.release()
        until(lambda: pool.poolstats().poolfree == 1)
        pool.getconnection(**how).close()
        assert server.opened == 1


@NO_WAIT
def test_who_does_not_wait_gets_a_stale_connection_that_is_quiet(
    socket_server: FakeServer, how: dict[str, Any]
) -> None:
    """Nothing is asked of the server: that would be to wait for it."""
    with make(socket_server, healthcheck_idle=0.0) as pool:
        with socket_server.hold("execute"):
            conn = pool.getconnection(**how)
            assert conn.raw in socket_server.connections
            conn.close()
        assert socket_server.count("execute") == 0
        assert socket_server.opened == 1


@NO_WAIT
@pytest.mark.parametrize("death", ["the server hung up", "the driver knows"])
def test_who_does_not_wait_gets_no_connection_that_looks_dead(
    socket_server: FakeServer, how: dict[str, Any], death: str
) -> None:
    with make(socket_server, poolmin=3, poolmax=3, healthcheck_idle=0.0) as pool:
        dead = [spare[2].raw for spare in pool._state.idle][1:]
        quiet = pool._state.idle[0][2].raw
        for raw in dead:
            socket_server.kill(raw)
            raw._gone = death == "the driver knows"
        # The most recently used come first: both dead ones are looked at, and then the third.
        with socket_server.hold("connect") as gate:
            conn = pool.getconnection(**how)
            assert conn.raw is quiet
            conn.close()
            gate.release()
        until(lambda: all(raw.closed == 1 for raw in dead))
        until(lambda: pool.poolstats().poolfree == 3)


@NO_WAIT
def test_who_does_not_wait_is_refused_when_all_look_dead(
    socket_server: FakeServer, how: dict[str, Any]
) -> None:
    with make(socket_server, poolmin=2, poolmax=2, healthcheck_idle=0.0) as pool:
        dead = socket_server.connections
        socket_server.kill_all()
        with socket_server.hold("connect") as gate:
            with pytest.raises(NimueNoConnectionAvailable):
                pool.getconnection(**how)
            gate.arrived()
            gate.release()
        until(lambda: all(raw.closed == 1 for raw in dead))
        # They are replaced: the next who asks has one.
        until(lambda: pool.poolstats().poolfree == 2)
        pool.getconnection(**how).close()


def test_timeout_none_waits_for_as_long_as_it_takes(server: FakeServer) -> None:
    with make(server, timeout=0.0) as pool:
        held = pool.getconnection()
        queue = Queue(pool)
        queue.join(2, timeout=None)
        held.close()
        queue.end()


def test_the_pools_own_timeout_is_the_default(server: FakeServer) -> None:
    with make(server, timeout=0.0) as pool:
        held = pool.getconnection()
        with pytest.raises(NimueNoConnectionAvailable):
            pool.getconnection()
        held.close()
    with make(server, timeout=None) as pool:
        held = pool.getconnection()
        waiting = spawn(lambda: pool.getconnection().close())
        until(lambda: pool._state.waiters)
        held.close()
        waiting.result()


BAD = [-1, -0.001, float("nan"), float("inf"), "5", True, False, [], b"5", 1j]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_a_bad_timeout_is_refused_by_name_value_and_what_is_allowed(
    server: FakeServer, bad: Any
) -> None:
    with make(server) as pool:
        for ask in (
            lambda: pool.getconnection(timeout=bad),
            lambda: pool.getconnection(False, bad),
            lambda: pool.connection(timeout=bad).__enter__(),
            lambda: pool.close(timeout=bad),
            lambda: make(server, timeout=bad),
        ):
            with pytest.raises(NimueInvalidParameterValue) as caught:
                ask()
            assert isinstance(caught.value, ValueError)
            text = str(caught.value)
            assert text.startswith("timeout ")
            assert repr(bad) in text
            assert "None or a number of seconds" in text
        assert pool.poolstats().poolfree == 1
        assert server.open == 1


def test_a_huge_timeout_is_as_good_as_none(server: FakeServer) -> None:
    with make(server) as pool:
        held = pool.getconnection()
        waiting = spawn(lambda: pool.getconnection(timeout=1e300).close())
        until(lambda: pool._state.waiters)
        held.close()
        waiting.result()


def test_the_driver_is_not_blamed_for_a_refusal(server: FakeServer) -> None:
    """Who may not wait is told so, whatever ``connect()`` does meanwhile."""
    with make(server, poolmin=0) as pool:
        server.fail("connect", OperationalError("no", sqlstate="08001"))
        for _ in range(5):
            with pytest.raises(NimueNoConnectionAvailable):
                pool.getconnection(blocking=False)
