"""A pickled pool is its recipe: rebuilt once per name in processes that did not inherit it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import threading
from contextlib import closing
from typing import Any

import pytest

from nimue import NimueConnectionPool, NimueError, NimueInvalidParameterValue
from nimue.drivers import Driver
from tests import fakes, servers
from tests.children import forked, in_process
from tests.fakes import FakeDriver, FakeServer, until

TRAVELLING = (
    "connargs",
    "connkwargs",
    "poolinit",
    "poolmin",
    "poolmax",
    "cleanup_interval",
    "idle_timeout",
    "healthcheck_on_getconnection",
    "timeout",
    "max_waiting",
    "max_lifetime",
    "healthcheck_idle",
    "leak_timeout",
    "max_connecting",
)
METHODS = ("fork", "forkserver", "spawn")
STARTED = ("forkserver", "spawn")
SECRET = "hunter2"


class PicklableDriver(FakeDriver):
    """A driver of the user's own, by its class alone."""

    def __init__(self) -> None:
        super().__init__(fakes)


class Stubborn(FakeDriver):
    """One with something in it that cannot travel."""

    def __init__(self) -> None:
        super().__init__(fakes)
        self.lock = threading.Lock()


_servers: dict[int, FakeServer] = {}


def own_server() -> FakeServer:
    """This process's."""
    if os.getpid() not in _servers:
        _servers[os.getpid()] = FakeServer()
    return _servers[os.getpid()]


def connect(*args: Any, **kwargs: Any) -> fakes.Connection:
    return own_server().connect(*args, **kwargs)


def check(conn: Any, dbmodule: Any, logger: Any) -> bool:
    return True


def on_connect(raw: Any) -> None:
    raw.prepared = True


def on_return(raw: Any) -> None:
    pass


def make(**parameters: Any) -> NimueConnectionPool:
    given = {"poolmin": 1, "poolmax": 3, **parameters}
    return NimueConnectionPool(connect, **given)


@pytest.fixture(autouse=True)
def nothing_left_open() -> Any:
    yield
    for server in _servers.values():
        server.verify()
    _servers.clear()


def copy_of(pool: Any) -> Any:
    return pickle.loads(pickle.dumps(pool))


class TestRecipe:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_in_the_same_process_it_is_the_same_object(self, protocol: int) -> None:
        with make() as pool:
            assert pickle.loads(pickle.dumps(pool, protocol)) is pool
            with closing(pool.getconnection()):
                assert pickle.loads(pickle.dumps({"pool": [pool]}, protocol)) == {"pool": [pool]}
        assert copy_of(pool) is pool

    def test_in_a_forked_child_too(self) -> None:
        with make() as pool:
            data = pickle.dumps(pool)
            assert forked(lambda: pickle.loads(data) is pool, expect_threads=True)

    def test_each_name_its_own(self) -> None:
        with make() as one, make() as two, make(name="three") as three:
            assert len({one.name, two.name, three.name}) == 3
            assert [copy_of(pool) for pool in (one, two, three)] == [one, two, three]

    @pytest.mark.parametrize("method", STARTED)
    def test_all_settings_travel(self, method: str) -> None:
        parameters = {
            "poolinit": 2,
            "poolmin": 1,
            "poolmax": 3,
            "cleanup_interval": 7,
            "idle_timeout": 8,
            "healthcheck_on_getconnection": False,
            "healthcheck_callback": check,
            "name": "the pool",
            "timeout": 4.5,
            "max_waiting": 6,
            "max_lifetime": 100.0,
            "healthcheck_idle": 0.5,
            "leak_timeout": 200.0,
            "max_connecting": 1,
            "on_connect": on_connect,
            "on_return": on_return,
        }
        with make(**parameters, connargs=["a"], connkwargs={"b": 1}) as pool:
            pool.poolmax = 5
            name, seen = in_process(method, _settings, pool)
            assert name == "the pool"
            assert seen == _settings(pool)[1]
            assert seen["poolmax"] == 5
            assert seen["connargs"] == ["a"]

    @pytest.mark.parametrize("method", STARTED)
    def test_it_opens_nothing_until_it_is_used(self, method: str) -> None:
        with make(poolmin=2) as pool:
            assert in_process(method, _before_and_after_use, pool) == (0, 0, 2)

    @pytest.mark.parametrize("method", STARTED)
    def test_it_is_rebuilt_once_per_name(self, method: str) -> None:
        with make(name="the pool") as pool, make() as other:
            data = [pickle.dumps(pool) for _ in range(3)] + [pickle.dumps(other)]
            assert in_process(method, _count_objects, data) == (2, ["the pool", other.name])

    @pytest.mark.parametrize("method", STARTED)
    def test_by_many_threads_at_once_too(self, method: str) -> None:
        with make() as pool:
            assert in_process(method, _load_in_threads, pickle.dumps(pool)) == 1

    @pytest.mark.parametrize("method", STARTED)
    def test_that_of_a_module_is_found_there(self, method: str) -> None:
        # The module is imported anew in such a child, and makes its own pool of that name.
        with make(name="of the module") as pool:
            assert in_process(method, _find_own, pickle.dumps(pool))

    def test_with_a_driver_of_ones_own(self) -> None:
        with make(driver=PicklableDriver()) as pool:
            assert copy_of(pool) is pool
            kind, answer = in_process("spawn", _use_with_driver, pool)
            assert (kind, answer) == ("PicklableDriver", (1,))

    def test_connections_never_travel(self) -> None:
        with make(poolmin=3) as pool:
            small = len(pickle.dumps(pool))
            with closing(pool.getconnection()):
                assert len(pickle.dumps(pool)) == small


