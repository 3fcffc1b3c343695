"""Each driver, each way in which a child begins, each way in which it ends, on real servers."""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from nimue import NimueConnectionPool, NimueError, NimueInheritedConnectionError
from tests import children
from tests.children import in_process
from tests.fakes import spawn, until
from tests.forking import c_child, c_forked, end
from tests.servers import MARIADB_DRIVERS, POSTGRES_DRIVERS

FORKS = {"fork": children.forked, "C fork": c_forked}
LEAVES = ["os._exit", "sys.exit", signal.SIGTERM]
NUMBER = {"postgres": "select pg_backend_pid()", "mariadb": "select connection_id()"}


class Here:
    """One driver's server, the words that it wants, and a pool over it."""

    def __init__(self, database, kind, driver):
        self.database, self.kind, self.driver = database, kind, driver
        self.connector = database.connector(driver)
        self.pool = NimueConnectionPool(self.connector, poolmin=2, poolmax=4, name=database.name)

    def expect(self, n):
        return self.database.expect_sessions(n)

    def numbers(self):
        return {session[0] for session in self.database.sessions()}


ALL = [pytest.param(name, marks=pytest.mark.server) for name in POSTGRES_DRIVERS + MARIADB_DRIVERS]


@pytest.fixture(params=ALL)
def here(request):
    kind = "postgres" if request.param in POSTGRES_DRIVERS else "mariadb"
    there = Here(request.getfixturevalue(kind), kind, request.param)
    yield there
    there.pool.close(timeout=10)
    end(there.pool)


def query(conn, sql, *parameters):
    cursor = conn.cursor()
    cursor.execute(sql, parameters)
    rows = [tuple(row) for row in cursor.fetchall()]
    cursor.close()
    return rows


def works(pool, kind):
    """A few rounds on a connection of this process's own; its session's number."""
    for n in range(3):
        conn = pool.getconnection(timeout=10)
        assert query(conn, "select %s", f"{os.getpid()}-{n}") == [(f"{os.getpid()}-{n}",)]
        ((number,),) = query(conn, NUMBER[kind])
        conn.commit()
        conn.close()
    return number


def child(pool, kind, handle):
    number = works(pool, kind)
    if handle is not None:
        for use in (handle.cursor, handle.commit, lambda: handle.raw):
            with pytest.raises(NimueInheritedConnectionError):
                use()
        handle.close()
        stats = pool.poolstats()
        assert stats.inherited == stats.severed == 2
    return number


class Transaction:
    """The parent's, in the middle of it while children come and go."""

    def __init__(self, here):
        self.conn = here.pool.getconnection()
        ((self.number,),) = query(self.conn, NUMBER[here.kind])
        cursor = self.conn.cursor()
        cursor.execute("create temporary table mine (word varchar(10))")
        self.conn.commit()
        cursor.execute("insert into mine values (%s)", ("kept",))
        cursor.close()
        self.here = here

    def check(self):
        """In the same session and the same transaction, the row is there, and can be undone."""
        assert query(self.conn, NUMBER[self.here.kind]) == [(self.number,)]
        assert query(self.conn, "select word from mine") == [("kept",)]
        self.conn.rollback()
        assert query(self.conn, "select word from mine") == []
        self.conn.close()
        assert works(self.here.pool, self.here.kind) in self.here.numbers()


@pytest.mark.parametrize("fork", FORKS)
def test_fork(here, fork):
    """By whatever door the child leaves."""
    parents = {session[0] for session in here.expect(2)}
    mine = Transaction(here)
    for leave in LEAVES:
        number = FORKS[fork](child, here.pool, here.kind, mine.conn, leave=leave)
        assert number not in parents
        assert {session[0] for session in here.expect(2)} == parents
    mine.check()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_multiprocessing(here, method):
    parents = {session[0] for session in here.expect(2)}
    mine = Transaction(here)
    assert in_process(method, child, here.pool, here.kind, None) not in parents
    assert {session[0] for session in here.expect(2)} == parents
    mine.check()


@pytest.mark.parametrize("fork", FORKS)
def test_in_the_middle_of_a_result_set(here, fork):
    """Rows that the server has still to send are the parent's."""
    conn = here.pool.getconnection()
    cursor = conn.cursor(**streaming(here.driver))
    rows = "select generate_series(1, 20000)" if here.kind == "postgres" else SEQUENCE
    cursor.execute(rows)
    first = cursor.fetchone()[0]
    assert FORKS[fork](works, here.pool, here.kind)
    assert [first, *(row[0] for row in cursor.fetchall())] == list(range(1, 20001))
    cursor.close()
    conn.close()


SEQUENCE = "select seq from seq_1_to_20000"


def streaming(driver):
    """What makes a cursor of this driver leave rows at the server."""
    if driver in ("psycopg2", "psycopg"):
        return {"name": "streaming"}
    if driver == "pymysql":
        from pymysql.cursors import SSCursor

        return {"cursor": SSCursor}
    if driver == "mysqlclient":
        from MySQLdb.cursors import SSCursor

        return {"cursorclass": SSCursor}
    return {}


