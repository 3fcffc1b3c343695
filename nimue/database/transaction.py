"""Transactions and the savepoints within them, and what a statement has found."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nimue.connection import NimueConnection, NimueCursor
from nimue.database.bound import Bound
from nimue.database.dialect import Dialect
from nimue.drivers.base import Driver

logger = logging.getLogger("nimue")


@contextmanager
def block(
    bound: Bound, dialect: Dialect, driver: Driver, commit: bool, opens: bool = True
) -> Iterator[None]:
    """A transaction round the block or, if one is open, a savepoint.

    With ``opens`` False it is one statement: that needs no BEGIN, and counts for nothing.
    """
    conn, depth = bound.handle, bound.depth
    assert conn is not None
    if depth:
        around = _savepoint(conn, f"nimue_{depth}", commit)
    else:
        around = _transaction(conn, dialect, driver, commit, opens)
    try:
        with around:
            bound.depth = depth + opens
            yield
    finally:
        bound.depth = depth


@contextmanager
def _transaction(
    conn: NimueConnection, dialect: Dialect, driver: Driver, commit: bool, opens: bool
) -> Iterator[None]:
    begin = dialect.begin(conn.raw) if opens else None
    try:
        if begin is not None:
            _execute(conn, begin)
        yield
        if commit:
            dialect.end(conn, driver, "commit")
    except BaseException:
        # A rollback that fails leaves nothing behind: the connection is broken.
        try:
            dialect.end(conn, driver, "rollback")
        except Exception as failed:
            logger.info("the rollback after an error failed too: %s", type(failed).__name__)
        raise
    if not commit:
        dialect.end(conn, driver, "rollback")


@contextmanager
def _savepoint(conn: NimueConnection, name: str, commit: bool) -> Iterator[None]:
    """What cannot be undone here must not be committed outside: that error comes first."""
    _execute(conn, f"SAVEPOINT {name}")
    try:
        yield
    except BaseException:
        _undo(conn, name)
        raise
    if not commit:
        _undo(conn, name)
    else:
        _execute(conn, f"RELEASE SAVEPOINT {name}")


def _undo(conn: NimueConnection, name: str) -> None:
    _execute(conn, f"ROLLBACK TO SAVEPOINT {name}")
    _execute(conn, f"RELEASE SAVEPOINT {name}")


def _execute(conn: NimueConnection, statement: str) -> None:
    cursor = conn.cursor()
    cursor.execute(statement)
    cursor.close()


def rows(cursor: NimueCursor) -> list[dict[str, Any]]:
    """All that a query has found; nothing for a statement that is no query."""
    if cursor.description is None:
        return []
    names = [column[0] for column in cursor.description]
    return [
        dict(row) if isinstance(row, Mapping) else dict(zip(names, row, strict=False))
        for row in cursor.fetchall()
    ]


def key(cursor: NimueCursor) -> Any:
    """The first value that a statement returns, or else the number of the row inserted last."""
    if cursor.description is None:
        return getattr(cursor, "lastrowid", None) or None
    row = cursor.fetchone()
    if row is None:
        return None
    return next(iter(row.values())) if isinstance(row, Mapping) else row[0]
