"""The one background thread: when it runs, what it does in its rounds, and what outlives it."""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimuePoolTimeout, fork, monitor, opener
from nimue.callback import healthcheck_callback_std
from nimue.sweep import sweep
from tests import fakes
from tests.children import forked, in_script
from tests.fakes import FakeDriver, FakeServer, is_locked, spawn, until

HOUR = 3600.0


class Pool(NimueConnectionPool):
    """One whose ``with`` comes to an end although a test has failed inside it."""

    def __exit__(self, *exc_info: Any) -> None:
        self.close(timeout=10.0)


def make(server: FakeServer, **parameters: Any) -> NimueConnectionPool:
    given: dict[str, Any] = {"poolmin": 1, "poolmax": 4, "driver": FakeDriver(), **parameters}
    return Pool(server.connect, **given)


def monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nimue-monitor"]


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nimue")]


def round_at(pool: NimueConnectionPool, now: float) -> float:
    """One round of the pool as if it were ``now``; returns the time of the next."""
    works, wake_at = sweep(pool._state, now)
    opener.start(pool._state, works)
    return wake_at


def serials(server: FakeServer) -> set[int]:
    return {raw.serial for raw in server.connections}


class TestThread:
    """Each in an interpreter of its own, where no other test's pools are."""

    def test_none_before_first_use_and_one_for_all(self) -> None:
        in_script(_none_before_first_use_and_one_for_all)

    @pytest.mark.parametrize("used", [False, True])
    def test_a_pool_that_is_collected_leaves_nothing(self, used: bool) -> None:
        in_script(_a_pool_that_is_collected_leaves_nothing, used)

    @pytest.mark.parametrize("used", [False, True])
    def test_so_it_is_for_one_in_a_cycle(self, used: bool) -> None:
        in_script(_so_it_is_for_one_in_a_cycle, used)

    def test_one_collected_with_its_handles_out(self) -> None:
        in_script(_one_collected_with_its_handles_out)

    def test_one_collected_and_its_handle_dropped_later(self) -> None:
        in_script(_one_collected_and_its_handle_dropped_later)

    def test_one_collected_within_its_own_background_thread(self) -> None:
        in_script(_one_collected_within_a_background_thread)

    def test_pools_that_are_closed_leave_no_thread(self) -> None:
        in_script(_pools_that_are_closed_leave_no_thread)

    def test_is_restarted_when_found_dead(self) -> None:
        in_script(_is_restarted_when_found_dead)

    def test_starts_again_after_the_last_pool_and_the_next(self) -> None:
        in_script(_starts_again_after_the_last_pool_and_the_next)


def _none_before_first_use_and_one_for_all() -> None:
    server = FakeServer()
    before = threading.active_count()
    pools = [make(server, poolmin=2) for _ in range(3)]
    for pool in pools:
        pool.poolstats()
        pool.idle_timeout = 5
        repr(pool)
    assert threading.active_count() == before
    for pool in pools:
        pool.getconnection().close()
    (thread,) = monitors()
    assert thread.daemon
    until(lambda: threading.active_count() == before + 1)
    for pool in pools:
        pool.close()
    server.verify()


def _a_pool_that_is_collected_leaves_nothing(used: bool) -> None:
    server = FakeServer()
    pool = make(server, poolmin=3)
    if used:
        with closing(pool.getconnection()) as conn:
            conn.cursor().execute("INSERT")
        assert monitors()
    gone = weakref.ref(pool)
    gc.disable()
    del pool
    assert gone() is None
    until(lambda: server.open == 0)
    until(lambda: not ours(), message=lambda: str(ours()))
    assert all(session.goodbye for session in server.sessions)
    server.verify()


def _so_it_is_for_one_in_a_cycle(used: bool) -> None:
    server = FakeServer()
    pool = make(server, poolmin=3)
    if used:
        pool.getconnection().close()
    cycle: list[Any] = [pool]
    cycle.append(cycle)
    del cycle, pool
    gc.collect()
    until(lambda: server.open == 0)
    until(lambda: not ours(), message=lambda: str(ours()))
    server.verify()


