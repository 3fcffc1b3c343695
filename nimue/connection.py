"""What the user holds: a DB-API connection in all but ``close()``."""

from __future__ import annotations

import sys
from _thread import get_ident
from sys import getrefcount
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import ref

from nimue.entry import Entry
from nimue.fork import door, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nimue.state import State

#: What an attribute was before it was there.
MISSING = object()


class Refusal:
    """Stands in an entry for a connection that must not be used here: every use raises."""

    __slots__ = ("_make_error",)

    def __init__(self, make_error: Callable[[], Exception]) -> None:
        object.__setattr__(self, "_make_error", make_error)

    def __getattr__(self, name: str) -> NoReturn:
        raise self._make_error()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise self._make_error()


class NimueConnection:
    """A connection borrowed from a pool; ``close()`` gives it back.

    Every attribute, read or set, is the driver's, and ``with connection:`` is the driver's own
    too: a transaction for psycopg2 and sqlite3; where the driver closes at the end, this closes,
    which is to say returns. What was set is set back when the connection returns. Any number of
    threads may hold it as far as the driver allows.

    Raises, on any use:
        NimueInheritedConnectionError: it was taken before a fork and is used in the child.
        the driver's InterfaceError, which is a NimueError as well: after ``close()``.
    """

    # `[entry, closed]` while held, `[closed]` when not: what the handle stands for comes first,
    # and `remove(entry)`, which no two threads can both do, takes the entry away.
    __slots__ = ("__weakref__", "_lease")

    if TYPE_CHECKING:
        _lease: list[Entry]

    def cursor(self, *args: Any, **kwargs: Any) -> NimueCursor:
        """The driver's cursor, in a wrapper whose ``connection`` is this object."""
        if not door[0]:
            settle()
        return self._wrap(self._lease[0].raw.cursor(*args, **kwargs))

    def commit(self) -> None:
        self._guarded("commit")

    def rollback(self) -> None:
        self._guarded("rollback")

    def close(self) -> None:
        """Give the connection back. A second call does nothing; in a forked child, none does.

        Rolls back if a transaction is open or if that cannot be known. A connection found broken
        is discarded; that is no error here.
        """
        if not door[0]:
            settle()
        lease = self._lease
        entry = lease[0]
        if (state := entry.state) is None:
            return
        try:
            is_fit = entry.watch() is self and not entry.soiled  # type: ignore[misc]
            at_rest = is_fit and state.in_transaction(entry.raw) is False
        except Exception:  # the long way finds out what is the matter
            at_rest = False
        if not at_rest:
            state.tidy(self, entry)
            return
        since = entry.since
        try:
            try:
                lease.remove(entry)
            except ValueError:  # another thread closed it meanwhile
                return
            entry.thread = 0
            if not state.calm and state.pass_on(entry):
                return
            state.idle.append((self, lease, entry))
            if not state.calm:
                state.serve()
        except BaseException:  # out of a signal handler, perhaps between two of these
            state.rescue(entry, since)
            raise

    @property
    def raw(self) -> Any:
        """The driver's own connection, for functions written in C that insist on it."""
        if not door[0]:
            settle()
        entry = self._lease[0]
        if entry.state is None:
            entry.raw.raw  # noqa: B018  (a Refusal raises)
        return entry.raw

    def detach(self) -> Any:
        """Take the connection out of the pool for good and return the driver's object.

        The pool may open another in its place; closing this one is up to the caller.
        """
        entry = self._lease[0]
        raw = self.raw
        if entry.state is None or not entry.state.detach(self, entry):
            return self.raw  # raises: another thread was faster
        return raw

    def __getattr__(self, name: str) -> Any:
        if name == "_lease":  # a handle half made
            raise AttributeError(name)
        if not door[0]:
            settle()
        entry = self._lease[0]
        try:
            found = getattr(entry.raw, name)
        except AttributeError:
            if entry.state is None or not name[:1].isupper():
                raise
            # PEP 249's optional extension: the exception classes as attributes.
            found = getattr(entry.state.driver.dbmodule, name)
        if name in _RETURNS_CURSOR:
            return lambda *args, **kwargs: self._wrap(self._guarded(name, *args, **kwargs))
        return found

    def __setattr__(self, name: str, value: object) -> None:
        if not door[0]:
            settle()
        entry = self._lease[0]
        if entry.state is None:
            entry.raw.raw  # noqa: B018  (a Refusal raises)
        # Noted first: what a signal handler cuts short half-way must be set back too.
        entry.soiled = True
        changed = entry.changed = entry.changed or {}
        is_new = name not in changed
        changed.setdefault(name, getattr(entry.raw, name, MISSING))
        try:
            setattr(entry.raw, name, value)
        except Exception:
            if is_new:
                del changed[name]
            raise

    def __enter__(self) -> NimueConnection:
        raw = self.raw
        self._driver().enter(raw)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        entry = self._lease[0]
        raw = self.raw
        try:
            closes = self._driver().leave(raw, exc_type, exc, tb)
        except Exception as error:
            self._notice(entry, error)
            raise
        if closes:
            self.close()

    def __repr__(self) -> str:
        entry = self._lease[0]
        if entry.state is None:
            return f"<NimueConnection: {'inherited' if entry.number else 'returned'}>"
        return f"<NimueConnection {entry.number} of pool {entry.state.name!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a NimueConnection cannot be pickled: pickle the pool, and acquire there")

    def _driver(self) -> Any:
        state = self._lease[0].state
        assert state is not None
        return state.driver

    def _guarded(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if not door[0]:
            settle()
        entry = self._lease[0]
        entry.caller = get_ident()
        try:
            held = self._lease[0]  # still: see claims.lost
            return getattr(held.raw, name)(*args, **kwargs)
        except Exception as error:
            self._notice(held, error)
            raise
        finally:
            entry.caller = 0

    def _notice(self, entry: Entry, error: BaseException) -> None:
        """Condemn the connection if ``error`` says that it is lost."""
        state = entry.state
        if state is not None and state.driver.is_disconnect(error):
            entry.broken = entry.soiled = True

    def _conclude(self) -> None:
        """Commit, at the end of ``with pool.connection()``, if there may be something to commit."""
        if not door[0]:
            settle()
        entry = self._lease[0]
        if entry.state is not None:
            if entry.state.in_transaction(entry.raw) is not False:
                self.commit()
        elif entry.number:
            # Closed inside the block, which is fine, is number 0; this was carried into a child.
            self.raw  # noqa: B018

    def _wrap(self, raw_cursor: Any) -> NimueCursor:
        entry = self._lease[0]
        cursor = NimueCursor(self, raw_cursor)
        if entry.state is not None:
            driver = entry.state.driver
            if driver.close_cursors:
                if entry.cursors is None:
                    entry.cursors = set()
                entry.cursors.add(ref(raw_cursor, entry.cursors.discard))
                entry.soiled = True
            if driver.cursors_speak:
                # Other threads' locals are finalised in a child before anybody can sever anything.
                entry.kept = entry.kept or {}
                entry.kept[ref(cursor, entry.let_go)] = raw_cursor
        return cursor


#: psycopg 3 and sqlite3 have these on the connection; each makes a cursor, runs it, returns it.
_RETURNS_CURSOR = frozenset({"execute", "executemany", "executescript"})

_set_lease = NimueConnection.__dict__["_lease"].__set__

#: What lies idle: an entry, with the empty handle that held it last and that handle's lease. The
#: handle is watched all the time, so that an entry on its way between two places cannot get lost.
Spare = tuple[NimueConnection, list[Entry], Entry]
#: An empty handle, its lease, and what watches it.
Empty = tuple[NimueConnection, list[Entry], "ref[NimueConnection] | None"]


def make_spare(state: State, entry: Entry) -> Spare:
    """A new, empty handle for ``entry``."""
    handle = NimueConnection()
    lease = [state.closed]
    _set_lease(handle, lease)
    entry.lease = lease
    entry.watch = ref(handle, state.post)
    return handle, lease, entry


def lend(state: State, entry: Entry) -> NimueConnection:
    """A new handle that holds ``entry``."""
    handle, lease, _ = make_spare(state, entry)
    lease.insert(0, entry)
    return handle


def reclaim(handle: NimueConnection, entry: Entry) -> bool:
    """Take ``entry`` out of ``handle``; False if another thread was first."""
    try:
        handle._lease.remove(entry)
    except ValueError:
        return False
    return True


def _references_when_alone() -> int:
    """What ``getrefcount`` says of a handle just taken from ``idle`` that nobody else knows."""
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return -1
    idle = [(object(), [object()], object())]
    handle, _, _ = idle.pop()
    return getrefcount(handle)


#: A handle with so many references, and one weak one, is known to nobody but the pool. It may hold
#: its entry again: who acquires cannot tell it from a new one at the same address.
ALONE = _references_when_alone()


class NimueCursor:
    """A cursor of a borrowed connection; all but ``connection`` is the driver's.

    It is good for as long as its connection is: after the connection's ``close()``, and in a
    forked child, any use raises what the connection's would.
    """

    __slots__ = ("__weakref__", "_connection", "_owner", "_raw")

    _connection: NimueConnection
    _owner: Any
    _raw: Any

    def __init__(self, connection: NimueConnection, raw: Any) -> None:
        set_slot = object.__setattr__
        set_slot(self, "_connection", connection)
        set_slot(self, "_owner", connection._lease[0].raw)
        set_slot(self, "_raw", raw)

    @property
    def connection(self) -> NimueConnection:
        """The connection that this cursor belongs to."""
        return self._connection

    @property
    def raw(self) -> Any:
        """The driver's own cursor."""
        if not door[0]:
            settle()
        now = self._connection._lease[0].raw
        if now is not self._owner:
            now.raw  # noqa: B018  (a Refusal raises)
        return self._raw

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded("execute", args, kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded("executemany", args, kwargs)

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded("callproc", args, kwargs)

    def close(self) -> None:
        """Close the cursor. One whose connection is gone from here is closed already."""
        if not door[0]:
            settle()
        if self._connection._lease[0].raw is self._owner:
            self._raw.close()

    def __iter__(self) -> Iterator[Any]:
        raw = self.raw
        if iter(raw) is raw:
            return self
        return self._rows()

    def _rows(self) -> Iterator[Any]:
        """For mysqlclient, whose cursors are no iterators but make one."""
        while (row := self.raw.fetchone()) is not None:
            yield row

    def __next__(self) -> Any:
        return next(self.raw)

    def __enter__(self) -> NimueCursor:
        self.raw.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if not door[0]:
            settle()
        if self._connection._lease[0].raw is self._owner:
            self._raw.__exit__(exc_type, exc, tb)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.raw, name, value)

    def __repr__(self) -> str:
        return f"<NimueCursor of {self._connection!r}>"

    def _guarded(self, name: str, args: Any, kwargs: Any) -> Any:
        raw = self.raw
        entry = self._connection._lease[0]
        entry.caller = get_ident()
        try:
            held = self._connection._lease[0]
            result = getattr(raw if held is entry else held.raw, name)(*args, **kwargs)
        except Exception as error:
            self._connection._notice(held, error)
            raise
        finally:
            entry.caller = 0
        # psycopg 3, sqlite3 and others return the cursor itself, to be called on.
        return self if result is raw else result
