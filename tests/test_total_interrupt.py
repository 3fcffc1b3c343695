"""What is cut short under ``totalmax`` leaves nothing taken: no permit, no wish, no file."""

from __future__ import annotations

import gc
import os
import sys
import time

import pytest

from nimue import (
    NimueNoConnectionAvailable,
    NimuePoolClosedError,
    NimuePoolTimeout,
    SharedSemaphore,
    goodbye,
    monitor,
    totalmax,
)
from nimue.semaphore import names
from tests.children import Child, in_script
from tests.fakes import FakeServer, OperationalError, ctrl_c_when, spawn, until
from tests.forking import ask, end, make_pool, serves
from tests.semaphores import Board
from tests.test_interrupt import STRIDE, Blow
from tests.test_total import held, shared

#: A permit that an interrupt drops comes back with a warning, which is right.
pytestmark = pytest.mark.filterwarnings("ignore:a permit was dropped:ResourceWarning")


@pytest.fixture
def others():
    """A semaphore of the same name, all of whose permits somebody outside the pool has."""
    semaphore = SharedSemaphore("shared", 2)
    permits = [semaphore.acquire() for _ in range(2)]
    yield permits
    for permit in permits:
        permit.give_back()
    semaphore.close()


def few(server, **options):
    return shared(server, totalmax=2, **options)


def waits(pool):
    """Whether this process is seen as one that waits for a permit."""
    return bool(pool._state.limit.semaphore.snapshot().waiters)


def rests(pool):
    state = pool._state
    return not (waits(pool) or state.waiters or state.connecting or state.checking or state.closing)


def acquire_and_be_interrupted(pool, giving):
    """As soon as ``giving`` is done, before or after the connection has come."""
    signalling = ctrl_c_when(lambda: giving.done)
    try:
        pool.getconnection(timeout=20).close()
        until(lambda: signalling.done)
        time.sleep(0.01)
    except KeyboardInterrupt:
        pass
    signalling.result()
    giving.result()


class TestWaiter:
    def test_ctrl_c(self, server, others):
        pool = few(server)
        signalling = ctrl_c_when(lambda: waits(pool))
        with pytest.raises(KeyboardInterrupt):
            pool.getconnection(timeout=20)
        signalling.result()
        until(lambda: rests(pool))
        assert (server.opened, held()) == (0, 2)
        others.pop().give_back()
        assert serves(pool)
        assert (server.opened, held()) == (1, 2)
        end(pool)

    def test_ctrl_c_as_the_permit_comes(self, server, others):
        """Wherever it hits, what comes too late serves the next, or goes back."""
        pool = few(server)
        for n in range(30):
            mine = others.pop()

            def give_back(permit=mine, n=n):
                until(lambda: waits(pool))
                time.sleep(n / 30_000)
                permit.give_back()

            giving = spawn(give_back)
            acquire_and_be_interrupted(pool, giving)
            until(lambda: rests(pool))
            for entry in list(pool._state.entries):
                assert entry.permit is not None
            assert held() == 1 + len(pool._state.entries)
            pool.drain()
            until(lambda: held() == 1)
            others.append(SharedSemaphore("shared").acquire(5))
        end(pool)

    def test_a_timeout_is_kept(self, server, others):
        pool = few(server)
        late = []
        for seconds in (0.05, 0.1, 0.2, 0.0):
            begun = time.monotonic()
            with pytest.raises(NimueNoConnectionAvailable):
                pool.getconnection(timeout=seconds)
            late.append(time.monotonic() - begun - seconds)
        # One of them may have met a busy machine.
        assert sorted(late)[-2] < 0.05
        end(pool)

    def test_many_timeouts_at_once(self, server, others):
        pool = few(server)
        asking = [spawn(pool.getconnection, timeout=0.1) for _ in range(10)]
        for each in asking:
            with pytest.raises(NimuePoolTimeout) as told:
                each.result()
            assert f"2 by process {os.getpid()}" in str(told.value)
        until(lambda: rests(pool))
        end(pool)


