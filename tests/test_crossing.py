"""A connection or cursor from before a fork refuses every use in the child, and says why."""

from __future__ import annotations

import gc
import os
import warnings
from contextlib import closing

import pytest

from nimue import NimueError, NimueInheritedConnectionError
from tests.children import forked
from tests.fakes import FakeDriver, InterfaceError, spawn
from tests.forking import ask, c_forked, end, make_pool, said, serves

FORKS = {"fork": forked, "C fork": c_forked}


def _with(thing):
    with thing:
        raise AssertionError("inside")


def _set(thing, name, value):
    setattr(thing, name, value)


CONNECTION_USES = {
    "cursor": lambda conn: conn.cursor(),
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "cancel": lambda conn: conn.cancel(),
    "get": lambda conn: conn.autocommit,
    "get unknown": lambda conn: conn.no_such_thing,
    "get exception": lambda conn: conn.OperationalError,
    "hasattr": lambda conn: hasattr(conn, "autocommit"),
    "set": lambda conn: _set(conn, "autocommit", True),
    "raw": lambda conn: conn.raw,
    "with": _with,
    "detach": lambda conn: conn.detach(),
}

CURSOR_USES = {
    "execute": lambda cursor: cursor.execute("select ?", [1]),
    "executemany": lambda cursor: cursor.executemany("select ?", [[1]]),
    "callproc": lambda cursor: cursor.callproc("proc", []),
    "fetchone": lambda cursor: cursor.fetchone(),
    "fetchmany": lambda cursor: cursor.fetchmany(1),
    "fetchall": lambda cursor: cursor.fetchall(),
    "iter": iter,
    "list": list,
    "get": lambda cursor: cursor.description,
    "set": lambda cursor: _set(cursor, "arraysize", 3),
    "raw": lambda cursor: cursor.raw,
    "with": _with,
    "its connection": lambda cursor: cursor.connection.commit(),
    "another of its connection": lambda cursor: cursor.connection.cursor(),
}


class Held:
    """A connection in a transaction with a result, held by this thread or by another."""

    def __init__(self, server, elsewhere):
        self.server = server
        self.pool = make_pool(server)
        self.pid = os.getpid()
        take = self.pool.getconnection
        self.conn = spawn(take).result() if elsewhere else take()
        self.cursor = self.conn.cursor()
        self.cursor.execute("select ?", ["kept"])
        self.before = said(server)

    def refuses(self, use, thing):
        with pytest.raises(NimueInheritedConnectionError) as caught:
            use(thing)
        told = str(caught.value)
        assert isinstance(caught.value, NimueError)
        assert f"belongs to process {self.pid};" in told
        assert f"process {os.getpid()}, forked from it" in told
        assert "acquire one from the pool" in told

    def check(self):
        """The parent has noticed nothing."""
        assert said(self.server) == self.before
        assert self.conn.raw._session.in_transaction
        assert self.cursor.fetchall() == [("kept",)]
        assert ask(self.conn)
        self.conn.close()
        end(self.pool)


@pytest.fixture
def held(socket_server):
    held = Held(socket_server, False)
    yield held
    held.check()


@pytest.fixture(params=FORKS)
def fork(request):
    return FORKS[request.param]


@pytest.mark.parametrize("use", CONNECTION_USES)
def test_a_connection_refuses(held, fork, use):
    """Each is the first thing that the child does."""
    fork(held.refuses, CONNECTION_USES[use], held.conn)


@pytest.mark.parametrize("use", CURSOR_USES)
def test_a_cursor_refuses(held, fork, use):
    fork(held.refuses, CURSOR_USES[use], held.cursor)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_all_uses_one_after_the_other(socket_server, fork, elsewhere):
    """Of what this thread holds, and of what another does."""
    held = Held(socket_server, elsewhere)

    def child():
        for use in CONNECTION_USES.values():
            held.refuses(use, held.conn)
        for use in CURSOR_USES.values():
            held.refuses(use, held.cursor)
        assert serves(held.pool) == 2
        for use in CONNECTION_USES.values():
            held.refuses(use, held.conn)

    fork(child, leave="sys.exit")
    held.check()


def test_an_iteration_begun_before(held, fork):
    """Its next row would be the parent's."""
    rows = iter(held.cursor)
    fork(held.refuses, next, rows)


