"""MySQL and MariaDB: PyMySQL and mysqlclient.

A result set that was not read to its end blocks the connection, and the protocol has no way to
stop it: a reset never reads on, it refuses, and the connection is dropped.
"""

from __future__ import annotations

import os
from types import ModuleType

from nimue.drivers.base import Driver, Raw

#: The session has ended or the server does. 1290 is looked at more closely.
_ENDED = frozenset(
    {
        1047,  # unknown command: a Galera node that left its cluster
        1053,  # server shutdown in progress
        1079,  # shutdown complete
        1080,  # forcing close of thread
        1152,  # aborted connection
        1153,  # packet too large: the server hangs up
        *range(1154, 1162),  # errors of the network as the server sees them
        1184,  # aborted connection
        1792,  # read-only transaction
        1836,  # running in read-only mode
        1927,  # connection was killed (MariaDB)
        2002,  # cannot connect, local
        2003,  # cannot connect, TCP
        2006,  # server has gone away
        2013,  # lost connection during query
        2026,  # TLS error
        2027,  # malformed packet
        2055,  # lost connection at ...
        3169,  # session was killed (MySQL)
        4031,  # disconnected for inactivity (MySQL)
    }
)
_OPTION_PREVENTS_STATEMENT = 1290
_FULL = frozenset({1040, 1203, 1226})

_IN_TRANSACTION = 1  # SERVER_STATUS_IN_TRANS


class _MySQL(Driver):
    cursors_speak = True
    exit_only_closes = True

    def is_disconnect(self, error: BaseException) -> bool:
        if not isinstance(error, self.dbmodule.Error):
            return False
        code = error.args[0] if error.args else None
        if code == _OPTION_PREVENTS_STATEMENT:
            return "read-only" in str(error) or "read_only" in str(error)
        return code in _ENDED

    def is_full(self, error: BaseException) -> bool:
        return isinstance(error, self.dbmodule.OperationalError) and error.args[0] in _FULL


class PyMySQL(_MySQL):
    """PyMySQL. It notes the server's status from OK packets, but not from those of a SELECT."""

    packages = ("pymysql",)

    def fileno(self, raw: Raw) -> int | None:
        sock = getattr(raw, "_sock", None)
        fd = -1 if sock is None else sock.fileno()
        return fd if fd >= 0 else None

    def in_transaction(self, raw: Raw) -> bool | None:
        if not raw.open:
            return None
        if raw.server_status & _IN_TRANSACTION:
            return True
        # The bit is up to date only if the last answer was an OK packet to a statement. There is
        # no result after an error, which may have left a transaction behind, nor after commit().
        result = getattr(raw, "_result", None)
        if result is None or result.server_status is None or result.has_next:
            return None
        return False

    def is_closed(self, raw: Raw) -> bool:
        return not raw.open

    def reset(self, raw: Raw) -> None:
        result = raw._result
        while result is not None and result.has_next and not result.unbuffered_active:
            raw.next_result(unbuffered=True)
            result = raw._result
        if result is not None and result.unbuffered_active:
            self._forget(raw)
            raw._force_close()
            raise self.interface_error(0, "a result set was not read to its end")
        raw.rollback()

    def is_disconnect(self, error: BaseException) -> bool:
        if super().is_disconnect(error):
            return True
        # InterfaceError(0, "") is "connection already closed".
        return isinstance(error, self.dbmodule.Error) and (
            error.args == (0, "")
            or str(error.args[0] if error.args else "").startswith(
                ("Already closed", "Packet sequence number wrong")
            )
        )

    def session_id(self, raw: Raw) -> int | None:
        number: int = raw.thread_id()
        return number

    def discard(self, raw: Raw) -> None:
        self._forget(raw)
        # close() waits for the lock of the reader, which a thread left in the parent may have had.
        sock, raw._sock, raw._rfile = raw._sock, None, None
        if sock is not None:
            os.close(sock.detach())

    def _forget(self, raw: Raw) -> None:
        # Else the finaliser of the cursor, or of the result, reads on from a socket that is gone.
        result = getattr(raw, "_result", None)
        if result is not None:
            result.unbuffered_active = False
            result.connection = None


class MySQLClient(_MySQL):
    """mysqlclient, module ``MySQLdb``. Its C structure knows the transaction and does not tell."""

    packages = ("MySQLdb",)

    def __init__(self, dbmodule: ModuleType) -> None:
        super().__init__(dbmodule)
        self.hides_socket = not hasattr(dbmodule._mysql.connection, "fileno")

    def fileno(self, raw: Raw) -> int | None:
        if self.hides_socket or raw.closed:
            return None
        fd: int = raw.fileno()
        return fd if fd >= 0 else None

    def is_closed(self, raw: Raw) -> bool:
        return bool(raw.closed)

    def reset(self, raw: Raw) -> None:
        # A procedure's closing status, or further statements', may wait behind a result set. An
        # unread result set makes next_result() raise "commands out of sync".
        while raw.next_result() == 0:
            if raw.field_count():
                raise self.interface_error(0, "a result set was not read")
        raw.rollback()

    def session_id(self, raw: Raw) -> int | None:
        if raw.closed:
            return None
        number: int = raw.thread_id()
        return number

    def discard(self, raw: Raw) -> None:
        if not raw.closed:
            raw.close()