class TestWithdrawnWish:
    def test_who_gives_up_is_no_longer_seen(self, server, others, monkeypatch):
        """At once, and not only when the thread that waits for a permit looks again by itself."""
        pool = few(server)
        look_seldom(monkeypatch)
        with pytest.raises(NimuePoolTimeout):
            pool.getconnection(timeout=0.1)
        until(lambda: not waits(pool), 1)
        assert (server.opened, pool.poolstats().waiting) == (0, 0)
        end(pool)

    def test_nor_who_was_interrupted(self, server, others, monkeypatch):
        pool = few(server)
        look_seldom(monkeypatch)
        signalling = ctrl_c_when(lambda: waits(pool))
        with pytest.raises(KeyboardInterrupt):
            pool.getconnection(timeout=20)
        signalling.result()
        until(lambda: not waits(pool), 1)
        end(pool)

    def test_nor_who_was_served_by_another_thread(self, server, others, monkeypatch):
        pool = few(server)
        others.pop().give_back()
        handle = pool.getconnection()
        look_seldom(monkeypatch)
        asking = spawn(pool.getconnection, timeout=20)
        until(lambda: waits(pool))
        handle.close()
        served = asking.result()
        until(lambda: not waits(pool), 1)
        served.close()
        assert pool.poolstats().opened == 1
        end(pool)

    def test_nor_the_waiters_of_a_pool_that_is_closed(self, server, others, monkeypatch):
        pool = few(server)
        look_seldom(monkeypatch)
        asking = spawn(pool.getconnection, timeout=20)
        until(lambda: waits(pool))
        pool.close()
        with pytest.raises(NimuePoolClosedError):
            asking.result()
        until(lambda: not waits(pool), 1)
        end(pool)

    def test_the_others_shed_nothing_for_it(self, socket_server):
        pool, board = few(socket_server), Board()

        def child():
            handles = [pool.getconnection() for _ in range(2)]
            board[0] = 1
            board.until(1, 1)
            for handle in handles:
                assert ask(handle)
                handle.close()
            return pool.poolstats()

        running = Child(child)
        board.until(0, 1)
        with pytest.raises(NimuePoolTimeout):
            pool.getconnection(timeout=0.1)
        until(lambda: not waits(pool))
        board[1] = 1
        stats = running.result()
        assert (stats.shed, stats.poolsize) == (0, 2)
        end(pool)


def look_seldom(monkeypatch):
    """Whoever waits for a permit looks again when it is told to."""
    from nimue.semaphore import waiter

    monkeypatch.setattr(waiter, "LOOK_AGAIN", 5.0)
    monkeypatch.setattr(waiter, "NAP", 5.0)
    monkeypatch.setattr(totalmax, "TICK", 60.0)


class TestClose:
    def test_during_a_wait_for_a_permit(self, server, others):
        pool = few(server)
        asking = [spawn(pool.getconnection, timeout=20) for _ in range(3)]
        until(lambda: pool.poolstats().waiting == 3 and waits(pool))
        begun = time.monotonic()
        pool.close()
        for each in asking:
            with pytest.raises(NimuePoolClosedError):
                each.result()
        assert time.monotonic() - begun < 5
        until(lambda: rests(pool))
        until(lambda: not any(thread.is_alive() for thread in list(pool._state.crew)))
        assert (server.opened, held()) == (0, 2)

    def test_a_pool_that_is_dropped_meanwhile(self, server, others):
        pool = few(server)
        semaphore = pool._state.limit.semaphore
        with pytest.raises(NimuePoolTimeout):
            pool.getconnection(timeout=0.05)
        crew = list(pool._state.crew)
        del pool
        gc.collect()
        until(lambda: not semaphore.snapshot().waiters)
        until(lambda: not any(thread.is_alive() for thread in crew))
        assert (server.opened, held()) == (0, 2)


class TestConstructor:
    def test_ctrl_c_between_two_connections(self, server):
        with server.hold("connect") as gate:
            signalling = ctrl_c_when(lambda: gate.waiting == 1 and server.opened == 1)
            gate.release(1)
            with pytest.raises(KeyboardInterrupt):
                interrupted_at(gate, lambda: few(server, poolmin=2))
        signalling.result()
        until(lambda: server.open == 0)
        until(lambda: held() == 0)
        assert serves_again(server)

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.parametrize("kind", ["calls", "opcodes"])
    def test_at_any_point(self, server, kind):
        """But as ``connect()`` returns: what it returned is dropped by the interpreter then."""
        server.allow.add("dropped")
        server.may_leave_open = True

        def is_clean():
            return not server.connections and not semaphore.snapshot().holders

        n, landed, semaphore = 1, 0, SharedSemaphore("shared", 2)
        with Blow(kind, sys.maxsize, KeyboardInterrupt):
            # From Python 3.12 on, a function is traced by opcodes from its second call on.
            end(few(server, poolmin=2))
        while True:
            pool = None
            with Blow(kind, n, KeyboardInterrupt) as blow:
                try:
                    pool = few(server, poolmin=2)
                except KeyboardInterrupt:
                    pass
            if blow.landed is None:
                break
            landed += 1
            where = f"{n}: {blow.landed}"
            if pool is not None:
                end(pool)
            until(lambda: is_clean() or gc.collect() < 0, message=where)
            n += STRIDE * 7 if kind == "opcodes" else 5
        end(pool)
        assert landed > 30
        assert serves_again(server)
        until(lambda: not semaphore.snapshot().holders)
        semaphore.close()


