"""Python warns of a fork in a process with threads: not if nimue's are the only ones.

The threads are gone before the fork and come back at the next use, in whichever process.
"""

from __future__ import annotations

import os
import threading
import warnings

import pytest

from tests.children import in_script

FORKS = 200


def forks_in_between(use, check=None, times=FORKS):
    """Fork again and again with ``use`` in between; returns what the interpreter said of it."""
    said = []
    for _ in range(times):
        use()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            pid = os.fork()
        if pid == 0:
            os._exit(0 if check is None or check() else 1)
        assert os.waitpid(pid, 0)[1] == 0
        said += [str(warning.message) for warning in seen]
    return said


def _pools(idle):
    from tests.fakes import FakeServer
    from tests.forking import make_pool

    server = FakeServer(sockets=True)
    return server, [make_pool(server, poolmin=idle, healthcheck_idle=0) for _ in range(2)]


def idle_pools():
    """Dormant at each fork: the next use wakes the monitor, the opener and the checks."""
    from tests.fakes import until
    from tests.forking import end, nimue_threads, serves

    server, pools = _pools(2)

    def use():
        for pool in pools:
            serves(pool)
        until(lambda: "nimue-monitor" in nimue_threads())

    said = forks_in_between(use)
    use()
    for pool in pools:
        end(pool)
    assert not server.violations
    return said


def pools_in_use():
    """A connection is out all the time."""
    from tests.fakes import until
    from tests.forking import ask, end, nimue_threads, serves

    server, pools = _pools(1)
    handle = pools[0].getconnection()

    def use():
        assert ask(handle)
        for pool in pools:
            serves(pool)
        until(lambda: "nimue-monitor" in nimue_threads())

    said = forks_in_between(use)
    use()
    handle.close()
    for pool in pools:
        end(pool)
    assert not server.violations
    return said


def children_that_use_the_pool():
    """And fork on: the monitor that they have started is gone before, as their parent's."""
    from tests.forking import end, serves

    server, (pool, other) = _pools(1)

    def check():
        serves(pool)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            pid = os.fork()
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0)[1] == 0 and not seen

    said = forks_in_between(lambda: serves(other), check, 50)
    end(pool)
    end(other)
    assert not server.violations
    return said


def a_monitor_that_works_after_it():
    """It refills, retires and finds what was lost, in the parent as before."""
    import gc

    from tests.fakes import until
    from tests.forking import end, make_pool, serves

    server, pools = _pools(0)
    pool = make_pool(server, poolmin=3, cleanup_interval=0.05)
    said = forks_in_between(lambda: serves(pool), times=20)
    handle = pool.getconnection()
    until(lambda: pool.poolstats().poolsize == 3)
    rounds = pool.poolstats().cleanup_cycles
    until(lambda: pool.poolstats().cleanup_cycles > rounds + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del handle
        gc.collect()
        until(lambda: pool.poolstats().lost == 1)
        until(lambda: pool.poolstats().poolfree == 3)
    for one in (*pools, pool):
        end(one)
    assert not server.violations
    return said


@pytest.mark.parametrize(
    "scene", [idle_pools, pools_in_use, children_that_use_the_pool, a_monitor_that_works_after_it]
)
def test_no_warning(scene):
    assert in_script(scene) == []


def a_thread_of_the_users():
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return len(seen)


def test_the_warning_would_be_seen():
    """That of a thread that is not nimue's is."""
    import sys

    assert in_script(a_thread_of_the_users) == (sys.version_info >= (3, 12))
