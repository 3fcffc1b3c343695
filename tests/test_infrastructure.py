"""The tools of the tests catch what they are there to catch."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests import children, fakes, servers
from tests.children import Child, ChildDied, Hung, c_forked, forked, in_process, in_script
from tests.fakes import (
    Clock,
    FakeDriver,
    FakeServer,
    InterfaceError,
    Misuse,
    OperationalError,
    ctrl_c_when,
    spawn,
    until,
)

pytestmark = pytest.mark.harness


def kinds(server: FakeServer) -> list[str]:
    return [violation.kind for violation in server.violations]


@pytest.fixture
def faulty():
    """A server whose violations are the test's subject."""
    server = FakeServer(sockets=True)
    yield server
    server.end()


class TestWaiting:
    def test_until_returns_the_value(self):
        assert until(lambda: "yes") == "yes"

    def test_until_says_what_was_waited_for(self):
        pool = [1, 2]
        with pytest.raises(AssertionError, match=r"len\(pool\) == 3.*pool = \[1, 2\]"):
            until(lambda: len(pool) == 3, timeout=0.01)
        with pytest.raises(AssertionError, match="the moon"):
            until(lambda: False, timeout=0.01, message=lambda: "the moon")

    def test_clock_goes_when_told(self):
        clock = Clock(10.0)
        clock.advance(5)
        assert clock() == 15.0

    def test_spawn_gives_the_result_or_the_exception(self):
        assert spawn(lambda a, b: a + b, 1, b=2).result() == 3
        with pytest.raises(ZeroDivisionError):
            spawn(lambda: 1 / 0).result()

    def test_spawn_is_not_waited_for_without_a_bound(self):
        go = threading.Event()
        handle = spawn(go.wait)
        with pytest.raises(AssertionError, match=r"still runs.*(?s:.*)go\.wait|wait"):
            handle.result(timeout=0.01)
        go.set()
        assert handle.result()

    def test_an_exception_can_be_raised_in_a_thread(self):
        def work():
            while True:
                time.sleep(0.001)

        handle = spawn(work)
        handle.interrupt(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            handle.result()

    def test_ctrl_c(self):
        ready = []
        sender = ctrl_c_when(lambda: ready)
        with pytest.raises(KeyboardInterrupt):
            ready.append(1)
            time.sleep(10)
        sender.result()


class TestFakes:
    def test_a_day_in_order(self, socket_server):
        raw = socket_server.connect("here", user="me")
        assert raw.cursor().execute("SELECT ?", (7,)).fetchall() == [(7,)]
        assert raw.in_transaction
        raw.rollback()
        raw.close()
        [session] = socket_server.sessions
        assert (session.args, session.kwargs) == (("here",), {"user": "me"})
        assert session.goodbye and not session.is_open
        assert session.received() == b"CERX" and session.eof()
        assert socket_server.count("execute") == 1
        assert [call.step for call in socket_server.calls][-1] == "close"

    def test_autocommit_opens_no_transaction(self, server):
        raw = server.connect()
        raw.autocommit = True
        raw.cursor().execute("SELECT 1")
        assert not raw.in_transaction
        raw.cursor().execute("BEGIN")
        assert raw.in_transaction
        raw.cursor().execute("COMMIT")
        raw.close()

    def test_gate(self, server):
        gate = server.hold("connect")
        callers = [spawn(server.connect) for _ in range(3)]
        gate.arrived(3)
        assert (gate.waiting, server.connecting, server.open) == (3, 3, 0)
        gate.release(1)
        until(lambda: server.open == 1)
        assert gate.waiting == 2
        gate.release()
        raws = [caller.result() for caller in callers]
        assert (server.max_connecting, server.max_open, server.opened) == (3, 3, 3)
        for raw in raws:
            raw.close()
        with server.hold("connect"), pytest.raises(AssertionError, match="0 of 1 came"):
            gate = server.hold("connect")
            gate.arrived(1, timeout=0.01)
        gate.stop()

    def test_gate_for_one_connection_and_by_predicate(self, server):
        one, two = server.connect(), server.connect()
        with (
            server.hold("commit", on=one) as gate,
            server.hold("execute", when=lambda call: "slow" in call.sql) as slow,
        ):
            two.commit()
            held = spawn(one.commit)
            gate.arrived()
            two.cursor().execute("SELECT quick")
            slower = spawn(two.cursor().execute, "SELECT slow")
            slow.arrived()
        held.result()
        slower.result()
        two.rollback()
        one.close()
        two.close()

    def test_failures_are_counted(self, server):
        raw = server.connect()
        error = OperationalError("no", sqlstate="40001")
        failure = server.fail("commit", error, times=1, after=1)
        raw.commit()
        with pytest.raises(OperationalError) as caught:
            raw.commit()
        assert caught.value is error
        raw.commit()
        assert failure.count == 1
        server.fail("connect", lambda: OSError("nobody there"))
        with pytest.raises(OSError, match="nobody"):
            server.connect()
        server.recover()
        server.connect().close()
        raw.close()

    def test_kill_and_stop(self, socket_server):
        raw, other = socket_server.connect(), socket_server.connect()
        socket_server.kill(raw)
        assert not raw.closed
        with pytest.raises(OperationalError) as caught:
            raw.cursor()
        assert caught.value.sqlstate == "57P01"
        assert raw.closed and FakeDriver().is_disconnect(caught.value)
        raw.close()
        socket_server.stop()
        assert socket_server.open == 0
        with pytest.raises(OperationalError):
            socket_server.connect()
        socket_server.start()
        other.close()

    def test_two_threads_at_once(self, faulty):
        raw = faulty.connect()
        with faulty.hold("execute") as gate:
            busy = spawn(raw.cursor().execute, "SELECT 1")
            gate.arrived()
            with pytest.raises(Misuse, match="execute by test-execute is inside"):
                raw.rollback()
            with pytest.raises(Misuse):
                FakeDriver().in_transaction(raw)
        busy.result()
        assert kinds(faulty) == ["threads", "threads"]

    def test_use_and_second_close_after_close(self, faulty):
        raw = faulty.connect()
        cursor = raw.cursor()
        raw.close()
        with pytest.raises(Misuse):
            raw.rollback()
        with pytest.raises(Misuse):
            raw.close()
        with pytest.raises(Misuse):
            cursor.execute("SELECT 1")
        faulty.allow.add("closed")
        with pytest.raises(InterfaceError):
            raw.rollback()
        assert kinds(faulty) == ["closed"] * 3

    def test_close_inside_a_transaction(self, faulty):
        raw = faulty.connect()
        raw.cursor().execute("UPDATE")
        with pytest.raises(Misuse):
            raw.close()
        assert kinds(faulty) == ["transaction"]
        broken = faulty.connect()
        broken.cursor().execute("UPDATE")
        faulty.fail("rollback", OperationalError("gone"), times=1)
        with pytest.raises(OperationalError):
            broken.rollback()
        broken.close()
        assert kinds(faulty) == ["transaction"]

    def test_dropping_an_open_connection(self, faulty):
        raw = faulty.connect()
        del raw
        assert kinds(faulty) == ["dropped"]

    def test_what_is_left_open(self):
        server = FakeServer()
        raw = server.connect()
        with pytest.raises(AssertionError, match=r"left open: \[<Session 1 open>\]"):
            server.verify(timeout=0.01)
        del raw

    def test_violations_fail_the_test(self):
        server = FakeServer(sockets=True)
        server.connect()
        with pytest.raises(AssertionError, match=r"\[dropped\]"):
            server.verify(timeout=0.01)

    @pytest.mark.parametrize("fork", [forked, c_forked])
    def test_use_in_a_child(self, faulty, fork):
        raw = faulty.connect()

        def child():
            for use in (raw.cursor, raw.rollback, raw.close, raw.cancel, raw.discard):
                with pytest.raises(Misuse):
                    use()
            with pytest.raises(Misuse):
                FakeDriver().is_closed(raw)
            fresh = faulty.connect()
            fresh.rollback()
            assert (faulty.open, faulty.open_here) == (2, 1)
            fresh.close()

        fork(child)
        assert kinds(faulty) == ["process"] * 3 + ["cancel"] + ["process"] * 2
        assert faulty.violations[0].pid != os.getpid()
        assert faulty.sessions[0].received() == b""
        raw.close()

    def test_severed_in_a_child(self, socket_server):
        raw = socket_server.connect()

        def child():
            assert not raw.severed()
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, raw.fileno())
            os.close(null)
            assert raw.severed()
            driver = FakeDriver()
            driver.discard(raw)
            assert driver.discarded == [1]

        forked(child)
        raw.commit()
        assert socket_server.sessions[0].received() == b"C"
        raw.close()

    def test_dropped_in_a_child_with_its_socket_alive(self, faulty):
        holder = [faulty.connect()]
        forked(holder.clear)
        assert kinds(faulty) == ["process"]
        holder[0].close()

    def test_a_child_pins_the_session(self, socket_server):
        raw = socket_server.connect()
        ours, theirs = os.pipe()
        with Child(os.read, ours, 1):
            raw.close()
            session = socket_server.sessions[0]
            assert session.goodbye and not session.eof()
            os.write(theirs, b".")
        assert session.eof()
        os.close(ours)
        os.close(theirs)

    def test_gates_do_not_hold_children(self, server):
        with server.hold("connect"):
            forked(lambda: server.connect().close())

    def test_the_module_connects(self):
        assert fakes.connect(1).cursor().connection.serial == 1
        fakes._default.pop(os.getpid()).end()


