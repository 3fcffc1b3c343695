"""Pools with a planted fault each, to show that the oracle finds it."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

from stress.trial.brief import Brief
from stress.trial.pools import Connect, Nimue, Pool


class Shares(Pool):
    """Hands a child what its parent had idle, as pools do that do not look at the process."""

    def __init__(self, brief: Brief, connect: Connect) -> None:
        self._connect, self._room = connect, threading.Semaphore(brief.poolmax)
        self._idle: list[Any] = []

    def acquire(self) -> Any:
        self._room.acquire()
        return self._idle.pop() if self._idle else self._connect()

    def release(self, conn: Any, error: BaseException | None) -> None:
        if error is None:
            self._idle.append(conn)
        self._room.release()


class Exceeds(Nimue):
    """Knows nothing of a limit that others share."""

    def __init__(self, brief: Brief, connect: Connect) -> None:
        super().__init__(replace(brief, totalmax=None), connect)


class Leaks(Nimue):
    """Keeps a permit of the limit for itself at every tenth question."""

    def __init__(self, brief: Brief, connect: Connect) -> None:
        from nimue import SharedSemaphore

        super().__init__(brief, connect)
        self._limit = SharedSemaphore(brief.mark, brief.totalmax or 1)
        self._kept: list[Any] = []
        self._count = 0

    def acquire(self) -> Any:
        self._count += 1
        if self._count % 10 == 0:
            self._kept.append(self._limit.take(0.1))
        return super().acquire()


class _Wrapped(Pool):
    """Over nimue's, which has no fault of its own, connections that have one."""

    wrapper: type[_Connection]

    def __init__(self, brief: Brief, connect: Connect) -> None:
        self._pool = Nimue(brief, connect)
        self._count = 0

    def acquire(self) -> Any:
        self._count += 1
        conn = self._pool.acquire()
        return self.wrapper(conn) if self._count % 10 == 0 else conn

    def close(self, timeout: float) -> None:
        self._pool.close(timeout)


class _Connection:
    """A connection that is as it should be."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.conn, name)


class _Crossed(_Connection):
    def cursor(self) -> Any:
        return _CrossedCursor(self.conn.cursor())


class _CrossedCursor(_Connection):
    def fetchall(self) -> Any:
        return [("another's", row[1]) for row in self.conn.fetchall()]


class _Forgetful(_Connection):
    def commit(self) -> None:
        self.conn.rollback()


class _Twice(_Connection):
    def cursor(self) -> Any:
        return _TwiceCursor(self.conn.cursor())


class _TwiceCursor(_Connection):
    def execute(self, *args: Any) -> None:
        self.conn.execute(*args)
        if args[0].startswith("insert"):
            self.conn.execute(*args)


class Crosses(_Wrapped):
    """Every tenth question gets another's answer."""

    wrapper = _Crossed


class Loses(_Wrapped):
    """Every tenth commit is none."""

    wrapper = _Forgetful


class Doubles(_Wrapped):
    """Every tenth write is done twice."""

    wrapper = _Twice


class Remains(Nimue):
    """A child process is left behind at every tenth question."""

    _count = 0

    def acquire(self) -> Any:
        self._count += 1
        if self._count == 10 and os.fork() == 0:
            os.setsid()
            threading.Event().wait(60)
            os._exit(0)
        return super().acquire()