def test_a_loop_in_which_the_fork_happens(held, fork):
    held.cursor.execute("select 1")
    seen = []

    def child():
        with pytest.raises(NimueInheritedConnectionError):
            seen.extend(rows)
        assert not seen

    rows = iter(held.cursor)
    fork(child)
    assert list(rows) == [(1,)]
    held.cursor.execute("select ?", ["kept"])
    held.before = said(held.server)


def test_a_method_taken_before(held, fork):
    commit, execute, new = held.conn.commit, held.cursor.execute, held.conn.cursor

    def child():
        held.refuses(lambda _: commit(), None)
        held.refuses(lambda _: execute("select 1"), None)
        held.refuses(lambda _: new(), None)

    fork(child)


def test_close_is_silent(held, fork):
    def child():
        held.cursor.close()
        held.conn.close()
        held.conn.close()
        held.cursor.close()
        with closing(held.conn), closing(held.cursor):
            pass
        assert held.pool.poolstats().poolsize == 0
        assert serves(held.pool) == 2
        held.refuses(CONNECTION_USES["commit"], held.conn)

    fork(child, leave="sys.exit")


@pytest.mark.parametrize("settled", [False, True])
def test_dropping_is_silent(held, fork, settled, capfd):
    def child():
        if settled:
            serves(held.pool)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del held.cursor, held.conn
            gc.collect()
        assert not seen
        return serves(held.pool) > 1, held.pool.poolstats().lost

    assert fork(child) == (True, 0)
    assert capfd.readouterr() == ("", "")


def test_repr_names_no_session(held, fork):
    assert "NimueConnection" in fork(repr, held.conn)
    assert "NimueCursor" in fork(repr, held.cursor)


def test_a_with_block_begun_before(held, fork):
    """Its end would be the parent's commit or rollback."""
    conn, cursor = held.conn, held.cursor

    def child():
        with pytest.raises(NimueInheritedConnectionError):
            conn.__exit__(None, None, None)
        cursor.__exit__(None, None, None)

    fork(child)


def test_a_borrowed_block_begun_before(socket_server, fork):
    pool = make_pool(socket_server)
    block = pool.connection()
    conn = block.__enter__()
    conn.cursor().execute("select 1")
    before = said(socket_server)

    def child():
        with pytest.raises(NimueInheritedConnectionError):
            block.__exit__(None, None, None)

    fork(child, leave="sys.exit")
    # Where the child leaves the block by an exception of its own, that one goes on.
    assert not fork(block.__exit__, SystemExit, SystemExit(0), None)
    assert said(socket_server) == before
    block.__exit__(None, None, None)
    assert socket_server.count("commit") == 1
    end(pool)


def test_closed_before_the_fork(socket_server, fork):
    """It belongs to nobody: that is what it says, here as there."""
    pool = make_pool(socket_server)
    conn, other = pool.getconnection(), pool.getconnection()
    conn.close()

    def child():
        with pytest.raises(InterfaceError, match="returned to the pool"):
            conn.cursor()
        conn.close()

    fork(child)
    other.close()
    end(pool)


def test_detached_before_the_fork_is_not_ours(socket_server, fork):
    """Who takes a connection out of the pool answers for it at forks as well."""
    pool = make_pool(socket_server)
    conn = pool.getconnection()
    raw = conn.detach()
    assert fork(lambda: (pool.poolstats().inherited, raw.severed())) == (0, False)
    raw.close()
    end(pool)


def test_two_forks_away(held, fork):
    """The process that is named is the one that has the connection, not the one in between."""
    fork(fork, held.refuses, CONNECTION_USES["commit"], held.conn)
    fork(fork, held.refuses, CURSOR_USES["fetchall"], held.cursor)


def test_the_childs_own_is_not_confused(held, fork):
    def child():
        mine = held.pool.getconnection()
        assert ask(mine)
        held.refuses(CONNECTION_USES["commit"], held.conn)
        held.conn.close()
        assert ask(mine)
        mine.close()

    fork(child)


def test_where_the_socket_is_not_known(socket_server, fork):
    """Nothing could be severed, and still no use passes."""
    pool = make_pool(socket_server, driver=FakeDriver(tells_socket=False))
    conn = pool.getconnection()
    before, pid = said(socket_server), os.getpid()

    def child():
        for use in CONNECTION_USES.values():
            with pytest.raises(NimueInheritedConnectionError, match=f"process {pid};"):
                use(conn)
        conn.close()

    fork(child, leave="sys.exit")
    assert said(socket_server) == before
    assert ask(conn)
    conn.close()
    end(pool)
