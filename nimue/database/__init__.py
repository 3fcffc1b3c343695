"""Databases that give each thread a connection of its own, out of a pool."""

from __future__ import annotations

from nimue.database.kinds import (
    PooledMySQLDatabase,
    PooledPostgreSQLDatabase,
    PooledSQLiteDatabase,
)
from nimue.database.pooled import PooledDatabase
from nimue.error import MaxConnectionsExceeded

__all__ = [
    "MaxConnectionsExceeded",
    "PooledDatabase",
    "PooledMySQLDatabase",
    "PooledPostgreSQLDatabase",
    "PooledSQLiteDatabase",
]
