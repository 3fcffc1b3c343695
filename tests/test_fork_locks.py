"""A fork at a bad moment of another thread, or from inside the pool's own calls."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings

import pytest

from nimue import NimueInheritedConnectionError, NimuePoolTimeout, upkeep, waiters
from nimue import fork as forks
from tests.children import Child, forked, in_script
from tests.fakes import FakeDriver, FakeServer, OperationalError, spawn, until
from tests.forking import ask, c_forked, end, kept, make_pool, said, serves
from tests.forking import forked as by_fork

HELD_UP = "while a connect() or close() has been under way"


@pytest.fixture(params=[by_fork, c_forked], ids=["fork", "C fork"])
def fork(request):
    return request.param


@contextlib.contextmanager
def held(lock):
    """Another thread holds the lock."""
    has_it, go_on = threading.Event(), threading.Event()

    def hold():
        with lock:
            has_it.set()
            assert go_on.wait(20)

    holder = spawn(hold)
    assert has_it.wait(10)
    try:
        yield
    finally:
        go_on.set()
        holder.result()


@contextlib.contextmanager
def hung_fork(fn):
    """Another thread's, in a hook of somebody else's that comes after ours."""
    hangs, go_on = threading.Event(), threading.Event()

    class Stuck:
        def before_fork(self, fork):
            hangs.set()
            assert go_on.wait(30)
            return False

    stuck = Stuck()
    forks.join(stuck)
    forking = spawn(forked, fn, expect_threads=True)
    try:
        assert hangs.wait(10)
        yield forking
    finally:
        del stuck
        go_on.set()
        forking.result()


def served(asking):
    """A waiting thread of the parent's was given a connection that answers."""
    handle = asking.result()
    assert ask(handle)
    handle.close()


