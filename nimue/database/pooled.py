"""A database whose connections are bound to threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from sys import _getframe
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from nimue.acquire import caller
from nimue.connection import NimueConnection, NimueCursor
from nimue.database import borrow, dialect, force, transaction
from nimue.database.bound import Bound, Here
from nimue.database.dialect import Dialect
from nimue.error import NimueConnectionClosed, NimueError
from nimue.fork import door, registry_lock, settle
from nimue.pool import NimueConnectionPool
from nimue.settings import refuse, seconds

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_CONNECTIONS = 20


class PooledDatabase:
    """A database in which each thread has its own connection, from ``connect()`` to ``close()``.

    The connections are a pool's, so all that is true of :class:`nimue.NimueConnectionPool` is of
    this: any number of threads and processes may use it, whichever way they came to be; a forked
    child starts with no connection. Under gevent's monkey patching, which has to come before this
    object is made, a greenlet counts as a thread. A thread that ends without ``close()`` gives its
    connection back.

    Nothing connects by itself: ``autoconnect`` is False, and to use a database without
    ``connect()`` is an error.

    Args:
        connfunc: returns an open connection; called with all arguments that are not named here.
        max_connections: at most, per process; a whole number, or one in a string.
        stale_timeout: seconds after which a connection is closed rather than used again: since it
            was opened, up to a tenth less, or since it was last taken. None or 0: never.
        timeout: seconds to wait when all are lent; 0 waits for ever, None not at all.
        totalmax: connections at most over all processes; see the pool.
        name: what the pool is called; with ``totalmax``, the name of the limit.
        dialect: ``"postgres"``, ``"mysql"`` or ``"sqlite"``, where ``connfunc`` does not tell.

    Raises:
        NimueInvalidParameterValue: a parameter is not allowed; nothing was opened.
        NimueSemaphoreError: the files of ``totalmax`` cannot be used.
    """

    def __init__(
        self,
        connfunc: Callable[..., Any],
        max_connections: int | str = MAX_CONNECTIONS,
        stale_timeout: float | str | None = None,
        timeout: float | str | None = None,
        *args: Any,
        totalmax: int | None = None,
        name: str | None = None,
        dialect: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._dialect = _dialect_named(dialect, connfunc)
        self._timeout = borrow.check_timeout(timeout)
        self._pool = NimueConnectionPool(
            connfunc,
            args,
            kwargs,
            poolmin=0,
            poolmax=borrow.check_max_connections(max_connections),
            **borrow.times(stale_timeout),
            name=name,
            totalmax=totalmax,
        )
        self._here = Here(self._pool._state)

    @classmethod
    def over(
        cls,
        pool: NimueConnectionPool,
        timeout: float | str | None = None,
        dialect: str | None = None,
    ) -> PooledDatabase:
        """A database over a pool of yours, for all that is not a parameter here."""
        made = PooledDatabase.__new__(cls)
        made._dialect = _dialect_named(dialect, pool.connfunc)
        made._timeout = borrow.check_timeout(timeout)
        made._pool = pool
        made._here = Here(pool._state)
        return made

    # What it is.

    @property
    def pool(self) -> NimueConnectionPool:
        """The pool that the connections come from: for its figures and settings."""
        return self._pool

    @property
    def autoconnect(self) -> bool:
        """False: connections are opened by ``connect()`` alone. Cannot be set to anything else."""
        return False

    @autoconnect.setter
    def autoconnect(self, autoconnect: object) -> None:
        if autoconnect is not False:
            raise refuse("autoconnect", autoconnect, "False: call connect() and close()")

    @property
    def dialect(self) -> str:
        """The kind of SQL: ``"postgres"``, ``"mysql"``, ``"sqlite"``; for any other ``"other"``.

        Raises:
            NimueError: it is not known before the first connection.
        """
        return self._speaks().name

    @property
    def placeholder(self) -> str:
        """What the driver has for a parameter: ``%s`` or ``?``. Here ``%s`` does for all."""
        return self._speaks().placeholder

    @property
    def paramstyle(self) -> str:
        """DB-API's word for that: ``"format"`` or ``"qmark"``."""
        return "qmark" if self.placeholder == "?" else "format"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pool.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled: make it at import, in a module that the "
            "other process imports too"
        )

    # One thread's connection.

    def connect(self) -> None:
        """Give the running thread a connection; one that has one keeps it.

        Raises:
            MaxConnectionsExceeded: all are lent, and none came back within ``timeout``.
            NimuePoolTimeout: with ``timeout=None``, the server let us wait for half a minute.
            Exception: the driver's own, when ``connfunc`` failed and nothing else could serve.
        """
        self._connect(caller())

    def close(self) -> bool:
        """Give this thread's connection back; False if it has none.

        What is not committed is rolled back.
        """
        bound = self._let_go()
        if bound is None or bound.handle is None:
            return False
        bound.handle.close()
        return True

    def manual_close(self) -> bool:
        """Close this thread's connection for good; False if it has none."""
        bound = self._let_go()
        if bound is None or bound.handle is None:
            return False
        force.close_mine(bound.handle)
        return True

    def is_closed(self) -> bool:
        """Whether this thread has no connection."""
        return self._now().mine is None

    @property
    def conn(self) -> NimueConnection:
        """This thread's connection, in all but ``close()`` the driver's: see the pool's.

        Raises:
            NimueConnectionClosed: it has none.
        """
        return self._mine().handle  # type: ignore[return-value]

    @property
    def cursor(self) -> NimueCursor:
        """The cursor of this thread's last statement."""
        bound = self._mine()
        return bound.cursor or self._new_cursor(bound)

    @property
    def is_trans(self) -> bool:
        """Whether this thread is inside ``atomic()``."""
        return self._mine().depth > 0

    def __enter__(self) -> Self:
        """Connect, for the length of the block; within another one, that one's connection."""
        if self.is_closed():
            self._connect(_getframe(1), 1)
        elif (bound := self._mine()).blocks:
            bound.blocks += 1
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        bound = self._now().mine
        if bound is not None and bound.blocks:
            bound.blocks -= 1
            if not bound.blocks:
                self.close()

    # All connections.

    def close_idle(self) -> None:
        """Close the connections that no thread has."""
        force.close_idle(self._now().state)

    def close_stale(self, age: float = 600) -> int:
        """Close the connections that a thread has had for more than ``age`` seconds; how many.

        Whichever thread has one, its next use there raises :class:`NimueConnectionClosed`. A
        statement under way is cut short first, with the driver's error; one that goes on for
        another second keeps its connection, which is then closed when it comes back.
        """
        seconds("age", age, "a number of seconds, 0 or more")
        return force.close_held(self._now().state, age)

    def close_all(self) -> None:
        """Close all connections, idle or not; those of other threads as :meth:`close_stale`."""
        self.close()
        here = self._now()
        force.close_held(here.state, -1.0)
        force.close_idle(here.state)

    # Statements.

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> None:
        """Execute one statement, and commit unless inside ``atomic()``. Returns None.

        What it found is in :attr:`cursor`. Parameters are written ``%s``, or ``%(name)s`` where
        ``params`` is a dict, in any dialect. Without ``params``, None and not empty, the driver
        gets the query as it is, percent signs and all.

        Raises:
            NimueConnectionClosed: this thread has not connected.
            Exception: the driver's own; outside ``atomic()``, after a rollback.
        """
        self._run(query, params, lambda cursor: None)

    def select(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Execute a query and return its rows, each a dictionary by column; see :meth:`sql`."""
        return self._run(query, params, transaction.rows)  # type: ignore[no-any-return]

    def get(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The first row of a query.

        Raises:
            IndexError: it has none.
        """
        row = self.get_or_none(query, params)
        if row is None:
            raise IndexError("the query has found no row; get_or_none() returns None then")
        return row

    def get_or_none(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The first row of a query; None if it has none."""
        return next(iter(self.select(query, params)), None)

    def insert(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> Any:
        """Execute an INSERT and return the key of the new row.

        That is the first value of ``returning``, where the statement has that; otherwise the
        cursor's ``lastrowid``, or None on PostgreSQL.
        """
        return self._run(query, params, transaction.key)

    def mogrify(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> bytes:
        """The query with its parameters in their places, as it could be sent. Executes nothing."""
        return self._speaks().mogrify(self.conn, query, params)

    @contextmanager
    def atomic(self, commit: bool = True) -> Iterator[None]:
        """All of the block or nothing: commits at its end, rolls back if it raises.

        Inside another such block it is a savepoint. With ``commit=False`` all is undone at the
        end in any case. Also a decorator: ``@db.atomic()``.

        Raises:
            NimueConnectionClosed: this thread has not connected, or has closed in the block.
        """
        speaks = self._speaks()
        bound = self._mine()
        with transaction.block(bound, speaks, self._driver(), commit):
            yield
            if self._now().mine is not bound:
                raise NimueConnectionClosed(
                    "the connection of atomic() was closed in its block, or is the parent process's"
                )

    # Inside.

    def _now(self) -> Here:
        """What is known of this process's threads."""
        if not door[0]:
            settle()
        here, state = self._here, self._pool._state
        if here.state is not state:  # a child that has just been settled
            with registry_lock():
                if self._here is here:
                    self._here = Here(state)
        return self._here

    def _connect(self, frame: FrameType, blocks: int = 0) -> None:
        here = self._now()
        if here.mine is not None:
            return
        bound = None
        try:
            bound = here.candidate()
            bound.blocks = blocks
            bound.handle = borrow.acquire(self._pool, here, bound, self._timeout)
            entry = bound.handle._lease[0]
            entry.code, entry.lasti = frame.f_code, frame.f_lasti
            here.bind(bound)
        except BaseException:
            here.withdraw(bound)
            raise

    def _mine(self) -> Bound:
        bound = self._now().mine
        if bound is None:
            raise NimueConnectionClosed(
                f"this thread has no connection of {self!r}: call connect() first (autoconnect is "
                "off); what it had was closed or belongs to the parent process"
            )
        return bound

    def _let_go(self) -> Bound | None:
        here = self._now()
        bound = here.mine
        here.unbind()
        return bound

    def _driver(self) -> Any:
        driver = self._pool.driver
        assert driver is not None, "there is a connection"
        return driver

    def _speaks(self) -> Dialect:
        if self._dialect is None:
            driver = self._pool.driver
            if driver is None:
                raise NimueError(
                    f"the dialect of {self!r} is not known before its first connection: give "
                    f"dialect=, one of {', '.join(map(repr, dialect.NAMES))}"
                )
            self._dialect = dialect.of_driver(driver)
        return self._dialect

    def _new_cursor(self, bound: Bound) -> NimueCursor:
        assert bound.handle is not None
        bound.cursor = bound.handle.cursor()
        return bound.cursor

    def _run(self, query: str, params: Any, find: Callable[[NimueCursor], Any]) -> Any:
        bound = self._mine()
        cursor = bound.cursor
        if cursor is None or not bound.depth:
            cursor = self._new_cursor(bound)
        if params is not None:
            query = self._speaks().adapt(query)
        arguments = (query,) if params is None else (query, params)
        if bound.depth:
            cursor.execute(*arguments)
            return find(cursor)
        with transaction.block(bound, self._speaks(), self._driver(), True, opens=False):
            cursor.execute(*arguments)
            return find(cursor)


def _dialect_named(name: str | None, connfunc: object) -> Dialect | None:
    if name is None:
        return dialect.of_module(getattr(connfunc, "__module__", None))
    if name not in dialect.NAMES:
        raise refuse("dialect", name, f"None or one of {', '.join(map(repr, dialect.NAMES))}")
    return dialect.named(name)
