"""Thread-bound databases over forks, kills and Ctrl-C: a child starts with no connection."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nimue import NimueInheritedConnectionError
from nimue.database import MaxConnectionsExceeded, PooledDatabase
from nimue.error import NimueConnectionClosed
from tests.children import Child
from tests.fakes import FakeServer, spawn, until
from tests.forking import ask, c_child, c_forked, end, forked, kept, said
from tests.semaphores import Board
from tests.test_database import over
from tests.test_interrupt import BOUND, Blow, whole

FORKS = pytest.mark.parametrize("fork", [forked, c_forked])
Fork = Callable[..., Any]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    kept.clear()
    yield
    kept.clear()


class Elsewhere:
    """Another thread, which has a connection until told."""

    def __init__(self, db: PooledDatabase) -> None:
        self._go, is_bound = threading.Event(), threading.Event()

        def hold() -> None:
            db.connect()
            db.cursor.execute("select ?", ["theirs"])
            is_bound.set()
            assert self._go.wait(60)
            assert db.cursor.fetchall() == [("theirs",)]
            assert ask(db.conn)
            assert db.close()

        self.thread = spawn(hold)
        assert is_bound.wait(BOUND)

    def end(self) -> None:
        self._go.set()
        self.thread.result()


def serves(db: PooledDatabase) -> int:
    """The serial number of a connection of this process's own, which answers."""
    assert db.is_closed()
    assert not db.close()
    with pytest.raises(NimueConnectionClosed):
        db.conn  # noqa: B018
    db.connect()
    assert db.conn.raw._session.pid == os.getpid()
    assert ask(db.conn)
    serial: int = db.conn.serial
    assert db.close()
    return serial


@FORKS
def test_a_child_starts_with_none(socket_server: FakeServer, fork: Fork) -> None:
    db = over(socket_server)
    db.connect()
    mine = db.conn.raw
    db.cursor.execute("select ?", ["mine"])
    elsewhere = Elsewhere(db)
    before = said(socket_server)

    def child() -> tuple[int, int]:
        first = serves(db)
        with pytest.raises(NimueInheritedConnectionError):
            mine_still.commit()
        other = spawn(serves, db)
        return first, other.result()

    mine_still = db.conn
    assert fork(child) == (3, 3)
    assert said(socket_server) == before
    assert db.conn.raw is mine
    assert db.cursor.fetchall() == [("mine",)]
    assert ask(db.conn)
    db.close()
    elsewhere.end()
    end(db.pool)


@FORKS
def test_a_child_of_a_child(socket_server: FakeServer, fork: Fork) -> None:
    db = over(socket_server, 1)
    db.connect()

    def child() -> tuple[int, int]:
        serial = serves(db)
        db.connect()
        return serial, forked(serves, db)

    before = said(socket_server)
    assert fork(child) == (2, 3)
    assert said(socket_server)[: len(before)] == before
    assert ask(db.conn)
    db.close()
    end(db.pool)


@FORKS
@pytest.mark.parametrize("leave", ["sys.exit", signal.SIGKILL])
def test_silent_however_it_leaves(socket_server: FakeServer, fork: Fork, leave: Any) -> None:
    db = kept["db"] = over(socket_server)
    db.connect()
    db.cursor.execute("update")
    elsewhere = Elsewhere(db)
    before = said(socket_server)
    assert fork(db.is_closed, leave=leave)
    assert fork(os.getppid, leave=leave) == os.getpid()
    assert fork(serves, db, leave=leave) > 2
    assert said(socket_server) == before
    db.conn.commit()
    db.close()
    elsewhere.end()
    end(db.pool)


@FORKS
def test_blocks_that_the_child_leaves(socket_server: FakeServer, fork: Fork) -> None:
    db = over(socket_server)
    stack = contextlib.ExitStack()
    stack.enter_context(db)
    stack.enter_context(db.atomic())
    db.sql("update")
    before = said(socket_server)

    def falls_through() -> None:
        with pytest.raises(NimueConnectionClosed, match="parent process"):
            stack.close()

    def raises() -> None:
        with pytest.raises(ZeroDivisionError), stack:
            raise ZeroDivisionError

    def begins_another() -> None:
        with db:
            assert ask(db.conn)
        with contextlib.suppress(NimueConnectionClosed):
            stack.close()

    for leaves in (falls_through, raises, begins_another):
        fork(leaves)
    assert said(socket_server) == before
    stack.close()
    assert db.is_closed()
    assert socket_server.count("commit") == 1
    end(db.pool)