def add(a, b):
    return a + b


def raise_key_error():
    raise KeyError("here")


def hang():
    time.sleep(100)


def leave_by_exit():
    """In a script: a child that unwinds to the top runs atexit; so does the parent, once."""
    read, write = os.pipe()
    parent = os.getpid()
    atexit.register(lambda: os.write(write, b"p" if os.getpid() == parent else b"c"))
    assert forked(add, 1, 1, leave="unwind") == 2
    assert forked(add, 1, 1, leave="sys.exit") == 2
    return os.read(read, 10)


def complain():
    sys.stderr.write("noise\n")


class TestChildren:
    @pytest.mark.parametrize("fork", [forked, c_forked])
    @pytest.mark.parametrize("leave", ["os._exit", "sys.exit", signal.SIGTERM, signal.SIGKILL])
    def test_result(self, fork, leave):
        here = os.getpid()
        assert fork(lambda: os.getpid() != here, leave=leave)

    @pytest.mark.parametrize("fork", [forked, c_forked])
    def test_exception(self, fork):
        with pytest.raises(KeyError) as caught:
            fork(raise_key_error)
        assert "raise_key_error" in str(caught.value.__cause__)

    def test_what_cannot_be_pickled(self):
        with pytest.raises(Exception, match="pickle"):
            forked(threading.Lock)

    def test_large_result(self):
        assert len(forked(lambda: b"x" * 5_000_000)) == 5_000_000

    @pytest.mark.parametrize("fork", [forked, c_forked])
    def test_hung_child_is_killed_and_reported(self, fork):
        lock = threading.Lock()

        def waits_for_ever():
            lock.acquire()
            lock.acquire()

        before = time.monotonic()
        with pytest.raises(Hung, match="waits_for_ever"):
            fork(waits_for_ever, timeout=1.0)
        assert time.monotonic() - before < 5
        assert not Child.living

    def test_hung_at_exit(self):
        def register():
            atexit.register(hang)

        with pytest.raises(Hung, match="hang"):
            forked(register, leave="sys.exit", timeout=0.5)

    def test_death_without_an_answer(self):
        with pytest.raises(ChildDied, match="left with 3"):
            forked(os._exit, 3)
        with pytest.raises(ChildDied, match="left with -9"):
            forked(lambda: os.kill(os.getpid(), signal.SIGKILL))

    def test_sys_exit_finalises(self):
        read, write = os.pipe()
        forked(lambda: atexit.register(os.write, write, b"bye"), leave="sys.exit")
        assert os.read(read, 10) == b"bye"
        os.close(read)
        os.close(write)

    def test_unwinding_needs_a_script(self):
        with pytest.raises(ValueError, match="in_script"):
            forked(add, 1, 1, leave="unwind")

    def test_child_signalled(self):
        with Child(hang) as child:
            assert child.alive
            child.signal(signal.SIGTERM)
            assert child.wait() == -signal.SIGTERM

    def test_what_is_left_behind_is_found(self):
        child = Child(hang)
        [told] = children.left_over()
        assert f"{child.pid}" in told and "alive" in told
        assert children.left_over() == []
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a subreaper")
    def test_orphans_are_found(self):
        def parent():
            pid = os.fork()
            if not pid:
                time.sleep(100)
            return pid

        orphan = forked(parent)
        [told] = children.left_over(patience=0.05)
        assert f"process {orphan} " in told

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="warns from 3.12 on")
    def test_fork_with_threads_warns(self):
        go = threading.Event()
        handle = spawn(go.wait)
        with pytest.raises(DeprecationWarning, match="multi-threaded"):
            forked(add, 1, 1)
        assert forked(add, 1, 1, expect_threads=True) == 2
        go.set()
        handle.result()
        until(lambda: children._os_threads() <= children._Harness.threads)
        assert forked(add, 1, 1) == 2

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_in_process(self, method):
        assert in_process(method, add, 1, 2) == 3
        with pytest.raises(KeyError) as caught:
            in_process(method, raise_key_error)
        assert "raise_key_error" in str(caught.value.__cause__)
        with pytest.raises(Hung, match="hang"):
            in_process(method, hang, timeout=5)
        with pytest.raises(ChildDied, match="left with 3"):
            in_process(method, os._exit, 3)

    def test_in_script(self):
        assert in_script(leave_by_exit) == b"cc"
        with pytest.raises(KeyError):
            in_script(raise_key_error)
        with pytest.raises(ChildDied, match="noise"):
            in_script(complain)
        assert in_script(complain, quiet=False) is None
        with pytest.raises(Hung, match="hang"):
            in_script(hang, timeout=5)


