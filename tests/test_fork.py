"""A child of ``os.fork`` has connections of its own; the parent's it neither uses nor ends."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time

import pytest

from nimue import NimueInheritedConnectionError, NimuePoolClosedError
from tests.children import Child, forked
from tests.fakes import FakeDriver, spawn, until
from tests.forking import ask, end, kept, make_pool, nimue_threads, said, serves

EXITS = ["os._exit", "sys.exit", signal.SIGTERM, signal.SIGKILL]


@pytest.fixture(autouse=True)
def _forget():
    kept.clear()
    yield
    kept.clear()


class TestChild:
    def test_connections_of_its_own(self, socket_server):
        pool = make_pool(socket_server, poolmin=3)
        handle = pool.getconnection()
        assert ask(handle)
        before = said(socket_server)

        def child():
            stats = pool.poolstats()
            return stats, [serves(pool) for _ in range(3)]

        stats, serials = forked(child)
        assert stats.pid != os.getpid()
        assert (stats.inherited, stats.severed) == (3, 3)
        assert (stats.poolsize, stats.poolused, stats.poolfree) == (0, 0, 0)
        assert (stats.opened, stats.closed, stats.lost, stats.timeouts) == (0, 0, 0, 0)
        assert (stats.poolmin, stats.poolmax) == (3, 5)
        assert min(serials) > 3
        assert said(socket_server) == before
        assert ask(handle)
        here = pool.poolstats()
        assert (here.pid, here.inherited, here.opened, here.poolused) == (os.getpid(), 0, 3, 1)
        handle.close()
        end(pool)

    @pytest.mark.parametrize("leave", EXITS)
    def test_silent_however_it_leaves(self, socket_server, leave):
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        other = spawn(pool.getconnection)
        elsewhere = other.result()
        kept["pool"], kept["handles"] = pool, [handle, elsewhere]
        before = said(socket_server)
        assert forked(serves, pool, leave=leave) > 2
        assert forked(kept.clear, leave=leave) is None
        assert said(socket_server) == before
        assert ask(handle)
        assert ask(elsewhere)
        handle.close()
        elsewhere.close()
        end(pool)

    def test_severed_before_any_use(self, socket_server):
        """The child only sleeps, yet holds no connection of its parent open."""
        pool = make_pool(socket_server, poolmin=3)
        handle = pool.getconnection()
        other = spawn(pool.getconnection).result()
        child = Child(time.sleep, 60)
        handle.close()
        other.close()
        pool.close()
        until(lambda: all(session.eof() for session in socket_server.sessions))
        assert socket_server.opened == 3
        assert child.alive
        child.signal()
        assert child.wait() == -signal.SIGKILL

    def test_entries_are_replaced(self, socket_server):
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        state, entries = pool._state, list(pool._state.entries)
        raws = [entry.raw for entry in entries]

        def child():
            assert pool.poolstats().poolsize == 0
            assert pool._state is not state
            assert pool._state.pid == os.getpid()
            assert pool._state.lock is not state.lock
            assert not state.entries
            for entry in entries:
                assert entry.state is None
                for use in (lambda e=entry: e.raw.close(), lambda e=entry: e.raw.fileno):
                    with pytest.raises(NimueInheritedConnectionError):
                        use()
            return [raw.severed() or raw._sock.fileno() < 0 for raw in raws]

        assert forked(child) == [True, True]
        assert pool._state is state
        handle.close()
        end(pool)

    def test_idle_and_own_ones_are_freed(self, socket_server):
        """Their memory and descriptors; another thread's can only be kept for ever."""
        driver = FakeDriver()
        pool = make_pool(socket_server, poolmin=3, driver=driver)
        mine, idle = pool.getconnection(), pool.getconnection()
        theirs = spawn(pool.getconnection).result()
        serials = {mine.serial, idle.serial}
        other = theirs.raw
        idle.close()

        def child():
            assert pool.poolstats().inherited == 3
            return set(driver.discarded), other.closed

        assert forked(child) == (serials, 0)
        assert driver.discarded == []
        for handle in (mine, theirs):
            assert ask(handle)
            handle.close()
        end(pool)

    def test_a_driver_that_refuses_to_let_go(self, socket_server, monkeypatch):
        driver = FakeDriver()
        pool = make_pool(socket_server, poolmin=2, driver=driver)
        handle = pool.getconnection()
        kept.update(pool=pool)

        def refuse(raw):
            raise RuntimeError("no")

        monkeypatch.setattr(driver, "discard", refuse)
        assert forked(serves, pool, leave="sys.exit") > 2
        handle.close()
        end(pool)

    def test_no_descriptor_left_for_severing(self, socket_server, monkeypatch):
        """Where nothing can be severed everything lives on, and the child serves."""
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        before = said(socket_server)
        real = os.open

        def full(path, flags, *rest, **options):
            if path == os.devnull and not flags & os.O_ACCMODE:
                raise OSError(24, "Too many open files")
            return real(path, flags, *rest, **options)

        def child():
            monkeypatch.undo()
            gc.collect()
            return pool.poolstats().severed, serves(pool)

        monkeypatch.setattr(os, "open", full)
        severed, serial = forked(child, leave="sys.exit")
        monkeypatch.undo()
        assert severed == 0
        assert serial > 2
        assert said(socket_server) == before
        assert ask(handle)
        handle.close()
        end(pool)

    def test_settings_hold(self, server):
        pool = make_pool(server, name="here")
        pool.poolmax = 2
        pool.poolmin = 1
        handle = pool.getconnection()

        def child():
            taken = [pool.getconnection() for _ in range(2)]
            assert len({handle.serial for handle in taken}) == 2
            with pytest.raises(TimeoutError, match="poolmax=2"):
                pool.getconnection(timeout=0.01)
            return pool.name, pool.poolmin

        assert forked(child) == ("here", 1)
        handle.close()
        end(pool)

    def test_refills_its_own(self, server):
        pool = make_pool(server, poolmin=3)
        handle = pool.getconnection()

        def child():
            serves(pool)
            until(lambda: server.open_here == 3)
            pool.close()
            return server.open_here

        assert forked(child) == 0
        assert server.open_here == 3
        handle.close()
        end(pool)

    def test_two_pools(self, socket_server, server):
        pools = make_pool(socket_server, poolmin=2), make_pool(server, poolmin=1)
        handles = [pool.getconnection() for pool in pools]
        before = said(socket_server)

        def child():
            return [(pool.poolstats().inherited, serves(pool) > 1) for pool in pools]

        assert forked(child) == [(2, True), (1, True)]
        assert said(socket_server) == before
        for handle, pool in zip(handles, pools, strict=True):
            assert ask(handle)
            handle.close()
            pool.close()

    def test_many_children_at_once(self, socket_server):
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        before = said(socket_server)
        for child in [Child(serves, pool) for _ in range(8)]:
            assert child.result() > 2
        assert said(socket_server) == before
        handle.close()
        end(pool)


