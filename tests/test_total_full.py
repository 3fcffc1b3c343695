"""The server is full below ``totalmax``: as if a permit were missing, and no reason to give up."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from nimue import NimuePoolTimeout, drivers, opener, sharing, upkeep
from tests.children import Child
from tests.fakes import OperationalError, spawn, until
from tests.forking import ask, end, make_pool, serves
from tests.semaphores import Board
from tests.test_total import held, shared

TOLD = "sorry, too many clients already"


def full() -> OperationalError:
    return OperationalError(TOLD, sqlstate="53300")


@pytest.fixture
def known_by_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake is a driver that nimue finds by itself."""
    monkeypatch.setitem(drivers._HOMES, "tests", ("tests.fakes", "FakeDriver"))


class TestWaiting:
    def test_they_wait_until_there_is_room(self, server):
        pool = shared(server)
        server.fail("connect", full, times=4)
        asking = [spawn(pool.getconnection) for _ in range(2)]
        for each in asking:
            each.result().close()
        stats = pool.poolstats()
        assert (stats.refused, stats.failed, stats.timeouts) == (4, 4, 0)
        assert pool.totalstats().refused == 4
        end(pool)
        assert held("shared") == 0

    def test_the_permit_is_given_back_meanwhile(self, server):
        pool = shared(server, totalmax=1)
        refusal = server.fail("connect", full)
        asking = spawn(pool.getconnection)
        until(lambda: refusal.count >= 2)
        until(lambda: held() == 0)
        server.recover()
        asking.result().close()
        end(pool)

    def test_the_attempts_back_off(self, server):
        pool = shared(server)
        refusal = server.fail("connect", full)
        asking = spawn(pool.getconnection)
        until(lambda: pool._state.backoff.failures >= 3)
        assert refusal.count >= 3
        server.recover()
        asking.result().close()
        assert pool._state.backoff.failures == 0
        end(pool)

    def test_the_timeout_says_so(self, server):
        pool = shared(server)
        server.fail("connect", full)
        with pytest.raises(NimuePoolTimeout) as told:
            pool.getconnection(timeout=0.2)
        assert isinstance(told.value.__cause__, OperationalError)
        assert TOLD in str(told.value.__cause__)
        refused = pool.poolstats().refused
        assert refused and "the server refused" in str(told.value)
        assert held() == 0
        end(pool)

    def test_as_the_very_first_connect(self, server, known_by_its_errors):
        """Nobody has seen a connection of this driver's yet."""
        pool = shared(server, driver=None)
        assert pool.driver is None
        server.fail("connect", full, times=2)
        assert serves(pool)
        assert pool.poolstats().refused == 2
        end(pool)

    def test_any_other_error_is_told_at_once(self, server, known_by_its_errors):
        pool = shared(server, driver=None)
        server.fail("connect", lambda: OperationalError("no such user", sqlstate="28000"), times=1)
        with pytest.raises(OperationalError, match="no such user"):
            pool.getconnection(timeout=60)
        assert pool.poolstats().refused == 0
        end(pool)

    def test_without_totalmax_they_hear_of_it_at_once(self, server):
        pool = make_pool(server)
        server.fail("connect", full, times=1)
        with pytest.raises(OperationalError, match=TOLD):
            pool.getconnection(timeout=60)
        assert pool.poolstats().refused == 0
        end(pool)


def real_errors() -> list[Callable[[], BaseException]]:
    psycopg2 = pytest.importorskip("psycopg2")
    psycopg = pytest.importorskip("psycopg")
    pg8000 = pytest.importorskip("pg8000.dbapi")
    pymysql = pytest.importorskip("pymysql")
    return [
        lambda: psycopg2.OperationalError(f"FATAL:  {TOLD}"),
        lambda: psycopg.OperationalError(f"FATAL:  {TOLD}"),
        lambda: psycopg.errors.TooManyConnections(TOLD),
        lambda: pg8000.DatabaseError({"C": "53300", "M": TOLD}),
        lambda: pymysql.OperationalError(1040, "Too many connections"),
        lambda: pymysql.OperationalError(1203, "too many for this user"),
        lambda: pymysql.OperationalError(1226, "user has exceeded max_user_connections"),
    ]


@pytest.mark.parametrize("n", range(7))
def test_the_first_errors_of_real_drivers(n, server):
    make_error = real_errors()[n]

    def connect():
        raise make_error()

    pool = shared(server)
    pool.close()
    pool = type(pool)(connect, poolmin=0, name="shared", totalmax=3)
    with pytest.raises(NimuePoolTimeout) as told:
        pool.getconnection(timeout=1.0)
    assert type(told.value.__cause__) is type(make_error())
    assert pool.poolstats().refused
    end(pool)


