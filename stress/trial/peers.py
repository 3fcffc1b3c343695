"""nimue's peers on a real server, each set up as its own documentation shows it for threads.

All are made before the fork, which not all of them are meant for: where the documentation says how
a pool is shared with children, that is tried beside it. They open at most ``poolmax`` connections
in a process, and wait up to ``timeout`` seconds for one where they can. Where they ask for a
choice, their default is taken, as it is for nimue.
"""

from __future__ import annotations

import importlib
import os
import threading
from importlib.metadata import version
from typing import Any

from stress.trial.brief import Brief
from stress.trial.pools import Connect, Pool


class SQLAlchemy(Pool):
    """An Engine with its QueuePool, made before the fork, and nothing done in the child.

    ``pool_size=poolmax``, ``max_overflow=0``. ``pool_pre_ping`` is off and ``reset_on_return`` is
    rollback, as by default. An error that its dialect calls a disconnect invalidates what the
    Engine would have invalidated: this connection, and all that are as old.
    """

    def __init__(self, brief: Brief, connect: Connect) -> None:
        sqlalchemy = importlib.import_module("sqlalchemy")
        self.engine = sqlalchemy.create_engine(
            "postgresql+psycopg2://",
            creator=connect,
            pool_size=brief.poolmax,
            max_overflow=0,
            pool_timeout=brief.timeout,
        )

    def acquire(self) -> Any:
        return self.engine.raw_connection()

    def release(self, conn: Any, error: BaseException | None) -> None:
        raw = conn.dbapi_connection
        if error is not None and self.engine.dialect.is_disconnect(error, raw, None):
            self.engine.pool._invalidate(conn, error)
        conn.close()

    def close(self, timeout: float) -> None:
        self.engine.dispose()


class SQLAlchemyDisposed(SQLAlchemy):
    """The same with ``engine.dispose(close=False)`` in each child, as its chapter on fork asks."""

    def enter_child(self) -> None:
        self.engine.dispose(close=False)


class PsycopgPool(Pool):
    """ConnectionPool by ``getconn`` and ``putconn``, over psycopg 3.

    ``min_size=poolmin``, ``max_size=poolmax``. ``check`` and ``reset`` are unset, as by default:
    ``putconn`` rolls back, and discards what is broken.
    """

    def __init__(self, brief: Brief, connect: Connect) -> None:
        self.pool = importlib.import_module("psycopg_pool").ConnectionPool(
            connection_class=_Opener(connect),
            min_size=brief.poolmin,
            max_size=brief.poolmax,
            timeout=brief.timeout,
            open=True,
        )

    def acquire(self) -> Any:
        return self.pool.getconn()

    def release(self, conn: Any, error: BaseException | None) -> None:
        self.pool.putconn(conn)

    def close(self, timeout: float) -> None:
        self.pool.close(timeout)


class _Opener:
    """What psycopg_pool takes for a class of connections: the session's name is ours to say."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    def connect(self, conninfo: str, **keywords: Any) -> Any:
        return self._connect()


class DBUtils(Pool):
    """PooledDB with ``blocking=True``, so that a request at the limit waits: without a bound.

    ``mincached=poolmin``, ``maxconnections=poolmax``; ``ping`` and ``reset`` are on, as by default,
    though psycopg2 has no ``ping()``. ``begin()`` tells it of the transaction, as its documentation
    asks, so that none goes on over another connection.
    """

    def __init__(self, brief: Brief, connect: Connect) -> None:
        self.pool = importlib.import_module("dbutils.pooled_db").PooledDB(
            connect, mincached=brief.poolmin, maxconnections=brief.poolmax, blocking=True
        )

    def acquire(self) -> Any:
        conn = self.pool.connection()
        conn.begin()
        return conn

    def close(self, timeout: float) -> None:
        self.pool.close()


class Psycopg2Pool(Pool):
    """ThreadedConnectionPool(poolmin, poolmax); what comes back above its minimum it closes.

    At the limit it raises at once, so a semaphore in front of it waits, as people do who use it
    under threads. It never checks; after an error, ``putconn(close=True)``.
    """

    def __init__(self, brief: Brief, connect: Connect) -> None:
        module = importlib.import_module("psycopg2.pool")

        def opened(pool: Any, key: Any = None) -> Any:
            conn = connect()
            if key is None:
                pool._pool.append(conn)
            else:
                pool._used[key] = conn
                pool._rused[id(conn)] = key
            return conn

        # Its own takes fixed arguments only, and the session's name tells the process.
        kind = type("Pool", (module.ThreadedConnectionPool,), {"_connect": opened})
        self.pool: Any = kind(brief.poolmin, brief.poolmax)
        self._most = brief.poolmax
        self._room = threading.Semaphore(brief.poolmax)
        self._timeout = brief.timeout

    def enter_child(self) -> None:
        # The semaphore is ours, and so would be the blame for what it inherits: a new one, with as
        # much room as the pool itself sees.
        self._room = threading.Semaphore(self._most - len(self.pool._used))

    def acquire(self) -> Any:
        if not self._room.acquire(timeout=self._timeout):
            raise TimeoutError(f"no connection within {self._timeout:g} s")
        try:
            return self.pool.getconn()
        except BaseException:
            self._room.release()
            raise

    def release(self, conn: Any, error: BaseException | None) -> None:
        try:
            self.pool.putconn(conn, close=error is not None)
        finally:
            self._room.release()

    def close(self, timeout: float) -> None:
        self.pool.closeall()


class _Anew(Pool):
    """The same, made anew in each child: one that was made before the fork is left alone there."""

    def __init__(self, brief: Brief, connect: Connect) -> None:
        super().__init__(brief, connect)
        self._again = brief, connect
        self._made_in = os.getpid()

    def enter_child(self) -> None:
        if self._made_in != os.getpid():
            # Its connections are the parent's: they are kept from being closed.
            _PARENTS.append(self.__dict__.copy())
            self.__init__(*self._again)  # type: ignore[misc]


#: What was inherited, and nobody is to finalise.
_PARENTS: list[dict[str, Any]] = []


class PsycopgPoolAnew(_Anew, PsycopgPool):
    """The same, and another in each child: psycopg's connections are to be made after the fork."""


class Psycopg2PoolAnew(_Anew, Psycopg2Pool):
    """The same, and another in each child: psycopg2's connections are not shared by processes."""


class DBUtilsAnew(_Anew, DBUtils):
    """The same, and another in each child, as its documentation shows it."""


class Nimue003(Pool):
    """The nimue that is in the package registry, which this one grew from; not of this tree.

    ``healthcheck_on_getconnection`` is on, as by default: a ``SELECT 1`` at every checkout.

    Raises:
        RuntimeError: the environment has another nimue.
    """

    VERSION = "0.0.3"

    def __init__(self, brief: Brief, connect: Connect) -> None:
        nimue = importlib.import_module("nimue")
        found = getattr(nimue, "__version__", version("nimue"))
        if found != self.VERSION:
            raise RuntimeError(f"{nimue.__file__} is nimue {found}, not {self.VERSION}")
        self.pool = nimue.NimueConnectionPool(
            connect, poolmin=brief.poolmin, poolmax=brief.poolmax
        )
        self._timeout = brief.timeout

    def acquire(self) -> Any:
        conn = self.pool.getconnection(timeout=self._timeout)
        if conn is None:
            raise TimeoutError(f"no connection within {self._timeout:g} s")
        return conn

    def close(self, timeout: float) -> None:
        self.pool.close()