@pytest.mark.parametrize("fork", FORKS)
def test_while_another_thread_executes(here, fork):
    """On a connection that the forking thread took: the driver's own lock is held in the child."""
    conn, other = here.pool.getconnection(), here.pool.getconnection()
    sleep = "select pg_sleep(0.3)" if here.kind == "postgres" else "select sleep(0.3)"
    asking = spawn(query, conn, sleep)
    until(lambda: any("sleep" in str(session) for session in here.database.sessions()))
    options = {"expect_threads": True} if fork == "fork" else {}
    assert FORKS[fork](works, here.pool, here.kind, **options)
    assert len(asking.result()) == 1
    conn.rollback()
    assert len(query(other, NUMBER[here.kind])) == 1
    for handle in (conn, other):
        handle.close()


def pinning_parent(connector, kind, settle, report, wait):
    """Has two connections idle and one in a transaction, a child that idles, and dies."""
    pool = NimueConnectionPool(connector, poolmin=3, poolmax=4)
    conn = pool.getconnection()
    query(conn, NUMBER[kind])

    def idle():
        if settle:
            pool.poolstats()
        os.write(report, b"%d\n" % os.getpid())
        os.read(wait, 1)

    (c_child if settle else children.Child)(idle)
    time.sleep(60)


@pytest.mark.parametrize("settle", [False, True], ids=["fork", "C fork"])
def test_an_idle_child_of_a_killed_parent_pins_nothing(here, settle):
    """After a C fork that holds from the child's first use of the pool on."""
    here.pool.close()
    here.expect(0)
    report, theirs = os.pipe()
    wait, go_on = os.pipe()
    parent = children.Child(
        pinning_parent, here.connector, here.kind, settle, theirs, wait, timeout=30
    )
    idle = int(os.read(report, 100))
    here.expect(3)
    parent.signal(signal.SIGKILL)
    parent.wait()
    here.expect(0)
    assert not children.gone(idle)
    os.write(go_on, b"x")
    for fd in (report, theirs, wait, go_on):
        os.close(fd)


def test_cancel_is_refused(here):
    """It would go to the server over a new link, and stop what the parent runs."""
    conn = here.pool.getconnection()
    if not hasattr(conn.raw, "cancel"):
        conn.close()
        return
    sleep = spawn(query, conn, "select 1 from pg_sleep(0.3)")
    until(lambda: any("sleep" in str(session) for session in here.database.sessions()))

    def cancel():
        with pytest.raises(NimueInheritedConnectionError):
            conn.cancel()
        conn.close()

    children.forked(cancel, leave="sys.exit", expect_threads=True)
    assert sleep.result() == [(1,)]
    conn.close()


@pytest.mark.server
@pytest.mark.parametrize("driver", ["pymysql", "mysqlclient"])
def test_a_cursor_in_another_threads_local(mariadb, driver):
    """A child finalises it before any hook; an unfinished result set would be read to its end."""
    pool = NimueConnectionPool(mariadb.connector(driver), poolmin=0)
    local, ready, go_on = threading.local(), threading.Event(), threading.Event()

    def work():
        local.conn = pool.getconnection()
        local.cursor = local.conn.cursor(*streaming(driver).values())
        local.cursor.execute(SEQUENCE)
        seen = [local.cursor.fetchone()[0]]
        ready.set()
        assert go_on.wait(10)
        seen += [row[0] for row in local.cursor.fetchall()]
        local.cursor.close()
        local.conn.close()
        return seen

    worker = spawn(work)
    assert ready.wait(10)
    children.forked(works, pool, "mariadb", expect_threads=True)
    go_on.set()
    assert worker.result() == list(range(1, 20001))
    pool.close()


# SQLite: no server, but locks that are a process's own.


def connect_sqlite(path, wal):
    conn = sqlite3.connect(path, check_same_thread=False, timeout=5)
    if wal:
        conn.execute("pragma journal_mode=wal").close()
    return conn


class File:
    def __init__(self, path, wal):
        self.path, self.wal = path, wal
        self.connector = functools.partial(connect_sqlite, path, wal)
        with self.connector() as conn:
            conn.execute("create table words (word text)")
        conn.close()
        self.pool = NimueConnectionPool(self.connector, poolmin=2, poolmax=4, name=path)

    def words(self):
        """As another process sees them, which knows none of our locks."""
        command = [sys.executable, "-S", "-E", "-c", READ_SQLITE, self.path]
        return json.loads(subprocess.check_output(command, timeout=20))


READ_SQLITE = """
import json, sqlite3, sys
conn = sqlite3.connect(sys.argv[1], timeout=5)
rows = sorted(word for (word,) in conn.execute("select word from words"))
assert conn.execute("pragma integrity_check").fetchone() == ("ok",)
print(json.dumps(rows))
"""


