"""What differs from one SQL to another, as far as a database here has to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nimue.connection import NimueConnection
from nimue.drivers.base import Driver
from nimue.error import NimueError


class Dialect:
    """One kind of SQL; this class holds what is true of most."""

    name = "other"
    #: What stands for a parameter in the driver's own SQL.
    placeholder = "%s"
    #: Top-level modules whose ``connect`` leads to such a server.
    modules: tuple[str, ...] = ()

    def adapt(self, query: str) -> str:
        """A query with ``%s`` for its parameters, as the driver wants it."""
        return query

    def begin(self, raw: Any) -> str | None:
        """What opens a transaction; None where the driver does that by itself."""
        return None

    def mogrify(self, conn: NimueConnection, query: str, params: Any) -> bytes:
        """The query with its parameters in their places. Executes nothing.

        Raises:
            NimueError: the driver cannot tell.
        """
        mogrify = getattr(conn.cursor(), "mogrify", None)
        if mogrify is None:
            raise NimueError(
                f"{type(conn.raw).__module__} cannot tell what it would send, so mogrify() cannot"
            )
        return _bytes(mogrify(query) if params is None else mogrify(query, params))

    def end(self, conn: NimueConnection, driver: Driver, deed: str) -> None:
        """Commit or roll back, as ``deed`` says: also what ``begin`` has opened.

        A driver in autocommit mode may think that there is nothing to end.
        """
        getattr(conn, deed)()
        may_think_so = getattr(conn.raw, "autocommit", None) is not False
        if may_think_so and driver.in_transaction(conn.raw):
            conn.cursor().execute(deed)


class Postgres(Dialect):
    name = "postgres"
    modules = ("psycopg2", "psycopg", "pg8000")

    def begin(self, raw: Any) -> str | None:
        return "BEGIN" if raw.autocommit else None

    def mogrify(self, conn: NimueConnection, query: str, params: Any) -> bytes:
        if hasattr(conn.raw, "pgconn"):  # psycopg 3
            import psycopg

            return _bytes(psycopg.ClientCursor(conn.raw).mogrify(query, params))
        return super().mogrify(conn, query, params)


class MySQL(Dialect):
    name = "mysql"
    modules = ("MySQLdb", "pymysql")

    def begin(self, raw: Any) -> str | None:
        return "START TRANSACTION" if raw.get_autocommit() else None


#: What is quoted, or a comment, is left alone; else a parameter's place, with its name if any.
_PLACES = re.compile(
    r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?\*/"""
    r"""|(?P<place>%s|\?)|%\((?P<name>\w+)\)s|[:@$](?P<own>\w+)""",
    re.DOTALL,
)


class SQLite(Dialect):
    name = "sqlite"
    placeholder = "?"
    modules = ("sqlite3", "_sqlite3")

    def adapt(self, query: str) -> str:
        def put(found: re.Match[str]) -> str:
            if found["name"]:
                return f":{found['name']}"
            return "?" if found["place"] else found[0]

        return _PLACES.sub(put, query)

    def begin(self, raw: Any) -> str | None:
        # Else what makes or drops a table would be committed at once.
        return None if raw.in_transaction else f"BEGIN {raw.isolation_level or ''}"

    def mogrify(self, conn: NimueConnection, query: str, params: Any) -> bytes:
        if not params:
            return query.encode()
        values = params if isinstance(params, Mapping) else dict(enumerate(params))
        asked = "SELECT " + ", ".join(["quote(?)"] * len(values))
        quoted = dict(
            zip(values, conn.cursor().execute(asked, list(values.values())).fetchone(), strict=True)
        )
        places = iter(quoted.values())

        def put(found: re.Match[str]) -> str:
            if found["place"]:
                return str(next(places, found[0]))
            return str(quoted.get(found["name"] or found["own"], found[0]))

        return _PLACES.sub(put, query).encode()


_ALL = (Postgres(), MySQL(), SQLite())
NAMES = tuple(dialect.name for dialect in _ALL)


def named(name: str) -> Dialect:
    """The dialect of that name."""
    return next(dialect for dialect in _ALL if dialect.name == name)


def of_module(module: str | None) -> Dialect | None:
    """The dialect that a driver's module, or one within it, speaks; None if it is not known."""
    top = (module or "").partition(".")[0]
    return next((dialect for dialect in _ALL if top in dialect.modules), None)


def of_driver(driver: Driver) -> Dialect:
    """The dialect of a driver that has been used."""
    return of_module(driver.dbmodule.__name__) or Dialect()


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)
