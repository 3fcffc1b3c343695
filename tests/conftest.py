"""Fixtures for every test; the tools themselves are in fakes, children, servers and proxy.

- ``server``: a ``FakeServer``, verified at the end; ``socket_server``: the same with sockets.
- ``clock``: a ``Clock``.
- ``postgres``, ``private_postgres``, ``mariadb``: see servers.
- ``make_proxy(port)``: a ``Proxy`` in front of that port; closed at the end.

Without asking, each test is checked for what it leaves behind: child processes (also orphans of
its children; a server that outlives the test is put in ``children.expected`` by its pid), threads
of ``spawn``, and their results that nobody has asked for.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator

import pytest

from stress.proxy import Proxy
from tests import children, servers
from tests.fakes import Clock, FakeServer, Spawned

_called = pytest.StashKey[pytest.CallInfo[None]]()


_run = pytest.StashKey[servers.Run]()


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", None)
    run = servers.Run(given["nimue_run"]) if given else servers.Run.begin("nimue-tests-")
    config.stash[_run] = run
    # Started in the background by a shell, this process ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    children.note_harness()
    children.become_subreaper()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """At least four: a test waits longer than it computes, for processes and for servers."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return max(4, os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["nimue_run"] = str(node.config.stash[_run].folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _run in config.stash:
        config.stash[_run].end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    if call.when == "call":
        item.stash[_called] = call
    return (yield)


def _passed(request: pytest.FixtureRequest) -> bool:
    call = request.node.stash.get(_called, None)
    return call is not None and call.excinfo is None


def _end_of(handle: Spawned) -> str | None:
    try:
        handle.result(timeout=2)
    except BaseException as error:
        return f"{handle.thread.name}, whose result nobody asked for: {error!r}"
    return None


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that passes leaves no child process and no thread of ``spawn`` behind."""
    Spawned.unasked.clear()
    yield
    wrong = children.left_over()
    wrong += filter(None, map(_end_of, list(Spawned.unasked)))
    if wrong:
        text = "left behind: " + "; ".join(wrong)
        if _passed(request):
            pytest.fail(text)
        print(text)


def _verified(server: FakeServer, request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    yield server
    if _passed(request):
        server.verify()
        return
    for violation in server.violations:
        print(violation)
    server.end()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    yield from _verified(FakeServer(), request)


@pytest.fixture
def socket_server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    yield from _verified(FakeServer(sockets=True), request)


@pytest.fixture(autouse=True)
def _limits_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Limits across processes are this test's and its children's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIMUE_DIR", str(tmp_path_factory.mktemp("limits")))
        yield


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _name(request: pytest.FixtureRequest) -> str:
    return servers.unique_name(re.sub(r"\W+", "_", request.node.name)[5:30])


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> servers.PostgresServer:
    """The run's PostgreSQL; tests use ``postgres``."""
    return pytestconfig.stash[_run].shared(servers.PostgresServer, "postgres")


@pytest.fixture
def postgres(
    request: pytest.FixtureRequest, postgres_server: servers.PostgresServer
) -> Iterator[servers.Postgres]:
    database = servers.Postgres(postgres_server, _name(request))
    yield database
    database.finish(check=_passed(request))


@pytest.fixture
def private_postgres(request: pytest.FixtureRequest) -> Iterator[servers.Postgres]:
    server = request.config.stash[_run].private(servers.PostgresServer)
    database = servers.Postgres(server, _name(request))
    try:
        yield database
        if not server.gone():
            database.finish(check=_passed(request))
    finally:
        server.remove()


@pytest.fixture(scope="session")
def mariadb_server(pytestconfig: pytest.Config) -> servers.MariaDBServer:
    """The run's MariaDB; tests use ``mariadb``."""
    servers.require_mariadb()
    return pytestconfig.stash[_run].shared(servers.MariaDBServer, "mariadb")


@pytest.fixture
def mariadb(
    request: pytest.FixtureRequest, mariadb_server: servers.MariaDBServer
) -> Iterator[servers.MariaDB]:
    database = servers.MariaDB(mariadb_server, _name(request))
    yield database
    database.finish(check=_passed(request))


@pytest.fixture
def make_proxy() -> Iterator[Callable[[int], Proxy]]:
    made: list[Proxy] = []

    def make(port: int) -> Proxy:
        made.append(Proxy(port, noted=children.expected))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
