"""One connection, one holder at a time: whose turn it is, and what becomes of it at the end."""

from __future__ import annotations

import contextlib
import gc
import logging
import pickle
import sqlite3
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import nimue
from nimue import (
    ManagedConnection,
    NimueInvalidParameterValue,
    NimueNestedUseError,
    NimueNoConnectionAvailable,
    NimuePoolTimeout,
)
from tests import fakes
from tests.fakes import Error, FakeDriver, FakeServer, OperationalError, spawn, until

BOUND = 10.0


class Boom(Exception):
    pass


def make(server: FakeServer, **options: Any) -> ManagedConnection:
    return ManagedConnection(server.connect, driver=FakeDriver(), **options)


def waiting(manager: ManagedConnection) -> int:
    return manager._pool.poolstats().waiting


def use(manager: ManagedConnection) -> int:
    """A whole turn; the serial number of the connection."""
    with manager(timeout=BOUND) as connection:
        connection.cursor().execute("select 1")
        connection.commit()
        serial: int = connection.serial
    return serial


def free(manager: ManagedConnection) -> bool:
    """Whether another thread gets its turn."""
    spawn(use, manager).result()
    return True


class TestTurns:
    def test_opened_when_needed_and_kept(self, server: FakeServer) -> None:
        manager = make(server)
        assert manager.closed
        assert manager.status is None
        assert server.opened == 0
        with manager() as connection:
            assert isinstance(connection, fakes.Connection)
            assert not manager.closed
            assert manager.status is False
            connection.cursor().execute("select 1")
            assert manager.status is True
            connection.commit()
        assert not manager.closed
        assert [use(manager) for _ in range(3)] == [1, 1, 1]
        manager.close()

    def test_first_come_first_served(self, server: FakeServer) -> None:
        manager = make(server)
        order: list[int] = []

        def turn(number: int) -> None:
            with manager():
                order.append(number)

        with manager():
            threads = []
            for number in range(5):
                threads.append(spawn(turn, number))
                until(lambda: waiting(manager) == len(threads))
            assert order == []
        for thread in threads:
            thread.result()
        assert order == [0, 1, 2, 3, 4]
        assert server.max_open == 1
        manager.close()

    def test_the_wait_ends_in_time(self, server: FakeServer) -> None:
        manager = make(server, timeout=0.01, name="only")

        def turn(**options: Any) -> None:
            with manager(**options):
                pass

        with manager(timeout=BOUND):
            for options in ({}, {"timeout": 0.02}):
                with pytest.raises(NimuePoolTimeout, match=r"'only'.*by MainThread \(.*managed"):
                    spawn(turn, **options).result()
            with pytest.raises(NimueNoConnectionAvailable):
                spawn(turn, timeout=0).result()
            patient = spawn(turn, timeout=None)
            until(lambda: waiting(manager) == 1)
        patient.result()
        turn(timeout=0)
        manager.close()

    def test_one_that_may_not_wait(self, server: FakeServer) -> None:
        """It is refused while another has the connection, or waits for it; else it is served."""
        manager = make(server, healthcheck_idle=0.0)

        def turn() -> int:
            with manager(blocking=False) as connection:
                serial: int = connection.serial
            return serial

        assert turn() == 1  # it is opened
        assert turn() == 1  # it is checked
        with manager():
            with pytest.raises(NimueNoConnectionAvailable, match="may not wait") as refused:
                spawn(turn).result()
            assert not isinstance(refused.value, NimuePoolTimeout)
        manager.close()
        with server.hold("connect") as gate:
            first = spawn(use, manager)
            gate.arrived()
            until(lambda: waiting(manager) == 1)
            with pytest.raises(NimueNoConnectionAvailable):
                turn()
        assert first.result() == 2
        with server.hold("connect") as gate:
            manager.close()
            with pytest.raises(NimuePoolTimeout):
                manager(blocking=False, timeout=0.01).__enter__()
        until(lambda: server.open == 1)
        manager.close()

    def test_nested(self, server: FakeServer) -> None:
        manager = make(server, timeout=BOUND)

        @contextlib.contextmanager
        def session() -> Iterator[Any]:
            with manager() as connection:
                yield connection

        def nested() -> None:
            with session(), pytest.raises(NimueNestedUseError, match=r"uses .* already"):
                manager().__enter__()
            with session(), pytest.raises(RuntimeError), session():
                pass

        nested()
        spawn(nested).result()
        assert free(manager)
        manager.close()

    def test_one_context_manager_in_two_threads(self, server: FakeServer) -> None:
        manager = make(server)
        turn = manager()
        inside: list[int] = []

        def work() -> None:
            for _ in range(200):
                with turn as connection:
                    inside.append(1)
                    assert len(inside) == 1
                    assert connection.serial == 1
                    inside.pop()

        threads = [spawn(work) for _ in range(2)]
        for thread in threads:
            thread.result()
        manager.close()

    def test_abandoned(self, server: FakeServer) -> None:
        manager = make(server)

        def abandons() -> None:
            turn = manager()
            turn.__enter__().cursor().execute("select 1")
            del turn
            gc.collect()

        with pytest.warns(ResourceWarning, match="dropped without close") as seen:
            spawn(abandons).result()
            until(lambda: list(seen))
        assert free(manager)
        assert server.count("rollback") == 1
        manager.close()


