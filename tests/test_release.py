"""What comes back: reset as far as needed, discarded when broken, replaced when too old."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from nimue import NimueConnectionPool, opener
from nimue.drivers import Driver
from nimue.sweep import sweep
from tests.fakes import (
    Connection,
    FakeDriver,
    FakeServer,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    spawn,
    until,
)

DISCONNECTS = ("08006", "08001", "57P01", "57P02", "57P03", "25006")


class Pool(NimueConnectionPool):
    """One whose ``with`` comes to an end although a test has failed inside it."""

    def __exit__(self, *exc_info: Any) -> None:
        self.close(timeout=10.0)


def make(server: FakeServer, **parameters: Any) -> NimueConnectionPool:
    given: dict[str, Any] = {"poolmin": 1, "poolmax": 4, "driver": FakeDriver(), **parameters}
    return Pool(server.connect, **given)


def serial_of_next(pool: NimueConnectionPool) -> int:
    with closing(pool.getconnection(timeout=10)) as conn:
        return conn.raw.serial


class TestReset:
    def test_nothing_is_done_outside_a_transaction(self, server: FakeServer) -> None:
        with make(server, healthcheck_on_getconnection=False) as pool:
            pool.getconnection().close()
            with closing(pool.getconnection()) as conn:
                conn.cursor().execute("SELECT 1")
                conn.commit()
            with closing(pool.getconnection()) as conn, conn:
                conn.cursor().execute("SELECT 1")
            assert server.count("rollback") == 0
            assert server.count("execute") == 2

    def test_an_open_transaction_is_rolled_back(self, server: FakeServer) -> None:
        with make(server) as pool:
            with closing(pool.getconnection()) as conn:
                conn.cursor().execute("INSERT")
                raw = conn.raw
            assert server.count("rollback") == 1
            assert not raw.in_transaction
            assert serial_of_next(pool) == 1

    def test_so_it_is_when_it_cannot_be_known(self, server: FakeServer) -> None:
        with make(server, driver=FakeDriver(knows_transaction=False)) as pool:
            for n in range(1, 4):
                pool.getconnection().close()
                assert server.count("rollback") == n
            assert server.opened == 1

    def test_an_exception_in_with_does_not_roll_back_twice(self, server: FakeServer) -> None:
        with make(server) as pool:
            with pytest.raises(LookupError), closing(pool.getconnection()) as conn, conn:
                conn.cursor().execute("INSERT")
                raise LookupError
            assert (server.count("rollback"), server.count("commit")) == (1, 0)

    @pytest.mark.parametrize("error", [OperationalError("no"), ZeroDivisionError(), InterfaceError])
    def test_an_error_meanwhile_discards(self, server: FakeServer, error: Any) -> None:
        with make(server) as pool:
            conn = pool.getconnection()
            conn.cursor().execute("INSERT")
            server.fail("rollback", error, times=1)
            conn.close()
            assert not server.sessions[0].is_open
            assert serial_of_next(pool) == 2

    def test_an_interrupt_meanwhile_discards_and_is_not_swallowed(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            conn = pool.getconnection()
            conn.cursor().execute("INSERT")
            server.fail("rollback", KeyboardInterrupt, times=1)
            with pytest.raises(KeyboardInterrupt):
                conn.close()
            assert serial_of_next(pool) == 2
            assert pool.poolstats().poolsize == 1


class TestOnReturn:
    def test_runs_after_the_reset(self, server: FakeServer) -> None:
        seen: list[Any] = []

        def on_return(raw: Connection) -> None:
            seen.append((raw, raw.in_transaction, server.count("rollback")))

        with make(server, on_return=on_return) as pool:
            with closing(pool.getconnection()) as conn:
                raw = conn.raw
                conn.cursor().execute("INSERT")
                assert seen == []
            assert seen == [(raw, False, 1)]
            pool.getconnection().close()
            assert seen == [(raw, False, 1)] * 2

    def test_what_it_leaves_open_is_rolled_back(self, server: FakeServer) -> None:
        def on_return(raw: Connection) -> None:
            raw.cursor().execute("RESET ALL")

        with make(server, on_return=on_return) as pool:
            with closing(pool.getconnection()) as conn:
                raw = conn.raw
            assert not raw.in_transaction
            assert serial_of_next(pool) == 1

    def test_its_failure_discards(self, server: FakeServer) -> None:
        def on_return(raw: Connection) -> None:
            if raw.serial == 1:
                raise LookupError("mine")

        with make(server, on_return=on_return) as pool:
            pool.getconnection().close()
            assert not server.sessions[0].is_open
            assert serial_of_next(pool) == 2
            assert serial_of_next(pool) == 2

    def test_is_not_asked_about_a_broken_one(self, server: FakeServer) -> None:
        seen: list[Any] = []
        with make(server, on_return=seen.append) as pool:
            conn = pool.getconnection()
            server.kill(conn.raw)
            with pytest.raises(OperationalError):
                conn.cursor().execute("SELECT 1")
            conn.close()
            assert seen == []


class TestAttributes:
    def test_are_set_back(self, server: FakeServer) -> None:
        with make(server, on_connect=lambda raw: setattr(raw, "mood", "calm")) as pool:
            with closing(pool.getconnection()) as conn:
                raw = conn.raw
                conn.autocommit = True
                conn.autocommit = False
                conn.autocommit = True
                conn.mood = "wild"
                assert raw.autocommit is True
                assert raw.mood == "wild"
                conn.cursor().execute("BEGIN")
            assert raw.autocommit is False
            assert raw.mood == "calm"
            assert serial_of_next(pool) == 1

    def test_are_set_back_before_on_return(self, server: FakeServer) -> None:
        seen: list[bool] = []
        with make(server, on_return=lambda raw: seen.append(raw.autocommit)) as pool:
            with closing(pool.getconnection()) as conn:
                conn.autocommit = True
            assert seen == [False]

    def test_once_only(self, server: FakeServer) -> None:
        with make(server) as pool:
            with closing(pool.getconnection()) as conn:
                raw = conn.raw
                conn.autocommit = True
            raw.autocommit = True  # set past the pool: none of its business
            pool.getconnection().close()
            assert raw.autocommit is True

    def test_a_new_one_is_gone(self, server: FakeServer) -> None:
        with make(server) as pool:
            with closing(pool.getconnection()) as conn:
                conn.tenant = "a secret"
                assert conn.tenant == "a secret"
            with closing(pool.getconnection()) as conn:
                assert conn.raw.serial == 1
                assert not hasattr(conn, "tenant")

    def test_one_that_cannot_be_set_costs_no_connection(self, server: FakeServer) -> None:
        with make(server) as pool:
            with closing(pool.getconnection()) as conn:
                with pytest.raises(AttributeError):
                    conn.in_transaction = True
                conn.cursor().execute("INSERT")
                with pytest.raises(ProgrammingError):
                    conn.autocommit = True
            assert serial_of_next(pool) == 1

    def test_one_that_cannot_be_set_back_discards(self, server: FakeServer) -> None:
        class Once(Connection):
            @property
            def level(self) -> str:
                return "default"

            @level.setter
            def level(self, value: str) -> None:
                if value == "default":
                    raise ProgrammingError("not back")

        def connfunc() -> Connection:
            raw = server.connect()
            raw.__class__ = Once
            return raw

        with Pool(connfunc, poolmin=1, driver=FakeDriver()) as pool:
            with closing(pool.getconnection()) as conn:
                conn.level = "serializable"
            assert not server.sessions[0].is_open


class Blind(FakeDriver):
    """A driver that notices nothing itself, so that only the error can tell."""

    def is_closed(self, raw: Connection) -> bool:
        return bool(raw._closed)

    def in_transaction(self, raw: Connection) -> bool:
        return raw.in_transaction


class TestBroken:
    def test_by_the_drivers_state(self, server: FakeServer) -> None:
        with make(server) as pool:
            conn = pool.getconnection()
            server.kill(conn.raw)
            with pytest.raises(OperationalError):
                conn.raw.cursor()  # past the handle: only the driver's state can tell
            conn.close()
            assert serial_of_next(pool) == 2

    def test_closed_by_its_holder(self, server: FakeServer) -> None:
        with make(server) as pool:
            conn = pool.getconnection()
            conn.raw.close()
            server.allow.add("closed")  # no driver minds a second close
            conn.close()
            assert serial_of_next(pool) == 2

    @pytest.mark.parametrize("sqlstate", DISCONNECTS)
    @pytest.mark.parametrize("how", ["execute", "executemany", "commit", "rollback"])
    def test_by_sqlstate(self, server: FakeServer, sqlstate: str, how: str) -> None:
        with make(server, driver=Blind()) as pool:
            conn = pool.getconnection()
            cursor = conn.cursor()
            step = "execute" if how == "executemany" else how
            act = {
                "execute": lambda: cursor.execute("SELECT 1"),
                "executemany": lambda: cursor.executemany("SELECT", [(1,)]),
                "commit": conn.commit,
                "rollback": conn.rollback,
            }[how]
            server.fail(step, OperationalError("so it is", sqlstate=sqlstate), times=1)
            with pytest.raises(OperationalError, match="so it is"):
                act()
            conn.close()
            assert not server.sessions[0].is_open
            assert serial_of_next(pool) == 2

    @pytest.mark.parametrize("sqlstate", DISCONNECTS)
    def test_by_sqlstate_at_the_end_of_with(self, server: FakeServer, sqlstate: str) -> None:
        with make(server, driver=Blind()) as pool:
            server.fail("commit", OperationalError("so it is", sqlstate=sqlstate), times=1)
            with (
                pytest.raises(OperationalError, match="so it is"),
                closing(pool.getconnection()) as conn,
                conn,
            ):
                conn.cursor().execute("INSERT")
            assert serial_of_next(pool) == 2

    def test_not_by_an_error_from_elsewhere(self, server: FakeServer) -> None:
        with make(server) as pool:
            with pytest.raises(OperationalError), pool.connection():
                raise OperationalError("of another database", sqlstate="57P01")
            assert serial_of_next(pool) == 1
            with pytest.raises(OperationalError), closing(pool.getconnection()) as conn, conn:
                raise OperationalError("of another database", sqlstate="57P01")
            assert serial_of_next(pool) == 1

    @pytest.mark.parametrize("sqlstate", ["42P01", "23505", "40001", "57014", None])
    def test_not_by_any_other_error(self, server: FakeServer, sqlstate: Any) -> None:
        with make(server) as pool:
            with closing(pool.getconnection()) as conn:
                server.fail("execute", ProgrammingError("typo", sqlstate=sqlstate), times=1)
                with pytest.raises(ProgrammingError):
                    conn.cursor().execute("SELEKT 1")
            assert serial_of_next(pool) == 1

    def test_the_user_may_think_otherwise(self, server: FakeServer) -> None:
        class Mine(FakeDriver):
            def is_disconnect(self, error: BaseException) -> bool:
                return "VALKEY" in str(error)

        with make(server, driver=Mine()) as pool:
            for message, due in (("READONLY", 1), ("LOST VALKEY", 2)):
                with closing(pool.getconnection()) as conn:
                    server.fail("execute", ProgrammingError(message), times=1)
                    with pytest.raises(ProgrammingError):
                        conn.cursor().execute("x")
                assert serial_of_next(pool) == due

    def test_close_itself_raises_nothing(self, server: FakeServer) -> None:
        with make(server) as pool:
            conn = pool.getconnection()
            conn.cursor().execute("INSERT")
            server.fail("rollback", OperationalError("gone", sqlstate="57P01"), times=1)
            server.fail("close", OperationalError("gone"), times=1)
            conn.close()
            assert serial_of_next(pool) == 2

    def test_a_driver_of_which_nothing_is_known(self, server: FakeServer) -> None:
        import tests.fakes

        with make(server, driver=Driver(tests.fakes)) as pool:
            conn = pool.getconnection()
            server.kill(conn.raw)
            with pytest.raises(OperationalError):
                conn.cursor().execute("SELECT 1")
            conn.close()
            assert serial_of_next(pool) == 2

    def test_waiters_get_another_in_its_place(self, server: FakeServer) -> None:
        with make(server, poolmax=1) as pool:
            conn = pool.getconnection()
            asking = spawn(pool.getconnection)
            until(lambda: pool.poolstats().waiting == 1)
            server.kill(conn.raw)
            with pytest.raises(OperationalError):
                conn.cursor().execute("SELECT 1")
            conn.close()
            with closing(asking.result()) as other:
                assert other.raw.serial == 2
            assert server.max_open == 1


class TestSuspicion:
    def test_the_older_idle_ones_are_checked(self, server: FakeServer) -> None:
        with make(server, poolmin=0, poolmax=5, poolinit=5, healthcheck_idle=1000) as pool:
            conn = pool.getconnection()
            broken = conn.raw
            healthy, *dead = (raw for raw in server.connections if raw is not broken)
            server.kill(broken)
            for raw in dead:
                server.kill(raw)
            with pytest.raises(OperationalError):
                conn.cursor().execute("SELECT 1")
            conn.close()
            until(lambda: pool.poolstats().poolsize == 1)
            until(lambda: pool.poolstats().poolfree == 1)
            assert [raw.serial for raw in server.connections] == [healthy.serial]
            assert server.opened == 5
            assert pool.poolstats().connections_cleaned_dead == 3
            assert serial_of_next(pool) == healthy.serial

    def test_nobody_gets_one_of_them_unchecked(self, server: FakeServer) -> None:
        with make(server, poolmin=3, healthcheck_idle=1000) as pool:
            conn = pool.getconnection()
            server.kill_all()
            with server.hold("cursor", when=lambda call: call.thread.startswith("nimue")) as gate:
                with pytest.raises(OperationalError):
                    conn.cursor().execute("SELECT 1")
                conn.close()
                gate.arrived(1)
                asking = spawn(pool.getconnection)
                until(lambda: asking.done or pool.poolstats().waiting == 1)
            with closing(asking.result()) as other:
                assert other.raw.serial > 3
                other.cursor().execute("SELECT 1")

    def test_an_error_of_the_users_raises_none(self, server: FakeServer) -> None:
        with make(server, poolmin=3, healthcheck_idle=1000) as pool:
            with closing(pool.getconnection()) as conn:
                server.fail("execute", ProgrammingError("typo"), times=1)
                with pytest.raises(ProgrammingError):
                    conn.cursor().execute("SELEKT 1")
            pool.close()
        assert server.count("execute") == 1


class TestGenerations:
    def test_drain_replaces_idle_ones_at_once(self, server: FakeServer) -> None:
        with make(server, poolmin=3) as pool:
            pool.getconnection().close()
            old = server.connections
            pool.drain()
            assert all(raw.closed for raw in old)
            until(lambda: pool.poolstats().poolfree == 3)
            assert server.opened == 6
            assert serial_of_next(pool) > 3

    def test_drain_replaces_those_in_use_when_they_come_back(self, server: FakeServer) -> None:
        with make(server, poolmin=2) as pool:
            conn = pool.getconnection()
            raw = conn.raw
            pool.drain()
            conn.cursor().execute("SELECT 1")
            assert not raw.closed
            conn.close()
            assert raw.closed
            assert raw._session.goodbye
            until(lambda: pool.poolstats().poolfree == 2)
            assert {raw.serial for raw in server.connections}.isdisjoint({1, 2})

    def test_drain_replaces_one_that_is_just_being_opened(self, server: FakeServer) -> None:
        with make(server, poolmin=0) as pool:
            with server.hold("connect") as gate:
                asking = spawn(pool.getconnection)
                gate.arrived(1)
                pool.drain()
            with closing(asking.result()) as conn:
                assert conn.raw.serial == 2
            until(lambda: server.open == 1)

    def test_drain_of_one_in_a_check(self, server: FakeServer) -> None:
        with make(server, healthcheck_idle=0) as pool:
            with server.hold("execute") as gate:
                asking = spawn(pool.getconnection)
                gate.arrived(1)
                pool.drain()
            with closing(asking.result()) as conn:
                assert conn.raw.serial == 2

    def test_those_opened_since_are_kept(self, server: FakeServer) -> None:
        with make(server) as pool:
            pool.drain()
            assert serial_of_next(pool) == 2
            for _ in range(3):
                assert serial_of_next(pool) == 2

    def test_drain_never_exceeds_poolmax(self, server: FakeServer) -> None:
        with make(server, poolmin=2, poolmax=2) as pool:
            conns = [pool.getconnection(), pool.getconnection()]
            pool.drain()
            asking = spawn(pool.getconnection)
            until(lambda: pool.poolstats().waiting == 1)
            for conn in conns:
                conn.close()
            asking.result().close()
            until(lambda: pool.poolstats().poolsize == 2)
            assert server.max_open == 2


class TestLifetime:
    def test_is_shortened_by_up_to_a_tenth_each_on_its_own(self, server: FakeServer) -> None:
        with make(server, poolmin=20, poolmax=20, max_lifetime=1000.0) as pool:
            ages = [entry.retire_at - entry.since for entry in pool._state.entries]
            assert all(900.0 <= age <= 1000.0 for age in ages)
            assert len(set(ages)) > 15
            assert max(ages) - min(ages) > 20.0

    def test_none_lasts_for_ever(self, server: FakeServer) -> None:
        with make(server, max_lifetime=None) as pool:
            (entry,) = pool._state.entries
            works, _ = sweep(pool._state, entry.since + 1e9)
            opener.start(pool._state, works)
            until(lambda: pool.poolstats().poolfree == 1)
            assert serial_of_next(pool) == 1

    def test_idle_ones_retire_politely_and_are_replaced(self, server: FakeServer) -> None:
        with make(server, poolmin=3, max_lifetime=1000.0) as pool:
            state = pool._state
            born = max(entry.since for entry in state.entries)
            opener.start(state, sweep(state, born + 899.0)[0])
            until(lambda: pool.poolstats().poolfree == 3)
            assert server.opened == 3
            opener.start(state, sweep(state, born + 1001.0)[0])
            pool.getconnection().close()
            until(lambda: server.opened == 6 and pool.poolstats().poolfree == 3)
            assert all(session.goodbye for session in server.sessions[:3])

    def test_one_in_use_retires_when_it_comes_back(self, server: FakeServer) -> None:
        with make(server, max_lifetime=1000.0) as pool:
            conn = pool.getconnection()
            (entry,) = pool._state.entries
            entry.retire_at = 0.0
            opener.start(pool._state, sweep(pool._state, entry.since + 100.0)[0])
            conn.cursor().execute("SELECT 1")
            assert server.sessions[0].is_open
            conn.close()
            assert server.sessions[0].goodbye
            assert serial_of_next(pool) == 2

    @pytest.mark.parametrize("blocking", [True, False])
    def test_one_that_is_too_old_is_not_given_out(self, server: FakeServer, blocking: bool) -> None:
        with make(server, poolmin=2, healthcheck_idle=0) as pool:
            for entry in pool._state.entries:
                if entry.raw.serial == 2:
                    entry.retire_at = 0.0
            with closing(pool.getconnection(blocking=blocking)) as conn:
                assert conn.raw.serial != 2
            until(lambda: server.sessions[1].goodbye)