def run_that_dies():
    run = servers.Run.begin("nimue-tests-")
    server = run.shared(servers.PostgresServer, "postgres")
    print(server.pid, run.folder, flush=True)
    os.write(1, b"")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def echo_clients():
    """The connections that ``echo`` has accepted."""
    return []


@pytest.fixture
def echo_closed():
    """Those of them that have ended."""
    return []


@pytest.fixture
def echo(echo_clients, echo_closed):
    """A server that answers each message with itself."""

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            clients.append(client)
            handles.append(spawn(answer, client))

    def answer(client):
        with client:
            while data := client.recv(100):
                client.sendall(data)
        echo_closed.append(client)

    clients, handles = echo_clients, []
    listener = socket.create_server(("127.0.0.1", 0))
    accepting = spawn(serve)
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    accepting.result()
    listener.close()
    for handle, client in zip(handles, clients, strict=True):
        try:
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        try:
            handle.result()
        except OSError:
            pass


class TestProxy:
    @pytest.fixture
    def proxy(self, make_proxy, echo):
        return make_proxy(echo)

    @pytest.fixture
    def connect(self, proxy):
        made = []

        def connect():
            made.append(socket.create_connection(("127.0.0.1", proxy.port), 5))
            return made[-1]

        yield connect
        for client in made:
            client.close()

    def test_pass(self, proxy, connect):
        client = connect()
        client.sendall(b"hello")
        assert client.recv(10) == b"hello"
        assert (proxy.connections, proxy.accepted) == (1, 1)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(10) == b""
        until(lambda: proxy.connections == 0)

    def test_much_goes_through(self, connect):
        client = connect()
        sending = spawn(client.sendall, b"x" * 3_000_000)
        left = 3_000_000
        while left:
            left -= len(client.recv(1 << 16))
        sending.result()

    def test_stalled(self, proxy, connect):
        old = connect()
        old.sendall(b"one")
        assert old.recv(10) == b"one"
        proxy.mode = "stalled"
        new = connect()
        for client in (old, new):
            client.sendall(b"two")
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(10)
        proxy.mode = "pass"
        for client in (old, new):
            client.settimeout(5)
            assert client.recv(10) == b"two"

    def test_held(self, proxy, connect, echo_closed):
        staying, going = connect(), connect()
        until(lambda: proxy.connections == 2)
        proxy.mode = "held"
        for client in (staying, going):
            client.sendall(b"held")
        staying.settimeout(0.05)
        with pytest.raises(TimeoutError):
            staying.recv(10)
        late = connect()
        going.close()
        until(lambda: len(echo_closed) == 1 and proxy.connections == 2)
        late.close()
        until(lambda: len(echo_closed) == 2 and proxy.connections == 1)
        proxy.mode = "pass"
        staying.settimeout(5)
        assert staying.recv(10) == b"held"

    def test_held_tells_of_a_server_that_goes(self, proxy, connect, echo_clients):
        client = connect()
        until(lambda: len(echo_clients) == 1)
        proxy.mode = "held"
        echo_clients[0].shutdown(socket.SHUT_RDWR)
        assert client.recv(10) == b""

    def test_slow_keeps_the_order(self, proxy, connect):
        client = connect()
        proxy.mode = "slow"
        began = time.monotonic()
        client.sendall(b"x")
        assert client.recv(10) == b"x"
        assert time.monotonic() - began >= 0.01
        sent = b"".join(b"%d " % n for n in range(300))
        for start in range(0, len(sent), 100):
            client.sendall(sent[start : start + 100])
            time.sleep(0.001)  # in a packet of its own
        proxy.mode = "pass"
        client.sendall(b"end")
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(1 << 16), b"")) == sent + b"end"
        until(lambda: proxy.connections == 0)

    def test_swallow(self, proxy, connect):
        client = connect()
        proxy.mode = "swallow"
        client.sendall(b"lost")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(10)
        proxy.mode = "pass"
        client.sendall(b"lost")
        with pytest.raises(TimeoutError):
            client.recv(10)
        fresh = connect()
        fresh.sendall(b"found")
        assert fresh.recv(10) == b"found"

    def test_refuse(self, proxy, connect):
        old = connect()
        until(lambda: proxy.connections == 1)
        proxy.mode = "refuse"
        with pytest.raises(ConnectionRefusedError):
            connect()
        old.sendall(b"on")
        assert old.recv(10) == b"on"
        proxy.mode = "pass"
        connect().sendall(b"again")

    def test_cut(self, proxy, connect):
        client = connect()
        until(lambda: proxy.connections == 1)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(10)
        assert proxy.connections == 0
        connect()
        until(lambda: proxy.connections == 1)
        proxy.mode = "cut"
        with pytest.raises(ConnectionResetError):
            connect().recv(10)

    def test_children_do_not_hold_its_sockets(self, proxy, connect):
        client = connect()
        until(lambda: proxy.connections == 1)
        with Child(time.sleep, 0.3, expect_threads=True):
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(10)

    def test_no_such_mode(self, proxy):
        with pytest.raises(ValueError, match="stalled"):
            proxy.mode = "asleep"