class TestDescriptors:
    def test_a_stale_number_is_left_alone(self, socket_server, tmp_path):
        """The connection was closed behind the pool, and its number is a file's by now."""
        pool = make_pool(socket_server)
        handle = pool.getconnection()
        number = handle.raw._sock.fileno()
        handle.raw._sock.close()
        innocent = os.open(tmp_path / "innocent", os.O_RDWR | os.O_CREAT)
        if innocent != number:
            os.dup2(innocent, number)
            os.close(innocent)
        kept["pool"], kept["handle"] = pool, handle

        def child():
            os.write(number, b"still a file")
            return pool.poolstats().severed, serves(pool)

        assert forked(child, leave="sys.exit") == (0, 2)
        assert (tmp_path / "innocent").read_bytes() == b"still a file"
        handle.close()
        pool.close()
        os.close(number)

    def test_a_stale_number_of_another_socket(self, socket_server):
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        number = handle.raw._sock.fileno()
        handle.raw._sock.close()
        innocent, peer = socket.socketpair()
        if innocent.fileno() != number:
            os.dup2(innocent.fileno(), number)
            innocent.close()
            innocent = socket.socket(fileno=number)

        def child():
            innocent.sendall(b"hello")
            return pool.poolstats().severed, serves(pool) > 2

        assert forked(child) == (1, True)
        assert peer.recv(10) == b"hello"
        handle.close()
        pool.close()
        innocent.close()
        peer.close()

    @pytest.mark.parametrize("drop", [False, True])
    def test_an_unknown_one_lives_for_ever(self, socket_server, drop):
        """What cannot be severed must not be finalised either, at the interpreter's end neither."""
        pool = make_pool(socket_server, poolmin=2, driver=FakeDriver(tells_socket=False))
        handle = pool.getconnection()
        assert ask(handle)
        before = said(socket_server)
        kept["pool"], kept["handle"] = pool, handle
        del pool, handle

        def child():
            pool = kept["pool"]
            found = pool.poolstats().inherited, pool.poolstats().severed, serves(pool) > 2
            if drop:
                del pool
                kept.clear()
                gc.collect()
            return found

        assert forked(child, leave="sys.exit") == (2, 0, True)
        assert said(socket_server) == before
        assert ask(kept["handle"])
        kept["handle"].close()
        end(kept["pool"])

    def test_found_where_the_driver_hides_it(self, socket_server):
        driver = FakeDriver(tells_socket=False, hides_socket=True)
        # The fake opens both ends; the server's is hidden from the count as if it were elsewhere.
        pool = make_pool(socket_server, poolmin=1, driver=driver)
        entry = next(iter(pool._state.entries))
        assert entry.socket is None  # two new sockets could not be told apart
        handle = pool.getconnection()
        assert forked(lambda: (pool.poolstats().severed, serves(pool))) == (0, 2)
        handle.close()
        end(pool)