def _one_collected_with_its_handles_out() -> None:
    server = FakeServer()
    pool = make(server, poolmin=2)
    conn = pool.getconnection()
    del pool
    until(lambda: server.open == 1)
    conn.cursor().execute("INSERT")
    conn.close()
    assert server.open == 0
    until(lambda: not ours(), message=lambda: str(ours()))
    server.verify()


def _one_collected_and_its_handle_dropped_later() -> None:
    import warnings

    warnings.simplefilter("ignore", ResourceWarning)
    server = FakeServer()
    pool = make(server, poolmin=2)
    conn = pool.getconnection()
    del pool
    until(lambda: server.open == 1)
    until(lambda: not ours() or time.sleep(0.01) or True)
    del conn
    until(lambda: server.open == 0)
    until(lambda: not ours(), message=lambda: str(ours()))
    gc.collect()
    server.verify()


def _one_collected_within_a_background_thread() -> None:
    server = FakeServer()
    pool = make(server, poolmin=0)
    with server.hold("connect") as gate:
        with pytest.raises(NimuePoolTimeout):
            pool.getconnection(timeout=0.01)
        gate.arrived(1)
        del pool
        gc.collect()
    until(lambda: server.opened == 1 and server.open == 0)
    until(lambda: not ours(), message=lambda: str(ours()))
    server.verify()


def _pools_that_are_closed_leave_no_thread() -> None:
    server = FakeServer()
    pools = [make(server) for _ in range(2)]
    for pool in pools:
        pool.getconnection().close()
    pools[0].close()
    assert monitors()
    pools[1].close()
    until(lambda: not ours(), message=lambda: str(ours()))
    server.verify()


def _is_restarted_when_found_dead() -> None:
    server = FakeServer()
    pool = make(server)
    pool.getconnection().close()
    for how in ("acquire", "release", "wait"):
        (thread,) = monitors()
        # SystemExit, because a thread ends of that without a word.
        ident = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
        pool.idle_timeout = 77
        until(lambda thread=thread: not thread.is_alive())
        if how == "wait":
            conns = [pool.getconnection() for _ in range(4)]
            with pytest.raises(NimuePoolTimeout):
                pool.getconnection(timeout=0.01)
            for conn in conns:
                conn.close()
        else:
            pool.getconnection().close()
        until(lambda: len(monitors()) == 1)
    # And it works: a lost handle is found.
    pool.close()
    server.verify()


def _starts_again_after_the_last_pool_and_the_next() -> None:
    server = FakeServer()
    for _ in range(3):
        pool = make(server)
        pool.getconnection().close()
        assert len(monitors()) == 1
        pool.close()
        del pool
        until(lambda: not monitors())
    server.verify()


