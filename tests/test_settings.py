"""Every parameter refuses what it cannot mean, in words, before anything is opened."""

from __future__ import annotations

import math
from typing import Any

import pytest

import nimue
from nimue import NimueConnectionPool, NimueError, NimueInvalidParameterValue
from nimue.drivers import Driver
from tests.fakes import FakeDriver, FakeServer

SECONDS = "seconds"
CALLABLE = "callable"
SECRET = "hunter2"

BAD: list[tuple[str, Any, str]] = [
    ("poolinit", -1, "poolmin"),
    ("poolinit", 4, "poolmin (5)"),
    ("poolinit", 9, "poolmax (8)"),
    ("poolinit", 5.5, "whole number"),
    ("poolinit", "6", "None or a whole number"),
    ("poolinit", True, "whole number"),
    ("poolmin", -1, "0 to poolmax (8)"),
    ("poolmin", 9, "0 to poolmax (8)"),
    ("poolmin", 2.0, "whole number"),
    ("poolmin", None, "whole number"),
    ("poolmin", "2", "whole number"),
    ("poolmin", True, "whole number"),
    ("poolmax", 0, "at least 1"),
    ("poolmax", -3, "at least 1"),
    ("poolmax", 7.5, "whole number"),
    ("poolmax", None, "whole number"),
    ("poolmax", False, "whole number"),
    ("cleanup_interval", 0, SECONDS),
    ("cleanup_interval", -1, SECONDS),
    ("cleanup_interval", math.inf, SECONDS),
    ("cleanup_interval", math.nan, SECONDS),
    ("cleanup_interval", None, SECONDS),
    ("cleanup_interval", "60", SECONDS),
    ("idle_timeout", -0.1, SECONDS),
    ("idle_timeout", math.nan, SECONDS),
    ("idle_timeout", None, SECONDS),
    ("idle_timeout", True, SECONDS),
    ("healthcheck_idle", -1, SECONDS),
    ("healthcheck_idle", None, SECONDS),
    ("healthcheck_idle", "1", SECONDS),
    ("timeout", -1, "None or a number of seconds"),
    ("timeout", math.nan, SECONDS),
    ("timeout", "30", SECONDS),
    ("timeout", True, SECONDS),
    ("max_lifetime", 0, "None or a number of seconds"),
    ("max_lifetime", -1, SECONDS),
    ("max_lifetime", "1h", SECONDS),
    ("leak_timeout", 0, "None or a number of seconds"),
    ("leak_timeout", -5, SECONDS),
    ("leak_timeout", math.inf, SECONDS),
    ("max_waiting", -1, "None or a whole number"),
    ("max_waiting", 1.5, "whole number"),
    ("max_waiting", True, "whole number"),
    ("max_connecting", 0, "at least 1"),
    ("max_connecting", None, "whole number"),
    ("max_connecting", 1.5, "whole number"),
    ("healthcheck_callback", None, CALLABLE),
    ("healthcheck_callback", "SELECT 1", CALLABLE),
    ("on_connect", "SET x", CALLABLE),
    ("on_return", 1, CALLABLE),
    ("name", "", "non-empty string"),
    ("name", 5, "string"),
    ("name", b"pool", "string"),
    ("totalmax", 10, "None"),
    ("driver", Driver, "instance"),
    ("driver", "psycopg2", "instance"),
]


class Pool(NimueConnectionPool):
    """One whose ``with`` comes to an end although a test has failed inside it."""

    def __exit__(self, *exc_info: Any) -> None:
        self.close(timeout=10.0)


def make(server: FakeServer, **parameters: Any) -> NimueConnectionPool:
    given: dict[str, Any] = {"poolmin": 5, "poolmax": 8, "driver": FakeDriver(), **parameters}
    return Pool(given.pop("connfunc", server.connect), **given)


@pytest.mark.parametrize(("parameter", "value", "allowed"), BAD)
def test_a_bad_value_is_named(server: FakeServer, parameter: str, value: Any, allowed: str) -> None:
    with pytest.raises(NimueInvalidParameterValue) as caught:
        make(server, **{parameter: value})
    told = str(caught.value)
    assert told.startswith(f"{parameter} must be ")
    assert allowed in told
    assert told.endswith(f", not {value!r}")
    assert server.count("connect") == 0


@pytest.mark.parametrize("value", [None, "connect", 3, object()])
def test_connfunc_must_be_callable(server: FakeServer, value: Any) -> None:
    with pytest.raises(NimueInvalidParameterValue, match=r"connfunc must be a callable.*not an? "):
        make(server, connfunc=value)


@pytest.mark.parametrize(
    ("parameter", "value", "kind"),
    [
        ("connargs", f"password={SECRET}", "str"),
        ("connargs", SECRET.encode(), "bytes"),
        ("connargs", {"password": SECRET}, "dict"),
        ("connargs", {SECRET}, "set"),
        ("connargs", 5432, "int"),
        ("connkwargs", [("password", SECRET)], "list"),
        ("connkwargs", f"password={SECRET}", "str"),
        ("connkwargs", (SECRET,), "tuple"),
    ],
)
def test_the_arguments_are_refused_by_kind_and_never_shown(
    server: FakeServer, parameter: str, value: Any, kind: str
) -> None:
    with pytest.raises(NimueInvalidParameterValue) as caught:
        make(server, **{parameter: value})
    told = str(caught.value)
    assert parameter in told
    assert kind in told
    assert SECRET not in repr(caught.value)
    assert server.count("connect") == 0