def interrupted_at(gate, make):
    try:
        make()
    finally:
        gate.release()


def serves_again(server):
    pool = few(server)
    served = serves(pool)
    end(pool)
    return served


def named(n):
    """Two in turn: one without a name, and one with its own."""
    return None, f"pool-{n}"


def descriptors():
    """How many are open; the monitor, which has some, ends with the last pool."""
    monitor.wake()
    until(lambda: not monitor.here.is_alive)
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def make_close_and_count(use):
    server = FakeServer()
    end(make_pool(server))
    before = descriptors()
    for n in range(50):
        for name in named(n):
            pool = make_pool(server, name=name, totalmax=3, poolmin=1)
            if use:
                assert serves(pool)
            end(pool)
    del pool
    until(lambda: descriptors() <= before + 2)  # the monitor may be at one of them still
    server.verify()
    return descriptors() - before, names()


def make_drop_and_count(use):
    server = FakeServer()
    end(make_pool(server))
    before = descriptors()
    for n in range(50):
        for name in named(n):
            pool = make_pool(server, name=name, totalmax=3, poolmin=1)
            if use:
                assert serves(pool)
            del pool
    # The threads that close them are about to end.
    until(lambda: descriptors() <= before + 2)
    server.verify()
    return descriptors() - before, names()


def fail_and_count():
    server = FakeServer()
    end(make_pool(server))
    before = descriptors()
    server.fail("connect", lambda: OperationalError("no route"))
    for n in range(50):
        for name in named(n):
            with pytest.raises(OperationalError):
                make_pool(server, name=name, totalmax=3, poolmin=1)
    return descriptors() - before, names()


class TestNothingIsLeft:
    """No descriptor, but the two by which the monitor is rung; and no file of an unnamed one."""

    @pytest.mark.parametrize("use", [False, True])
    @pytest.mark.parametrize("make", [make_close_and_count, make_drop_and_count])
    def test_of_pools_that_have_ended(self, make, use):
        more, found = in_script(make, use)
        assert more <= 2
        assert found == sorted(f"pool-{n}" for n in range(50))
        assert all(held(name) == 0 for name in ("pool-1", "pool-49"))

    def test_of_pools_that_could_not_be_made(self):
        more, found = in_script(fail_and_count)
        assert more <= 2
        assert found == sorted(f"pool-{n}" for n in range(50))

    def test_of_those_dropped_before_their_first_connection(self, server):
        """Where no thread looks after them, the next one takes their files along."""
        for _ in range(20):
            make_pool(server, totalmax=3)
        gc.collect()
        pool = make_pool(server, totalmax=3)
        until(lambda: names() == [pool._state.limit.semaphore.name])
        end(pool)
        until(lambda: names() == [])

    def test_of_the_closed_ones_that_the_collector_leaves_lying(self, server):
        """The monitor does not go round them again and again."""
        gc.disable()
        try:
            other = make_pool(server)
            assert serves(other)
            for _ in range(5):
                pool = make_pool(server, totalmax=3)
                assert serves(pool)
                end(pool)
            until(lambda: pool._state not in goodbye.guests())
            assert other._state in goodbye.guests()
            end(other)
        finally:
            gc.enable()

    def test_of_one_whose_last_thread_ends_after_its_close(self, server):
        """It tells the others of its last change when the pool has left them already."""
        pool = make_pool(server, totalmax=3)
        state = pool._state
        assert serves(pool)
        end(pool)
        until(lambda: names() == [])
        state.limit.tell(state)
        until(lambda: names() == [])


def test_a_turn_that_is_interrupted_comes_back(server, monkeypatch):
    monkeypatch.setattr(totalmax, "TURN_PATIENCE", 20.0)
    semaphore = SharedSemaphore("shared", 2)
    turn = semaphore.family.try_connecting(1)
    signalling = ctrl_c_when(lambda: semaphore.snapshot().held == 1)
    with pytest.raises(KeyboardInterrupt):
        few(server, poolmin=1, max_connecting_total=1)
    signalling.result()
    assert server.opened == held() == 0
    assert semaphore.snapshot().connecting == 1
    turn.give_back()
    pool = few(server, poolmin=1, max_connecting_total=1)
    assert semaphore.snapshot().connecting == 0
    end(pool)
