"""PostgreSQL: psycopg2, psycopg 3 and pg8000.

libpq keeps the state of the transaction, as the server reports it with every answer; each driver
adds a state of its own, and both must be at rest before a connection goes to the next borrower.
"""

from __future__ import annotations

import logging
import os
from types import TracebackType

from nimue.drivers.base import Driver, Raw

_logger = logging.getLogger("nimue")

# libpq's PGTransactionStatusType
_IDLE, _ACTIVE, _INTRANS, _INERROR = range(4)
_PSYCOPG2_READY = 1  # psycopg2.extensions.STATUS_READY

#: Besides class 08, connection exception: the session has ended, or cannot write any more.
_ENDED = frozenset(
    {
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "57P04",  # database_dropped
        "57P05",  # idle_session_timeout
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
        "25006",  # read_only_sql_transaction: a standby since a failover
    }
)

# libpq gives no SQLSTATE for a failed connect(), only the server's words. A server whose
# lc_messages is not English is not understood.
_FULL_WORDS = (
    "too many clients already",
    "too many connections for",
    "remaining connection slots are reserved",
)

_PG8000_LOST = (
    "network error",
    "connection is closed",
    "communication error",
    "Can't create a connection",
)


class _Postgres(Driver):
    def fileno(self, raw: Raw) -> int | None:
        try:
            fd: int = raw.fileno()
        except self.dbmodule.Error:
            return None
        return fd

    def _sqlstate(self, error: BaseException) -> str | None:
        raise NotImplementedError

    def _lost(self, error: BaseException) -> bool:
        """Whether an error that has no SQLSTATE says that the link is broken."""
        raise NotImplementedError

    def is_disconnect(self, error: BaseException) -> bool:
        code = self._sqlstate(error)
        if code is None:
            return self._lost(error)
        return code.startswith("08") or code in _ENDED

    def is_full(self, error: BaseException) -> bool:
        code = self._sqlstate(error)
        if code is not None:
            return code == "53300"
        words = str(error)
        return isinstance(error, self.dbmodule.OperationalError) and any(
            known in words for known in _FULL_WORDS
        )


class Psycopg2(_Postgres):
    """psycopg2. A state machine of its own, ``connection.status``, decides whether it sends BEGIN.

    It is at rest if libpq is idle without an error left over, and that state is "ready". The error
    tells: where a server vanished, libpq stays idle and connected until it is used once more.
    """

    packages = ("psycopg2",)

    def in_transaction(self, raw: Raw) -> bool | None:
        status = raw.get_transaction_status()
        # After a COMMIT sent as plain SQL libpq is idle, yet psycopg2 sends no BEGIN for the next
        # borrower, who could not roll back. After tpc_prepare() it refuses every statement.
        if status == _IDLE and raw.status == _PSYCOPG2_READY and not raw.info.error_message:
            return False
        return True if status in (_INTRANS, _INERROR) else None

    def status(self, raw: Raw) -> int:
        status: int = raw.get_transaction_status()
        return status

    def is_closed(self, raw: Raw) -> bool:
        return bool(raw.closed)

    def reset(self, raw: Raw) -> None:
        raw.rollback()
        if self.in_transaction(raw) is False:
            return
        # With autocommit on, rollback() does nothing about a BEGIN sent as plain SQL.
        idle = raw.get_transaction_status() == _IDLE
        with raw.cursor() as cursor:
            cursor.execute("SELECT 1" if idle else "ROLLBACK")
        raw.rollback()
        if self.in_transaction(raw) is not False:
            raise self.interface_error("a rollback did not end the transaction")

    def discard(self, raw: Raw) -> None:
        # close() waits for psycopg2's lock, which a thread left in the parent may have had.
        if not raw.closed and raw.get_transaction_status() == _ACTIVE:
            raise self.interface_error("a query was under way at the fork")
        raw.close()

    def session_id(self, raw: Raw) -> int | None:
        try:
            pid: int = raw.get_backend_pid()
        except self.dbmodule.Error:
            return None
        return pid

    def _sqlstate(self, error: BaseException) -> str | None:
        return getattr(error, "pgcode", None)

    def _lost(self, error: BaseException) -> bool:
        # Without a code, libpq speaks for itself: OperationalError if it has given the connection
        # up, DatabaseError if it has not yet. "cursor already closed" comes after a lost connection
        # as well as after a closed cursor, so it says nothing.
        module = self.dbmodule
        return type(error) in (module.OperationalError, module.DatabaseError) or (
            isinstance(error, module.InterfaceError) and "connection already closed" in str(error)
        )


