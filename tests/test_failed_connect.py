"""The server cannot be reached: who waits is told, nobody storms it, and it is found again."""

from __future__ import annotations

import itertools
import socket
import time
import traceback
import warnings
import weakref
from typing import Any

import pytest

from nimue import (
    NimueConnectionPool,
    NimueDBModuleFailure,
    NimueNoConnectionAvailable,
    NimuePoolTimeout,
    backoff,
)
from nimue.backoff import Backoff
from tests.fakes import FakeDriver, FakeServer, OperationalError, spawn, until

LONG = 60.0


def make(server: FakeServer, **settings: Any) -> NimueConnectionPool:
    settings = {"poolmin": 0, "poolmax": 5, "healthcheck_idle": 1000.0, **settings}
    return NimueConnectionPool(server.connect, driver=FakeDriver(), **settings)


def refused() -> OperationalError:
    return OperationalError("connection refused", sqlstate="08001")


def take(pool: NimueConnectionPool, timeout: float = LONG) -> None:
    pool.getconnection(timeout=timeout).close()


def busy(pool: NimueConnectionPool) -> bool:
    return any(thread.is_alive() for thread in list(pool._state.crew))


class TestConstructor:
    @pytest.mark.parametrize("after", [0, 1, 4])
    def test_raises_the_drivers_exception_and_leaves_nothing_open(
        self, server: FakeServer, after: int
    ) -> None:
        error = refused()
        server.fail("connect", error, after=after)
        with pytest.raises(OperationalError) as caught:
            make(server, poolmin=5)
        assert caught.value is error
        assert server.opened == after
        assert server.open == 0

    def test_so_it_does_when_on_connect_fails(self, server: FakeServer) -> None:
        def on_connect(raw: Any) -> None:
            if server.opened == 3:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            make(server, poolmin=5, on_connect=on_connect)
        assert server.opened == 3
        assert server.open == 0

    def test_no_dbapi_module_is_found(self) -> None:
        class Strange:
            closed = False

            def close(self) -> None:
                self.closed = True

        made: list[Strange] = []

        def connect() -> Strange:
            made.append(Strange())
            return made[-1]

        Strange.__module__ = "builtins"
        with pytest.raises(NimueDBModuleFailure):
            NimueConnectionPool(connect, poolmin=1)
        assert all(strange.closed for strange in made)


class TestAtOnce:
    def test_when_nothing_else_can_serve(self, server: FakeServer) -> None:
        with make(server) as pool:
            error = refused()
            server.fail("connect", error)
            with pytest.raises(OperationalError, match="connection refused"):
                pool.getconnection(timeout=None)  # would else wait for ever
            assert not pool._state.waiters

    def test_every_waiter_has_an_exception_of_its_own(self, server: FakeServer) -> None:
        with make(server, max_connecting=1) as pool, server.hold("connect") as gate:
            server.fail("connect", refused, times=1)
            waiting = [spawn(take, pool) for _ in range(4)]
            until(lambda: len(pool._state.waiters) == 4)
            gate.release()
            errors = []
            for one in waiting:
                with pytest.raises(OperationalError) as caught:
                    one.result()
                errors.append(caught.value)
            assert len({id(error) for error in errors}) == 4
            assert len({id(error.__traceback__) for error in errors}) == 4
            assert {str(error) for error in errors} == {"connection refused"}
            assert {error.sqlstate for error in errors} == {"08001"}

    def test_one_that_cannot_be_copied_is_raised_all_the_same(self, server: FakeServer) -> None:
        class Awkward(OperationalError):
            def __reduce__(self) -> Any:
                raise TypeError("not this one")

        with make(server) as pool:
            server.fail("connect", Awkward("odd"))
            with pytest.raises(Awkward, match="odd"):
                take(pool)

    def test_on_connect_failing_is_a_failed_connect(self, server: FakeServer) -> None:
        def on_connect(raw: Any) -> None:
            raise ZeroDivisionError

        with make(server, on_connect=on_connect) as pool:
            with pytest.raises(ZeroDivisionError):
                take(pool)
            assert server.opened == 1
            assert server.open == 0

    def test_a_base_exception_out_of_the_driver_serves_as_well(self, server: FakeServer) -> None:
        """A driver that calls sys.exit() in the background thread must not be waited for."""
        with make(server) as pool:
            server.fail("connect", SystemExit("odd driver"), times=1)
            with pytest.raises(SystemExit):
                take(pool)
            until(lambda: not busy(pool))
            assert not pool._state.entries


