"""The three databases, each with the driver that is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from nimue.database.pooled import MAX_CONNECTIONS, PooledDatabase
from nimue.error import NimueDBModuleFailure
from nimue.settings import Unsaid, refuse


class _Known(PooledDatabase):
    """A database whose driver is found, and is told what the pool needs of it."""

    #: Modules that will do, the first choice first; and what is said to the driver, or of it.
    _drivers: tuple[str, ...]
    _said: Mapping[str, Any]
    #: The driver's arguments that not all of them know by that name, with the one that they do.
    _renamed: Mapping[str, str] = {}

    def __init__(
        self,
        max_connections: int | str = MAX_CONNECTIONS,
        stale_timeout: float | str | None = None,
        timeout: float | str | None = None,
        *args: Any,
        connfunc: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if connfunc is None:
            connfunc = _connect_of(*self._drivers)
        for name, known in self._renamed.items():
            if name in kwargs and known not in kwargs:
                kwargs[known] = kwargs.pop(name)
        kwargs = {**self._said, **kwargs}
        super().__init__(connfunc, max_connections, stale_timeout, timeout, *args, **kwargs)


class PooledPostgreSQLDatabase(_Known):
    """PostgreSQL, by psycopg2, or psycopg 3 where that is not installed.

    Args:
        connfunc: another ``connect``, as ``psycopg.connect`` where both are installed.
        args, kwargs: the driver's. ``database`` will do for ``dbname``.
        others: see :class:`PooledDatabase`.
    """

    _drivers = ("psycopg2", "psycopg")
    _said: Mapping[str, Any] = {"dialect": "postgres"}
    _renamed: Mapping[str, str] = {"database": "dbname"}


class PooledMySQLDatabase(_Known):
    """MySQL or MariaDB, by mysqlclient, or PyMySQL where that is not installed.

    Args:
        connfunc: another ``connect``, as ``pymysql.connect`` where both are installed.
        args, kwargs: the driver's.
        others: see :class:`PooledDatabase`.
    """

    _drivers = ("MySQLdb", "pymysql")
    _said: Mapping[str, Any] = {"dialect": "mysql"}


class PooledSQLiteDatabase(_Known):
    """SQLite, by the standard library's sqlite3.

    A database in memory is one connection's own, so there ``max_connections`` is 1: one thread at
    a time uses it, and what is in it ends with the connection.

    Args:
        connfunc: another ``connect`` than that of sqlite3.
        args, kwargs: the driver's; ``check_same_thread`` is False. Its ``timeout`` has to go into
            a ``connfunc``, for here that is the pool's.
        others: see :class:`PooledDatabase`.
    """

    _drivers = ("sqlite3",)
    _said: Mapping[str, Any] = {"dialect": "sqlite", "check_same_thread": False}

    def __init__(
        self,
        max_connections: int | str = Unsaid(MAX_CONNECTIONS),
        stale_timeout: float | str | None = None,
        timeout: float | str | None = None,
        *args: Any,
        connfunc: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if _is_in_memory(args[0] if args else kwargs.get("database")):
            if not isinstance(max_connections, Unsaid) and max_connections not in (1, "1"):
                allowed = "1 where the database is in memory: each connection has one of its own"
                raise refuse("max_connections", max_connections, allowed)
            max_connections = 1
        kwargs["connfunc"] = connfunc
        super().__init__(max_connections, stale_timeout, timeout, *args, **kwargs)


def _is_in_memory(database: object) -> bool:
    if not isinstance(database, str):
        return False
    is_uri = database.startswith("file:")
    if is_uri and "cache=shared" in database:
        return False
    return database in ("", ":memory:") or (
        is_uri and ("mode=memory" in database or database.startswith("file::memory:"))
    )


def _connect_of(*modules: str) -> Callable[..., Any]:
    """``connect`` of the first of these that is installed."""
    for module in modules:
        try:
            connect: Callable[..., Any] = import_module(module).connect
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
        else:
            return connect
    raise NimueDBModuleFailure(f"none of these is installed: {', '.join(modules)}")