def _settings(pool: Any) -> tuple[str, dict[str, Any]]:
    settings = pool._state.settings
    callables = ("connfunc", "healthcheck_callback", "on_connect", "on_return")
    seen = {name: getattr(settings, name) for name in TRAVELLING}
    seen.update({name: getattr(settings, name).__qualname__ for name in callables})
    return pool.name, seen


def _before_and_after_use(pool: Any) -> tuple[int, int, int]:
    before = pool.poolstats().poolsize
    opened = own_server().opened
    with closing(pool.getconnection()) as conn:
        conn.cursor().execute("SELECT 1")
    until(lambda: pool.poolstats().poolfree == 2)
    after = pool.poolstats().poolsize
    pool.close()
    own_server().verify()
    return before, opened, after


def _count_objects(data: list[bytes]) -> tuple[int, list[str]]:
    pools = [pickle.loads(one) for one in data]
    assert copy_of(pools[0]) is pools[0]
    for pool in pools:
        pool.getconnection().close()
    return len(set(map(id, pools))), sorted({pool.name for pool in pools}, reverse=True)


def _load_in_threads(data: bytes) -> int:
    start = threading.Barrier(8)
    found: list[Any] = []

    def load() -> None:
        start.wait(10)
        found.append(pickle.loads(data))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    return len(set(map(id, found)))


def _find_own(data: bytes) -> bool:
    own = make(name="of the module", poolmin=0, poolmax=9)
    found = pickle.loads(data)
    return found is own and found.poolmax == 9


def _use_with_driver(pool: Any) -> tuple[str, Any]:
    with pool, closing(pool.getconnection()) as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT 1")
        return type(pool._state.driver).__name__, cursor.fetchone()


class Opaque:
    """Without an ``__eq__``: each copy is another."""


class Puzzling(Opaque):
    """Not to be compared."""

    def __eq__(self, other: object) -> bool:
        raise LookupError

    __hash__ = None


class Plain:
    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and other.number == self.number

    __hash__ = None

    def method(self) -> None:
        pass


SAME: list[tuple[Any, Any]] = [
    (1, 1.0),
    ([SECRET, {"b": (1, 2)}], (SECRET, {"b": [1, 2]})),
    (connect, connect),
    (functools.partial(connect, "a", b=[2]), functools.partial(connect, "a", b=[2])),
    (Opaque(), Opaque()),
    ([Puzzling()], [Puzzling()]),
    (Plain(1), Plain(1)),
    (Plain(1).method, Plain(1).method),
    (Opaque().__init__, Opaque().__init__),
    (Opaque, Opaque),
]
OTHER: list[tuple[Any, Any]] = [
    (1, 2),
    (SECRET, SECRET + "!"),
    (None, SECRET),
    ([1, 2], [1]),
    ({"b": 1}, {"c": 1}),
    ({"b": [1]}, {"b": [2]}),
    (connect, own_server),
    (functools.partial(connect, "a"), functools.partial(connect, "b")),
    (Opaque(), Plain(1)),
    (Plain(1), Plain(2)),
    (Plain(1).method, Plain(2).method),
    (Opaque, Plain),
    (Opaque, Opaque()),
]


