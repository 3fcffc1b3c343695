"""The pools, each set up and used as its own documentation shows it for a web server.

Where a peer asks for a choice, its default is taken. Where a peer would do more than the others
if it were set up in full, the lighter way is taken, in the peer's favour, and its class says so.
"""

from __future__ import annotations

import importlib
import threading
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from typing import Any

from stress.bench import fake


class Contender:
    """One pool over one fake server.

    Args:
        server: what it connects to.
        idle: connections that are open and idle once this returns.
        most: connections that it may have at most.
    """

    name = ""
    #: The distribution to install, and the modules that must be importable.
    package = ""
    modules: tuple[str, ...] = ()
    #: What it does to a connection that comes back.
    reset = ""

    def __init__(self, server: fake.Server, idle: int, most: int) -> None:
        raise NotImplementedError

    def acquire(self) -> Any:
        raise NotImplementedError

    def release(self, conn: Any) -> None:
        raise NotImplementedError

    def loop(self, count: int) -> None:
        """Acquire and release, ``count`` times, with no call in between that is not the pool's.

        The connection has a name, which still holds it at the next acquire, as in a script's loop.
        """
        raise NotImplementedError

    def loop_dropped(self, count: int) -> None:
        """The same, with nobody who still holds the connection at the next acquire.

        So it is after a web request, whose function has returned.
        """
        raise NotImplementedError

    def keep_out(self, count: int) -> list[Any]:
        """Take connections and keep them."""
        return [self.acquire() for _ in range(count)]

    def put_back(self, conn: Any) -> None:
        """Give back one that was kept."""
        self.release(conn)

    def close(self) -> None:
        raise NotImplementedError

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part, or None."""
        try:
            for module in cls.modules:
                importlib.import_module(module)
        except ImportError as error:
            return str(error)
        return None

    @classmethod
    def version(cls) -> str:
        try:
            return version(cls.package)
        except PackageNotFoundError:
            return "(not installed)"


class Closing(Contender):
    """A pool whose connections go back by their own ``close()``."""

    pool: Any
    #: What the pool's method to acquire is called.
    verb = ""

    def acquire(self) -> Any:
        return getattr(self.pool, self.verb)()

    def release(self, conn: Any) -> None:
        conn.close()

    def loop(self, count: int) -> None:
        acquire = getattr(self.pool, self.verb)
        for _ in repeat(None, count):
            conn = acquire()
            conn.close()

    def loop_dropped(self, count: int) -> None:
        acquire = getattr(self.pool, self.verb)
        for _ in repeat(None, count):
            acquire().close()


class Putting(Contender):
    """A pool that is given its connections back, by ``putconn``."""

    pool: Any

    def acquire(self) -> Any:
        return self.pool.getconn()

    def release(self, conn: Any) -> None:
        self.pool.putconn(conn)

    def loop(self, count: int) -> None:
        acquire, release = self.pool.getconn, self.pool.putconn
        for _ in repeat(None, count):
            conn = acquire()
            release(conn)

    def loop_dropped(self, count: int) -> None:
        acquire, release = self.pool.getconn, self.pool.putconn
        for _ in repeat(None, count):
            release(acquire())


class Nimue(Closing):
    """Defaults, all checks on: health check at checkout, and the record of who holds what.

    The fake driver's facts ask as much of a connection as those about psycopg2 do.
    """

    name = "nimue"
    package = "nimue"
    modules = ("nimue", "nimue.drivers.base")
    reset = "status"
    verb = "getconnection"

    def __init__(self, server: fake.Server, idle: int, most: int) -> None:
        from nimue import NimueConnectionPool
        from stress.bench.facts import FakeDriver

        self.pool = NimueConnectionPool(
            server.connect, poolinit=idle, poolmin=idle, poolmax=most, driver=FakeDriver(fake)
        )

    def close(self) -> None:
        self.pool.close()


class SQLAlchemy(Closing):
    """QueuePool on its own, without an Engine, whose work would come on top.

    ``pool_pre_ping`` is off and ``reset_on_return`` is rollback, as by default. ``pool_size`` is
    the number that are idle, and ``max_overflow`` the rest.
    """

    name = "SQLAlchemy"
    package = "SQLAlchemy"
    modules = ("sqlalchemy.pool",)
    reset = "rollback"
    verb = "connect"

    def __init__(self, server: fake.Server, idle: int, most: int) -> None:
        pool = importlib.import_module("sqlalchemy.pool")
        self.pool = pool.QueuePool(server.connect, pool_size=idle, max_overflow=most - idle)
        for conn in self.keep_out(idle):
            conn.close()

    def close(self) -> None:
        self.pool.dispose()


class PsycopgPool(Putting):
    """ConnectionPool by getconn and putconn, which is less work than its ``connection()``.

    ``check`` and ``reset`` are unset, as by default.
    """

    name = "psycopg_pool"
    package = "psycopg-pool"
    modules = ("psycopg", "psycopg_pool")
    reset = "status"

    def __init__(self, server: fake.Server, idle: int, most: int) -> None:
        pool = importlib.import_module("psycopg_pool")
        self.pool = pool.ConnectionPool(
            "", connection_class=server, min_size=idle, max_size=most, open=True
        )
        self.pool.wait()

    def close(self) -> None:
        self.pool.close()


class DBUtils(Closing):
    """PooledDB with ``blocking=True``, so that a request at the limit waits.

    ``ping`` and ``reset`` are on, as by default; the fake has no ``ping()``, as psycopg2 has none,
    and DBUtils then gives up pinging.
    """

    name = "DBUtils"
    package = "DBUtils"
    modules = ("dbutils.pooled_db",)
    reset = "rollback"
    verb = "connection"

    def __init__(self, server: fake.Server, idle: int, most: int) -> None:
        pooled_db = importlib.import_module("dbutils.pooled_db")
        self.pool = pooled_db.PooledDB(
            server.connect, mincached=idle, maxconnections=most, blocking=True
        )

    def close(self) -> None:
        self.pool.close()


class Psycopg2Pool(Putting):
    """ThreadedConnectionPool, its one ``psycopg2.connect`` replaced by the fake's.

    At the limit it raises at once, so ``acquire`` and ``release`` guard it with a semaphore, as
    people do who use it under threads. ``loop`` uses the bare pool.
    """

    name = "psycopg2.pool"
    package = "psycopg2-binary"
    modules = ("psycopg2.pool",)
    reset = "status"

    def __init__(self, server: fake.Server, idle: int, most: int) -> None:
        module = importlib.import_module("psycopg2.pool")

        def connect(pool: Any, key: Any = None) -> Any:
            conn = server.connect()
            if key is not None:
                pool._used[key] = conn
                pool._rused[id(conn)] = key
            else:
                pool._pool.append(conn)
            return conn

        pool_class = type("Pool", (module.ThreadedConnectionPool,), {"_connect": connect})
        self.pool = pool_class(idle, most)
        self._room = threading.Semaphore(most)

    def acquire(self) -> Any:
        self._room.acquire()
        return super().acquire()

    def release(self, conn: Any) -> None:
        super().release(conn)
        self._room.release()

    def close(self) -> None:
        self.pool.closeall()


class Peewee(Contender):
    """PooledDatabase with ``timeout=30``, so that a request at the limit waits.

    The two driver questions are those of its PostgreSQL class, without the ``SELECT 1`` which that
    sends at every checkout: on a real server it would be a round trip, here it is left out.
    """

    name = "peewee"
    package = "peewee"
    modules = ("playhouse.pool",)
    reset = "status"

    def __init__(self, server: fake.Server, idle: int, most: int) -> None:
        peewee = importlib.import_module("peewee")
        module = importlib.import_module("playhouse.pool")
        answers = {
            "_connect": lambda db: server.connect(),
            "_is_closed": lambda db, conn: conn.closed,
            "_can_reuse": lambda db, conn: conn.info.transaction_status == fake.IDLE,
        }
        base = type("Base", (peewee.Database,), {"_connect": answers.pop("_connect")})
        self.db = type("Pooled", (module.PooledDatabase, base), answers)(
            "fake", max_connections=most, timeout=30
        )
        for conn in self.keep_out(idle):
            self.put_back(conn)

    def acquire(self) -> Any:
        self.db.connect()

    def release(self, conn: Any) -> None:
        self.db.close()

    def loop(self, count: int) -> None:
        acquire, release = self.db.connect, self.db.close
        for _ in repeat(None, count):
            acquire()
            release()

    def loop_dropped(self, count: int) -> None:
        self.loop(count)  # the thread holds the connection, no name does

    def keep_out(self, count: int) -> list[Any]:
        # A thread has one connection at a time, so the pool below is asked.
        return [self.db._connect() for _ in range(count)]

    def put_back(self, conn: Any) -> None:
        self.db._close(conn)

    def close(self) -> None:
        self.db.close_all()


ALL: tuple[type[Contender], ...] = (
    Nimue,
    Psycopg2Pool,
    PsycopgPool,
    Peewee,
    DBUtils,
    SQLAlchemy,
)
BY_NAME = {contender.name: contender for contender in ALL}
