"""Every parameter refuses what it cannot mean, in words, before anything is opened."""

from __future__ import annotations

import inspect
import math
import pydoc
import weakref
from typing import Any

import pytest

import nimue
from nimue import (
    NimueConnectionPool,
    NimueError,
    NimueInvalidParameterValue,
    NimueNoConnectionAvailable,
    NimuePoolTimeout,
)
from nimue.drivers import Driver
from tests.fakes import FakeDriver, FakeServer, spawn, until

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
    ("totalmax", 0, "1 to 1024"),
    ("totalmax", 1025, "1 to 1024"),
    ("totalmax", True, "1 to 1024"),
    ("max_connecting_total", 2, "None"),
    ("max_connecting_total", 0, "1 to 256"),
    ("max_connecting_total", 257, "1 to 256"),
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
        NimueConnectionPool(server.connect, poolmin=10, poolmax=3)
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


@pytest.mark.parametrize(("poolmax", "poolmin"), [(3, 3), (10, 10), (11, 10)])
def test_poolmin_not_given_makes_way_for_poolmax(
    server: FakeServer, poolmax: int, poolmin: int
) -> None:
    with Pool(server.connect, poolmax=poolmax, driver=FakeDriver()) as pool:
        assert (pool.poolmin, pool.poolmax, server.open) == (poolmin, poolmax, poolmin)
        assert type(pool.poolmin) is int
    for bad in (0, True, "7", None):
        with pytest.raises(NimueInvalidParameterValue, match="poolmax must be"):
            Pool(server.connect, poolmax=bad)


READ_ONLY = {
    "connargs": ("a",),
    "connkwargs": {"b": 1},
    "poolinit": 2,
    "healthcheck_on_getconnection": False,
    "healthcheck_callback": print,
    "on_connect": lambda raw: None,
    "on_return": lambda raw: None,
    "name": "the_pool",
    "max_connecting_total": 3,
    "driver": FakeDriver(),
}
TO_SET = {
    "poolmin": (1, 2),
    "poolmax": (3, 4),
    "cleanup_interval": (50, 70),
    "idle_timeout": (200, 0),
    "timeout": (20.0, None),
    "max_waiting": (None, 7),
    "max_lifetime": (None, 100),
    "healthcheck_idle": (0, 3.5),
    "leak_timeout": (None, 9),
    "max_connecting": (1, 5),
    "totalmax": (9, 11),
}
SETTABLE = tuple(TO_SET)


def test_all_can_be_read_and_explain_themselves(server: FakeServer) -> None:
    given = {**READ_ONLY, **{name: value for name, (value, _) in TO_SET.items()}}
    parameters = set(inspect.signature(NimueConnectionPool).parameters) - {"connfunc"}
    assert set(given) == parameters
    with make(server, **given) as pool:
        assert {name: getattr(pool, name) for name in given} == given
        assert pool.connfunc == server.connect
        for name in (*given, "connfunc"):
            told = inspect.getdoc(inspect.getattr_static(NimueConnectionPool, name))
            assert told
            assert ("Settable" in told) == (name in TO_SET)
            assert told in pydoc.render_doc(NimueConnectionPool, renderer=pydoc.plaintext)


@pytest.mark.parametrize("name", ["connfunc", *READ_ONLY])
def test_some_are_read_only(server: FakeServer, name: str) -> None:
    with make(server) as pool:
        before = getattr(pool, name)
        with pytest.raises(AttributeError):
            setattr(pool, name, READ_ONLY.get(name, print))
        assert getattr(pool, name) is before


@pytest.mark.parametrize("name", TO_SET)
def test_the_others_can_be_set(server: FakeServer, name: str) -> None:
    before, after = TO_SET[name]
    with make(server, poolmin=1, poolmax=3, **{name: before} if "pool" not in name else {}) as pool:
        setattr(pool, name, after)
        assert getattr(pool, name) == after
        assert getattr(pool._state.settings, name, after) == after
        pool.getconnection().close()


def test_what_was_set_rules_from_then_on(server: FakeServer) -> None:
    with make(server, poolmin=1, poolmax=1, healthcheck_idle=100) as pool:
        conn = pool.getconnection()
        pool.healthcheck_idle = 0
        until(lambda: pool.poolstats().cleanup_cycles)  # whose round finds nothing idle
        conn.close()
        assert server.count("execute") == 0
        conn = pool.getconnection()
        assert server.count("execute") == 1
        pool.timeout = 0.01
        with pytest.raises(NimuePoolTimeout):
            pool.getconnection()
        pool.max_waiting = 0
        with pytest.raises(NimueNoConnectionAvailable, match="max_waiting=0"):
            pool.getconnection(timeout=1)
        conn.close()


def test_a_mistyped_one_is_refused(server: FakeServer) -> None:
    pool = NimueConnectionPool(server.connect, poolmin=0)
    with pytest.raises(AttributeError, match="pool_max"):
        pool.pool_max = 5  # type: ignore[attr-defined]
    pool.close()

    class Named(Pool):
        colour = "red"

    with Named(server.connect, poolmin=0) as named:
        named.colour = "green"
        named.shape = "round"  # type: ignore[attr-defined]
        assert weakref.ref(named)() is named


def test_setters_lose_nothing_and_call_nobody_under_the_lock(server: FakeServer) -> None:
    class Meddler(int):
        """While it is checked the pool is used, and another setter is faster."""

        times = 0

        def __gt__(self, other: int) -> bool:
            self.times += 1
            if self.times == 1:
                pool.idle_timeout = 7
            return int(self) > other

        def __repr__(self) -> str:
            return f"{int(pool.poolstats().poolmin)} and more"

    def change() -> None:
        pool.poolmin = Meddler(2)
        assert (pool.poolmin, pool.idle_timeout) == (2, 7)
        with pytest.raises(NimueInvalidParameterValue, match="not 2 and more"):
            pool.poolmin = Meddler(9)

    with make(server, poolmin=1) as pool:
        spawn(change).result()


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


@pytest.mark.parametrize("value", [5, 2.5, "no", None])
@pytest.mark.parametrize("idle", [0, 1])
def test_a_timeout_in_the_place_of_blocking(server: FakeServer, value: Any, idle: int) -> None:
    with make(server, poolmin=idle, healthcheck_idle=0) as pool:
        with pytest.raises(NimueInvalidParameterValue) as caught:
            pool.getconnection(value)
        assert str(caught.value).startswith(
            "blocking must be True or False (seconds go to timeout)"
        )
        assert str(caught.value).endswith(f", not {value!r}")
        until(lambda: (pool.poolstats().poolfree, server.opened) == (idle, idle))
        for flag in (1, 0, True, False):
            pool.getconnection(1).close()
            pool.getconnection(flag).close()


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
