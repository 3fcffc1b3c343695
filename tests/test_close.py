"""The end of a pool: by ``close()``, in order or not, and at the end of the process."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
import threading
import time
from _thread import get_ident
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimuePoolClosedError
from tests import fakes, servers
from tests.children import forked, in_script
from tests.fakes import FakeDriver, FakeServer, ctrl_c_when, spawn, until

#: A bound that no working close() comes near.
SOON = 10.0


def make(server: FakeServer, **parameters: Any) -> NimueConnectionPool:
    given: dict[str, Any] = {"poolmin": 1, "poolmax": 4, "driver": FakeDriver(), **parameters}
    return NimueConnectionPool(server.connect, **given)


def is_shut(pool: NimueConnectionPool) -> bool:
    with pytest.raises(NimuePoolClosedError) as caught:
        pool.getconnection(timeout=0)
    assert pool.name in str(caught.value)
    return True


class TestClose:
    def test_closes_what_is_idle_politely(self, server: FakeServer) -> None:
        pool = make(server, poolmin=3)
        pool.getconnection().close()
        pool.close()
        assert server.open == 0
        assert all(session.goodbye for session in server.sessions)
        stats = pool.poolstats()
        assert (stats.poolsize, stats.poolfree, stats.poolused) == (0, 0, 0)
        assert stats.closed == 3

    @pytest.mark.parametrize("used", [False, True])
    def test_refuses_from_then_on(self, server: FakeServer, used: bool) -> None:
        pool = make(server)
        if used:
            pool.getconnection().close()
        pool.close()
        for ask in (
            pool.getconnection,
            lambda: pool.getconnection(blocking=False),
            lambda: pool.getconnection(timeout=None),
            lambda: pool.connection().__enter__(),
        ):
            with pytest.raises(NimuePoolClosedError, match="is closed"):
                ask()
        assert server.opened == 1

    def test_wakes_who_waits(self, server: FakeServer) -> None:
        pool = make(server, poolmax=1)
        conn = pool.getconnection()
        waiting = [spawn(pool.getconnection, timeout=None) for _ in range(3)]
        until(lambda: pool.poolstats().waiting == 3)
        closer = spawn(pool.close)
        errors = set()
        for waiter in waiting:
            with pytest.raises(NimuePoolClosedError, match="closed during the wait") as caught:
                waiter.result()
            errors.add(caught.value)
        assert len(errors) == 3  # each its own
        assert not closer.done
        conn.close()
        closer.result()

    def test_waits_for_borrowers_without_bound(self, server: FakeServer) -> None:
        pool = make(server, poolmin=3)
        conns = [pool.getconnection() for _ in range(2)]
        closer = spawn(pool.close)
        until(lambda: server.open == 2)
        for conn in conns:
            assert not closer.done
            conn.cursor().execute("SELECT 1")
            conn.commit()
            conn.close()
        closer.result()
        assert server.open == 0

    def test_waits_no_longer_than_told_and_closes_later_what_comes_later(
        self, server: FakeServer
    ) -> None:
        pool = make(server, poolmin=2)
        conn = spawn(pool.getconnection).result()
        start = time.monotonic()
        pool.close(timeout=0.05)
        assert time.monotonic() - start < SOON
        assert server.open == 1
        conn.cursor().execute("INSERT")
        conn.close()
        assert server.open == 0
        assert server.sessions[conn_serial(server)].goodbye

    @pytest.mark.parametrize("timeout", [None, 0.2, 0.01, 0])
    def test_tells_for_whom_it_waits(
        self, server: FakeServer, caplog: Any, monkeypatch: Any, timeout: float | None
    ) -> None:
        monkeypatch.setattr("nimue.ending.PATIENCE", 0.05)
        with make(server) as other:  # of which nothing is out
            other.getconnection().close()
        pool = make(server, poolmin=3)
        conns = [pool.getconnection() for _ in range(3)]
        closer = spawn(pool.close, timeout)
        waits = [0.05] if timeout is None else [0.05, timeout] if timeout > 0.05 else [timeout]

        def told() -> list[str]:
            return [line for line in caplog.messages if "close() has waited" in line]

        until(lambda: len(told()) == len(waits))
        for conn in conns:
            conn.close()
        closer.result()
        for line, seconds in zip(told(), waits, strict=True):
            assert line.startswith(f"pool {pool.name!r}: close() has waited {seconds:.1f} s; 3 of ")
            assert line.count(" s by ") == 3
            assert __file__ in line

    def test_names_nobody_that_it_does_not_wait_for(
        self, server: FakeServer, caplog: Any, monkeypatch: Any
    ) -> None:
        pool = make(server)
        others, closed = [], threading.Event()

        def hold() -> None:
            others.append(pool.getconnection())
            closed.wait(SOON)

        holding = spawn(hold)
        until(lambda: others)
        mine = pool.getconnection()
        pool.close(timeout=0.01)
        closed.set()
        holding.result()
        told = r"; 1 of its connections are still out; held longest: \S+ s by "
        assert re.search(told, caplog.text)
        for conn in (mine, *others):
            conn.close()

    def test_shows_in_the_repr(self, server: FakeServer) -> None:
        pool = make(server)
        assert "closed" not in repr(pool)
        pool.close()
        assert repr(pool) == (
            f"<NimueConnectionPool {pool.name!r}: closed, 0 connections, 0 idle, poolmax=4>"
        )

    def test_timeout_zero_waits_for_nobody(self, server: FakeServer) -> None:
        pool = make(server)
        conn = spawn(pool.getconnection).result()
        pool.close(timeout=0)
        assert is_shut(pool)
        conn.close()

    def test_is_idempotent(self, server: FakeServer) -> None:
        pool = make(server)
        for _ in range(3):
            pool.close()
            pool.close(timeout=1)
        assert server.count("close") == 1

    def test_a_second_waits_as_well(self, server: FakeServer) -> None:
        pool = make(server)
        conn = pool.getconnection()
        spawn(pool.close, timeout=0).result()
        before = len(pool._state.leavers)
        closers = [spawn(pool.close) for _ in range(2)]
        until(lambda: len(pool._state.leavers) == before + 2)
        assert not any(closer.done for closer in closers)
        conn.close()
        for closer in closers:
            closer.result()

    def test_two_threads_at_once(self, server: FakeServer) -> None:
        for _ in range(25):
            pool = make(server, poolmin=2)
            pool.getconnection().close()
            start = threading.Barrier(3)

            def close(pool: Any = pool, start: threading.Barrier = start) -> None:
                start.wait(10)
                pool.close()

            closers = [spawn(close) for _ in range(3)]
            for closer in closers:
                closer.result()
            assert server.open == 0

    def test_while_many_borrow(self, server: FakeServer) -> None:
        def borrow(pool: NimueConnectionPool) -> int:
            n = 0
            try:
                while True:
                    with closing(pool.getconnection()) as conn:
                        conn.cursor().execute("SELECT 1")
                    n += 1
            except NimuePoolClosedError:
                return n

        for _ in range(10):
            pool = make(server, poolmax=2)
            borrowers = [spawn(borrow, pool) for _ in range(4)]
            seen = server.count("execute")
            until(lambda seen=seen: server.count("execute") > seen + 20)
            pool.close()
            for borrower in borrowers:
                borrower.result()
            # A connect() that was under way is not waited for; it is closed when it arrives.
            until(lambda: server.open == 0)

    def test_by_a_thread_that_holds_a_connection(self, server: FakeServer, caplog: Any) -> None:
        pool = make(server)
        conn = pool.getconnection()
        closer = threading.Timer(SOON, conn.close)
        closer.start()
        try:
            start = time.monotonic()
            pool.close()
            assert time.monotonic() - start < SOON
        finally:
            closer.cancel()
        assert "closed by a thread that holds 1 of its connections" in caplog.text
        conn.cursor().execute("SELECT 1")
        conn.close()
        assert server.open == 0

    def test_by_such_a_thread_it_still_waits_for_the_others(self, server: FakeServer) -> None:
        pool = make(server)
        mine = pool.getconnection()
        other = spawn(pool.getconnection).result()
        over = threading.Event()

        def give_back() -> None:
            until(lambda: pool._state.leavers)
            over.set()
            other.close()

        giving = spawn(give_back)
        pool.close()
        assert over.is_set()
        giving.result()
        mine.close()

    def test_a_thread_taken_for_a_dead_one_is_warned(self, server: FakeServer, caplog: Any) -> None:
        # The number of a thread that has ended may be given to the next, which then counts as the
        # holder of what that one took. Nobody hangs, nothing is lost, and it is not silent.
        pool = make(server)
        holder = spawn(pool.getconnection)
        conn = holder.result()
        closer = spawn(pool.close)
        if closer.thread.ident == holder.thread.ident:
            closer.result()
            assert "closed by a thread that holds 1" in caplog.text
        conn.close()
        closer.result()
        assert server.open == 0

    def test_while_a_connect_hangs(self, server: FakeServer) -> None:
        pool = make(server, poolmin=0)
        with server.hold("connect") as gate:
            asking = spawn(pool.getconnection)
            gate.arrived(1)
            closer = spawn(pool.close)
            closer.result()
            with pytest.raises(NimuePoolClosedError):
                asking.result()
        until(lambda: server.opened == 1 and server.open == 0)
        assert server.sessions[0].goodbye

    def test_while_a_check_hangs(self, server: FakeServer) -> None:
        pool = make(server, healthcheck_idle=0)
        with server.hold("execute") as gate:
            asking = spawn(pool.getconnection)
            gate.arrived(1)
            closer = spawn(pool.close)
            with pytest.raises(NimuePoolClosedError):
                asking.result()
            closer.result()
        until(lambda: server.open == 0)

    def test_what_close_of_a_connection_raises_stays_within(self, server: FakeServer) -> None:
        pool = make(server, poolmin=3)
        server.fail("close", fakes.OperationalError("no"), times=2)
        pool.close()
        assert pool.poolstats().poolsize == 0

    def test_ctrl_c_during_the_wait(self, server: FakeServer) -> None:
        pool = make(server)
        conn = spawn(pool.getconnection).result()
        interrupter = ctrl_c_when(lambda: pool._state.leavers)
        with pytest.raises(KeyboardInterrupt):
            pool.close()
        interrupter.result()
        assert is_shut(pool)
        closer = spawn(pool.close)
        conn.close()
        closer.result()

    def test_a_dropped_handle_lets_it_go_on(self, server: FakeServer) -> None:
        pool = make(server)
        holding = [pool.getconnection()]
        closer = spawn(pool.close)
        until(lambda: pool._state.leavers)
        holding.clear()
        closer.result()
        assert server.open == 0

    def test_a_fork_leaves_somebody_to_hear_of_a_dropped_handle(self, server: FakeServer) -> None:
        pool = make(server)
        holding = [pool.getconnection()]
        closer = spawn(pool.close)
        until(lambda: pool._state.leavers)
        forked(os.getpid, expect_threads=True)
        holding.clear()
        closer.result()
        assert server.open == 0

    def test_waits_for_what_a_thread_took_whose_number_is_its_own_now(
        self, server: FakeServer
    ) -> None:
        """Who closes is not taken for the holder because it has an ended thread's number."""
        pool = make(server)
        conn = spawn(lambda: pool.getconnection(timeout=SOON)).result()
        (entry,) = (entry for entry in pool._state.entries if entry.thread)
        closer = spawn(lambda: (setattr(entry, "thread", get_ident()), pool.close()))
        until(lambda: pool._state.leavers)
        conn.close()
        closer.result()
        assert server.open == 0

    def test_a_broken_one_lets_it_go_on(self, server: FakeServer) -> None:
        pool = make(server)
        conn = pool.getconnection()
        closer = spawn(pool.close)
        until(lambda: pool._state.leavers)
        server.kill_all()
        conn.close()
        closer.result()

    def test_nothing_is_opened_in_place_of_what_was_closed(self, server: FakeServer) -> None:
        pool = make(server, poolmin=2, cleanup_interval=0.01)
        pool.getconnection().close()
        pool.close()
        pool.poolmin = 3
        pool.drain()
        pool.close()
        assert server.opened == 2