def test_several_limits_at_odds_name_both(server: FakeServer) -> None:
    with pytest.raises(NimueInvalidParameterValue, match=r"poolmin must .*poolmax \(3\), not 10"):
        NimueConnectionPool(server.connect, poolmax=3)
    with pytest.raises(NimueInvalidParameterValue, match=r"poolmin \(2\) to poolmax \(4\), not 1"):
        NimueConnectionPool(server.connect, poolinit=1, poolmin=2, poolmax=4)
    assert server.count("connect") == 0


def test_the_error_is_a_value_error_and_one_of_ours(server: FakeServer) -> None:
    with pytest.raises(ValueError, match="poolmax"):
        make(server, poolmax=0)
    with pytest.raises(NimueError, match="poolmax"):
        make(server, poolmax=0)
    assert nimue.NimueInvalidParameterValue is NimueInvalidParameterValue


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("poolinit", None),
        ("poolinit", 1),
        ("poolinit", 8),
        ("poolmax", 1),
        ("cleanup_interval", 0.5),
        ("cleanup_interval", 10**9),
        ("idle_timeout", 0),
        ("healthcheck_idle", 0),
        ("healthcheck_on_getconnection", 0),
        ("healthcheck_on_getconnection", 1),
        ("timeout", None),
        ("timeout", 0),
        ("timeout", 1e12),
        ("max_lifetime", None),
        ("max_lifetime", 0.1),
        ("leak_timeout", 3),
        ("max_waiting", 0),
        ("max_connecting", 100),
        ("on_connect", print),
        ("totalmax", None),
        ("name", "a name, with: anything"),
    ],
)
def test_the_least_and_the_most_are_taken(server: FakeServer, parameter: str, value: Any) -> None:
    given = {"poolmin": 1, parameter: value}
    if parameter == "on_connect":
        given[parameter] = lambda raw: None
    with make(server, **given) as pool:
        pool.getconnection(timeout=5 if value != 0 else 0).close()


SETTABLE = ("poolmin", "poolmax", "cleanup_interval", "idle_timeout")


@pytest.mark.parametrize(
    ("parameter", "value", "allowed"), [row for row in BAD if row[0] in SETTABLE]
)
def test_so_it_is_when_it_is_set(
    server: FakeServer, parameter: str, value: Any, allowed: str
) -> None:
    with make(server, poolinit=5) as pool:
        before = getattr(pool, parameter)
        with pytest.raises(NimueInvalidParameterValue) as caught:
            setattr(pool, parameter, value)
        assert str(caught.value).startswith(f"{parameter} must be ")
        assert allowed in str(caught.value)
        assert str(caught.value).endswith(f", not {value!r}")
        assert getattr(pool, parameter) == before
        pool.getconnection().close()


def test_poolmax_below_poolmin_is_refused_with_both(server: FakeServer) -> None:
    with make(server, poolmin=4, poolmax=5) as pool:
        with pytest.raises(NimueInvalidParameterValue) as caught:
            pool.poolmax = 3
        for word in ("poolmax", "3", "poolmin", "4"):
            assert word in str(caught.value)
        assert (pool.poolmin, pool.poolmax) == (4, 5)
        pool.poolmin = 2
        pool.poolmax = 3
        assert (pool.poolmin, pool.poolmax) == (2, 3)


def test_poolinit_binds_only_the_constructor(server: FakeServer) -> None:
    with make(server, poolinit=5, poolmin=5, poolmax=8) as pool:
        pool.poolmax = 20
        pool.poolmin = 12
        assert (pool.poolinit, pool.poolmin, pool.poolmax) == (5, 12, 20)
        pool.poolmin = 0
        pool.poolmax = 1
        assert pool.poolinit == 5


@pytest.mark.parametrize("value", [-1, math.nan, "5", True, -0.001])
def test_a_bad_timeout_of_a_call(server: FakeServer, value: Any) -> None:
    with make(server, poolmin=1) as pool:
        for call in (pool.getconnection, pool.close):
            with pytest.raises(NimueInvalidParameterValue, match="timeout must be None or a num"):
                call(timeout=value)
        with pytest.raises(NimueInvalidParameterValue, match="timeout"):
            pool.connection(timeout=value).__enter__()
        assert not pool._state.is_shut
        assert pool.poolstats().poolused == 0


def test_no_secret_in_what_is_shown(server: FakeServer) -> None:
    parameters = {"connargs": (f"password={SECRET}",), "connkwargs": {"password": SECRET}}
    with make(server, poolmin=1, **parameters) as pool:
        conn = pool.getconnection()
        seen = [repr(pool), str(pool), repr(conn), repr(conn.cursor()), repr(pool.poolstats())]
        seen += [repr(pool._state.settings), repr(pool._state.entries)]
        with pytest.raises(NimueInvalidParameterValue) as caught:
            pool.poolmax = 0
        seen.append(repr(caught.value))
        conn.close()
        seen.append(repr(conn))
        assert server.sessions[0].args == parameters["connargs"]
        assert server.sessions[0].kwargs == parameters["connkwargs"]
    assert SECRET not in "".join(seen)