class TestAnotherThread:
    def test_holds_the_pools_lock(self, socket_server, fork):
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        before = said(socket_server)
        with held(pool._state.lock):
            assert fork(serves, pool) > 2
        assert said(socket_server) == before
        handle.close()
        served(spawn(pool.getconnection))
        end(pool)

    def test_holds_the_lock_of_the_forks(self, socket_server):
        """Only a C fork can meet it held: a hook of Python's own takes it."""
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        with held(forks.registry_lock()):
            assert c_forked(serves, pool) > 2
        handle.close()
        end(pool)

    def test_waits(self, socket_server, fork):
        pool = make_pool(socket_server, poolmax=1)
        handle = pool.getconnection()
        asking = [spawn(pool.getconnection) for _ in range(2)]
        until(lambda: pool.poolstats().waiting == 2)
        before = said(socket_server)

        def child():
            assert pool.poolstats().waiting == 0
            return [serves(pool) for _ in range(3)]

        assert fork(child) == [2, 2, 2]
        assert said(socket_server) == before
        assert pool.poolstats().waiting == 2
        handle.close()
        for one in asking:
            served(one)
        end(pool)

    def test_begins_to_wait_during_the_fork(self, server):
        """The monitor is stopped and the gate shut, and still it is served after the fork."""
        pool = make_pool(server, poolmin=1)
        asked = []

        class Late:
            def before_fork(self, fork):
                asked.append(spawn(pool.getconnection))
                until(lambda: pool._state.waiters or asked[0].done)
                return False

            def sever(self, forker):
                pass

            def settle_in_child(self, forker):
                pass

        late = Late()
        forks.join(late)
        serves(pool)
        assert by_fork(serves, pool) > 1
        del late
        gc.collect()
        served(asked[0])
        end(pool)

    def test_is_about_to_be_connected(self, socket_server):
        """The fork waits for what is under way, so that no child inherits half a connection."""
        pool = make_pool(socket_server)
        with socket_server.hold("connect") as gate:
            asking = spawn(pool.getconnection)
            gate.arrived()

            def let_go():
                until(forks.is_near)
                gate.release()

            letting = spawn(let_go)
            before = by_fork(lambda: socket_server.connecting)
            letting.result()
        assert before == 0
        served(asking)
        end(pool)

    def test_looks_for_its_driver(self, socket_server, monkeypatch):
        """That imports a module, and a child would inherit half of it."""
        arrived, inside = threading.Event(), []

        def look(raw):
            inside.append(raw)
            arrived.set()
            until(forks.is_near)
            inside.clear()
            return FakeDriver()

        monkeypatch.setattr(upkeep, "driver_for", look)
        pool = make_pool(socket_server, driver=None)
        asking = spawn(pool.getconnection)
        assert arrived.wait(10)
        assert by_fork(lambda: len(inside)) == 0
        served(asking)
        end(pool)

    def test_hangs_in_connect(self, socket_server, fork, caplog):
        """The fork takes place all the same."""
        pool = make_pool(socket_server)
        with socket_server.hold("connect") as gate:
            asking = spawn(pool.getconnection)
            gate.arrived()
            assert fork(serves, pool) == 1
            assert not asking.done
            gate.release()
        assert (HELD_UP in caplog.text) == (fork is by_fork)
        served(asking)
        assert pool.poolstats().connecting == 0
        assert forked(serves, pool) == 2
        served(spawn(pool.getconnection))
        end(pool)

    def test_connects_in_vain(self, socket_server):
        """A connect() that fails during the fork leaves the opener as it was."""
        pool = make_pool(socket_server)
        with socket_server.hold("connect") as gate:
            asking = spawn(pool.getconnection)
            gate.arrived()
            assert by_fork(serves, pool) == 1
            socket_server.kill_all()
            socket_server.running = False
            gate.release()
        with pytest.raises(OperationalError, match="refused"):
            asking.result()
        socket_server.start()
        served(spawn(pool.getconnection))
        end(pool)

    def test_sets_a_connection_up(self, socket_server):
        """Connected, but not yet in the pool: an idle child must not pin it either."""
        pool = make_pool(socket_server, on_connect=ask)
        with socket_server.hold("execute") as gate:
            asking = spawn(pool.getconnection)
            gate.arrived()
            child = Child(time.sleep, 60, expect_threads=True)
            gate.release()
        handle = asking.result()
        handle.close()
        end(pool)
        assert child.alive
        until(socket_server.sessions[0].eof)
        child.signal()
        child.wait()

    @pytest.mark.parametrize("leave", ["os._exit", "sys.exit"])
    def test_executes(self, socket_server, fork, leave):
        pool = make_pool(socket_server, poolmin=2)
        handle = spawn(pool.getconnection).result()
        with socket_server.hold("execute", on=handle.raw) as gate:
            asking = spawn(ask, handle)
            gate.arrived()
            before = said(socket_server)
            assert fork(serves, pool, leave=leave) > 2
            assert said(socket_server) == before
        assert asking.result()
        handle.close()
        end(pool)

    def test_executes_on_what_the_forking_thread_took(self, socket_server, fork):
        """It was handed over: the driver's own lock is held, so the driver is not called."""
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        with socket_server.hold("execute", on=handle.raw) as gate:
            asking = spawn(ask, handle)
            gate.arrived()
            assert fork(serves, pool, leave="sys.exit") > 2
        assert asking.result()
        handle.close()
        end(pool)

    @pytest.mark.parametrize("step", ["rollback", "close"])
    def test_releases(self, socket_server, fork, step):
        options = {"max_lifetime": 1e-9} if step == "close" else {}
        pool = make_pool(socket_server, poolmin=2, **options)
        other = pool.getconnection()
        handle = spawn(pool.getconnection).result()
        handle.cursor().execute("select 1")
        with socket_server.hold(step, on=handle.raw) as gate:
            closing = spawn(handle.close)
            gate.arrived()
            assert fork(serves, pool, leave="sys.exit") > 2
        closing.result()
        other.close()
        assert serves(pool)
        end(pool)

    def test_closes_the_pool(self, socket_server, fork):
        pool = make_pool(socket_server, poolmin=2)
        handle = pool.getconnection()
        closing = spawn(pool.close)
        until(lambda: pool._state.is_shut)
        assert fork(lambda: pool.poolstats().poolsize) == 0
        handle.close()
        closing.result()
        assert socket_server.open == 0

    def test_checks(self, socket_server, fork):
        pool = make_pool(socket_server, poolmin=1, healthcheck_idle=0)
        with socket_server.hold("execute") as gate:
            asking = spawn(pool.getconnection)
            gate.arrived()
            before = said(socket_server)
            assert fork(lambda: pool.poolstats().inherited, leave="sys.exit") == 1
            # If that took long, the waiter has been given a second one meanwhile.
            assert said(socket_server)[:1] == before
        served(asking)
        end(pool)

    def test_forks_too(self):
        """In a script: filelock, once anybody has imported it, refuses two forks at once."""
        in_script(threads_that_fork)

    def test_forks_too_and_this_one_is_interrupted(self):
        """That finds what it had in hand, whoever lets the others go on."""
        in_script(interrupted_beside_a_fork)

    def test_hangs_in_its_own_fork(self, socket_server):
        """Others are held up for a moment, and no longer; and the child has nothing of theirs."""
        pool = make_pool(socket_server)
        kept = pool.getconnection()

        def child():
            stats = pool.poolstats()
            return stats.inherited, stats.severed

        with hung_fork(child) as forking:
            # The second attempt is the monitor's, which the fork has had end.
            socket_server.fail("connect", OperationalError("not now"), times=1)
            other = pool.getconnection(timeout=10)
            assert ask(kept)
            assert ask(other)
        assert forking.result() == (2, 2)
        kept.close()
        other.close()
        end(pool)

    def test_hangs_in_its_own_fork_while_the_pool_is_closed(self, socket_server):
        """What is dropped meanwhile is found, so the close comes to its end."""
        pool = make_pool(socket_server)
        handles = [pool.getconnection()]
        with hung_fork(os.getpid):
            closing = spawn(pool.close)
            until(lambda: pool._state.is_shut)
            # The fork's own watch for warnings is to have none of them.
            with pytest.warns(ResourceWarning) as seen:
                handles.clear()
                until(lambda: len(seen) > 0)
            closing.result()
        assert socket_server.open == 0

    def test_drops_its_handle(self, socket_server, fork):
        pool = make_pool(socket_server, poolmin=1)
        handles = [spawn(pool.getconnection).result() for _ in range(2)]
        handles.pop().close()
        with socket_server.hold("rollback") as gate, pytest.warns(ResourceWarning) as seen:
            handles[0].cursor().execute("select 1")
            handles.clear()
            gc.collect()
            gate.arrived()
            # It may come after the rollback begins, and the fork is watched for warnings.
            until(lambda: len(seen) > 0)
            assert fork(serves, pool) > 1
            gate.release()
            until(lambda: pool.poolstats().lost == 1)
            until(lambda: pool.poolstats().checking == 0)
        served(spawn(pool.getconnection))
        end(pool)