def conn_serial(server: FakeServer) -> int:
    """The index of the session that was open last."""
    return max(
        range(len(server.sessions)), key=lambda n: server.sessions[n].thread.startswith("nimue")
    )


class TestWith:
    def test_closes_and_waits(self, server: FakeServer) -> None:
        over = threading.Event()

        def give_back() -> None:
            until(lambda: pool._state.leavers)
            over.set()
            conn.close()

        with make(server) as pool:
            conn = spawn(pool.getconnection).result()
            giving = spawn(give_back)
        assert over.is_set()
        assert server.open == 0
        giving.result()

    def test_closes_after_an_exception_which_goes_on(self, server: FakeServer) -> None:
        with pytest.raises(LookupError), make(server) as pool:
            raise LookupError
        assert is_shut(pool)
        assert server.open == 0

    def test_gives_the_pool(self, server: FakeServer) -> None:
        pool = make(server)
        with pool as entered:
            assert entered is pool


# The end of the process. What happens then is written to a file, for nobody is left to ask.


class Noted(fakes.Connection):
    """Notes its birth and its polite end in a file."""

    path = ""

    def note(self, word: str) -> None:
        with open(self.path, "a") as file:
            file.write(f"{word} {self.serial} {os.getpid()}\n")

    def close(self) -> None:
        super().close()
        self.note("bye")


