"""A DB-API module whose connections cost nothing, so that only the pools are measured.

::

    Server -- connect() --> Connection        what psycopg2 and psycopg tell without asking
      counts, waits                           the server (closed, transaction status) is told
                                              here by plain attributes; rollback() resets them

Every pool works on this same class. It is never in a transaction unless somebody says so, like
a psycopg2 connection after commit(). It has no ``ping()``, as psycopg2's has none.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import Any

apilevel = "2.0"
threadsafety = 2
paramstyle = "pyformat"

#: libpq's numbers, which psycopg2, psycopg and peewee compare with.
IDLE, INTRANS = 0, 2
#: psycopg2's STATUS_READY.
READY = 1


class Error(Exception):
    """DB-API's."""


class InterfaceError(Error):
    """DB-API's."""


class DatabaseError(Error):
    """DB-API's."""


class OperationalError(DatabaseError):
    """DB-API's."""


class InternalError(DatabaseError):
    """DB-API's."""


class Info:
    """The status that libpq keeps for a connection."""

    def __init__(self) -> None:
        self.transaction_status = IDLE


class Connection:
    """One connection, fit for every contender; the pools may set attributes of their own on it."""

    Error = Error
    InterfaceError = InterfaceError
    OperationalError = OperationalError

    def __init__(self) -> None:
        self.closed = 0
        self.autocommit = False
        self.status = READY
        #: psycopg2 calls it info, psycopg pgconn.
        self.info = self.pgconn = Info()

    def cursor(self) -> Cursor:
        return Cursor(self)

    def commit(self) -> None:
        self.info.transaction_status = IDLE

    def rollback(self) -> None:
        self.info.transaction_status = IDLE

    def close(self) -> None:
        self.closed = 1


class Cursor:
    """Answers everything with one row, without waiting."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def execute(self, query: str, parameters: object = None) -> None:
        """Succeed."""

    def fetchone(self) -> tuple[int]:
        return (1,)

    def fetchall(self) -> list[tuple[int]]:
        return [(1,)]

    def close(self) -> None:
        """Succeed."""


class SocketConnection(Connection):
    """A connection with a real socket, so that a child has something to sever.

    The far end is the server's: it stays open, and closing a connection closes one descriptor, as
    a real one does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._socket, far = socket.socketpair()
        far.detach()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        super().close()
        self._socket.close()


class Server:
    """What the pools connect to: it counts, and takes as long as it is told to.

    Args:
        latency: seconds that each ``connect()`` takes.
        kind: the class of its connections.
    """

    def __init__(self, latency: float = 0.0, kind: type[Connection] = Connection) -> None:
        self.latency = latency
        #: connect() calls begun.
        self.opened = 0
        self._kind = kind
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self._stock: deque[Connection] = deque()

    def connect(self, *args: Any, **kwargs: Any) -> Connection:
        """A new connection; whatever the pool passes along is accepted."""
        with self._lock:
            self.opened += 1
        if self.latency:
            self._hurry.wait(self.latency)
        return self._stock.popleft() if self._stock else self._kind()

    def stock(self, count: int) -> None:
        """Make connections in advance, so that their memory is not taken for the pool's."""
        self._stock.extend(self._kind() for _ in range(count))

    def hurry(self) -> None:
        """From now on, and for those that are connecting, take no time."""
        self._hurry.set()


def connect(*args: Any, **kwargs: Any) -> Connection:
    """The DB-API's; DBUtils looks for it to find this module."""
    return Connection()
