"""The pool against a model of it, driven by hypothesis through what a program can do to a pool.

The model knows which raw connection each handle stands for and who waits in which order; the
server's own record says what is open. After each step the background threads are given the time
to end, and the invariants of the class's docstring are checked.

A longer run, of other cases each time: NIMUE_EXAMPLES=2000 pytest tests/test_model.py
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nimue import (
    NimueConnectionPool,
    NimueNoConnectionAvailable,
    NimuePoolClosedError,
    NimuePoolTimeout,
    monitor,
    opener,
    sweep,
)
from tests.children import forked
from tests.fakes import FakeDriver, FakeServer, OperationalError, Spawned, spawn, until

EXAMPLES = int(os.environ.get("NIMUE_EXAMPLES", "0"))
LONG = 10.0
LARGEST = 4

indices = st.integers(min_value=0, max_value=LARGEST - 1)


class Machine(RuleBasedStateMachine):
    """One thread acts; others only wait for a connection that it gives back."""

    pool: NimueConnectionPool

    def __init__(self) -> None:
        super().__init__()
        self.server = FakeServer()
        #: Each handle that is out, with the raw connection it stands for.
        self.held: list[tuple[Any, Any]] = []
        self.returned: list[Any] = []
        self.detached: list[Any] = []
        #: Those who wait, the oldest first, and what each was given.
        self.waiting: deque[tuple[Spawned, list[Any]]] = deque()
        self.highest = 0

    @initialize(
        poolmax=st.integers(1, LARGEST),
        part=st.integers(0, LARGEST),
        healthcheck_idle=st.sampled_from([0.0, 1000.0]),
        knows=st.booleans(),
    )
    def make(self, poolmax: int, part: int, healthcheck_idle: float, knows: bool) -> None:
        self.pool = NimueConnectionPool(
            self.server.connect,
            poolmin=min(part, poolmax),
            poolmax=poolmax,
            cleanup_interval=100_000,
            healthcheck_idle=healthcheck_idle,
            driver=FakeDriver(knows_transaction=knows),
        )
        self.state = self.pool._state
        self.highest = poolmax

    # What the model knows.

    @property
    def is_open(self) -> bool:
        return not self.state.is_shut

    @property
    def room(self) -> int:
        """How many more can be out."""
        return self.pool.poolmax - len(self.held)

    def quiet(self) -> None:
        """Wait until the background has nothing to do."""

        def still() -> bool:
            state = self.state
            with state.lock:
                busy = state.connecting or state.checking or state.closing
                busy = busy or any(thread.is_alive() for thread in list(state.crew))
                short = len(state.entries) < self.pool.poolmin
                planned = (state.refilling and short) or not state.next_cycle
                return not (busy or (planned and monitor.here.is_alive and self.is_open))

        until(still, LONG)

    def take_note(self, conn: Any) -> None:
        raw = conn.raw
        assert raw.closed == 0 or raw._session.killed
        assert all(raw is not other for _, other in self.held), "one connection, two holders"
        self.held.append((conn, raw))

    def settle_waiters(self) -> None:
        """Whoever can be served is served, the oldest first."""
        while self.waiting and (self.room > 0 or not self.is_open):
            thread, given = self.waiting.popleft()
            try:
                thread.result(LONG)
            except NimuePoolClosedError:
                assert not self.is_open
            else:
                assert self.is_open
                self.take_note(given[0])
        self.quiet()
        assert len(self.state.waiters) == len(self.waiting)

    def pick(self, index: int) -> tuple[Any, Any]:
        return self.held.pop(index % len(self.held))

    # Acquire.

    @rule()
    def acquire(self) -> None:
        if not self.is_open:
            with pytest.raises(NimuePoolClosedError):
                self.pool.getconnection(timeout=LONG)
        elif self.room > 0 and not self.waiting:
            self.take_note(self.pool.getconnection(timeout=LONG))
        else:
            with pytest.raises(NimuePoolTimeout):
                self.pool.getconnection(timeout=0.001)

    @rule(how=st.sampled_from([{"blocking": False}, {"timeout": 0}]))
    def acquire_at_once(self, how: dict[str, Any]) -> None:
        # One that the server has killed without the client's knowing passes for well.
        idle = len(self.state.idle)
        try:
            conn = self.pool.getconnection(**how)
        except NimuePoolClosedError:
            assert not self.is_open
        except NimueNoConnectionAvailable:
            assert not idle
        else:
            assert idle
            self.take_note(conn)

    @precondition(lambda self: self.is_open and self.room <= 0 and len(self.waiting) < 3)
    @rule()
    def wait(self) -> None:
        given: list[Any] = []
        thread = spawn(lambda: given.append(self.pool.getconnection(timeout=LONG)))
        self.waiting.append((thread, given))
        until(lambda: len(self.state.waiters) == len(self.waiting))

    @precondition(lambda self: self.waiting)
    @rule()
    def give_up(self) -> None:
        """The youngest waiter is interrupted; it is blocked, so it hears of it when served."""
        thread, given = self.waiting.pop()
        thread.interrupt(KeyboardInterrupt)
        waiter = list(self.state.waiters)[-1]
        waiter.ring()
        with pytest.raises(KeyboardInterrupt):
            thread.result()
        assert not given

    # Use and release.

    @precondition(lambda self: self.held)
    @rule(index=indices, sql=st.sampled_from(["SELECT 1", "BEGIN", "COMMIT", "ROLLBACK"]))
    def use(self, index: int, sql: str) -> None:
        conn, raw = self.held[index % len(self.held)]
        assert conn.raw is raw
        try:
            conn.cursor().execute(sql)
        except OperationalError:
            assert raw._session.killed

    @precondition(lambda self: self.held)
    @rule(index=indices)
    def release(self, index: int) -> None:
        conn, _ = self.pick(index)
        conn.close()
        self.returned.append(conn)
        self.settle_waiters()

    @precondition(lambda self: self.returned)
    @rule(index=indices)
    def close_again(self, index: int) -> None:
        conn = self.returned[index % len(self.returned)]
        before = self.pool.poolstats()
        conn.close()
        assert self.pool.poolstats() == before
        with pytest.raises(Exception, match="returned to the pool"):
            conn.cursor()

    @precondition(lambda self: self.held and self.is_open)
    @rule(index=indices)
    def drop(self, index: int) -> None:
        lost = self.pool.poolstats().lost
        conn, raw = self.pick(index)
        del conn, raw
        gc.collect()
        until(lambda: self.pool.poolstats().lost == lost + 1)
        self.settle_waiters()

    @precondition(lambda self: self.held)
    @rule(index=indices)
    def detach(self, index: int) -> None:
        conn, raw = self.pick(index)
        assert conn.detach() is raw
        self.detached.append(raw)
        self.returned.append(conn)
        self.settle_waiters()

    # Misfortune.

    @precondition(lambda self: self.held)
    @rule(index=indices)
    def kill_one_in_use(self, index: int) -> None:
        _, raw = self.held[index % len(self.held)]
        self.server.kill(raw)

    @rule()
    def kill_the_idle(self) -> None:
        """They are found dead by the next check, which each of them is due for."""
        with self.state.lock:
            for _, _, entry in self.state.idle:
                self.server.kill(entry.raw)
                entry.since = -1e9

    @rule(times=st.integers(1, 3))
    def connect_fails_for_a_while(self, times: int) -> None:
        """Whoever waits meanwhile is served in the end, or told so at once."""
        with self.server.fail("connect", OperationalError("no", sqlstate="08001"), times=times):
            if self.is_open and self.room > 0 and not self.waiting:
                try:
                    self.take_note(self.pool.getconnection(timeout=LONG))
                except OperationalError as error:
                    assert error.sqlstate == "08001"
            self.quiet()
        self.state.backoff.succeeded()

    # Settings and time.

    @rule(poolmin=st.integers(0, LARGEST), poolmax=st.integers(1, LARGEST))
    def set_limits(self, poolmin: int, poolmax: int) -> None:
        self.pool.poolmin = 0
        self.pool.poolmax = poolmax
        self.pool.poolmin = min(poolmin, poolmax)
        self.highest = max(poolmax, len(self.state.entries))
        self.settle_waiters()

    @precondition(lambda self: self.is_open)
    @rule(ahead=st.sampled_from([0.0, 100.0, 400.0]))
    def time_passes(self, ahead: float) -> None:
        """A round of the monitor at that time, with all that it asks for."""
        self.state.next_cycle = 0.0
        works, _ = sweep.sweep(self.state, time.monotonic() + ahead)
        opener.start(self.state, works)
        self.quiet()
        surplus = len(self.state.entries) - self.pool.poolmax
        assert surplus <= 0 or not self.state.idle
        assert len(self.state.entries) >= min(self.pool.poolmin, self.pool.poolmax)
        self.settle_waiters()

    @rule()
    def drain(self) -> None:
        old = [raw for _, raw in self.held]
        self.pool.drain()
        self.settle_waiters()
        assert all(raw.closed != 1 for raw in old), "one in use was closed"

    @precondition(lambda self: self.is_open and len(self.returned) > 3)
    @rule()
    def close(self) -> None:
        self.pool.close(timeout=0)
        self.settle_waiters()
        assert not self.state.idle
        assert self.server.open - len(self.live_detached()) <= len(self.held)

    # What is always true.

    def live_detached(self) -> list[Any]:
        return [raw for raw in self.detached if not raw._session.killed]

    @invariant()
    def everything_is_somewhere_once(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.quiet()
        state = self.state
        with state.lock:
            idle = [spare[2] for spare in state.idle]
            out = [conn._lease[0] for conn, _ in self.held]
            placed = [*state.connecting, *state.checking, *state.closing, *idle, *out]
            assert len(placed) == len(set(placed))
            assert set(placed) == state.entries
            assert not (idle and state.waiters)
        stats = self.pool.poolstats()
        assert stats.poolused == len(self.held)
        assert stats.waiting == len(self.waiting)
        assert stats.poolsize == stats.poolused + stats.poolfree + stats.checking
        assert stats.opened == self.server.opened
        assert len(state.entries) <= self.highest
        self.highest = max(self.pool.poolmax, len(state.entries))

    @invariant()
    def nothing_is_idle_above_poolmax(self) -> None:
        if hasattr(self, "pool") and monitor.here.is_alive:
            self.quiet()
            state = self.state
            assert not state.idle or len(state.entries) <= self.pool.poolmax

    @invariant()
    def pool_and_server_agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.quiet()
        known = {entry.raw._session.serial for entry in self.state.entries}
        open_ones = {session.serial for session in self.server.left_open()}
        detached = {raw.serial for raw in self.detached}
        killed = {session.serial for session in self.server.sessions if session.killed}
        assert known - killed == open_ones - detached
        assert all(conn.raw is raw for conn, raw in self.held)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for conn, _ in self.held:
                conn.close()
            self.held.clear()
            self.settle_waiters()
            while self.held:
                self.held.pop()[0].close()
                self.settle_waiters()
            self.pool.close(timeout=LONG)
            self.quiet()
            assert not self.state.entries
            for raw in self.live_detached():
                raw.rollback()
                raw.close()
        self.server.allow.add("transaction")
        self.server.verify()


def test_the_pool_is_as_its_model_says() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES or 20,
            stateful_step_count=40,
            derandomize=not EXAMPLES,
            deadline=None,
            database=None,
            # A step that fails by waiting in vain takes seconds: too long to try it smaller.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_lowered_poolmax_binds_those_that_come_back() -> None:
    """A case that the model's own runs come by only seldom."""
    server = FakeServer()
    pool = NimueConnectionPool(server.connect, poolmin=2, poolmax=2, driver=FakeDriver())
    held = [pool.getconnection() for _ in range(2)]
    pool.poolmin = pool.poolmax = 1
    until(lambda: pool._state.next_cycle)  # the round that this has asked for is over
    for conn in held:
        conn.close()
    until(lambda: pool.poolstats().poolsize == 1)
    assert server.open == 1
    pool.close()
    server.verify()


@pytest.mark.parametrize("out", [0, 2])
def test_a_child_starts_from_nothing_and_the_parent_goes_on(out: int) -> None:
    server = FakeServer(sockets=True)
    pool = NimueConnectionPool(server.connect, poolmin=2, poolmax=4, driver=FakeDriver())
    held = [pool.getconnection() for _ in range(out)]

    def child() -> tuple[int, int, int]:
        taken = [pool.getconnection(timeout=LONG) for _ in range(4)]
        used = pool.poolstats().poolused
        for conn in taken:
            conn.close()
        return used, pool.poolstats().opened, pool.poolstats().poolfree

    assert forked(child, expect_threads=True) == (4, 4, 4)
    for conn in held:
        conn.cursor().execute("SELECT 1")
        conn.close()
    again = [pool.getconnection(timeout=LONG) for _ in range(4)]
    assert server.open_here == len(pool._state.entries) == 4
    for conn in again:
        conn.close()
    pool.close()
    server.verify()