class TestAsTheCause:
    def test_of_a_timeout_while_another_might_have_come_back(self, server: FakeServer) -> None:
        with make(server, poolmin=1) as pool:
            held = pool.getconnection()
            server.fail("connect", refused())
            waiting = spawn(pool.getconnection, timeout=0.3)
            with pytest.raises(NimuePoolTimeout) as caught:
                waiting.result()
            assert isinstance(caught.value.__cause__, OperationalError)
            assert str(caught.value.__cause__) == "connection refused"
            held.close()

    def test_the_one_that_comes_back_is_waited_for(self, server: FakeServer) -> None:
        with make(server, poolmin=1) as pool:
            held = pool.getconnection()
            server.fail("connect", refused())
            waiting = spawn(take, pool)
            until(lambda: server.count("connect") >= 2)
            until(lambda: pool._state.backoff.failures)
            assert not waiting.done
            held.close()
            waiting.result()

    def test_no_cause_without_a_failure(self, server: FakeServer) -> None:
        with make(server, poolmin=1, poolmax=1) as pool:
            held = pool.getconnection()
            with pytest.raises(NimuePoolTimeout) as caught:
                pool.getconnection(timeout=0.01)
            assert caught.value.__cause__ is None
            held.close()

    def test_no_cause_once_connect_has_succeeded_again(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            server.fail("connect", refused(), times=1)
            with pytest.raises(OperationalError):
                take(pool)
            held = pool.getconnection(timeout=LONG)
            with pytest.raises(NimuePoolTimeout) as caught:
                pool.getconnection(timeout=0.01)
            assert caught.value.__cause__ is None
            held.close()


class TestBackoff:
    def test_grows_is_capped_and_evenly_spread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ceilings = []
        for part in (0.0, 0.5, 1.0):
            monkeypatch.setattr(backoff, "chance", lambda: part)  # noqa: B023
            pause = Backoff()
            delays = []
            for _ in range(2000):  # far beyond where a power of two is a finite float
                pause.failed(refused(), 1000.0)
                delays.append(pause.retry_at - 1000.0)
            ceilings.append(delays)
        nothing, half, whole = ceilings
        assert set(nothing) == {0.0}
        assert whole[0] > 0.0
        for sooner, later in itertools.pairwise(whole):
            assert later == pytest.approx(min(2 * sooner, whole[-1]))
        assert 0.0 < whole[-1] <= 5.0
        assert half == pytest.approx([delay / 2 for delay in whole])

    def test_counts_failures_and_one_success_resets_it(self, server: FakeServer) -> None:
        with make(server) as pool:
            failing = server.fail("connect", refused(), times=3)
            state = pool._state
            for count in (1, 2, 3):
                state.backoff.retry_at = 0.0
                with pytest.raises(OperationalError):
                    take(pool)
                assert state.backoff.failures == count
            state.backoff.retry_at = 0.0
            take(pool)
            assert failing.count == 3
            assert state.backoff.failures == 0
            assert state.backoff.retry_at == 0.0
            assert state.backoff.last_error is None

    def test_what_it_has_left_half_open_is_let_go(self) -> None:
        """pg8000 leaves its socket to the frames of the error, which the pool remembers."""
        sockets: list[weakref.ref[socket.socket]] = []

        def reach() -> None:
            sock = socket.socket()
            sockets.append(weakref.ref(sock))
            sock.getpeername()

        class Alike(Exception):
            """All of them are equal, as dataclasses may be."""

            __hash__ = None  # type: ignore[assignment]

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Alike)

        def reach_for() -> None:
            try:
                reach()
            except OSError as error:
                raise Alike from error

        def connect() -> Any:
            try:
                try:
                    reach_for()
                except Alike:
                    reach_for()
            except Alike as last:
                raise refused() from last

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            pool = NimueConnectionPool(connect, driver=FakeDriver(), poolmin=0)
            with pytest.raises(OperationalError) as told:
                take(pool)
            assert pool._state.backoff.last_error is not None
            assert [sock() for sock in sockets] == [None, None]
            pool.close()
        assert "getpeername" in "".join(traceback.format_exception(told.value))

    def test_nobody_connects_before_the_time(self, server: FakeServer) -> None:
        with make(server) as pool:
            pool._state.backoff.failed(refused(), time.monotonic())
            pool._state.backoff.retry_at = time.monotonic() + 1000
            for _ in range(5):
                with pytest.raises((OperationalError, NimuePoolTimeout)):
                    pool.getconnection(timeout=0.01)
                with pytest.raises(NimueNoConnectionAvailable):
                    pool.getconnection(blocking=False)
            assert server.count("connect") == 0


