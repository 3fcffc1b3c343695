"""Children that no hook of Python's has seen, as uWSGI and other C code makes them."""

from __future__ import annotations

import contextlib
import gc
import os
import threading

import pytest

from nimue import NimueInheritedConnectionError, NimuePoolClosedError, monitor
from nimue import fork as forks
from nimue.process import is_gone
from tests.children import forked, in_script
from tests.fakes import FakeDriver, spawn, until
from tests.forking import ask, c_child, c_forked, end, kept, make_pool, said, serves


@pytest.fixture(autouse=True)
def _forget():
    kept.clear()
    yield
    kept.clear()


@contextlib.contextmanager
def all_locks_held(pool):
    """Another thread of the parent holds every lock that a child could come across."""
    has_them, go_on = threading.Event(), threading.Event()
    here = forks._here
    locks = [
        pool._state.lock,
        monitor.here._lock,
        here.lock,
        here.connecting,
        here.gate._lock,
    ]

    def hold():
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            has_them.set()
            assert go_on.wait(20)

    holder = spawn(hold)
    assert has_them.wait(10)
    try:
        yield
    finally:
        go_on.set()
        holder.result()


def _refused(use):
    with pytest.raises(NimueInheritedConnectionError):
        use()


def _is_closed(pool):
    pool.close()
    with pytest.raises(NimuePoolClosedError):
        pool.getconnection()
    return True


def _borrows(pool):
    with pool.connection() as conn:
        conn.cursor().execute("select 1")
    return True


def _drops(pool, handle):
    kept.clear()
    del pool, handle
    gc.collect()
    return True