class TestParent:
    @pytest.mark.parametrize("leave", EXITS)
    def test_goes_on_in_a_transaction_and_a_result(self, socket_server, leave):
        pool = make_pool(socket_server)
        handle = pool.getconnection()
        cursor = handle.cursor()
        cursor.execute("select ?, ?", ["here", "now"])
        rows = iter(cursor)
        session = handle.raw._session
        assert session.in_transaction
        before = said(socket_server)
        forked(serves, pool, leave=leave)
        assert said(socket_server) == before
        assert session.in_transaction
        assert next(rows) == ("here", "now")
        cursor.execute("select 2")
        assert cursor.fetchone() == (1,)
        handle.commit()
        assert pool.poolstats().poolused == 1
        handle.close()
        assert serves(pool) == 1
        end(pool)

    def test_keeps_idle_connections_while_one_is_out(self, socket_server):
        pool = make_pool(socket_server, poolmin=3)
        handle = pool.getconnection()
        assert forked(lambda: pool.poolstats().inherited) == 3
        assert socket_server.open == 3
        assert {serves(pool) for _ in range(3)} <= {1, 2, 3}
        handle.close()
        assert socket_server.opened == 3
        end(pool)

    def test_an_idle_pool_goes_dormant(self, socket_server):
        pool = make_pool(socket_server, poolmin=3)
        serves(pool)
        assert nimue_threads()

        def child():
            gone = [session.goodbye for session in socket_server.sessions]
            return gone, socket_server.open, pool.poolstats(), nimue_threads()

        gone, still_open, stats, threads = forked(child)
        assert gone == [True] * 3  # so before the fork
        assert still_open == 0
        assert threads == []
        assert (stats.inherited, stats.severed) == (0, 0)
        assert nimue_threads() == []
        assert [session.received()[-1:] for session in socket_server.sessions] == [b"X"] * 3
        assert pool.poolstats().poolsize == 0
        assert pool.poolstats().closed == 3

        assert serves(pool) > 3
        assert "nimue-monitor" in nimue_threads()
        until(lambda: socket_server.open_here == 3)
        end(pool)

    def test_dormant_again_and_again(self, socket_server):
        pool = make_pool(socket_server, poolmin=2)
        for _ in range(5):
            serves(pool)
            until(lambda: pool.poolstats().poolfree == 2)
            assert forked(serves, pool) > socket_server.opened
            assert socket_server.open_here == 0
        end(pool)

    def test_an_unused_pool_starts_no_thread(self, socket_server):
        pool = make_pool(socket_server, poolmin=2)
        assert forked(serves, pool) > 2
        assert nimue_threads() == []
        assert socket_server.open_here == 0
        end(pool)

    def test_a_failing_goodbye_delays_nothing(self, socket_server):
        pool = make_pool(socket_server, poolmin=2)
        with socket_server.fail("close", OSError("reset by peer")):
            assert forked(lambda: (pool.poolstats().inherited, serves(pool) > 2)) == (0, True)
        assert pool.poolstats().poolsize == 0
        serves(pool)
        end(pool)

    def test_thread_locals_of_others_are_not_the_only_ones(self, socket_server):
        """A child finalises what only another thread's local holds before any hook of ours."""
        pool = make_pool(socket_server)
        local, ready, go_on = threading.local(), threading.Event(), threading.Event()

        def work():
            local.handle = pool.getconnection()
            ready.set()
            assert go_on.wait(10)
            assert ask(local.handle)
            local.handle.close()

        worker = spawn(work)
        assert ready.wait(10)
        before = said(socket_server)
        assert forked(serves, pool, expect_threads=True, leave="sys.exit") == 2
        assert said(socket_server) == before
        go_on.set()
        worker.result()
        end(pool)