class TestRounds:
    def test_idle_timeout_keeps_poolmin(self, server: FakeServer) -> None:
        with make(server, poolmin=2, poolinit=5, poolmax=5, idle_timeout=300) as pool:
            now = time.monotonic()
            round_at(pool, now + 290)
            assert pool.poolstats().poolsize == 5
            round_at(pool, now + 400)
            until(lambda: pool.poolstats().poolsize == 2)
            until(lambda: server.open == 2)
            assert pool.poolstats().connections_cleaned_idle == 3
            round_at(pool, now + 3000)
            until(lambda: pool.poolstats().poolfree == 2)
            assert server.opened == 5
            assert sum(session.goodbye for session in server.sessions) == 3

    def test_the_longest_unused_go_first(self, server: FakeServer) -> None:
        with make(server, poolmin=1, poolinit=4, idle_timeout=300, healthcheck_idle=HOUR) as pool:
            with closing(pool.getconnection()) as conn:
                last = conn.raw.serial
            round_at(pool, time.monotonic() + 400)
            until(lambda: serials(server) == {last})

    def test_one_in_use_is_not_idle(self, server: FakeServer) -> None:
        with make(server, poolmin=0, poolinit=2, idle_timeout=300) as pool:
            with closing(pool.getconnection()) as conn:
                round_at(pool, time.monotonic() + HOUR)
                until(lambda: server.open == 1)
                conn.cursor().execute("SELECT 1")
            assert server.open == 1

    def test_refill_to_poolmin(self, server: FakeServer) -> None:
        with make(server, poolmin=4, poolinit=4, poolmax=6) as pool:
            for conn in [pool.getconnection() for _ in range(3)]:
                conn.detach().close()
            assert pool.poolstats().poolsize == 1
            round_at(pool, time.monotonic() + 61)
            until(lambda: pool.poolstats().poolfree == 4)
            assert server.opened == 7

    def test_refill_goes_on_after_a_failure(self, server: FakeServer) -> None:
        with make(server, poolmin=3) as pool:
            for conn in [pool.getconnection() for _ in range(3)]:
                conn.detach().close()
            server.fail("connect", fakes.OperationalError("no"), times=2)
            now = time.monotonic()
            for n in range(1, 100):
                round_at(pool, now + 61 * n)
                if pool.poolstats().poolsize == 3:
                    break
                until(lambda: not pool.poolstats().connecting)
            until(lambda: pool.poolstats().poolfree == 3)

    def test_dead_ones_are_found_and_replaced(self, server: FakeServer) -> None:
        with make(server, poolmin=3, poolmax=5, healthcheck_idle=HOUR) as pool:
            first, second, third = server.connections
            server.kill(first)
            server.kill(third)
            round_at(pool, time.monotonic() + 61)
            until(lambda: pool.poolstats().connections_cleaned_dead == 2)
            until(lambda: pool.poolstats().poolfree == 3)
            assert serials(server) == {second.serial, 4, 5}

    def test_checks_run_outside_the_lock_one_after_the_other(self, server: FakeServer) -> None:
        with make(server, poolmin=3, healthcheck_idle=HOUR) as pool:
            with server.hold("execute") as gate:
                round_at(pool, time.monotonic() + 61)
                gate.arrived(1)
                assert not is_locked(pool._state)
                stats = pool.poolstats()
                assert (stats.checking, stats.poolfree) == (1, 2)
                pool.poolmax = 3
                # Who comes now is served by one that is not being checked.
                with closing(pool.getconnection(timeout=0)) as conn:
                    assert pool.poolstats().poolused == 1
                    assert conn.raw.serial in (1, 2, 3)
            until(lambda: pool.poolstats().poolfree == 3)
            assert server.opened == 3

    def test_a_check_does_not_make_a_connection_young(self, server: FakeServer) -> None:
        with make(server, poolmin=0, poolinit=2, idle_timeout=300) as pool:
            now = time.monotonic()
            round_at(pool, now + 61)
            until(lambda: server.count("execute") == 2 and pool.poolstats().poolfree == 2)
            round_at(pool, now + 302)
            until(lambda: server.open == 0)

    def test_each_interval_and_not_between(self, server: FakeServer) -> None:
        with make(server, poolmin=1, cleanup_interval=60) as pool:
            now = time.monotonic()
            start = pool.poolstats().cleanup_cycles
            wake_at = round_at(pool, now + 61)
            assert pool.poolstats().cleanup_cycles == start + 1
            assert wake_at <= now + 61 + 60
            round_at(pool, now + 90)
            assert pool.poolstats().cleanup_cycles == start + 1
            round_at(pool, now + 122)
            assert pool.poolstats().cleanup_cycles == start + 2

    def test_the_thread_itself_goes_its_rounds(self, server: FakeServer) -> None:
        with make(server, poolmin=0, poolinit=3, cleanup_interval=0.01, idle_timeout=0) as pool:
            pool.getconnection().close()
            until(lambda: pool.poolstats().cleanup_cycles >= 3)
            until(lambda: server.open == 0)

    def test_a_check_that_hangs_does_not_stop_it(self, server: FakeServer) -> None:
        with make(server, poolmin=2, poolmax=3, cleanup_interval=0.02) as pool:
            pool.getconnection().close()
            with server.hold("execute") as gate:
                gate.arrived(1)
                seen = pool.poolstats().cleanup_cycles
                until(lambda: pool.poolstats().cleanup_cycles > seen + 3)
                with make(server, poolmax=1) as other:
                    other.getconnection().close()
                    other.close()
            until(lambda: pool.poolstats().poolfree == 2)

    def test_a_close_that_hangs_does_not_stop_it(self, server: FakeServer) -> None:
        with (
            make(server, poolmin=1, poolinit=2, cleanup_interval=0.02, idle_timeout=0) as pool,
            server.hold("close") as gate,
        ):
            pool.getconnection().close()
            gate.arrived(1)
            seen = pool.poolstats().cleanup_cycles
            until(lambda: pool.poolstats().cleanup_cycles > seen + 3)

    def test_a_callback_that_raises_does_not_stop_it(self, server: FakeServer) -> None:
        def check(conn: Any, dbmodule: Any, logger: Any) -> bool:
            if conn.serial == 1:
                raise SystemError("what?")
            return healthcheck_callback_std(conn, dbmodule, logger)

        with make(server, poolmin=1, cleanup_interval=0.02, healthcheck_callback=check) as pool:
            pool.getconnection().close()
            until(lambda: serials(server) == {2})
            seen = pool.poolstats().cleanup_cycles
            until(lambda: pool.poolstats().cleanup_cycles > seen + 2)