def session_number(connector, statement):
    raw = connector()
    cursor = raw.cursor()
    cursor.execute(statement)
    [number] = cursor.fetchone()
    raw.close()
    return number


class TestPostgres:
    @pytest.mark.parametrize("driver", servers.POSTGRES_DRIVERS)
    def test_sessions_are_counted(self, postgres, driver):
        assert postgres.sessions() == []
        raw = postgres.connect(driver)
        [session] = postgres.expect_sessions(1)
        assert session.application_name == postgres.application_name
        raw.cursor().execute("SELECT 1")
        [session] = postgres.sessions()
        assert session.state == "idle in transaction" and session.xact_start
        raw.rollback()
        raw.close()
        postgres.expect_sessions(0)

    @pytest.mark.parametrize("driver", servers.POSTGRES_DRIVERS)
    def test_terminate(self, postgres, driver):
        raw = postgres.connect(driver)
        postgres.terminate(postgres.sessions()[0].pid)
        assert postgres.sessions() == []
        with pytest.raises(Exception, match=r"terminat|closed|network error"):
            raw.cursor().execute("SELECT 1")
        try:
            raw.close()
        except Exception:
            pass

    @pytest.mark.parametrize("driver", servers.POSTGRES_DRIVERS)
    def test_through_a_proxy_and_in_other_processes(self, postgres, driver, make_proxy):
        proxy = make_proxy(postgres.port)
        connector = postgres.connector(driver, host="127.0.0.1", port=proxy.port)
        assert pickle.loads(pickle.dumps(connector)).func is connector.func
        pid = "SELECT pg_backend_pid()"
        assert in_process("spawn", session_number, connector, pid)
        assert forked(session_number, connector, pid)
        assert proxy.accepted == 2

    def test_sessions_left_are_told(self, postgres):
        raw = postgres.connect("psycopg2")
        with pytest.raises(AssertionError, match=r"0 sessions of .*; there are \[.*state='idle'"):
            postgres.expect_sessions(0, timeout=0.05)
        postgres.terminate_all()
        raw.close()

    def test_the_oracle_works_in_a_child(self, postgres):
        raw = postgres.connect("psycopg2")
        assert len(postgres.sessions()) == len(forked(postgres.sessions)) == 1
        raw.close()

    def test_stop_and_start(self, private_postgres):
        raw = private_postgres.connect("psycopg2")
        port = private_postgres.port
        private_postgres.stop()
        with pytest.raises(raw.OperationalError):
            private_postgres.connect("psycopg2")
        with pytest.raises(raw.OperationalError):
            raw.cursor().execute("SELECT 1")
        private_postgres.start(max_connections=7)
        assert private_postgres.sql("SHOW max_connections")[0][0] == "7"
        assert private_postgres.port == port
        private_postgres.connect("psycopg2").close()
        private_postgres.stop(crash=True)

    def test_no_server_survives_its_run(self, capfd):
        with pytest.raises(ChildDied, match="left with -9"):
            in_script(run_that_dies)
        pid, folder = capfd.readouterr().out.split()
        until(lambda: children.gone(int(pid)) and not os.path.exists(folder))


