"""SQLite: a file instead of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stress.databases.admin import Admin
from stress.databases.base import CONNECT_TIMEOUT, Database, refuse


class SQLite(Database):
    """A file in the folder of the trial: there is nobody to end, or to be in between."""

    name = "SQLite"
    server = "sqlite"
    is_ours = True
    faults = frozenset()

    def open(self, dsn: str | None, folder: Path) -> None:
        import sqlite3

        refuse(dsn, self.name)
        self._file = folder / "ledger.sqlite3"
        self.version = sqlite3.sqlite_version
        self._admin = Admin(
            lambda: sqlite3.connect(**self._keywords(), isolation_level=None),
            (sqlite3.OperationalError,),
            lambda conn, error: True,
        )

    def create_ledger(self) -> None:
        self._ask("pragma journal_mode = wal")  # who reads does not wait for who writes
        super().create_ledger()

    def _keywords(self) -> dict[str, Any]:
        # Opened in one thread, and used in another: one at a time, which the pool sees to.
        return {
            "database": str(self._file),
            "timeout": CONNECT_TIMEOUT,
            "check_same_thread": False,
        }

    def address(self, dialect: str, port: int | None = None) -> dict[str, Any]:
        self._check(dialect)
        return self._keywords()

    def sessions(self, mark: str) -> dict[int, int]:
        return {}

    def close(self) -> None:
        super().close()
        for path in self._file.parent.glob(f"{self._file.name}*") if self._admin else ():
            path.unlink(missing_ok=True)
