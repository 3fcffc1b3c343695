"""What the log says at which level, and what it never says."""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import closing, suppress
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimuePoolTimeout, opener
from nimue.sweep import sweep
from tests import fakes, servers
from tests.fakes import FakeDriver, FakeServer, spawn, until

SECRET = "hunter2"


class Pool(NimueConnectionPool):
    """One whose ``with`` comes to an end although a test has failed inside it."""

    def __exit__(self, *exc_info: Any) -> None:
        self.close(timeout=10.0)


def make(server: FakeServer, **parameters: Any) -> NimueConnectionPool:
    given: dict[str, Any] = {"poolmin": 1, "poolmax": 4, "driver": FakeDriver(), **parameters}
    return Pool(server.connect, **given)


def told(caplog: Any, *levels: int, of: str = "") -> list[str]:
    """Messages with ``of`` in them: those of earlier tests' pools may still be coming."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno in levels
        and record.name.split(".")[0] == "nimue"
        and of in record.getMessage()
    ]


@pytest.fixture
def info(caplog: Any) -> Any:
    caplog.set_level(logging.INFO, "nimue")
    return caplog


@pytest.fixture
def debug(caplog: Any) -> Any:
    caplog.set_level(logging.DEBUG, "nimue")
    return caplog


class TestInfo:
    def test_one_line_at_the_start_with_both_limits(self, server: FakeServer, info: Any) -> None:
        with make(server, poolmin=0, poolmax=7, name="the pool"):
            (line,) = told(info, logging.INFO, of="'the pool'")
            assert "'the pool'" in line
            assert "poolmax=7 in each process" in line
            assert "totalmax=None across processes" in line

    def test_opened_with_the_session(self, server: FakeServer, info: Any) -> None:
        with make(server, poolmin=2, name="the pool"):
            lines = [line for line in told(info, logging.INFO) if "opened" in line]
            assert len(lines) == 2
            for serial, line in enumerate(lines, 1):
                assert "'the pool'" in line
                assert f"session {serial}" in line

    def test_a_failed_connect(self, server: FakeServer, info: Any) -> None:
        with make(server, poolmin=0) as pool:
            server.fail("connect", fakes.OperationalError(f"password={SECRET}"), times=1)
            with pytest.raises(fakes.OperationalError):
                pool.getconnection(timeout=10)
            until(lambda: any("connect() failed" in line for line in told(info, logging.INFO)))
            assert "OperationalError" in info.text

    def test_a_failed_check(self, server: FakeServer, info: Any) -> None:
        with make(server, healthcheck_idle=0) as pool:
            server.kill_all()
            pool.getconnection(timeout=10).close()
            assert any("session 1) failed its" in line for line in told(info, logging.INFO))

    def test_a_broken_one(self, server: FakeServer, info: Any) -> None:
        with make(server) as pool, closing(pool.getconnection()) as conn:
            server.kill(conn.raw)
            with pytest.raises(fakes.OperationalError):
                conn.cursor()
        assert any("session 1) is unfit" in line for line in told(info, logging.INFO))

    def test_closed_by_pool(self, server: FakeServer, info: Any) -> None:
        with make(server, poolmin=2):
            pass
        assert len([line for line in told(info, logging.INFO) if "closed" in line]) >= 2

    def test_closed_by_drain(self, server: FakeServer, info: Any) -> None:
        with make(server, poolmin=2) as pool:
            pool.drain()
            until(lambda: len([line for line in told(info, logging.INFO) if "closed" in line]) >= 2)
            assert re.search(r"closed connection 1 \(session 1\)|connection 1 .*closed", info.text)

    def test_closed_by_idle_timeout(self, server: FakeServer, info: Any) -> None:
        with make(server, poolmin=0, poolinit=1, idle_timeout=300) as pool:
            opener.start(pool._state, sweep(pool._state, time.monotonic() + 400)[0])
            until(lambda: server.open == 0)
            until(lambda: any("closed" in line for line in told(info, logging.INFO)))

    def test_nothing_for_acquire_and_release(self, server: FakeServer, info: Any) -> None:
        with make(server) as pool:
            pool.getconnection().close()
            info.clear()
            for _ in range(5):
                with closing(pool.getconnection()) as conn:
                    conn.cursor().execute("INSERT")
            levels = (logging.INFO, logging.WARNING, logging.ERROR)
            assert told(info, *levels, of=pool.name) == []


class TestDebug:
    def test_acquire_and_release_with_process_and_session(
        self, server: FakeServer, debug: Any
    ) -> None:
        with make(server) as pool:
            for n in range(1, 4):
                debug.clear()
                conn = pool.getconnection()
                (acquired,) = told(debug, logging.DEBUG)
                assert f"process {os.getpid()}" in acquired
                assert "acquired" in acquired
                assert "session 1" in acquired
                debug.clear()
                conn.close()
                (released,) = told(debug, logging.DEBUG)
                assert f"process {os.getpid()}" in released
                assert "released" in released
                assert "session 1" in released
                assert server.opened == 1, n

    @pytest.mark.server
    @pytest.mark.parametrize("driver", servers.POSTGRES_DRIVERS)
    def test_the_session_is_the_servers_own(
        self, postgres: servers.Postgres, debug: Any, driver: str
    ) -> None:
        pytest.importorskip(driver)
        with Pool(postgres.connector(driver), poolmin=1) as pool:
            (session,) = postgres.sessions()
            pool.getconnection().close()
            for word in ("acquired", "released"):
                assert any(
                    word in line and f"session {session.pid}" in line
                    for line in told(debug, logging.DEBUG)
                )

    def test_a_driver_that_does_not_know_the_session(self, server: FakeServer, debug: Any) -> None:
        class Mute(FakeDriver):
            def session_id(self, raw: Any) -> int:
                raise LookupError

        with make(server, driver=Mute()) as pool:
            pool.getconnection().close()
            assert any("acquired connection 1" in line for line in told(debug, logging.DEBUG))

    def test_those_who_wait_are_told_of_as_well(self, server: FakeServer, debug: Any) -> None:
        with make(server, poolmax=1) as pool:
            conn = pool.getconnection()
            asking = spawn(pool.getconnection)
            until(lambda: pool.poolstats().waiting == 1)
            conn.close()
            asking.result().close()
            lines = told(debug, logging.DEBUG)
            assert len([line for line in lines if "acquired" in line]) == 2
            assert len([line for line in lines if "released" in line]) == 2


class TestSecrets:
    def test_never(self, server: FakeServer, debug: Any) -> None:
        def refuse(raw: Any, dbmodule: Any, logger: Any) -> bool:
            return raw.serial != 2

        def connfunc(dsn: str, password: str) -> Any:
            return server.connect()

        pool = NimueConnectionPool(
            connfunc,
            (f"host=db password={SECRET}",),
            {"password": SECRET},
            poolmin=2,
            poolmax=3,
            healthcheck_idle=0,
            leak_timeout=0.01,
            healthcheck_callback=refuse,
            driver=FakeDriver(),
        )
        seen = [repr(pool)]
        with pool:
            held = [pool.getconnection(timeout=10) for _ in range(3)]
            until(lambda: "has been out" in debug.text)
            with pytest.raises(NimuePoolTimeout) as caught:
                pool.getconnection(timeout=0.01)
            seen += [repr(caught.value), str(caught.value)]
            server.kill(held[0].raw)
            for conn in held:
                seen += [repr(conn), repr(conn.raw)]
                with suppress(fakes.OperationalError):
                    conn.cursor().execute("SELECT 1")
                conn.close()
            server.fail("connect", fakes.OperationalError(f"bad password {SECRET}"))
            held = [pool.getconnection(timeout=10) for _ in range(2)]
            with pytest.raises((NimuePoolTimeout, fakes.OperationalError)) as failed:
                pool.getconnection(timeout=0.1)
            if isinstance(failed.value, NimuePoolTimeout):
                seen.append(str(failed.value))
            for conn in held:
                conn.close()
            seen += [repr(entry) for entry in pool._state.entries]
            seen.append(repr(pool.poolstats()))
        assert "opened" in debug.text
        assert SECRET not in debug.text
        assert SECRET not in "".join(seen)


def test_an_on_return_that_raises_is_told_as_a_mistake(server: FakeServer, caplog: Any) -> None:
    def on_return(raw: object) -> None:
        raise ZeroDivisionError

    with NimueConnectionPool(
        server.connect, poolmin=1, poolmax=1, on_return=on_return, driver=FakeDriver()
    ) as pool:
        pool.getconnection().close()
        until(lambda: server.opened == 2)
    (record,) = [record for record in caplog.records if "on_return raised" in record.message]
    assert record.levelno == logging.ERROR
    assert record.exc_info


def test_warnings_are_seen_where_nobody_has_set_logging_up() -> None:
    """Python prints them to stderr, unless a library says that it need not."""
    assert not logging.getLogger("nimue").handlers
