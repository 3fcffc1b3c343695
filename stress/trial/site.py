"""What the trials of one command stand on: folders, a server, and a proxy in front of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nimue.cli.demo_verdict import DemoFailed
from nimue.cli.interrupt import Interrupts
from stress import orphans
from stress.databases import Database, make
from stress.ground import Ground
from stress.processes import gone
from stress.proxy import Proxy


class Site(Ground):
    """All of it ends with ``close``."""

    name = "stress"

    def __init__(self, interrupts: Interrupts) -> None:
        super().__init__(interrupts)
        self.database: Database
        self.proxy: Proxy | None = None
        #: The proxy's process while it lives; and all that were begun here.
        self._noted: set[int] = set()
        self.known: set[int] = set()

    def prepare(
        self, server: str, dsn: str | None, with_proxy: bool, connections: int | None = None
    ) -> None:
        """Start the server, or connect to that of ``dsn``.

        Args:
            connections: that a server of our own takes at once; None: as many as trials need.

        Raises:
            DemoFailed: it does not start, or cannot be reached.
        """
        orphans.adopt()
        self._make_folders()
        self.database = make(server)
        if connections is not None:
            self.database.connections = connections
        with self._interrupts.held():
            self._stack.callback(self.database.close)
            self._stack.callback(lambda: self.known.update(self.children()))  # restarted since
            self.database.open(dsn, self._folder)
            if with_proxy:
                if self.database.port is None:
                    raise DemoFailed(
                        "stall, cut, slow and refuse: only for a server that listens on 127.0.0.1"
                    )
                self.proxy = Proxy(self.database.port, self._noted)
                self._stack.callback(self.proxy.close)
            self.known.update(self.children())
        self._interrupts.check()

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def shared(self) -> Path:
        """In memory, where a limit's files would be."""
        return self._shared

    def address(self, dialect: str) -> dict[str, Any]:
        """What the driver is told, to come by the proxy if there is one."""
        port = self.proxy.port if self.proxy else None
        told: dict[str, Any] = self.database.address(dialect, port)
        return told

    def held(self) -> AbstractContextManager[None]:
        """A signal waits for the end of it."""
        return self._interrupts.held()

    def check(self) -> None:
        """Raise a signal that came meanwhile."""
        self._interrupts.check()

    def children(self) -> list[int]:
        """Processes of the server and the proxy, which are waited for there."""
        return [*self.database.children(), *self._noted]

    def left(self) -> list[str]:
        return [f"process {pid}" for pid in sorted(self.known) if not gone(pid)]
