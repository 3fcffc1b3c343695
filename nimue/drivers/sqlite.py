"""SQLite by the standard library's sqlite3.

There is no server: the locks that a connection holds are those of its process, and a forked child
inherits what it believes of them.
"""

from __future__ import annotations

import threading

from nimue.drivers.base import Driver, Raw
from nimue.error import NimueInvalidParameterValue

_DATABASE_MOVED = 1032  # SQLITE_READONLY_DBMOVED

# VACUUM refuses before it looks at its argument: within a transaction, then while a statement is
# under way, and only then because NULL is no file name.
_PROBE = "VACUUM INTO NULL"
_PROBE_READING = "statements in progress"


class Sqlite(Driver):
    """sqlite3. A SELECT that was not read to its end is a transaction that nobody sees.

    It keeps the file locked against writers, or in WAL mode keeps every later SELECT of the
    connection in its own moment of the past, while ``in_transaction`` is False; and a rollback
    does not end it, only its cursor does.
    """

    packages = ("sqlite3",)
    close_before_fork = True
    close_cursors = True

    def in_transaction(self, raw: Raw) -> bool | None:
        try:
            if raw.in_transaction:
                return True
            return None if self._reading(raw) else False
        except self.dbmodule.ProgrammingError:  # closed
            return None

    def status(self, raw: Raw) -> bool | None:
        try:
            return bool(raw.in_transaction)
        except self.dbmodule.ProgrammingError:  # closed
            return None

    def is_closed(self, raw: Raw) -> bool:
        try:
            raw.in_transaction  # noqa: B018
        except self.dbmodule.ProgrammingError:
            return True
        return False

    def reset(self, raw: Raw) -> None:
        raw.rollback()
        # Two modes of Python 3.12. With autocommit=True, rollback() does nothing about a BEGIN sent
        # as plain SQL; autocommit=False is a transaction all the time, which hides the reader.
        autocommit = getattr(raw, "autocommit", None)
        if autocommit is True and raw.in_transaction:
            raw.execute("ROLLBACK")
        always = autocommit is False
        if always:
            raw.autocommit = True
        if self._reading(raw):
            raise self.interface_error("a SELECT was not read to its end and its cursor not closed")
        if always:
            raw.autocommit = False

    def is_disconnect(self, error: BaseException) -> bool:
        return getattr(error, "sqlite_errorcode", None) == _DATABASE_MOVED

    def accept(self, raw: Raw) -> None:
        refusals: list[BaseException] = []

        def use() -> None:
            try:
                raw.cursor().close()
            except self.dbmodule.ProgrammingError as refused:
                refusals.append(refused)

        elsewhere = threading.Thread(target=use, name="nimue-accept", daemon=True)
        elsewhere.start()
        elsewhere.join()
        if refusals:
            raise NimueInvalidParameterValue(
                "this sqlite3 connection refuses every thread but the one that opened it, so a "
                "pool cannot hand it out: pass check_same_thread=False in connkwargs"
            ) from refusals[0]

    def poisons(self) -> str | None:
        return (
            "a child that opens the same SQLite file finds locks that nobody will release, or "
            "loses what others have committed: give connections back before the fork, or start "
            "the child by spawn or forkserver"
        )

    def _reading(self, raw: Raw) -> bool:
        try:
            raw.execute(_PROBE)
        except self.dbmodule.OperationalError as answer:
            return _PROBE_READING in str(answer)
        return False
