"""A managed connection over forks: the child starts closed and free, the parent goes on."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading

import pytest

from nimue import ManagedConnection, NimueInheritedConnectionError
from tests.children import Child, in_process
from tests.fakes import FakeDriver, spawn, until
from tests.forking import ask, c_forked, forked, kept, said
from tests.test_c_fork import all_locks_held

FORKS = {"fork": forked, "C fork": c_forked}
EXITS = ["os._exit", "sys.exit", signal.SIGKILL]

by_each_fork = pytest.mark.parametrize("fork", FORKS)


@pytest.fixture(autouse=True)
def _forget():
    kept.clear()
    yield
    kept.clear()


@pytest.fixture
def manager(socket_server):
    manager = ManagedConnection(socket_server.connect, driver=FakeDriver())
    yield manager
    manager.close()


def serves(manager, **options):
    """The serial number of a connection of this process's own, which answers."""
    with manager(**{"timeout": 10, **options}) as connection:
        assert connection._session.pid == os.getpid()
        assert ask(connection)
        return connection.serial


class Boom(Exception):
    pass


def starts_anew(manager):
    """What every child must find, whatever its parent was doing."""
    assert manager.closed
    assert manager.status is None
    assert repr(manager).endswith("(closed)>")
    manager.close()
    serial = serves(manager, blocking=False)
    assert not manager.closed
    with pytest.raises(RuntimeError), manager() as connection:
        connection.cursor().execute("update")
    assert serves(manager, close=True) == serial
    assert manager.closed
    return serial


@by_each_fork
@pytest.mark.parametrize("leave", EXITS)
def test_idle(socket_server, manager, fork, leave):
    """Before a fork that is told it is closed in order; else the child cuts itself off."""
    kept["manager"] = manager
    assert serves(manager) == 1
    before = said(socket_server)
    assert FORKS[fork](starts_anew, manager, leave=leave) > 1
    if fork == "C fork":
        assert said(socket_server) == before
    assert serves(manager) == (2 if fork == "fork" else 1)


@by_each_fork
@pytest.mark.parametrize("leave", EXITS)
def test_in_use_by_the_thread_that_forks(socket_server, manager, fork, leave):
    turn = manager()
    kept["connection"] = connection = turn.__enter__()
    connection.cursor().execute("update")
    before = said(socket_server)

    def child():
        if fork == "fork":
            assert connection.closed
        assert starts_anew(manager) > 1
        assert connection.closed or connection.severed()
        with pytest.raises(NimueInheritedConnectionError, match="forked from it"):
            turn.__exit__(None, None, None)

    FORKS[fork](child, leave=leave)
    assert said(socket_server) == before
    assert manager.status is True
    connection.commit()
    turn.__exit__(None, None, None)
    assert serves(manager) == 1


@by_each_fork
def test_an_exception_leaves_the_parents_block_in_the_child(socket_server, manager, fork):
    """It stays what it is, and the child has its own turn after it."""
    before = []

    def child():
        turn.__exit__(Boom, Boom("mine"), None)
        turn_of_its_own = manager()
        turn_of_its_own.__enter__()
        turn_of_its_own.__exit__(None, None, None)
        return True

    turn = manager()
    with turn as connection:
        connection.cursor().execute("update")
        before += said(socket_server)
        assert FORKS[fork](child)
        assert said(socket_server) == before
        connection.commit()


@by_each_fork
def test_in_use_by_another_thread_while_a_third_waits(socket_server, manager, fork):
    """The child is given neither the turn nor the wait, nor any lock, of its parent's threads."""
    go_on = threading.Event()

    def uses():
        with manager() as connection:
            connection.cursor().execute("update")
            assert go_on.wait(20)
            connection.commit()

    user = spawn(uses)
    until(lambda: manager.status is True)
    behind = spawn(serves, manager)
    until(lambda: manager._pool.poolstats().waiting == 1)
    before = said(socket_server)
    if fork == "C fork":
        with all_locks_held(manager._pool):
            serial = c_forked(starts_anew, manager, leave="sys.exit")
    else:
        serial = forked(starts_anew, manager, leave="sys.exit")
    assert serial > 1
    assert said(socket_server) == before
    go_on.set()
    user.result()
    assert behind.result() == 1


def test_a_child_that_does_nothing_holds_nothing_open(socket_server, manager):
    """Its parent can close what was in use at the fork, and be believed."""
    with manager(close=True):
        child = Child(signal.pause)
    until(socket_server.sessions[0].eof)
    assert child.alive
    child.signal()
    assert child.wait() == -signal.SIGKILL


def test_a_spawned_child_has_a_connection_of_its_own():
    manager = ManagedConnection(sqlite3.connect, [":memory:"], {"check_same_thread": False})
    with manager(close=True) as connection:
        connection.execute("create table t (i int)")
        assert in_process("spawn", starts_closed, manager) == []


def starts_closed(manager):
    assert manager.closed
    with manager(close=True) as connection:
        return connection.execute("select name from sqlite_master").fetchall()