class TestRecovery:
    def test_by_itself_while_somebody_waits(self, server: FakeServer) -> None:
        """A failure that is not told at once, since a connection is out: tried again, and again."""
        with make(server, poolmin=1) as pool:
            held = pool.getconnection()
            server.fail("connect", refused(), times=3)
            take(pool)
            assert pool.poolstats().failed == 3
            held.close()

    def test_by_itself_when_the_server_is_back(self, server: FakeServer) -> None:
        with make(server, poolmin=3, healthcheck_idle=0.0) as pool:
            server.stop()
            for _ in range(5):
                with pytest.raises((OperationalError, NimuePoolTimeout)):
                    take(pool, timeout=0.5)
            server.start()

            def served() -> bool:
                try:
                    take(pool, timeout=5)
                except (OperationalError, NimuePoolTimeout):
                    return False
                return True

            until(served)
            held = [pool.getconnection(timeout=LONG) for _ in range(5)]
            assert server.open == 5
            for conn in held:
                conn.close()

    def test_up_to_poolmin_again(self, server: FakeServer) -> None:
        with make(server, poolmin=3, cleanup_interval=0.02, healthcheck_idle=0.0) as pool:
            take(pool)
            server.stop()
            until(lambda: pool.poolstats().poolsize == 0)
            server.start()
            until(lambda: pool.poolstats().poolfree == 3)
            assert server.open == 3

    def test_no_storm_during_an_outage(self, server: FakeServer) -> None:
        """Many requests in a row, and from many threads: the server is asked much less often."""
        with make(server) as pool:
            server.stop()
            requests = 0

            def ask() -> None:
                nonlocal requests
                for _ in range(40):
                    with pytest.raises((OperationalError, NimueNoConnectionAvailable)):
                        pool.getconnection(timeout=0.002)
                    requests += 1

            start = time.monotonic()
            for worker in [spawn(ask) for _ in range(8)]:
                worker.result(60)
            seconds = time.monotonic() - start
            assert requests == 320
            # Attempts go with the time that has passed, not with the requests. Full jitter makes
            # pauses of nothing too: so many in a row, even so, are out of the question.
            assert server.count("connect") <= 40 + 20 * seconds
            assert server.max_connecting <= 2

    def test_no_storm_by_the_refill(self, server: FakeServer) -> None:
        with make(server, poolmin=5, cleanup_interval=1000) as pool:
            take(pool)
            server.stop()
            pool.drain()
            until(lambda: pool.poolstats().failed >= 1 and not busy(pool))
            assert server.count("connect") <= 5 + 2 * 2