class TestOneName:
    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [*((*pair, True) for pair in SAME), *((*pair, False) for pair in OTHER)],
    )
    def test_what_is_the_same(self, one: Any, other: Any, same: bool, caplog: Any) -> None:
        with make(name="shop", poolmin=0, connkwargs={"it": one, "pw": SECRET}) as first:
            data = pickle.dumps(first)
            with make(name="shop", poolmin=0, connkwargs={"it": other, "pw": SECRET}) as second:
                assert (pickle.loads(data) is second) == same
                assert copy_of(second) is second
        assert ("'shop'" in caplog.text) != same
        assert SECRET not in caplog.text

    @pytest.mark.parametrize(
        "parameter", ["connfunc", "connargs", "connkwargs", "on_connect", "on_return"]
    )
    def test_another_is_refused_in_words(self, parameter: str) -> None:
        given = {"connfunc": connect, "connargs": (SECRET,), "connkwargs": {"pw": SECRET}}
        others = {"connfunc": own_server, "connargs": (), "connkwargs": {}}
        with NimueConnectionPool(**given, name="shop", poolmin=0) as one:
            data = pickle.dumps(one)
        changed = {parameter: others.get(parameter, on_return)}
        with NimueConnectionPool(**{**given, **changed}, name="shop", poolmin=0) as mine:
            found = pickle.loads(data)
            assert found is not mine
            for _ in range(2):
                with pytest.raises(NimueInvalidParameterValue) as caught:
                    found.getconnection()
                assert "'shop'" in str(caught.value)
                assert f"not with the same {parameter}: give" in str(caught.value)
                assert SECRET not in repr(caught.value)
            found.close()

    def test_what_can_be_set_makes_no_other(self) -> None:
        with make(name="shop") as pool:
            data = pickle.dumps(pool)
            pool.poolmin, pool.poolmax, pool.timeout = 0, 9, 5
            assert pickle.loads(data) is pool

    @pytest.mark.parametrize("method", METHODS)
    def test_the_error_reaches_who_gave_the_task(self, method: str) -> None:
        """Raised while the task is unpickled it would end the worker, and the caller hang."""
        context = multiprocessing.get_context(method)
        with (
            make(name="shop", poolmin=0, connargs=["a"]) as pool,
            context.Pool(1, initializer=_take_name, initargs=("shop",)) as workers,
        ):
            with pytest.raises(NimueInvalidParameterValue, match=r"'shop'.*same connargs"):
                workers.apply_async(_use, (pool,)).get(60)
            workers.close()
            workers.join()

    def test_a_second_of_that_name_is_told(self, caplog: Any) -> None:
        # The first two as by a module's reload.
        with make(name="shop", poolmin=0) as first, make(name="shop", poolmin=2) as reloaded:
            assert not caplog.messages
            assert copy_of(first) is reloaded
            with make(name="shop", connkwargs={"pw": SECRET}, poolmin=0):
                (told,) = caplog.messages
                assert "'shop'" in told
                assert "not the same connkwargs" in told
                assert SECRET not in told
        with make(name="shop", poolmin=0):  # the others are closed
            assert len(caplog.messages) == 1


def _take_name(name: str) -> None:
    _initialise(make(name=name, poolmin=0, connargs=["b"]))


def _use(pool: Any) -> None:
    pool.getconnection().close()