HELD: list[Any] = []


@functools.cache
def own_server() -> FakeServer:
    """That of the script."""
    return FakeServer()


def connect_noted() -> Any:
    raw = own_server().connect()
    raw.__class__ = Noted
    raw.note("hello")
    return raw


def _noted_pool(path: str, **parameters: Any) -> NimueConnectionPool:
    Noted.path = path
    given: dict[str, Any] = {"poolmin": 3, "driver": FakeDriver(), **parameters}
    return NimueConnectionPool(connect_noted, **given)


def _words(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"hello": [], "bye": []}
    for line in path.read_text().splitlines():
        word, serial, _ = line.split()
        found[word].append(serial)
    return found


def _exit_unused(path: str) -> None:
    HELD.append(_noted_pool(path))


def _exit_used(path: str) -> None:
    HELD.append(_noted_pool(path))
    with closing(HELD[0].getconnection()) as conn:
        conn.cursor().execute("INSERT")


def _exit_with_a_pool_in_a_global_of_main(path: str) -> None:
    import __main__

    __main__.pool = _noted_pool(path)
    __main__.pool.getconnection().close()


def _exit_with_a_local_pool(path: str) -> None:
    pool = _noted_pool(path)
    pool.getconnection().close()


def _exit_in_a_cycle(path: str) -> None:
    pool = _noted_pool(path)
    pool.getconnection().close()
    cycle: list[Any] = [pool]
    cycle.append(cycle)


