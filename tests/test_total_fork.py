"""Forks of all kinds under ``totalmax``: permits belong to who took them, and to nobody else."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings

import pytest

from nimue import NimueConnectionPool, NimuePoolTimeout, NimueSemaphoreLost, SharedSemaphore, fork
from nimue.semaphore import Family, names
from tests import fakes
from tests.children import Child, gone, in_process, in_script
from tests.fakes import spawn, until
from tests.forking import ask, c_child, end, kept, make_pool, nimue_threads, serves
from tests.forking import forked as forked_among_threads
from tests.semaphores import Board
from tests.test_total import held, shared


def children_of(pool, permits):
    """How many permits each living holder has, this process's own first."""
    holders = pool._state.limit.semaphore.snapshot().holders
    found = {holder.pid: holder.count for holder in holders if not holder.is_dead}
    assert sum(found.values()) == permits
    return found


@pytest.fixture(params=["fork", "C fork"])
def child(request):
    """Start a child, by a fork with Python's hooks or without."""

    def start(fn, *args, **options):
        if request.param == "C fork":
            return c_child(fn, *args, **options)
        return Child(fn, *args, expect_threads=True, **options)

    return start


class TestWhatIsUnderWay:
    def test_an_opener_waits_for_a_permit(self, socket_server, child):
        pool, board = shared(socket_server, totalmax=2), Board()
        out = [pool.getconnection() for _ in range(2)]
        asking = spawn(pool.getconnection, timeout=30)
        until(lambda: SharedSemaphore("shared").snapshot().waiters)

        def in_child():
            assert pool.poolstats().waiting == pool.poolstats().connecting == 0
            board[0] = 1
            handle = pool.getconnection(timeout=15)
            assert ask(handle)
            handle.close()
            pool.close()
            return held()

        running = child(in_child)
        board.until(0, 1)
        out.pop().close()
        served = asking.result()
        assert ask(served)
        served.close()
        out.pop().close()
        assert running.result() <= 2
        assert serves(pool)
        end(pool)
        assert held() == 0

    def test_connections_are_out(self, socket_server, child):
        pool = shared(socket_server)
        out = [pool.getconnection() for _ in range(2)]

        def in_child():
            mine = pool.getconnection(timeout=10)
            with pytest.raises(NimuePoolTimeout) as told:
                pool.getconnection(timeout=0.1)
            seen = children_of(pool, 3)
            mine.close()
            return seen, str(told.value)

        running = child(in_child)
        seen, told = running.result()
        assert seen == {os.getpid(): 2, running.pid: 1}
        assert f"2 by process {os.getpid()}" in told
        until(lambda: held() == 2)
        assert all(ask(handle) for handle in out)
        for handle in out:
            handle.close()
        end(pool)

    def test_handles_that_a_child_gives_back_are_not_its_own(self, socket_server, child):
        pool = shared(socket_server, totalmax=2)
        out = [pool.getconnection() for _ in range(2)]

        def in_child():
            for handle in out:
                handle.close()
            with pytest.raises(NimuePoolTimeout):
                pool.getconnection(timeout=0.1)
            return held()

        assert child(in_child).result() == 2
        assert all(ask(handle) for handle in out)
        for handle in out:
            handle.close()
        end(pool)

    def test_the_child_wants_what_the_parent_has_idle(self, socket_server):
        """The parent goes on with what it holds, and neither acquires nor releases any more."""
        pool = shared(socket_server)
        handles = [pool.getconnection() for _ in range(3)]
        handles.pop().close()
        handles.pop().close()

        def in_child():
            return serves(pool)

        assert forked_among_threads(in_child)
        assert ask(handles[0])
        handles.pop().close()
        end(pool)

    def test_the_child_wants_what_the_parent_gives_back(self, socket_server):
        pool, board = shared(socket_server, totalmax=1), Board()
        handle = pool.getconnection()

        def in_child():
            board[0] = 1
            return serves(pool, 15)

        running = Child(in_child, expect_threads=True)
        until(lambda: SharedSemaphore("shared").snapshot().waiters)
        handle.close()
        assert running.result()
        end(pool)


