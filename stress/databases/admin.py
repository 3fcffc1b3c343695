"""The oracle's own connection to a server that goes down and comes up again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class ServerAway(Exception):
    """The server does not answer now; it may do so at the next call."""


class Admin:
    """A connection for each thread that asks, opened again when it has been lost.

    So nobody waits for another: the one who looks at the sessions not for the one who restarts.

    Args:
        connect: opens one, which commits by itself, and bounds its own waits.
        errors: what the driver raises.
        is_lost: whether the connection is of no use after such an error.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        errors: tuple[type[Exception], ...],
        is_lost: Callable[[Any, Exception], bool],
    ) -> None:
        self._connect = connect
        self._errors = errors
        self._is_lost = is_lost
        self._mine = threading.local()
        self._lock = threading.Lock()  # guards the two below
        self._open: set[Any] = set()
        self._closed = False

    def ask(self, statement: str, *parameters: Any) -> list[Any]:
        """The rows of an answer. What is asked may be asked twice.

        Raises:
            ServerAway: it cannot be reached, or went away twice.
        """
        conn = getattr(self._mine, "conn", None)
        if conn is not None:
            try:
                return self._asked(conn, statement, parameters)
            except ServerAway:  # lost since the last call, perhaps long ago
                pass
        return self._asked(self._opened(), statement, parameters)

    def leave(self) -> None:
        """The running thread asks no more: close its connection."""
        conn, self._mine.conn = getattr(self._mine, "conn", None), None
        if conn is not None:
            with self._lock:
                self._open.discard(conn)
            self._shut(conn)

    def _opened(self) -> Any:
        try:
            conn = self._connect()
        except self._errors as error:
            raise ServerAway(str(error)) from error
        with self._lock:
            closed = self._closed
            if not closed:
                self._open.add(conn)
        if closed:
            conn.close()
            raise ServerAway("the oracle has closed its connections")
        self._mine.conn = conn
        return conn

    def _asked(self, conn: Any, statement: str, parameters: tuple[Any, ...]) -> list[Any]:
        cursor = None
        try:
            cursor = conn.cursor()
            cursor.execute(statement, *([parameters] if parameters else []))
            return list(cursor.fetchall()) if cursor.description else []
        except self._errors as error:
            if not self._is_lost(conn, error):
                raise
            self._mine.conn = None
            with self._lock:
                self._open.discard(conn)
            self._shut(conn)
            raise ServerAway(str(error)) from error
        finally:
            if cursor is not None:
                self._shut(cursor)

    def _shut(self, thing: Any) -> None:
        try:
            thing.close()
        except self._errors:  # it is broken already
            pass

    def close(self) -> None:
        """Close all of them, and open none any more."""
        with self._lock:
            self._closed = True
            conns, self._open = self._open, set()
        for conn in conns:
            self._shut(conn)
