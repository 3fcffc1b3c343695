"""What every database of a trial can do, and what it is made of."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from nimue.cli.demo_verdict import DemoFailed
from stress.databases.admin import Admin, ServerAway
from stress.servers import Run, Server
from stress.trial.dialects import CREATE, DIALECTS

#: Seconds for which a driver waits for a connection, where it can be told.
CONNECT_TIMEOUT = 5
#: The bound of a statement of the oracle's own, in seconds.
STATEMENT_TIMEOUT = 15
#: What a server of ours takes at once.
CONNECTIONS = 40


class Database(ABC):
    """One server, and the oracle's own connections to it.

    A server of ours is a process that ends with ``close``, or with this process.
    """

    name = ""
    #: The dialects' word for it.
    server = ""
    version = ""
    #: Started here: it may be restarted, and filled.
    is_ours = False
    #: What it takes at once, if it is ours; to be set before ``open``.
    connections = CONNECTIONS
    #: Where it listens on the loopback, for a proxy in front of it; None if it does not.
    port: int | None = None

    def __init__(self, noted: set[int] | None = None) -> None:
        self._noted = noted
        self._admin: Admin | None = None
        self._process: Process | None = None

    @property
    @abstractmethod
    def faults(self) -> frozenset[str]:
        """The kinds of ``stress.trial.faults`` that make sense, of those to server and way."""

    @abstractmethod
    def open(self, dsn: str | None, folder: Path) -> None:
        """Start one of our own, or connect to that of ``dsn``. ``folder``: for a file's sake.

        Raises:
            DemoFailed: it does not start, cannot be reached, or cannot be used.
        """

    @abstractmethod
    def address(self, dialect: str, port: int | None = None) -> dict[str, Any]:
        """The driver's keyword arguments, which JSON can carry.

        Args:
            dialect: the driver, by its name in ``stress.trial.dialects``.
            port: of a proxy in front of ``port``; None for the server itself.

        Raises:
            ValueError: the driver is none for this server.
        """

    @abstractmethod
    def sessions(self, mark: str) -> dict[int, int]:
        """The server's numbers of a trial's sessions, with the client's process id; 0 if unknown.

        Raises:
            ServerAway: it is down.
        """

    def doing(self, backends: Collection[int]) -> list[str]:
        """What these sessions are at, of those that it knows it of. Raises: ServerAway."""
        return []

    def create_ledger(self) -> None:
        """An empty ledger; one that is there is dropped. Raises: ServerAway."""
        self._ask("drop table if exists stress_ledger")
        self._ask(CREATE)

    def tally(self) -> dict[str, int]:
        """How many rows each token has in the ledger. Raises: ServerAway."""
        rows = self._ask("select token, count(*) from stress_ledger group by token")
        return {token: int(count) for token, count in rows}

    def leave(self) -> None:
        """The running thread asks no more: what it has open here is closed."""
        if self._admin is not None:
            self._admin.leave()

    def terminate(self, backend: int) -> bool:
        """End a session by its number; whether there was one. Raises: ServerAway."""
        raise self._cannot("end a session")

    def restart(self, down: float = 0.0) -> None:
        """Shut it down at once and in order, which ends all sessions, and start it as it was.

        Returns when it answers. ``down``: seconds between. Raises: DemoFailed if it does not.
        """
        if self._process is None:
            raise self._cannot("be restarted")
        self._process.restart(down)

    def take_rest(self) -> Rest:
        """Take every connection that it still gives to clients. Raises: ServerAway."""
        if self._process is None:
            raise self._cannot("be filled")
        rest = Rest()
        try:
            rest.take(self._another, self.connections)
        except BaseException:
            rest.close()
            raise
        return rest

    def _another(self) -> Any | None:
        """One more connection, which is none of the trial's; None if the server is full."""
        raise NotImplementedError

    def children(self) -> set[int]:
        """Children of the running process that the server's is, or that look after it."""
        return set(self._process.noted) if self._process is not None else set()

    def close(self) -> None:
        """End the server if it is ours, else drop the ledger. At any time, and twice."""
        if self._admin is not None:
            self._admin.close()
        if self._process is not None:
            self._process.end()
            self._process = None

    def _ask(self, statement: str, *parameters: Any) -> list[Any]:
        if self._admin is None:
            raise ServerAway(f"{self.name} is not open")
        return self._admin.ask(statement, *parameters)

    def _cannot(self, what: str) -> NotImplementedError:
        whose = "" if self.is_ours else " that was not started here"
        return NotImplementedError(f"{self.name}{whose} cannot {what}")

    def _check(self, dialect: str) -> None:
        ours = [one.name for one in DIALECTS.values() if one.server == self.server]
        if dialect not in ours:
            raise ValueError(f"dialect={dialect!r}: for {self.name} it is one of {', '.join(ours)}")


class Rest:
    """The connections that take what a server has left: with ``close``, they are let go."""

    def __init__(self) -> None:
        self._conns: list[Any] = []

    def take(self, connect: Callable[[], Any | None], most: int) -> None:
        """Connect until there is None, at most so often."""
        while len(self._conns) < most and (conn := connect()) is not None:
            self._conns.append(conn)

    def __len__(self) -> int:
        return len(self._conns)

    def close(self) -> None:
        while self._conns:
            self._conns.pop().close()

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Process:
    """A server process of ours, with the run that ends it whatever happens."""

    def __init__(self, kind: type[Server], noted: set[int] | None, **settings: Any) -> None:
        self._run = Run.begin("nimue-stress-", noted)
        self.noted = self._run.noted
        self.server: Any = kind(self._run, "server", **settings)
        self._turn = threading.Lock()  # who restarts it, and who ends it for good
        self._ended = False

    def start(self) -> None:
        self.server.create()
        self.server.start()

    def restart(self, down: float) -> None:
        with self._turn:
            if self._ended:
                raise ServerAway("the server has been ended")
            self.server.stop()
            time.sleep(down)
            self.server.start()

    def end(self) -> None:
        with self._turn:
            self._ended = True
            try:
                self.server.stop(self.server.quick)
            finally:
                self._run.end()


def refuse(dsn: str | None, name: str) -> None:
    """Raises DemoFailed if there is one: this server is started here or not at all."""
    if dsn is not None:
        raise DemoFailed(f"--dsn is for PostgreSQL only; {name} is started here")