class TestPreloadingMaster:
    def test_it_goes_dormant(self, socket_server):
        pool = shared(socket_server, poolmin=2)
        assert serves(pool)
        until(lambda: "nimue-monitor" in nimue_threads())

        def in_child():
            handles = [pool.getconnection(timeout=10) for _ in range(3)]
            seen = children_of(pool, 3)
            for handle in handles:
                handle.close()
            end(pool)
            return seen

        for _ in range(3):
            running = Child(in_child)
            assert not nimue_threads()
            assert pool.poolstats().poolsize == 0
            assert running.result() == {running.pid: 3}
        assert held() == 0
        assert serves(pool)
        end(pool)

    def test_its_row_says_so(self, socket_server):
        """Else it would be asked for idle connections, and listens to nobody."""
        pool = shared(socket_server, poolmin=2)
        assert serves(pool)
        family = pool._state.limit.semaphore.family
        until(lambda: [(row.has_idle, row.figures.idle) for row in family.rows()] == [(True, 2)])

        def in_child():
            (row,) = (row for row in family.rows() if row.pid == os.getppid())
            return row.has_idle, row.figures.idle

        assert Child(in_child).result() == (False, 0)
        end(pool)

    def test_it_attaches_to_nothing_on_the_way(self, socket_server, monkeypatch):
        """Another thread may be at that, and itself be waiting for the fork to be over."""
        pool = shared(socket_server, poolmin=2)
        assert serves(pool)
        attaching = []

        def attach(family):
            if fork.is_near() and threading.current_thread() is threading.main_thread():
                attaching.append(os.getpid())
            raise NimueSemaphoreLost("not now")

        with monkeypatch.context() as patch:
            patch.setattr(Family, "_join", attach)
            running = Child(int)
        assert not attaching
        running.result()
        end(pool)

    def test_one_that_has_never_acquired(self, socket_server):
        pool = shared(socket_server, poolmin=3)
        running = Child(serves, pool)
        assert not nimue_threads()
        assert running.result()
        assert held() == 0
        end(pool)

    def test_the_interpreter_has_nothing_to_warn_of(self):
        assert in_script(preload_and_fork) == []


def preload_and_fork():
    server = fakes.FakeServer(sockets=True)
    pool = shared(server, name=None, poolmin=2)
    said = []
    for _ in range(20):
        assert serves(pool)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            pid = os.fork()
        if pid == 0:
            serves(pool)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        said += [str(warning.message) for warning in seen]
    end(pool)
    return said


def _fail(*_):
    raise NimueSemaphoreLost("the files are closed")


class TestHowChildrenLeave:
    @pytest.mark.parametrize("leave", ["sys.exit", "os._exit", signal.SIGKILL, signal.SIGTERM])
    def test_their_permits_are_free(self, socket_server, child, leave):
        pool = shared(socket_server)

        def in_child():
            kept["out"] = [pool.getconnection() for _ in range(2)]
            pool.getconnection().close()
            assert held() == 3

        if leave == "sys.exit":
            # What was out is dropped with the interpreter.
            socket_server.may_leave_open = True
            socket_server.allow.add("dropped")
        child(in_child, leave=leave).result()
        handles = [pool.getconnection(timeout=5) for _ in range(3)]
        assert children_of(pool, 3) == {os.getpid(): 3}
        for handle in handles:
            handle.close()
        end(pool)

    def test_with_nothing_to_say(self, socket_server, child):
        """Who comes last to the files of a pool that was closed tells nobody."""
        pool = shared(socket_server)
        parents = pool._state

        def leave():
            told = []
            limits = logging.getLogger("nimue")
            limits.addFilter(lambda record: told.append(record.getMessage()))
            pool.getconnection().close()
            pool.close()
            pool._state.limit._attempt(lambda: _fail(parents))
            return told

        with child(leave) as one:
            assert one.result() == []
        end(pool)

    def test_none_of_the_parents_is_given_back_by_it(self, socket_server, child):
        pool = shared(socket_server)
        out = [pool.getconnection() for _ in range(2)]
        for leave in ("sys.exit", "os._exit", signal.SIGKILL):
            child(lambda: None, leave=leave).result()
            assert held() == 2
        assert all(ask(handle) for handle in out)
        for handle in out:
            handle.close()
        end(pool)

    def test_a_parents_permits_are_not_pinned_by_its_child(self, socket_server, child):
        """It was killed; its child lives on with all that it has inherited."""
        pool, board = shared(socket_server), Board()

        def grandchild():
            board[1] = os.getpid()
            board.until(2, 1)

        def parent():
            kept["out"] = [pool.getconnection() for _ in range(3)]
            child(grandchild)
            board[0] = 1
            time.sleep(60)

        running = Child(parent)
        board.until(0, 1)
        board.until(1, 1)
        assert held() == 3
        running.signal(signal.SIGKILL)
        running.wait()
        assert not gone(board[1])
        handles = [pool.getconnection(timeout=5) for _ in range(3)]
        assert held() == 3
        board[2] = 1
        until(lambda: gone(board[1]))
        for handle in handles:
            handle.close()
        end(pool)

    def test_nor_by_one_that_uses_the_pool_itself(self, socket_server):
        pool, board = shared(socket_server), Board()

        def grandchild():
            board[1] = os.getpid()
            handle = pool.getconnection(timeout=15)
            board[3] = 1
            board.until(2, 1)
            handle.close()
            pool.close()

        def parent():
            kept["out"] = [pool.getconnection() for _ in range(3)]
            Child(grandchild, expect_threads=True)
            board[0] = 1
            time.sleep(60)

        running = Child(parent)
        board.until(0, 1)
        until(lambda: SharedSemaphore("shared").snapshot().waiters)
        running.signal(signal.SIGKILL)
        running.wait()
        board.until(3, 1)
        handles = [pool.getconnection(timeout=5) for _ in range(2)]
        assert children_of(pool, 3) == {board[1]: 1, os.getpid(): 2}
        board[2] = 1
        until(lambda: gone(board[1]))
        for handle in handles:
            handle.close()
        end(pool)


