"""However a process ends in an orderly way, its own connections are closed, and no others.

A driver of this file's own writes down who says hello and goodbye, in a file that every process
can append to: ``pid serial word``.
"""

from __future__ import annotations

import atexit
import functools
import gc
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import closing

import pytest

from nimue import NimueConnectionPool
from nimue import fork as forks
from tests.children import Child, forked, in_process, in_script
from tests.fakes import until
from tests.forking import c_forked, end, kept, make_pool, said, serves


class Error(Exception):
    pass


class InterfaceError(Error):
    pass


class Connection:
    serials = itertools.count(1)

    def __init__(self, path):
        self.path, self.serial = path, next(self.serials)
        self.say("hello")

    def say(self, word):
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()} {self.serial} {word}\n")

    def cursor(self):
        raise NotImplementedError

    def commit(self):
        pass

    rollback = commit

    def close(self):
        self.say("bye")


def connect(path):
    return Connection(path)


def always_fit(conn, dbmodule):
    return True


def pool_at(path, idle=2):
    return NimueConnectionPool(
        functools.partial(connect, path),
        poolmin=idle,
        name=path,
        healthcheck_callback=always_fit,
    )


def heard(path):
    """For each process the hellos and the byes; each bye once, from whoever said the hello."""
    found: dict[int, list[set[str]]] = {}
    with open(path) as file:
        for line in file:
            pid, serial, word = line.split()
            hellos, byes = found.setdefault(int(pid), [set(), set()])
            spoken = hellos if word == "hello" else byes
            assert serial not in spoken, f"{word} twice by {pid}"
            spoken.add(serial)
            assert byes <= hellos, f"{pid} said goodbye for another"
    return found


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "heard")


@pytest.fixture(autouse=True)
def _forget():
    kept.clear()
    yield
    kept.clear()


def borrow(pool, n=1):
    handles = [pool.getconnection() for _ in range(n)]
    for handle in handles:
        handle.close()
    # What is just being connected at the end has nobody to close it.
    until(lambda: not pool.poolstats().connecting and pool.poolstats().poolfree >= pool.poolmin)
    kept["pool"] = pool  # so that nothing but the process's end is its end
    return os.getpid()


def borrow_at(path, n=1):
    return borrow(pool_at(path), n)


def test_a_script(path):
    pid = in_script(borrow_at, path, options=("-X", "dev"))
    hellos, byes = heard(path)[pid]
    assert len(hellos) >= 2
    assert byes == hellos


def hold_one(path):
    kept["pool"] = pool_at(path)
    kept["out"] = kept["pool"].getconnection()
    return os.getpid()


def test_a_script_with_a_connection_out(path):
    """What is out cannot be waited for: the end is not delayed, the idle one says goodbye."""
    pid = in_script(hold_one, path)
    hellos, byes = heard(path)[pid]
    assert byes < hellos


def close_first(path):
    pool = pool_at(path)
    borrow(pool)
    pool.close()
    return os.getpid()


def test_a_script_that_has_closed_its_pool(path):
    pid = in_script(close_first, path)
    hellos, byes = heard(path)[pid]
    assert byes == hellos


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_process_of_multiprocessing(path, method):
    """It leaves by os._exit, or without atexit, and yet in order."""
    pool = pool_at(path)
    with closing(pool.getconnection()):
        pid = in_process(method, borrow, pool)
    assert pid != os.getpid()
    hellos, byes = heard(path)[pid]
    assert hellos
    assert byes == hellos
    assert not heard(path)[os.getpid()][1]
    pool.close()


def leave_threads_at_it(path):
    """The target has returned, and its threads go on: as in a script, the process waits."""
    pool, returned = pool_at(path), threading.Event()
    kept["pool"] = pool

    def work():
        returned.wait()
        time.sleep(0.05)  # by then the finalizers would have run
        for _ in range(20):
            pool.getconnection(timeout=10).close()
        with open(path + ".done", "a") as file:
            file.write("done\n")

    borrow(pool)
    for _ in range(3):
        threading.Thread(target=work, daemon=False).start()
    threading.Timer(0.05, returned.set).start()
    return os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_threads_that_outlive_the_target_of_a_process(path, method):
    pid = in_process(method, leave_threads_at_it, path)
    hellos, byes = heard(path)[pid]
    assert byes == hellos
    with open(path + ".done") as file:
        assert file.read() == "done\n" * 3


def borrow_and_start(path):
    """A child of multiprocessing that starts another."""
    pool = pool_at(path)
    return borrow(pool), in_process("fork", borrow, pool)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_grandchild_of_multiprocessing(path, method):
    pids = in_process(method, borrow_and_start, path)
    spoken = heard(path)
    for pid in pids:
        hellos, byes = spoken[pid]
        assert hellos
        assert byes == hellos