class TestSetters:
    """What is set takes effect at once, though the next round may be an hour away."""

    def test_poolmin_raised(self, server: FakeServer) -> None:
        with make(server, poolmin=1, poolmax=8, cleanup_interval=HOUR) as pool:
            pool.getconnection().close()
            pool.poolmin = 5
            until(lambda: pool.poolstats().poolfree == 5)

    def test_poolmin_raised_before_the_first_use(self, server: FakeServer) -> None:
        with make(server, poolmin=0, poolmax=8, cleanup_interval=HOUR) as pool:
            pool.poolmin = 5
            until(lambda: pool.poolstats().poolfree == 5)

    def test_of_a_pool_that_is_not_used_now(self, server: FakeServer) -> None:
        """What else is set on one that a fork has sent to rest, or that is closed, wakes nobody."""
        with make(server, poolmin=1, poolmax=8, cleanup_interval=HOUR) as pool:
            pool.getconnection().close()
            forked(lambda: None)
            pool.timeout = 5
            assert not monitor.here.is_alive
        pool.poolmin = 3
        assert not monitor.here.is_alive

    def test_poolmin_raised_during_a_fork(self, server: FakeServer) -> None:
        arrived, go_on = threading.Event(), threading.Event()

        class Lingering:
            def before_fork(self, fork: Any) -> bool:
                arrived.set()
                return not go_on.wait(10)

            def fork_is_over(self, fork: Any, cut_short: bool) -> None: ...
            def sever(self, forker: int | None) -> None: ...
            def settle_in_child(self, forker: int | None) -> None: ...

        with make(server, poolmin=0, poolmax=8, cleanup_interval=HOUR) as pool:
            slow = Lingering()
            fork.join(slow)
            forking = spawn(lambda: forked(lambda: None, expect_threads=True))
            assert arrived.wait(10)
            pool.poolmin = 5
            go_on.set()
            forking.result()
            del slow
            until(lambda: pool.poolstats().poolfree == 5)

    def test_poolmax_lowered(self, server: FakeServer) -> None:
        with make(server, poolmin=1, poolinit=8, poolmax=8, cleanup_interval=HOUR) as pool:
            held = [pool.getconnection() for _ in range(3)]
            pool.poolmax = 2
            until(lambda: server.open == 3)
            for conn in held:
                conn.cursor().execute("SELECT 1")
                conn.close()
            until(lambda: server.open == 2)
            assert pool.poolstats().poolmax == 2
            assert pool.poolstats().poolfree == 2

    def test_poolmax_raised_serves_who_waits(self, server: FakeServer) -> None:
        with make(server, poolmax=1, cleanup_interval=HOUR) as pool, closing(pool.getconnection()):
            asking = spawn(pool.getconnection)
            until(lambda: pool.poolstats().waiting == 1)
            pool.poolmax = 2
            asking.result().close()

    def test_idle_timeout_shortened(self, server: FakeServer) -> None:
        with make(server, poolmin=1, poolinit=4, cleanup_interval=HOUR) as pool:
            pool.getconnection().close()
            pool.idle_timeout = 0
            until(lambda: server.open == 1)

    def test_cleanup_interval_shortened(self, server: FakeServer) -> None:
        with make(server, cleanup_interval=HOUR) as pool:
            pool.getconnection().close()
            pool.cleanup_interval = 0.01
            seen = pool.poolstats().cleanup_cycles
            until(lambda: pool.poolstats().cleanup_cycles > seen + 5)