class Picklable(fakes.FakeDriver):
    def __init__(self):
        super().__init__(fakes)


_servers = {}


def connect():
    """To this process's own server."""
    server = _servers.setdefault(os.getpid(), fakes.FakeServer())
    return server.connect()


def use_all(pool, count):
    """In another process: take so many, hear that there are no more, and give them back."""
    handles = [pool.getconnection(timeout=10) for _ in range(count)]
    with pytest.raises(NimuePoolTimeout) as told:
        pool.getconnection(timeout=0.1)
    total = pool.totalstats()
    for handle in handles:
        assert ask(handle)
        handle.close()
    end(pool)
    return total.totalmax, total.held, str(told.value)


@pytest.mark.parametrize("name", [None, "travelling"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_pool_that_was_sent(method, name):
    pool = NimueConnectionPool(
        connect, poolmin=0, poolmax=5, name=name, totalmax=3, driver=Picklable()
    )
    out = pool.getconnection()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        limit, all_held, told = in_process(method, use_all, pool, 2)
    assert (limit, all_held) == (3, 3)
    assert f"1 by process {os.getpid()}" in told
    until(lambda: pool.totalstats().held == 1)
    assert ask(out)
    out.close()
    end(pool)
    if name is None:
        until(lambda: names() == [])
    _servers.pop(os.getpid()).verify()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_sent_to_where_the_files_cannot_be_used(method, monkeypatch, tmp_path):
    """It is said at the first use: an error in unpickling would end a worker unheard."""
    monkeypatch.setenv("NIMUE_DIR", str(tmp_path / "gone"))
    pool = NimueConnectionPool(connect, poolmin=0, name="x", totalmax=3, driver=Picklable())
    end(pool)
    os.rename(tmp_path / "gone", tmp_path / "elsewhere")
    (tmp_path / "gone").touch()
    kind, text = in_process(method, hear, pool)
    assert kind and str(tmp_path / "gone") in text
    _servers.clear()


def hear(pool):
    try:
        pool.getconnection(timeout=5)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def test_unnamed_ones_of_two_processes_are_two(socket_server):
    """Each child makes one of its own: they share nothing."""
    board = Board()

    def in_child(place):
        pool = make_pool(socket_server, totalmax=1)
        handle = pool.getconnection(timeout=10)
        board[place] = 1
        board.until(9, 1)
        handle.close()
        end(pool)

    running = [Child(in_child, place) for place in range(2)]
    until(lambda: board[0] and board[1])
    board[9] = 1
    for each in running:
        each.result()