@FORKS
def test_a_child_closes_only_its_own(socket_server: FakeServer, fork: Fork) -> None:
    db = over(socket_server)
    db.connect()
    elsewhere = Elsewhere(db)
    before = said(socket_server)

    def child() -> int:
        assert not db.manual_close()
        assert db.close_stale(age=0) == 0
        db.close_idle()
        db.close_all()
        return serves(db)

    assert fork(child) == 3
    assert said(socket_server) == before
    db.close()
    elsewhere.end()
    end(db.pool)


def test_the_whole_number_in_each_process(socket_server: FakeServer) -> None:
    db = over(socket_server, 1)
    db.connect()

    def child() -> None:
        db.connect()
        with pytest.raises(MaxConnectionsExceeded):
            spawn(db.connect).result()
        db.close()

    forked(child)
    with pytest.raises(MaxConnectionsExceeded):
        spawn(db.connect).result()
    db.close()
    end(db.pool)


@FORKS
def test_who_was_connecting_at_the_fork(socket_server: FakeServer, fork: Fork) -> None:
    """Has no place in the child, where that thread is not."""
    db = over(socket_server, 1)
    with socket_server.hold("execute") as gate:
        elsewhere = spawn(lambda: (db.connect(), db.cursor.execute("update"), db.close()))
        gate.arrived(1)
        patient = PooledDatabase.over(db.pool)
        waiting = spawn(lambda: (patient.connect(), patient.close()))
        until(lambda: db.pool.poolstats().waiting)
        assert fork(serves, patient) == 2
        gate.release()
    elsewhere.result()
    assert waiting.result() == (None, True)
    end(db.pool)


@pytest.mark.parametrize("start", [Child, c_child])
def test_what_a_killed_child_had(socket_server: FakeServer, start: Any) -> None:
    """Its permit is free at once."""
    db = over(socket_server, 1, totalmax=1, timeout=BOUND)
    board = Board()

    def child() -> None:
        db.connect()
        db.cursor.execute("update")
        board[0] = 1
        threading.Event().wait(60)

    killed = start(child)
    board.until(0, 1)
    killed.signal()
    assert killed.wait() == -signal.SIGKILL
    db.connect()
    assert ask(db.conn)
    db.close()
    end(db.pool)


def _handed_over(db: PooledDatabase) -> Callable[[], None]:
    """Another thread has the only one, and gives it back as soon as somebody waits."""
    over, bound = threading.Event(), threading.Event()

    def hold() -> None:
        with db:
            bound.set()
            until(lambda: db.pool.poolstats().waiting or over.is_set(), BOUND)

    thread = spawn(hold)
    assert bound.wait(BOUND)

    def finish() -> None:
        over.set()
        thread.result()

    return finish


@pytest.mark.parametrize("scene", ["idle", "opened", "atomic", "block", "waits", "for good"])
def test_ctrl_c_at_any_point(scene: str) -> None:
    """Of connect(), a statement and close(): the connection is lent to nobody afterwards."""
    for n in range(1, 2000, 1 if scene == "idle" else 5):
        # The pool closes once more what was cut short, after a COMMIT or a close().
        server = FakeServer(allow=("transaction", "closed"))
        db = over(server, 1, timeout=BOUND if scene == "waits" else None)
        finish = _handed_over(db) if scene == "waits" else lambda: None
        if scene == "idle":
            db.connect()
            db.close()
        told = True
        with Blow("calls", n, KeyboardInterrupt) as blow, contextlib.suppress(KeyboardInterrupt):
            if scene == "block":
                with db, db:
                    db.sql("update")
            db.connect()
            if scene == "atomic":
                with db.atomic():
                    db.sql("update")
            if scene == "for good":
                db.manual_close()
            db.close()
            told = False
        finish()
        assert told == (blow.landed is not None), "the interruption was swallowed"
        if not db.is_closed():
            assert not db.is_trans, blow.landed
            db.close()
        whole(db.pool, server, 1)
        db.connect()  # at once: no place was lost
        db.close()
        end(db.pool)
        server.verify()
        if blow.landed is None:
            return
    raise AssertionError("it never came to its end")