class TestThisThread:
    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_holds_a_connection(self, socket_server, fork, elsewhere):
        pool = make_pool(socket_server, poolmin=2)

        def work():
            with pool.connection() as conn:
                cursor = conn.cursor()
                cursor.execute("select ?", ["mine"])
                assert fork(serves, pool) > 2
                assert cursor.fetchall() == [("mine",)]

        spawn(work).result() if elsewhere else work()
        assert socket_server.count("commit") == 1
        end(pool)

    @pytest.mark.parametrize("hidden", [False, True])
    def test_is_inside_connect(self, socket_server, caplog, hidden):
        """The fork does not wait for its own thread."""
        results = []
        parent = os.getpid()

        def connect():
            if os.getpid() == parent:
                results.append(by_fork(serves, pool))
            return socket_server.connect()

        driver = FakeDriver(tells_socket=not hidden, hides_socket=hidden)
        pool = make_pool(socket_server, driver=driver)
        pool._state.apply(_with_connfunc(pool, connect))
        served(spawn(pool.getconnection))
        assert results == [1]
        assert HELD_UP not in caplog.text
        assert not forks.is_near()
        end(pool)

    def test_is_inside_the_constructor(self, socket_server, caplog):
        results = []
        parent = os.getpid()

        def connect():
            if os.getpid() == parent:
                results.append(forked(os.getpid))
            return socket_server.connect()

        pool = make_pool(socket_server, poolmin=2)
        end(pool)
        from nimue import NimueConnectionPool

        pool = NimueConnectionPool(connect, poolmin=2, poolmax=2, driver=FakeDriver())
        assert len(results) == 2
        assert HELD_UP not in caplog.text
        serves(pool)
        end(pool)

    @pytest.mark.parametrize("callback", ["healthcheck_callback", "on_connect", "on_return"])
    def test_is_inside_a_callback(self, socket_server, caplog, callback):
        results = []
        parent = os.getpid()

        def call(raw, *rest):
            if os.getpid() == parent:
                results.append(by_fork(serves, pool))
            return True

        pool = make_pool(socket_server, healthcheck_idle=0, **{callback: call})
        handle = pool.getconnection()
        handle.close()
        serves(pool)
        assert len(results) > 0
        assert HELD_UP not in caplog.text
        end(pool)

    def test_is_inside_the_lock(self, server):
        """A signal handler may fork anywhere, even while its own thread is in here."""
        pool = make_pool(server, poolmin=1)
        handle = pool.getconnection()
        with pool._state.lock:
            assert by_fork(serves, pool) > 1
        handle.close()
        end(pool)

    @pytest.mark.parametrize("lock", ["gate", "monitor", "registry"])
    def test_is_inside_another_lock(self, server, lock):
        """As above. If it hangs it hangs here, so a child plays the parent."""
        from nimue import monitor

        pool = make_pool(server, poolmin=1)

        def child():
            handle = pool.getconnection()
            locks = {
                "gate": forks._here.gate._lock,
                "monitor": monitor.here._lock,
                "registry": forks.registry_lock(),
            }
            with locks[lock]:
                assert by_fork(serves, pool) > 1
            handle.close()
            serves(pool)

        forked(child)
        end(pool)

    def test_waits_while_a_signal_handler_forks(self, socket_server, monkeypatch):
        """The child finds itself in the wait, gives up, and begins anew like any other."""
        monkeypatch.setattr(waiters, "NAP", 0.02)
        pool = make_pool(socket_server, poolmax=1)

        def parent():
            held, pids = spawn(pool.getconnection).result(), []
            signal.signal(signal.SIGALRM, lambda *_: pids.append(os.fork()))

            def strike():
                until(lambda: pool.poolstats().waiting == 1)
                os.kill(os.getpid(), signal.SIGALRM)

            striking = spawn(strike)
            with pytest.raises(NimuePoolTimeout):
                pool.getconnection(timeout=2.5)
            if pids == [0]:
                mine = pool.getconnection(timeout=5)
                pool.poolstats()
                os._exit(0 if ask(mine) else 1)
            striking.result()
            assert os.waitpid(pids[0], 0)[1] == 0
            held.close()

        forked(parent, expect_threads=True)
        end(pool)

    def test_forks_in_a_signal_handler(self, socket_server):
        """At any bytecode of acquire and release; again in a child, in case that it hangs."""
        # The fake's own code is interrupted too, and finds its connection busy.
        socket_server.allow.add("threads")
        pool = make_pool(socket_server, poolmin=1)

        def child():
            parent, statuses = os.getpid(), []

            def handler(number, frame):
                pid = os.fork()
                if pid == 0:
                    os._exit(0 if pool.poolstats().pid == os.getpid() else 1)
                statuses.append(os.waitpid(pid, 0)[1])
                signal.setitimer(signal.ITIMER_REAL, 0.005)

            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            while len(statuses) < 50:
                assert os.getpid() == parent
                serves(pool)
            signal.setitimer(signal.ITIMER_REAL, 0)
            serves(pool)
            pool.close()
            return set(statuses)

        assert forked(child, expect_threads=True) == {0}
        end(pool)