def _work_on(path: str) -> None:
    pool = _noted_pool(path)
    HELD.append(pool)

    def work() -> None:
        while True:
            try:
                with closing(pool.getconnection()) as conn:
                    conn.cursor().execute("SELECT 1")
            except NimuePoolClosedError:
                return

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    until(lambda: own_server().count("execute") > 20)


def _exit_with_one_that_nothing_finalises(path: str) -> None:
    sys.modules.pop("multiprocessing.util", None)  # which would have goodbyes said as well
    pool = _noted_pool(path)
    pool.getconnection().close()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))


def _exit_with_many_pools(path: str) -> None:
    for _ in range(4):
        HELD.append(_noted_pool(path, poolmin=2))
        HELD[-1].getconnection().close()


ENDS = [fn for name, fn in sorted(globals().items()) if name.startswith("_exit_")]


class TestExit:
    @pytest.mark.parametrize("end", ENDS, ids=lambda fn: fn.__name__[6:])
    def test_everything_says_goodbye_and_nothing_is_told(self, end: Any, tmp_path: Path) -> None:
        path = tmp_path / "noted"
        in_script(end, str(path))
        words = _words(path)
        assert len(words["hello"]) >= 3
        assert sorted(words["bye"]) == sorted(words["hello"])

    def test_with_threads_at_work(self, tmp_path: Path) -> None:
        path = tmp_path / "noted"
        in_script(_work_on, str(path), timeout=20)
        words = _words(path)
        assert set(words["bye"]) <= set(words["hello"])

    def test_with_one_out_it_does_not_wait(self, tmp_path: Path) -> None:
        path = tmp_path / "noted"
        in_script(_hold_one_out, str(path), timeout=20)
        words = _words(path)
        assert len(words["hello"]) == 3
        assert len(words["bye"]) >= 2

    def test_while_a_connect_hangs(self, tmp_path: Path) -> None:
        path = tmp_path / "noted"
        in_script(_hang_in_connect, str(path), timeout=20)
        words = _words(path)
        assert words["bye"] == words["hello"]
        assert len(words["hello"]) == 1

    @pytest.mark.server
    @pytest.mark.parametrize("driver", servers.POSTGRES_DRIVERS)
    def test_real_ones(self, postgres: servers.Postgres, driver: str) -> None:
        pytest.importorskip(driver)
        assert in_script(_use_real, postgres.connector(driver)) == (3, 1)
        postgres.expect_sessions(0)


def _hold_one_out(path: str) -> None:
    HELD.append(_noted_pool(path))
    HELD.append(HELD[0].getconnection())


def _hang_in_connect(path: str) -> None:
    pool = _noted_pool(path, poolmin=1, poolmax=2)
    HELD.append(pool)
    gate = own_server().hold("connect")
    HELD.append(gate)
    conn = pool.getconnection()
    try:
        pool.getconnection(timeout=0.01)
    except TimeoutError:
        pass
    gate.arrived(1)
    conn.close()


def _use_real(connect: Any) -> tuple[int, int]:
    pool = NimueConnectionPool(connect, poolmin=3)
    HELD.append(pool)
    with closing(pool.getconnection()) as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT 1")
        (answer,) = cursor.fetchone()
    return pool.poolstats().poolfree, answer