class TestLeaving:
    def test_an_open_transaction_is_an_error(self, server: FakeServer) -> None:
        manager = make(server)
        expected = "^Did not commit or rollback open transaction before releasing connection.$"
        with pytest.raises(RuntimeError, match=expected), manager() as connection:
            connection.cursor().execute("update")
        assert manager.status is False
        assert use(manager) == 1
        manager.close()

    def test_the_applications_error(self, server: FakeServer, caplog: Any) -> None:
        manager = make(server)
        for error in (Boom, KeyboardInterrupt, GeneratorExit):
            caplog.clear()
            with pytest.raises(error), manager() as connection:
                connection.cursor().execute("update")
                raise error("secret")
            (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
            assert record.name == "nimue.managed"
            assert record.getMessage().endswith(f"exception in the block: {error.__name__}")
            assert record.exc_info[1].args == ("secret",)
            assert manager.status is False
        caplog.clear()
        with pytest.raises(Boom), manager():
            raise Boom
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert use(manager) == 1
        manager.close()

    @pytest.mark.parametrize("error", [Error("no"), OperationalError("gone", sqlstate="57P01")])
    @pytest.mark.parametrize("raised_by", ["the block", "the driver"])
    def test_the_drivers_error(self, server: FakeServer, error: Error, raised_by: str) -> None:
        server.allow.add("transaction")  # one that is lost is not asked for a rollback
        manager = make(server)
        if raised_by == "the driver":
            server.fail("execute", error, times=1, after=1)
        with pytest.raises(type(error)) as seen, manager() as connection:
            connection.cursor().execute("update")
            connection.cursor().execute("update")
            raise error
        assert seen.value is error
        assert manager.closed
        assert manager.status is None
        assert server.open == 0
        assert use(manager) == 2
        manager.close()

    @pytest.mark.parametrize("error", [Boom, None])
    def test_a_rollback_that_fails(
        self, server: FakeServer, error: type[Boom] | None, caplog: Any
    ) -> None:
        manager = make(server)
        failed = OperationalError("stuck")
        server.fail("rollback", failed, times=1)
        with pytest.raises(error or RuntimeError) as seen, manager() as connection:
            connection.cursor().execute("update")
            if error is not None:
                raise error
        if error is None:
            assert seen.value.__cause__ is failed
        else:
            assert "rollback failed (OperationalError)" in caplog.text
        assert manager.closed
        assert use(manager) == 2
        manager.close()

    @pytest.mark.parametrize("error", [None, Boom])
    def test_close(self, server: FakeServer, error: type[Boom] | None) -> None:
        manager = make(server)
        expected = contextlib.nullcontext() if error is None else pytest.raises(error)
        with expected, manager(close=True) as connection:
            connection.cursor().execute("update")
            if error is not None:
                raise error
            connection.rollback()
        assert manager.closed
        assert server.sessions[0].goodbye
        assert use(manager) == 2
        manager.close()

    def test_what_the_block_has_closed_or_lost_is_opened_again(self, server: FakeServer) -> None:
        server.allow.add("closed")  # DB-API 2.0 says nothing against a second close()
        manager = make(server)
        with manager() as connection:
            connection.close()
            assert manager.closed
        assert use(manager) == 2
        server.kill_all()
        with pytest.raises(RuntimeError), manager() as connection:
            server.sessions[1].in_transaction = True
        assert use(manager) == 3
        manager.close()

    def test_a_driver_that_does_not_know_of_transactions(self, server: FakeServer) -> None:
        manager = ManagedConnection(server.connect, driver=FakeDriver(knows_transaction=False))
        with manager() as connection:
            connection.cursor().execute("update")
        assert server.count("rollback") == 1
        assert manager.status is None
        assert not manager.closed
        manager.close()

    def test_a_connection_lost_while_nobody_used_it(self, server: FakeServer) -> None:
        manager = make(server, healthcheck_idle=0.0)
        assert use(manager) == 1
        server.kill_all()
        assert use(manager) == 2
        manager.close()

    def test_connect_fails(self, server: FakeServer) -> None:
        manager = make(server)
        server.fail("connect", OperationalError("refused", sqlstate="08001"), times=1)
        with pytest.raises(OperationalError, match="refused"):
            use(manager)
        assert manager.closed
        assert use(manager) == 1
        manager.close()


class TestClose:
    def test_in_use(self, server: FakeServer) -> None:
        """Whoever has it keeps it until the end of the block; who waits gets another."""
        manager = make(server)
        with manager() as connection:
            behind = spawn(use, manager)
            until(lambda: waiting(manager) == 1)
            spawn(manager.close).result()
            assert not manager.closed
            connection.cursor().execute("select 1")
            connection.commit()
        assert behind.result() == 2
        assert server.sessions[0].goodbye
        manager.close()
        manager.close()
        assert manager.closed

    def test_from_many_threads(self, server: FakeServer) -> None:
        manager = make(server)
        over = threading.Event()

        def closes() -> None:
            while not over.wait(0.0005):
                manager.close()
                assert manager.status in (None, True, False)

        server.allow.add("threads")  # the fake takes a look at the status for use
        closers = [spawn(closes) for _ in range(2)]
        users = [spawn(lambda: [use(manager) for _ in range(40)]) for _ in range(3)]
        for user in users:
            user.result()
        over.set()
        for closer in closers:
            closer.result()
        manager.close()
        until(lambda: server.open == 0)
        assert server.max_open == 1


class TestParameters:
    def test_repr(self, server: FakeServer) -> None:
        pytest.importorskip("psycopg2")
        plain = ManagedConnection("postgres:///postgres")
        assert repr(plain) == "<ManagedConnection: postgres:///postgres (closed)>"
        assert str(plain) == plain.dsn == "postgres:///postgres"
        for dsn in (
            "host=h user=me password='pass word' dbname=d",
            "postgres://me:pass%20word@h/d?sslpassword=pass%20word",
        ):
            manager = ManagedConnection(dsn=dsn)
            assert manager.dsn == dsn
            assert "word" not in f"{manager!r} {manager} {manager._pool!r}"
            assert "host=h" in str(manager)
        assert "secret" not in repr(ManagedConnection("passwort = secret"))
        for unquoted in ("sec/ret", "x:secr/et", "x@secret", "1/secret"):
            shown = repr(ManagedConnection(f"postgres://bob:{unquoted}@127.0.0.1:1/db"))
            assert "ret" not in shown.replace("string", "").replace("unquoted", "")
        assert "host=::1" in repr(ManagedConnection("postgres://bob:secret@[::1]:5432/db"))
        other = make(server)
        assert other.dsn is None
        assert str(other) == "tests.fakes.FakeServer.connect"
        with other(close=True):
            assert repr(other) == "<ManagedConnection: tests.fakes.FakeServer.connect (open)>"
        assert str(ManagedConnection(partial(print, "secret"))) == "functools.partial"

    def test_refused(self, server: FakeServer) -> None:
        for wrong, named in (
            (ManagedConnection, "connfunc"),
            (lambda: ManagedConnection(5), "connfunc"),  # type: ignore[arg-type]
            (lambda: ManagedConnection(print, dsn="secret"), "dsn"),
            (lambda: ManagedConnection(dsn=5), "dsn"),  # type: ignore[arg-type]
            (lambda: ManagedConnection(dsn=""), "dsn must be .*, not an empty string"),
            (lambda: ManagedConnection(""), "connfunc must be .*, not an empty string"),
            (lambda: make(server, timeout=-1), "timeout"),
            (lambda: make(server, connargs="secret"), "connargs"),
            (lambda: make(server)(timeout="5"), "timeout"),  # type: ignore[arg-type]
            (lambda: make(server)(5), "close"),  # type: ignore[arg-type]
            (lambda: make(server)(blocking=5), "blocking"),  # type: ignore[arg-type]
        ):
            with pytest.raises(NimueInvalidParameterValue, match=named) as refused:
                wrong()
            assert "secret" not in str(refused.value)
        assert server.opened == 0

    def test_arguments_and_set_up(self, server: FakeServer) -> None:
        manager = make(
            server,
            connargs=["shop"],
            connkwargs={"port": 1},
            on_connect=lambda raw: raw.cursor().execute("set"),
        )
        with manager(close=True) as connection:
            assert (connection._session.args, connection._session.kwargs) == (
                ("shop",),
                {"port": 1},
            )
            assert manager.status is False
        assert server.count("execute") == 1

    def test_a_pickled_one_is_the_same_here(self) -> None:
        options = {"check_same_thread": False}
        manager = ManagedConnection(sqlite3.connect, [":memory:"], options, name="sent")
        again = pickle.loads(pickle.dumps(manager))
        assert repr(again) == repr(manager)
        with manager(close=True), pytest.raises(NimueNoConnectionAvailable):
            spawn(lambda: again(blocking=False).__enter__()).result()

    def test_imported_when_asked_for(self) -> None:
        assert nimue.ManagedConnection is ManagedConnection
        assert "ManagedConnection" in dir(nimue)
