"""A preforking server, and those who ask it over HTTP: what gunicorn and uWSGI have in common."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nimue.cli.demo_process import Family, tail, until
from nimue.cli.demo_verdict import DemoFailed
from stress.scenarios.base import Callers, Scenario, wait_until
from stress.trial.brief import Brief
from stress.trial.desk import UNKNOWN, Answer

#: Seconds in which the workers must have come to work.
STARTUP = 60.0
#: How long an answer may take beyond the wait for a connection: a server that imports anew, or
#: replaces its workers one after the other, has the questions queue up.
PATIENCE = 30.0
#: After so many questions a kept connection is another, so that new workers get their share.
KEPT = 50
#: Seconds between two doings of a variant.
EVERY = 2.0
#: In which what was killed must have gone.
GONE = 10.0


class NoAnswer(Exception):
    """The server itself answered, and not the application."""


class Line:
    """One caller's connection: kept from one question to the next, or new each time."""

    def __init__(self, port: int, bound: float, is_kept: bool) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=bound)
        self._is_kept = is_kept
        self._uses = 0

    def ask(self, path: str) -> bytes:
        """Raises: NoAnswer, HTTPException, OSError; ConnectionRefusedError if nobody was there."""
        try:
            self._http.request("GET", path)
            with self._http.getresponse() as response:
                body = response.read()
        except BaseException:
            self.close()
            raise
        self._uses += 1
        if not self._is_kept or self._uses % KEPT == 0:
            self.close()
        if response.getheader("Content-Type") != "application/json":
            raise NoAnswer(f"{response.status} {response.reason}: {body[:200]!r}")
        return body

    def close(self) -> None:
        self._http.close()


class Switchboard:
    """A line for each thread that asks."""

    def __init__(self, brief: Brief, port: int, is_kept: bool) -> None:
        self._port, self._bound, self._is_kept = port, brief.timeout + PATIENCE, is_kept
        self._lines: dict[int, Line] = {}

    def call(self, token: str) -> Answer:
        """Put a question. Raises: as ``Line.ask``."""
        thread = threading.get_ident()
        line = self._lines.get(thread)
        if line is None:
            line = self._lines[thread] = Line(self._port, self._bound, self._is_kept)
        answer = Answer(**json.loads(line.ask(f"/{token}")))
        if answer.token == token:
            return answer
        wrong = f"asked {token}, was told of {answer.token}"
        return Answer(token, UNKNOWN, answer.pid, 0, 0, wrong, wrong=True)

    def close(self) -> None:
        for line in list(self._lines.values()):
            line.close()


class LogReader:
    """What a server says in its log of what it does by itself.

    Args:
        said: by kind, an expression whose group is the detail.
    """

    def __init__(self, log: Path, said: Mapping[str, str]) -> None:
        self._log = log
        self._said = {kind: re.compile(text) for kind, text in said.items()}
        self._read = 0

    def news(self) -> Iterator[tuple[str, str]]:
        with open(self._log, "rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            for kind, expression in self._said.items():
                if found := expression.search(line):
                    yield kind, found[1]


class Served(Scenario):
    """A server in a session of its own. Its socket is bound here, and handed over."""

    without = frozenset({"interrupt"})
    #: As the server says it in its log, by kind.
    said: Mapping[str, str] = {}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.variant not in self.variants:
            known = ", ".join(self.variants)
            raise ValueError(f"variant {self.variant!r} of {self.name}: must be one of {known}")
        self._family = Family()
        self._process: subprocess.Popen[bytes] | None = None
        self._callers: Callers | None = None
        self._board: Switchboard | None = None
        self._port = 0
        self._next = 0.0
        self._log_reader = LogReader(self.log, self.said)

    @abstractmethod
    def command(self, fd: int) -> list[str]:
        """What starts the server on the listening socket ``fd``."""

    @abstractmethod
    def end(self, deadline: float) -> None:
        """Ask the master to end in order, and wait."""

    def befall(self) -> None:
        """What the variant does now and then."""

    @property
    def is_kept(self) -> bool:
        """Whether the callers keep their connections."""
        return False

    @property
    def abreast(self) -> int:
        """How many questions a worker can have at once."""
        return 1

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self._port = listener.getsockname()[1]
            self._launch(listener.fileno())
        what = f"{self.name} {self.variant} did not come to work"
        wait_until(lambda: not self.is_alive or self._is_ready(), STARTUP, what, self.log)
        if not self.is_alive:
            raise DemoFailed(f"{self.name} {self.variant} ended at its start", tail(self.log, 40))
        self._board = Switchboard(self.brief, self._port, self.is_kept)
        count = self.processes * (self.abreast + 1)
        self._callers = Callers(self.brief, count, self._board.call)
        self._callers.start()
        self._next = time.monotonic() + EVERY

    def _launch(self, fd: int) -> None:
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                self.command(fd),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                pass_fds=[fd],
                start_new_session=True,  # a Ctrl-C at the terminal reaches the trial alone
            )
        self._family.add(self._process.pid)

    def _is_ready(self) -> bool:
        line = Line(self._port, 5.0, is_kept=False)
        with suppress(OSError, http.client.HTTPException, NoAnswer):
            return len(self.workers()) == self.processes and bool(line.ask("/"))
        return False

    def _all_work(self) -> bool:
        diaries = self.folder / "diaries"
        return all((diaries / f"w{pid}").exists() for pid in self.workers())

    @property
    def master(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        # Not by poll(): the number of a master is to be nobody else's before its session is gone.
        return self._process is not None and not self._family.dead(self.master)

    def workers(self) -> list[int]:
        return self._family.children(self.master) if self.is_alive else []

    def children(self) -> list[int]:
        is_ours = self._process is not None and self._process.returncode is None
        return [self.master] if is_ours else []

    def tend(self) -> None:
        for kind, detail in self._log_reader.news():
            self.happened(kind, detail)
        if self._next and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            self.befall()

    def calm(self) -> None:
        self._next = 0.0

    def finish(self, bound: float) -> list[str]:
        """Callers first: nobody is to be cut by the end of the server."""
        self.calm()
        # uWSGI does not end a worker that is at its start: it is told too early, and is not again.
        until(self._all_work, min(bound, GONE))
        deadline = time.monotonic() + bound
        wrong = [] if self.is_alive else [f"{self.name} has ended by itself"]
        if self._callers is not None:
            wrong += self._callers.finish(bound)
        if self._board is not None:
            self._board.close()  # gunicorn waits a while for what a kept connection may still ask
        if self.is_alive:
            self.end(max(deadline, time.monotonic() + GONE))
        if self.is_alive:
            wrong.append(f"{self.name} did not end in order within {bound:g} s")
        self.tend()
        self._family.adopt_session(self.master)
        if not until(lambda: not self._family.living(), max(GONE, deadline - time.monotonic())):
            wrong += [f"{name} is left" for name in self._family.names()]
        return wrong

    def close(self) -> None:
        self.calm()
        if self._process is not None:
            self._kill()
        if self._callers is not None:
            self._callers.finish(GONE)  # they were cut off with the server
        if self._board is not None:
            self._board.close()

    def _kill(self) -> None:
        """The whole session, orphans included, and what a dying one may still have forked."""

        def gone() -> bool:
            self._family.adopt_session(self.master)
            self._family.signal(signal.SIGKILL)
            return not self._family.living()

        if self._process is not None and self._process.returncode is None:
            until(gone, GONE)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GONE)

    def tell(self, signum: int) -> None:
        """Signal the master."""
        with suppress(ProcessLookupError):
            os.kill(self.master, signum)