DOORS = {
    "getconnection": lambda pool, handle: serves(pool),
    "no wait": lambda pool, handle: _refused(handle.commit) or serves(pool),
    "with": lambda pool, handle: _borrows(pool),
    "poolstats": lambda pool, handle: pool.poolstats().pid == os.getpid(),
    "close": lambda pool, handle: _is_closed(pool),
    "drain": lambda pool, handle: pool.drain() or serves(pool),
    "poolmax": lambda pool, handle: setattr(pool, "poolmax", 3) or serves(pool),
    "repr": lambda pool, handle: repr(pool) and serves(pool),
    "a handle": lambda pool, handle: _refused(handle.cursor) or True,
    "a handle's close": lambda pool, handle: handle.close() or serves(pool),
    "dropping": _drops,
    "fork": lambda pool, handle: forked(serves, pool),
    "C fork": lambda pool, handle: c_forked(serves, pool),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_takes_a_lock_of_the_parent(socket_server, door):
    pool = make_pool(socket_server, poolmin=2)
    handle = pool.getconnection()
    before = said(socket_server)
    with all_locks_held(pool):
        assert c_forked(DOORS[door], pool, handle, timeout=10)
    assert said(socket_server) == before
    assert ask(handle)
    handle.close()
    serves(pool)
    end(pool)


def test_the_first_use_settles(socket_server):
    pool = make_pool(socket_server, poolmin=3)
    handle = pool.getconnection()
    before = said(socket_server)
    raws = [entry.raw for entry in pool._state.entries]

    def child():
        assert not any(raw.severed() for raw in raws)
        stats = pool.poolstats()
        assert all(raw.severed() or raw.closed for raw in raws)
        return stats, serves(pool) > 3

    stats, served = c_forked(child, leave="sys.exit")
    assert served
    assert (stats.inherited, stats.severed, stats.poolsize, stats.opened) == (3, 3, 0, 0)
    assert said(socket_server) == before
    assert ask(handle)
    handle.close()
    end(pool)


def test_after_a_fork_that_had_nothing_to_leave(socket_server):
    """What was made ready for one child is nothing to go by for the next."""
    pool = make_pool(socket_server, poolmin=1)
    forked(lambda: None)
    held = pool.getconnection()
    stats = c_forked(pool.poolstats)
    assert stats.inherited == stats.severed >= 1
    held.close()
    end(pool)


def test_idle_ones_are_inherited_and_left_to_the_parent(socket_server):
    """Nothing was closed before the fork, so the parent has them still."""
    pool = make_pool(socket_server, poolmin=2)
    serves(pool)
    before = said(socket_server)
    assert c_forked(lambda: (pool.poolstats().inherited, serves(pool) > 2)) == (2, True)
    assert said(socket_server) == before
    assert {serves(pool), serves(pool)} <= {1, 2}
    end(pool)


def test_from_the_first_use_on_nothing_is_pinned(socket_server):
    pool = make_pool(socket_server, poolmin=2)
    handle = pool.getconnection()
    pipe, theirs = os.pipe()

    def child():
        _refused(handle.commit)
        os.write(theirs, b"settled")
        os.read(pipe, 1)

    idle = c_child(child)
    os.read(pipe, 100)
    handle.close()
    end(pool)
    until(lambda: all(session.eof() for session in socket_server.sessions))
    os.write(theirs, b"end")
    idle.result()
    os.close(pipe)
    os.close(theirs)


@pytest.mark.parametrize("leave", ["sys.exit", "os._exit"])
@pytest.mark.parametrize("what", ["nothing", "dropping"])
def test_a_child_that_never_uses_the_pool(socket_server, leave, what):
    """Its end, or the end of its pool, is not the end of the parent's connections."""
    kept["pool"] = make_pool(socket_server, poolmin=2)
    kept["handle"] = kept["pool"].getconnection()
    before = said(socket_server)

    def child():
        if what == "dropping":
            kept.clear()
            gc.collect()

    c_forked(child, leave=leave)
    assert said(socket_server) == before
    assert ask(kept["handle"])
    kept["handle"].close()
    end(kept["pool"])


@pytest.mark.parametrize("leaves", ["a pool", "a closed pool", "garbage"])
def test_threads_of_the_parent_that_have_ended(server, leaves):
    """Python 3.13 detaches each that nobody has joined, and a child in which that is done dies."""
    kept["pool"] = make_pool(server, poolmax=24)
    handles = [kept["pool"].getconnection() for _ in range(24)]
    while handles:
        handles.pop().close()
    until(lambda: all(map(is_gone, list(kept["pool"]._state.crew))))
    gc.disable()
    if leaves != "a pool":
        end(kept["pool"])
    if leaves == "garbage":
        kept.clear()

    def child():
        kept.clear()
        gc.collect()
        return True

    try:
        assert c_forked(child)
    finally:
        gc.enable()
    if leaves == "a pool":
        end(kept["pool"])


def _covers_its_stack(depth=100):
    return min([depth], key=lambda _: depth and _covers_its_stack(depth - 1))


def test_the_stack_of_the_parents_monitor_goes_to_another_thread(server):
    """Python 3.13 can keep a note there, of what it waited for, and go by that in the child."""
    pool = make_pool(server)
    serves(pool)
    inbox = monitor.here.inbox

    def child():
        for thread in [spawn(_covers_its_stack) for _ in range(4)]:
            thread.result()
        inbox.put(None)
        return serves(pool)

    assert c_forked(child)
    end(pool)


def test_threads_that_arrive_together_agree(socket_server):
    pool = make_pool(socket_server, poolmin=2, poolmax=8)
    handle = pool.getconnection()
    before = said(socket_server)

    def child():
        state, together = pool._state, threading.Barrier(8)
        seen = []

        def arrive(n):
            together.wait(10)
            if n % 2:
                _refused(handle.cursor)
            mine = pool.getconnection()
            seen.append(pool._state)
            together.wait(10)
            assert ask(mine)
            assert mine.raw._session.pid == os.getpid()
            mine.close()

        for thread in [spawn(arrive, n) for n in range(8)]:
            thread.result()
        assert len(set(map(id, seen))) == 1
        assert pool._state is seen[0] is not state
        stats = pool.poolstats()
        assert stats.opened <= 8
        return stats.inherited, stats.severed

    for _ in range(5):
        assert c_forked(child) == (2, 2)
    assert said(socket_server) == before
    handle.close()
    end(pool)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("forks_again", [forked, c_forked])
def test_the_child_forks_again(socket_server, used, forks_again):
    pool = make_pool(socket_server, poolmin=2)
    handle = pool.getconnection()
    before = said(socket_server)

    def grandchild(mine):
        _refused(handle.commit)
        if mine is not None:
            _refused(mine.commit)
        return pool.poolstats().inherited, serves(pool) > 2

    def child():
        mine = pool.getconnection() if used else None
        # The child refills to two, or, unused, has nothing, and the parent's are not counted twice
        # where the child let go of them before it forked.
        inherited, served = forks_again(grandchild, mine, leave="sys.exit")
        if mine is not None:
            assert ask(mine)
            mine.close()
        return inherited, served and serves(pool) > 2

    inherited, served = c_forked(child, leave="sys.exit")
    assert served
    if used:
        assert inherited in (1, 2)
    assert said(socket_server) == before
    assert ask(handle)
    handle.close()
    end(pool)


def test_a_child_of_a_thread(socket_server):
    """The thread that forks is the first of the child, and its own connection is let go."""
    driver = FakeDriver()
    pool = make_pool(socket_server, driver=driver)
    other = pool.getconnection()

    def work():
        mine = pool.getconnection()
        serial = mine.serial
        assert c_forked(lambda: serves(pool) > 2 and driver.discarded) == [serial]
        mine.close()

    spawn(work).result()
    other.close()
    end(pool)


def test_closed_stays_closed(server):
    pool = make_pool(server, poolmin=1)
    pool.close()
    assert c_forked(_is_closed, pool)


def test_every_child_of_many(socket_server):
    pool = make_pool(socket_server, poolmin=2)
    handle = pool.getconnection()
    before = said(socket_server)
    for child in [c_child(serves, pool) for _ in range(8)]:
        assert child.result() > 2
    assert said(socket_server) == before
    handle.close()
    end(pool)


def test_a_monitor_of_its_own(server):
    pool = make_pool(server, poolmin=2)
    serves(pool)

    def child():
        assert serves(pool)
        names = [thread.name for thread in threading.enumerate() if thread.is_alive()]
        until(lambda: server.open_here == 2)  # it refills
        pool.close()
        return monitor.here.is_alive, names.count("nimue-monitor") > 0

    assert c_forked(child) == (True, True)
    end(pool)


# What follows imports nimue anew, in an interpreter of its own, from a text.

UWSGI = """
import sys, types
called = []
server = types.ModuleType("uwsgi")
if {previous}:
    server.post_fork_hook = lambda: called.append("previous")
sys.modules["uwsgi"] = server
import os
from tests.fakes import FakeServer
from tests.forking import make_pool, serves, ask, c_forked
fake = FakeServer(sockets=True)
pool = make_pool(fake, poolmin=2)
handle = pool.getconnection()
raws = [entry.raw for entry in pool._state.entries]
assert not called

def worker():
    server.post_fork_hook()
    assert called == ["previous"] * {previous}, called
    assert all(raw.severed() or raw.closed for raw in raws)
    return serves(pool)

assert c_forked(worker) > 2
assert not called
assert ask(handle)
server.post_fork_hook()
assert ask(handle)
handle.close()
pool.close()
assert not fake.violations, fake.violations
"""

NO_WIPING = """
import mmap
class Page(mmap.mmap):
    def madvise(self, *args):
        raise OSError("Invalid argument")
mmap.mmap = Page
from nimue import fork
assert not isinstance(fork.door, mmap.mmap)
import os
from tests.children import forked
from tests.fakes import FakeServer
from tests.forking import make_pool, serves, ask, c_forked
fake = FakeServer(sockets=True)
pool = make_pool(fake, poolmin=2)
handle = pool.getconnection()
assert ask(handle)
for run in (forked, c_forked):
    def child():
        try:
            handle.cursor()
        except Exception as error:
            assert type(error).__name__ == "NimueInheritedConnectionError", error
        else:
            raise AssertionError
        return serves(pool)
    assert run(child) > 2
    assert run(serves, pool) > 2
assert ask(handle)
handle.close()
pool.close()
assert not fake.violations, fake.violations
"""


@pytest.mark.parametrize("previous", [0, 1])
def test_the_hook_of_uwsgi_is_chained(previous):
    in_script(exec, UWSGI.format(previous=previous), {})


def test_where_pages_cannot_be_wiped():
    in_script(exec, NO_WIPING, {})