def take(pool: NimueConnectionPool) -> Any:
    return pool.getconnection()


def caller(pool: NimueConnectionPool) -> Any:
    return take(pool)


class TestLeaks:
    def test_are_reported_once_with_the_stack_and_followed_up(
        self, server: FakeServer, caplog: Any
    ) -> None:
        with make(server, leak_timeout=60.0) as pool:
            conn = caller(pool)
            now = time.monotonic()
            round_at(pool, now + 30)
            assert caplog.text == ""
            for seconds in (70, 80, 200):
                round_at(pool, now + seconds)
            (report,) = [r for r in caplog.records if "has been out" in r.getMessage()]
            told = report.getMessage()
            assert report.levelname == "WARNING"
            assert pool.name in told
            for function in (take, caller):
                assert (
                    f"line {function.__code__.co_firstlineno + 1}, in {function.__name__}" in told
                )
            assert f"{__file__}:{take.__code__.co_firstlineno + 1}" in told
            assert "getconnection" not in told.splitlines()[-2]
            caplog.clear()
            conn.close()
            (report,) = [r for r in caplog.records if r.levelname == "WARNING"]
            assert "came back after" in report.getMessage()
            assert f"{__file__}:{take.__code__.co_firstlineno + 1}" in report.getMessage()
            caplog.clear()
            take(pool).close()
            assert "came back" not in caplog.text

    def test_the_thread_itself_reports(self, server: FakeServer, caplog: Any) -> None:
        with make(server, leak_timeout=0.02) as pool, closing(pool.getconnection()):
            until(lambda: "has been out" in caplog.text)

    def test_none_without_the_setting(self, server: FakeServer, caplog: Any) -> None:
        with make(server) as pool, closing(pool.getconnection()):
            round_at(pool, time.monotonic() + 10 * HOUR)
            assert "has been out" not in caplog.text

    def test_the_next_holder_is_reported_anew(self, server: FakeServer, caplog: Any) -> None:
        with make(server, poolmax=1, leak_timeout=60.0) as pool:
            for _ in range(2):
                with closing(take(pool)):
                    round_at(pool, time.monotonic() + 61)
            assert len([r for r in caplog.records if "has been out" in r.getMessage()]) == 2


def _in_a_master_of_uwsgi() -> None:
    monitor.is_uwsgi_master = lambda: True
    monitor.HUSH = 0.05
    logging.getLogger("nimue").addHandler(logging.NullHandler())


def _dozes() -> None:
    _in_a_master_of_uwsgi()
    server = FakeServer()
    with make(server, poolmin=2) as pool:
        pool.getconnection().close()
        until(lambda: not server.open and not monitors())
        pool.getconnection().close()  # and whoever needs it has it again
        assert server.open
        until(lambda: not server.open and not monitors())


def _sees_to_what_was_dropped() -> None:
    _in_a_master_of_uwsgi()
    server = FakeServer()
    with make(server, poolmin=0) as pool:
        pool.getconnection()
        until(lambda: not server.open and not monitors())
        assert pool.poolstats().poolsize == 0


@pytest.mark.parametrize("does", [_dozes, _sees_to_what_was_dropped])
def test_in_a_master_of_uwsgi_it_lets_go_of_what_is_idle_and_ends(does: Callable[[], None]) -> None:
    """Such a master forks in C at any time, and each of this thread's turns is a danger to that."""
    in_script(does)