class TestOthers:
    """Who else has an idle connection closes it."""

    def _crowded(self, server, board, others=2):
        """Room for so many as the child has; it writes down how many that are."""
        server.fail("connect", full, when=lambda call: call.pid == board[9] and board[2] >= others)

    def test_another_process_is_asked_to_close_one(self, socket_server):
        pool, board = shared(socket_server, totalmax=5), Board()
        board[9] = os.getpid()
        self._crowded(socket_server, board)

        def child():
            for handle in [pool.getconnection() for _ in range(2)]:
                handle.close()
            board[2] = 2
            board[0] = 1
            until(lambda: pool.poolstats().poolsize < 2)
            board[2] = 1
            board.until(1, 1)
            return pool.poolstats()

        child = Child(child)
        board.until(0, 1)
        handle = pool.getconnection(timeout=15)
        board[1] = 1
        assert ask(handle)
        stats = child.result()
        assert stats.shed >= 1
        assert pool.poolstats().refused >= 1
        handle.close()
        end(pool)

    def test_whichever_pool_of_it_has_one(self, socket_server):
        """It has two under one limit, and what they are asked for is not the first one's alone."""
        pool, board = shared(socket_server, totalmax=9), Board()
        board[9] = os.getpid()
        self._crowded(socket_server, board)

        def child():
            other, third = shared(socket_server, totalmax=9), shared(socket_server, totalmax=9)
            out = [pool.getconnection(), third.getconnection()]
            assert serves(other)
            board[2] = 2
            board[0] = 1
            until(lambda: other.poolstats().shed)
            board[2] = 1
            board.until(1, 1)
            for handle in out:
                handle.close()

        child = Child(child)
        board.until(0, 1)
        handle = pool.getconnection(timeout=15)
        board[1] = 1
        child.result()
        handle.close()
        end(pool)

    def test_another_pool_of_the_same_process(self, server):
        one, other = shared(server, totalmax=5), shared(server, totalmax=5)
        assert serves(other)
        server.fail("connect", full, when=lambda call: server.open)
        assert serves(one, 15)
        assert (one.poolstats().refused, other.poolstats().shed) == (1, 1)
        end(one)
        end(other)

    def test_nobody_is_asked_for_what_is_only_a_wish(self, socket_server):
        """A refill to ``poolmin`` waits for better times."""
        pool, board = shared(socket_server, totalmax=5), Board()

        def child():
            for handle in [pool.getconnection() for _ in range(2)]:
                handle.close()
            board[0] = 1
            board.until(1, 1)
            return pool.poolstats().shed

        child = Child(child)
        board.until(0, 1)
        assert serves(pool)
        socket_server.fail("connect", full)
        pool.poolmin = 3
        pool._state.next_cycle = 0.0
        pool._state.wake()
        until(lambda: pool.poolstats().refused)
        assert pool._state.limit.news().refusals == 0
        board[1] = 1
        assert child.result() == 0
        end(pool)


class TestConstructor:
    def test_it_opens_what_there_is_room_for(self, server, caplog):
        caplog.set_level("INFO")
        server.fail("connect", full, after=2)
        pool = shared(server, totalmax=9, poolmin=4)
        stats = pool.poolstats()
        assert (stats.poolsize, stats.connecting, stats.refused) == (2, 0, 1)
        assert server.count("connect") == 3 and held() == 2
        assert "2 of 4 connections" in caplog.text and "refused" in caplog.text
        server.recover()
        handles = [pool.getconnection(timeout=10) for _ in range(3)]
        for handle in handles:
            handle.close()
        end(pool)
        assert held() == 0

    def test_even_none(self, server, known_by_its_errors):
        server.fail("connect", full, times=1)
        pool = shared(server, poolmin=2, driver=None)
        assert (pool.poolstats().poolsize, held()) == (0, 0)
        assert serves(pool)
        end(pool)

    def test_any_other_error_is_raised(self, server):
        server.fail("connect", OperationalError("no such user", sqlstate="28000"), after=1)
        with pytest.raises(OperationalError, match="no such user"):
            shared(server, poolmin=3)
        until(lambda: server.open == 0)
        until(lambda: held() == 0)

    def test_without_totalmax_it_raises(self, server):
        server.fail("connect", full, after=1)
        with pytest.raises(OperationalError, match=TOLD):
            make_pool(server, poolmin=3)
        until(lambda: server.open == 0)

    def test_a_pool_that_nobody_has_used_yet_gives_up_what_it_has(self, socket_server):
        """Its constructor has opened some, and no acquire has come since."""
        board = Board()

        def child():
            pool = shared(socket_server, poolmin=3)
            board[0] = 1
            board.until(1, 1)
            return pool.poolstats().shed

        pool = shared(socket_server)
        child = Child(child)
        board.until(0, 1)
        handle = pool.getconnection(timeout=10)
        board[1] = 1
        assert child.result() >= 1
        handle.close()
        end(pool)


def test_what_is_full_is_asked_of_the_driver_alone(server):
    """Whatever it is that was raised, and whatever its class says."""
    pool = shared(server)
    state = pool._state

    def odd() -> Any:
        return type("Odd", (BaseException,), {"__module__": "tests.nowhere"})()

    assert not upkeep.is_full(state, odd())
    assert upkeep.is_full(state, full())
    end(pool)


def test_it_is_not_given_up_twice(server):
    """Who asked for one asks again while that is still being closed."""
    pool = shared(server)
    state = pool._state
    for handle in [pool.getconnection() for _ in range(3)]:
        handle.close()
    with server.hold("close") as gate:
        opener.start(state, sharing.shed(state, 1))
        gate.arrived(1)
        assert sharing.shed(state, 1) == []
        opener.start(state, sharing.shed(state, 2))
        gate.arrived(2)
        # One that hangs does not keep the others for ever.
        state.yielded = [moment - sharing.STILL_CLOSING for moment in state.yielded]
        opener.start(state, sharing.shed(state, 1))
        gate.arrived(3)
    end(pool)