class TestGenerations:
    def test_grandchildren(self, socket_server):
        pool = make_pool(socket_server, poolmin=1)
        handle = pool.getconnection()
        before = said(socket_server)

        def grandchild(child, origin, mine):
            stats = pool.poolstats()
            assert (stats.inherited, stats.severed, stats.pid) == (1, 1, os.getpid())
            for taken, where in ((mine, child), (handle, origin)):
                with pytest.raises(NimueInheritedConnectionError, match=f"process {where};"):
                    taken.cursor()
            return serves(pool)

        def child(origin):
            mine = pool.getconnection()
            assert ask(mine)
            here = said(socket_server)[1:]
            assert forked(grandchild, os.getpid(), origin, mine, leave="sys.exit") > 2
            assert said(socket_server)[1:] == here
            assert ask(mine)
            mine.close()
            return pool.poolstats().inherited

        assert forked(child, os.getpid()) == 1
        assert said(socket_server) == before
        assert ask(handle)
        handle.close()
        end(pool)

    def test_forked_again_before_any_use(self, socket_server):
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        before = said(socket_server)

        def child():
            assert forked(serves, pool, leave="sys.exit") > 2
            return pool.poolstats().inherited, serves(pool) > 2

        assert forked(child, leave="sys.exit") == (2, True)
        assert said(socket_server) == before
        assert ask(handle)
        handle.close()
        end(pool)

    def test_an_idle_grandchild_pins_nothing(self, socket_server):
        pool = make_pool(socket_server)
        handle = pool.getconnection()
        pipe, theirs = os.pipe()

        def child():
            os.write(theirs, str(Child(time.sleep, 60).pid).encode())
            time.sleep(60)

        with_grandchild = Child(child)
        grandchild = int(os.read(pipe, 100))
        handle.close()
        pool.close()
        until(socket_server.sessions[0].eof)
        assert with_grandchild.alive
        os.kill(grandchild, signal.SIGKILL)
        with_grandchild.signal()
        with_grandchild.wait()
        os.close(pipe)
        os.close(theirs)

    def test_a_pool_made_in_the_child(self, socket_server):
        def child():
            pool = make_pool(socket_server, poolmin=1)
            handle = pool.getconnection()
            assert forked(serves, pool) > 1
            assert ask(handle)
            handle.close()
            pool.close()
            return socket_server.open_here

        assert forked(child) == 0


class TestEnds:
    def test_closed_before_the_fork(self, server):
        pool = make_pool(server, poolmin=1)
        end(pool)

        def child():
            with pytest.raises(NimuePoolClosedError):
                pool.getconnection()
            pool.close()
            return pool.poolstats().poolsize

        assert forked(child) == 0

    def test_closed_in_the_child_alone(self, socket_server):
        pool = make_pool(socket_server, poolmin=1)
        handle = pool.getconnection()
        before = said(socket_server)

        def child():
            pool.close()
            with pytest.raises(NimuePoolClosedError):
                pool.getconnection()

        forked(child, leave="sys.exit")
        assert said(socket_server) == before
        handle.close()
        assert serves(pool) == 1
        end(pool)

    def test_close_in_the_child_waits_for_nobody_of_the_parent(self, server):
        pool = make_pool(server)
        handle = pool.getconnection()
        forked(pool.close)
        handle.close()
        end(pool)

    def test_nobody_waits_for_a_handle_of_a_pool_that_is_gone(self, server):
        """So no monitor is started on its behalf when the fork is over."""
        pool = make_pool(server)
        handle, state = pool.getconnection(), pool._state
        del pool
        gc.collect()
        until(lambda: state.is_shut)
        with state.lock:  # the monitor is through with it
            pass
        forked(int)
        assert "nimue-monitor" not in nimue_threads()
        handle.close()
        until(lambda: server.open == 0)

    def test_a_pool_that_is_gone_with_a_handle_out(self, socket_server):
        pool = make_pool(socket_server)
        handle = pool.getconnection()
        del pool
        gc.collect()
        before = said(socket_server)

        def child():
            with pytest.raises(NimueInheritedConnectionError):
                handle.cursor()
            handle.close()

        forked(child, leave="sys.exit")
        idle = Child(time.sleep, 60)
        assert said(socket_server) == before
        assert ask(handle)
        handle.close()
        until(lambda: socket_server.open == 0)
        until(socket_server.sessions[0].eof)
        idle.signal()
        idle.wait()

    def test_dropped_in_the_child(self, socket_server):
        """The pool, its handles and all they hold: silently, and the parent goes on."""
        kept["pool"] = make_pool(socket_server, poolmin=2)
        kept["handle"] = kept["pool"].getconnection()
        before = said(socket_server)

        def child():
            kept.clear()
            gc.collect()

        forked(child, leave="sys.exit")
        assert said(socket_server) == before
        assert ask(kept["handle"])
        kept["handle"].close()
        end(kept["pool"])