def threads_that_fork():
    server = FakeServer(sockets=True)
    pool = make_pool(server, poolmin=2)
    handle = pool.getconnection()

    def work():
        return [_raw_fork(lambda: serves(pool) > 2) for _ in range(10)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        workers = [spawn(work) for _ in range(3)]
        for worker in workers:
            assert worker.result(60) == [0] * 10
    handle.close()
    served(spawn(pool.getconnection))
    assert not forks.is_near()
    end(pool)
    server.verify()


class Lingering:
    """Is told of forks before the pool, and holds up those of other threads."""

    def __init__(self):
        self.arrived, self.go_on = threading.Event(), threading.Event()
        forks.join(self)

    def before_fork(self, fork):
        if threading.current_thread() is not threading.main_thread():
            self.arrived.set()
            assert self.go_on.wait(10)
        return False

    def fork_is_over(self, fork, cut_short): ...
    def sever(self, forker): ...
    def settle_in_child(self, forker): ...


def interrupted_beside_a_fork():
    server = FakeServer(sockets=True)
    server.allow.add("closed")  # cut short as the close returned, it is closed again
    slow = Lingering()
    pool = make_pool(server, poolmin=2, poolmax=2)
    pool.getconnection().close()
    until(lambda: len(pool._state.idle) == 2)
    close, told = upkeep._close, []
    sys.unraisablehook = lambda seen: told.append(repr(seen.exc_value))

    def interrupted(*args):
        close(*args)
        if threading.current_thread() is threading.main_thread():
            upkeep._close = close
            raise KeyboardInterrupt

    upkeep._close = interrupted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        other = spawn(_raw_fork, lambda: True)
        assert slow.arrived.wait(10)
        assert _raw_fork(lambda: True) == 0
        slow.go_on.set()
        assert other.result() == 0
    assert told == ["KeyboardInterrupt()"]
    held = [pool.getconnection(timeout=10) for _ in range(2)]
    assert server.open == len(pool._state.entries) == 2
    for conn in held:
        conn.close()
    assert not forks.is_near()
    end(pool)
    server.verify()


def _raw_fork(fn):
    """A fork as bare as it can be, for threads that fork at once; the child's exit code."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os._exit(0 if fn() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _with_connfunc(pool, connfunc):
    return pool._state.settings.changed(connfunc=connfunc)


class TestTheChildsOwnForks:
    def test_its_monitor_leaves_the_parents_state_alone(self, server, fork):
        """Which something may keep alive, and whose lock nobody may ever release."""
        pool = make_pool(server, poolmin=2)
        handle = pool.getconnection()
        state = pool._state

        def child():
            serves(pool)
            until(lambda: server.open_here == 2)  # it refills
            other = make_pool(server, poolmin=0)
            pool.poolmin = 3
            until(lambda: server.open_here == 3)
            assert serves(other) > 2
            return len(state.entries), len(state.idle)

        with held(state.lock):
            assert fork(child) == (0, 0)
        handle.close()
        end(pool)

    def test_owe_nothing_to_waiters_of_the_parent(self, server):
        """Their queue stays with the parent: no monitor is started on their behalf."""
        pool = make_pool(server, poolmax=1)
        handle = pool.getconnection()
        asking = spawn(pool.getconnection)
        until(lambda: pool.poolstats().waiting == 1)

        def child():
            serves(pool)
            forked(os.getpid)
            return [t.name for t in threading.enumerate() if t.name.startswith("nimue")]

        assert by_fork(child) == []
        handle.close()
        served(asking)
        end(pool)

    def test_owe_nothing_to_a_lock_of_the_parent(self, server):
        """A lock that nobody will ever release is not waited for at each of the child's forks."""
        pool = make_pool(server, poolmax=1)
        handle = pool.getconnection()
        state = pool._state

        def child():
            serves(pool)
            begin = time.monotonic()
            for _ in range(10):
                forked(os.getpid)
            return time.monotonic() - begin

        kept["state"] = state
        with held(state.lock):
            assert c_forked(child) < 8  # against 10 s of waiting for it
        kept.clear()
        handle.close()
        end(pool)


def test_a_log_of_the_forks(server, caplog):
    """What happened is told by the monitor, later: at the fork the log's own lock may be held."""
    caplog.set_level(logging.INFO, "nimue")
    pool = make_pool(server, poolmin=2)
    handle = pool.getconnection()
    parent = os.getpid()

    def child():
        caplog.clear()
        serves(pool)
        told = f"process {os.getpid()} inherited 2 connections of process {parent} and severed 0"
        until(lambda: told in caplog.text)

    forked(child)
    c_forked(child)
    with pytest.raises(NimueInheritedConnectionError):
        forked(handle.commit)
    handle.close()
    end(pool)