class Psycopg(_Postgres):
    """psycopg 3. Generators that were not run to their end keep the connection's lock."""

    packages = ("psycopg",)

    def in_transaction(self, raw: Raw) -> bool | None:
        status = raw.pgconn.transaction_status
        if status == _IDLE and self._at_rest(raw):
            return False
        return True if status in (_INTRANS, _INERROR) else None

    def status(self, raw: Raw) -> int:
        status: int = raw.info.transaction_status
        return status

    def is_closed(self, raw: Raw) -> bool:
        return bool(raw.closed)

    def reset(self, raw: Raw) -> None:
        # rollback() waits for the lock, without end where stream(), copy() or notifies() of the
        # last borrower is suspended; and what is left of a stream may be without bound.
        if raw.pgconn.transaction_status == _ACTIVE or not self._at_rest(raw):
            raise self.interface_error("a query, a pipeline or notifies() was left unfinished")
        raw.rollback()

    def session_id(self, raw: Raw) -> int | None:
        try:
            pid: int = raw.pgconn.backend_pid
        except self.dbmodule.Error:
            return None
        return pid

    def leave(
        self,
        raw: Raw,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        if self.overrides_exit(raw):
            return super().leave(raw, exc_type, exc, tb)
        if raw.closed:
            return True
        if exc_type is None:
            raw.commit()
            return True
        try:
            raw.rollback()
        except Exception as failed:
            _logger.warning("error ignored in a rollback: %s", failed)
        return True

    def discard(self, raw: Raw) -> None:
        raw.pgconn.finish()

    def _at_rest(self, raw: Raw) -> bool:
        return (
            not raw.lock.locked()
            and raw.pgconn.pipeline_status == 0
            and getattr(raw, "_tpc", None) is None
        )

    def _sqlstate(self, error: BaseException) -> str | None:
        return getattr(error, "sqlstate", None)

    def _lost(self, error: BaseException) -> bool:
        # Its subclasses without a SQLSTATE, as PipelineAborted, are about one statement.
        return type(error) is self.dbmodule.OperationalError


class Pg8000(_Postgres):
    """pg8000, its ``dbapi`` and its ``legacy`` face. It falls out of step without noticing.

    An exception that comes between a request and its answers (a parameter that cannot be
    converted is enough) leaves the answers unread, and each later query gets the one before its
    own. No state tells, so a connection is never known to be idle: every release asks the server
    for a word of its own and drops the connection that answers another.
    """

    packages = ("pg8000",)
    exit_only_closes = True

    def fileno(self, raw: Raw) -> int | None:
        sock = getattr(raw, "_usock", None)
        fd = -1 if sock is None else sock.fileno()
        return fd if fd >= 0 else None

    def in_transaction(self, raw: Raw) -> bool | None:
        status = getattr(raw, "_transaction_status", None)
        return True if status in (b"T", b"E") else None

    def is_closed(self, raw: Raw) -> bool:
        return getattr(raw, "_usock", self) is None

    def reset(self, raw: Raw) -> None:
        word = os.urandom(8).hex()
        rollback = "rollback; " if self.in_transaction(raw) else ""
        rows = raw.execute_simple(f"{rollback}select '{word}'").rows
        if rows != [[word]] or self.in_transaction(raw):
            raise self.interface_error("the connection is out of step with the server")

    def session_id(self, raw: Raw) -> int | None:
        key = getattr(raw, "_backend_key_data", None)
        return int.from_bytes(key[:4], "big") if key else None

    def discard(self, raw: Raw) -> None:
        try:
            raw.close()
        except self.dbmodule.InterfaceError:
            pass

    def _sqlstate(self, error: BaseException) -> str | None:
        fields = error.args[0] if error.args else None
        if isinstance(error, self.dbmodule.Error) and isinstance(fields, dict):
            return fields.get("C")
        return None

    def _lost(self, error: BaseException) -> bool:
        if isinstance(error, self.dbmodule.InterfaceError):
            return str(error).startswith(_PG8000_LOST)
        return isinstance(error, OSError)