class TestMariaDB:
    @pytest.mark.parametrize("driver", servers.MARIADB_DRIVERS)
    def test_sessions_are_counted_and_ended(self, mariadb, driver):
        raw = mariadb.connect(driver)
        [session] = mariadb.expect_sessions(1)
        assert session.user == mariadb.user
        mariadb.terminate(session.id)
        assert mariadb.sessions() == []
        with pytest.raises(raw.OperationalError):
            raw.cursor().execute("SELECT 1")
        raw.close()

    @pytest.mark.parametrize("driver", servers.MARIADB_DRIVERS)
    def test_through_a_proxy_and_in_other_processes(self, mariadb, driver, make_proxy):
        proxy = make_proxy(mariadb.port)
        connector = mariadb.connector(driver, port=proxy.port)
        assert in_process("spawn", session_number, connector, "SELECT CONNECTION_ID()")
        assert forked(session_number, connector, "SELECT CONNECTION_ID()")
        assert proxy.accepted == 2

    def test_required(self, monkeypatch):
        monkeypatch.setenv("NIMUE_REQUIRE_MARIADB", "1")
        with pytest.raises(pytest.fail.Exception, match="no_such_module"):
            servers.require_module("no_such_module")
        monkeypatch.delenv("NIMUE_REQUIRE_MARIADB")
        with pytest.raises(pytest.skip.Exception):
            servers.require_module("no_such_module")


FAULTY_TESTS = """
import pathlib
import time
from tests.children import Child
from tests.fakes import spawn

def test_good(server):
    server.connect().close()

def test_violation(socket_server):
    socket_server.connect()

def test_left_open(server):
    server.left = server.connect()

def test_left_child():
    Child(time.sleep, 100)

def test_left_exception():
    spawn(lambda: 1 / 0)

def test_left_session(postgres):
    pathlib.Path("folder").write_text(str(postgres.server.run.folder))
    postgres.left = postgres.connect("psycopg2")
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_fixtures_fail_the_tests(tmp_path, workers):
    if workers:
        pytest.importorskip("xdist")
    path = tmp_path / "test_faulty.py"
    path.write_text(FAULTY_TESTS)
    options = ["-p", "tests.conftest", "-W", "error", "-p", "no:cacheprovider", "-rE", *workers]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(children.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert "6 passed, 5 errors" in done.stdout, done.stdout
    for name in ("violation", "left_open", "left_child", "left_exception", "left_session"):
        assert f"ERROR test_faulty.py::test_{name}" in done.stdout
    assert not os.path.exists((tmp_path / "folder").read_text())