@pytest.mark.parametrize("fork", [forked, c_forked])
def test_a_forked_child_that_leaves_by_sys_exit(path, fork):
    pool = pool_at(path)
    out = pool.getconnection()
    pid = fork(borrow, pool, leave="sys.exit")
    hellos, byes = heard(path)[pid]
    assert hellos
    assert byes == hellos
    assert not heard(path)[os.getpid()][1]
    out.close()
    pool.close()
    hellos, byes = heard(path)[os.getpid()]
    assert byes == hellos


def _interrupt(*_):
    raise KeyboardInterrupt


def _fork_in_a_thread(path, cut_short):
    """How the child left: it uses the pool, and what the thread was to run is over."""
    pool = kept["pool"] = pool_at(path)
    pids = []

    def work():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            borrow(pool)
        else:
            pids.append(pid)

    borrow(pool)
    if cut_short:
        forks._here.gate.shut = _interrupt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (pid,) = pids
    try:
        _, status = until(lambda: (ended := os.waitpid(pid, os.WNOHANG))[0] and ended)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    pool.close()
    return status


@pytest.mark.parametrize("cut_short", [False, True])
def test_a_child_of_a_thread_ends_when_nothing_is_left_but_the_monitor(path, cut_short):
    """Python ends only the thread that such a child began with, and says goodbye for nobody.

    With Ctrl-C in the preparations: CPython says so, and forks all the same.
    """
    assert in_script(_fork_in_a_thread, path, cut_short, quiet=not cut_short) == 0


@pytest.mark.parametrize("leave", ["os._exit", signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_cannot_say_goodbye(path, leave):
    pool = pool_at(path)
    out = pool.getconnection()
    pid = forked(borrow, pool, leave=leave)
    hellos, byes = heard(path)[pid]
    assert hellos
    assert not byes
    out.close()
    pool.close()


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("fork", [forked, c_forked])
def test_the_parents_handlers_say_nothing_in_a_child(socket_server, fork, used):
    """As gunicorn's workers run the handlers of their master."""
    kept["pool"] = make_pool(socket_server, poolmin=2)
    kept["handle"] = kept["pool"].getconnection()
    before = said(socket_server)

    def child():
        if used:
            serves(kept["pool"])
        atexit._run_exitfuncs()

    fork(child, leave="sys.exit")
    assert said(socket_server) == before
    kept["handle"].close()
    assert serves(kept["pool"]) <= 2
    end(kept["pool"])


def test_a_pool_that_was_dropped_before(path):
    pool = pool_at(path)
    borrow(pool)
    kept.clear()
    del pool
    gc.collect()
    until(lambda: len(heard(path)[os.getpid()][1]) == 2)


COUNTING = """
import atexit, multiprocessing.util as util
def count():
    return atexit._ncallbacks(), len(util._finalizer_registry)
import nimue, nimue.goodbye
import tests.test_goodbye as here
from nimue import NimueConnectionPool
import functools
at_first = count()
pool = here.pool_at({path!r}, idle=0)
assert count() == at_first, "before the first connection"
pool.getconnection().close()
later = count()
assert later == (at_first[0] + 1, at_first[1] + 1), (at_first, later)
other = here.pool_at({path!r}, idle=2)
other.getconnection().close()
assert count() == later, "once for each process"
"""


def test_registered_at_the_first_connection_of_a_process(path):
    in_script(exec, COUNTING.format(path=path), {})


def register_in_child(path):
    pool = pool_at(path, idle=0)
    first = atexit._ncallbacks()
    pool.poolstats()
    assert atexit._ncallbacks() == first
    borrow(pool)
    return atexit._ncallbacks() - first


def test_registered_anew_in_each_child(path):
    pool = pool_at(path)
    borrow(pool)
    assert forked(register_in_child, path + "2") == 1
    pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="signals")
def test_a_script_that_ends_by_ctrl_c(path, tmp_path):
    """KeyboardInterrupt at the top ends the interpreter in order."""

    def child():
        try:
            borrow_at(path)
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            return os.getpid()
        raise AssertionError

    with Child(child, leave="sys.exit") as running:
        pid = running.result()
    hellos, byes = heard(path)[pid]
    assert byes == hellos


@pytest.mark.server
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pg8000"])
def test_on_a_real_server(postgres, driver):
    """No session stays, and the server's log has no complaint about this database's clients."""
    pool = NimueConnectionPool(postgres.connector(driver), poolmin=2, name=postgres.name)
    assert in_process("fork", select, pool) == 1
    pool.close()
    postgres.expect_sessions(0)


def select(pool):
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute("select 1")
        return cursor.fetchone()[0]