class TestRefused:
    @pytest.mark.parametrize(
        "parameters",
        [
            {"on_connect": lambda raw: None},
            {"on_return": lambda raw: None},
            {"healthcheck_callback": lambda conn, dbmodule: True},
            {"connkwargs": {"password": SECRET, "lock": threading.Lock()}},
        ],
        ids=lambda parameters: next(iter(parameters)),
    )
    def test_what_cannot_travel_is_a_clear_error(self, parameters: dict[str, Any]) -> None:
        with make(**parameters) as pool:
            with pytest.raises(NimueInvalidParameterValue) as caught:
                pickle.dumps(pool)
            assert "importable by name" in str(caught.value)
            assert SECRET not in repr(caught.value)
            pool.getconnection().close()

    def test_a_connfunc_that_is_a_lambda(self) -> None:
        with (
            NimueConnectionPool(lambda: connect(), poolmin=1) as pool,  # noqa: PLW0108
            pytest.raises(NimueError, match=r"connfunc.*must be importable by name"),
        ):
            pickle.dumps(pool)

    def test_so_it_is_at_the_start_of_a_process(self, server: FakeServer) -> None:
        with NimueConnectionPool(server.connect, poolmin=1) as pool:
            process = multiprocessing.get_context("spawn").Process(target=print, args=(pool,))
            with pytest.raises(NimueInvalidParameterValue, match="connfunc"):
                process.start()

    def test_a_driver_that_cannot_be_pickled(self) -> None:
        with (
            make(driver=Stubborn()) as pool,
            pytest.raises(NimueInvalidParameterValue, match="driver"),
        ):
            pickle.dumps(pool)

    def test_a_partial_is_none_of_these(self) -> None:
        connfunc = functools.partial(connect, "a", b=2)
        with NimueConnectionPool(connfunc, poolmin=1) as pool:
            assert in_process("spawn", _arguments, pool) == (("a",), {"b": 2})


def _arguments(pool: Any) -> tuple[Any, Any]:
    pool.getconnection().close()
    session = own_server().sessions[0]
    return session.args, session.kwargs


# Through a pool of processes, each way that there is to hand something over.

_given: Any = None


def _initialise(pool: Any) -> None:
    global _given
    _given = pool


def _ask(question: int) -> tuple[int, int, int, int]:
    return _ask_of(_given, question)


def _ask_of(pool: Any, question: int) -> tuple[int, int, int, int]:
    with closing(pool.getconnection()) as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT %s::int, pg_backend_pid()", (question,))
        answer, session = cursor.fetchone()
    return answer, session, os.getpid(), id(pool)


def _ask_pair(given: tuple[Any, int]) -> tuple[int, int, int, int]:
    return _ask_of(*given)


@pytest.mark.server
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["initargs", "map"])
def test_through_a_pool_of_processes(postgres: servers.Postgres, method: str, way: str) -> None:
    context = multiprocessing.get_context(method)
    with NimueConnectionPool(postgres.connector("psycopg2"), poolmin=1, poolmax=2) as pool:
        pool.getconnection().close()
        mine = {session.pid for session in postgres.sessions()}
        initargs = {"initializer": _initialise, "initargs": (pool,)} if way == "initargs" else {}
        with context.Pool(2, **initargs) as workers:
            if way == "initargs":
                answers = workers.map_async(_ask, range(20), chunksize=1).get(60)
            else:
                pairs = [(pool, n) for n in range(20)]
                answers = workers.map_async(_ask_pair, pairs, chunksize=1).get(60)
            workers.close()
            workers.join()
        assert [answer for answer, *_ in answers] == list(range(20))
        # Each process has its own sessions, at most poolmax, and one pool object all the time.
        sessions: dict[int, set[int]] = {}
        objects: dict[int, set[int]] = {}
        for _, session, process, identity in answers:
            sessions.setdefault(process, set()).add(session)
            objects.setdefault(process, set()).add(identity)
        assert os.getpid() not in sessions
        assert not mine & set().union(*sessions.values())
        assert all(len(found) <= 2 for found in sessions.values())
        assert all(len(found) == 1 for found in objects.values())
        owners = [session for found in sessions.values() for session in found]
        assert len(owners) == len(set(owners))
        with closing(pool.getconnection()) as conn:
            conn.cursor().execute("SELECT 1")


@pytest.mark.server
def test_the_driver_in_the_child_is_found_anew(postgres: servers.Postgres) -> None:
    with NimueConnectionPool(postgres.connector("psycopg"), poolmin=0) as pool:
        assert in_process("spawn", _kind_of_driver, pool) == "Psycopg"


def _kind_of_driver(pool: Any) -> str:
    with pool:
        pool.getconnection().close()
        driver: Driver = pool._state.driver
        return type(driver).__name__