def write_sqlite(pool, word):
    with pool.connection(timeout=10) as conn:
        conn.execute("insert into words values (?)", (word,))
    return pool.poolstats().inherited


@pytest.fixture(params=[False, True], ids=["journal", "WAL"])
def file(tmp_path, request):
    there = File(str(tmp_path / "file"), request.param)
    yield there
    there.pool.close(timeout=10)


class TestSqlite:
    def test_idle_ones_are_closed_before_the_fork(self, file):
        write_sqlite(file.pool, "parent")
        raws = [entry.raw for entry in file.pool._state.entries]
        for leave in LEAVES:
            assert children.forked(write_sqlite, file.pool, str(leave), leave=leave) == 0
        for raw in raws:
            with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                raw.in_transaction  # noqa: B018
        write_sqlite(file.pool, "parent again")
        assert file.words() == sorted(["parent", "parent again", *map(str, LEAVES)])

    @pytest.mark.parametrize("fork", FORKS)
    def test_in_use_at_the_fork(self, file, fork):
        """The child's pool refuses, and the parent's transaction is as it was."""
        conn = file.pool.getconnection()
        conn.execute("insert into words values ('mine')")

        def child():
            for _ in range(2):
                with pytest.raises(NimueInheritedConnectionError) as caught:
                    file.pool.getconnection(timeout=5)
            with pytest.raises(NimueError):
                file.pool.getconnection(blocking=False)
            with pytest.raises(NimueInheritedConnectionError):
                conn.execute("select 1")
            conn.close()
            gc.collect()
            return str(caught.value)

        for leave in LEAVES:
            told = FORKS[fork](child, leave=leave)
            for part in ("cannot be used", str(os.getpid()), "1 of the pool's", "or forkserver"):
                assert part in told
        conn.commit()
        conn.close()
        write_sqlite(file.pool, "later")
        assert file.words() == ["later", "mine"]

    def test_idle_beside_one_in_use(self, file):
        """What is idle is closed before the fork even so; what is in use goes on."""
        conn, other = file.pool.getconnection(), file.pool.getconnection()
        raw = other.raw
        other.close()
        assert children.forked(lambda: file.pool.poolstats().inherited) == 1
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            raw.in_transaction  # noqa: B018
        conn.execute("insert into words values ('mine')")
        conn.commit()
        conn.close()
        assert file.words() == ["mine"]

    def test_a_refusing_child_can_be_forked_from(self, file):
        conn = file.pool.getconnection()

        def grandchild():
            with pytest.raises(NimueInheritedConnectionError):
                file.pool.getconnection(timeout=5)

        children.forked(lambda: children.forked(grandchild))
        conn.close()
        write_sqlite(file.pool, "later")

    def test_a_c_fork_with_idle_ones(self, file):
        """The child lets go of what it inherited before it opens its own: nothing gets lost."""
        write_sqlite(file.pool, "parent")
        for leave in LEAVES:
            assert c_forked(write_sqlite, file.pool, f"child {leave}", leave=leave) == 2
            write_sqlite(file.pool, f"parent {leave}")
        written = [f"{who} {leave}" for who in ("child", "parent") for leave in LEAVES]
        assert file.words() == sorted(["parent", *written])

    @pytest.mark.parametrize("fork", [children.Child, c_child])
    def test_outlived_by_its_child(self, file, fork):
        """The parent dies, a third process writes, the child writes on: every row is there."""
        file.pool.close()
        report, theirs = os.pipe()
        wait, go_on = os.pipe()

        def child(pool):
            write_sqlite(pool, "child 1")
            os.write(theirs, b"ready")
            os.read(wait, 1)
            for n in range(2, 5):
                write_sqlite(pool, f"child {n}")
            os.write(theirs, b"ended")

        def parent():
            pool = NimueConnectionPool(file.connector, poolmin=2)
            write_sqlite(pool, "parent")
            fork(child, pool)
            assert os.read(report, 5) == b"ready"

        # Threads of the closed pool may be on their way out.
        assert children.forked(parent, expect_threads=True) is None
        third = NimueConnectionPool(file.connector, poolmin=0)
        for n in range(3):
            write_sqlite(third, f"third {n}")
        third.close()
        os.write(go_on, b"x")
        assert os.read(report, 5) == b"ended"
        for fd in (report, theirs, wait, go_on):
            os.close(fd)
        assert file.words() == [
            *(f"child {n}" for n in range(1, 5)),
            "parent",
            *(f"third {n}" for n in range(3)),
        ]

    @pytest.mark.parametrize("method", ["forkserver", "spawn"])
    def test_multiprocessing(self, file, method):
        """A child that inherits nothing works beside a transaction of the parent's."""
        conn = file.pool.getconnection()
        conn.execute("select * from words").fetchall()
        assert in_process(method, write_sqlite, file.pool, "child") == 0
        conn.execute("insert into words values ('mine')")
        conn.commit()
        conn.close()
        assert file.words() == ["child", "mine"]
