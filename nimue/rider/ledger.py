"""What was applied, and who did what when: two tables in the user's database."""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
import uuid
from datetime import datetime
from typing import Any, NamedTuple

from nimue.rider.error import RiderError
from nimue.rider.migration import Migration
from nimue.rider.needs import Database
from nimue.settings import refuse

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")

_MIGRATIONS = """
create table {} (
    migration varchar(256) primary key not null,
    applied_at timestamp{} null,
    checksum varchar(64) null
)
"""
_LOGS = """
create table {} (
    id varchar(256) primary key not null,
    migration varchar(256) not null,
    operation varchar(56) not null,
    username varchar(128),
    hostname varchar(128),
    time timestamp{} null
)
"""
_ADD_CHECKSUM = "alter table {} add column checksum varchar(64) null"

#: Asks for a table of that name.
_EXISTS = {
    "postgres": "select 1 as found where to_regclass(cast(%s as text)) is not null",
    "mysql": "select 1 as found from information_schema.tables"
    " where table_schema = database() and table_name = %s",
    "sqlite": "select 1 as found from sqlite_master where type = 'table' and name = %s",
}


class Entry(NamedTuple):
    """That a migration was applied."""

    applied_at: str
    checksum: str | None


def check_table(parameter: str, name: object) -> str:
    """Refuse a table's name that would have to be quoted."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "a name of at most 63 letters, digits and underscores, no digit first"
        raise refuse(parameter, name, allowed)
    return name


def check_dialect(dialect: str) -> None:
    """Refuse a kind of server that rider knows nothing of.

    Raises:
        RiderError: names those that it knows.
    """
    if dialect not in _EXISTS:
        raise RiderError(f"the database must be one of {', '.join(_EXISTS)}, not {dialect!r}")


class Ledger:
    """Reads and writes both tables; every write is part of the caller's transaction.

    Tables that Estoult's rider has made are taken over: a column for checksums is added.
    """

    def __init__(self, db: Database, table: str, log: str) -> None:
        self._db, self.table, self.log = db, table, log

    def exists(self, table: str) -> bool:
        return bool(self._db.select(_EXISTS[self._db.dialect], (table,)))

    def prepare(self) -> None:
        """Make what is missing. Not a part of any migration: it stays."""
        # MySQL keeps fractions of a second only where it is told to.
        fraction = "(6)" if self._db.dialect == "mysql" else ""
        for table, text in ((self.table, _MIGRATIONS), (self.log, _LOGS)):
            if not self.exists(table):
                self._db.sql(text.format(table, fraction), ())
        if "checksum" not in self._columns(self.table):
            self._db.sql(_ADD_CHECKSUM.format(self.table), ())

    def entries(self) -> dict[str, Entry]:
        """All that are applied, by name; none where there is no table yet."""
        if not self.exists(self.table):
            return {}
        rows = self._db.select(f"select * from {self.table}", ())
        return {
            row["migration"]: Entry(_shown(row["applied_at"]), row.get("checksum")) for row in rows
        }

    def add(self, migration: Migration) -> None:
        self._db.sql(
            f"insert into {self.table} (migration, applied_at, checksum) values (%s, %s, %s)",
            (migration.name, _now(), migration.checksum),
        )

    def remove(self, name: str) -> None:
        self._db.sql(f"delete from {self.table} where migration = %s", (name,))

    def note(self, name: str, operation: str) -> None:
        """Add a line to the log."""
        self._db.sql(
            f"insert into {self.log} (id, migration, operation, username, hostname, time)"
            " values (%s, %s, %s, %s, %s, %s)",
            (str(uuid.uuid4()), name, operation, _user(), socket.gethostname()[:128], _now()),
        )

    def noted(self, name: str, operation: str) -> bool:
        """Whether the log has such a line."""
        query = f"select 1 as found from {self.log} where migration = %s and operation = %s"
        return bool(self._db.select(query, (name, operation)))

    def strike(self, name: str, operation: str) -> None:
        """Take such lines from the log; ``operation`` is a pattern of LIKE."""
        query = f"delete from {self.log} where migration = %s and operation like %s"
        self._db.sql(query, (name, operation))

    def _columns(self, table: str) -> list[str]:
        with self._db.atomic(), contextlib.closing(self._db.conn.cursor()) as cursor:
            cursor.execute(f"select * from {table} where 1 = 0")
            return [column[0] for column in cursor.description]


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="microseconds")


def _shown(time: Any) -> str:
    """A driver gives a time, or as sqlite3 the text that it was given."""
    return time.isoformat(sep=" ") if isinstance(time, datetime) else str(time)


def _user() -> str | None:
    try:
        return getpass.getuser()[:128]
    except (KeyError, OSError):  # a container's user without a name
        return None
