"""What the core asks of a driver; it knows no driver itself.

One small class per driver answers these questions with facts. A user may pass an instance of a
subclass of his own as the pool's ``driver``.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any

#: A driver's connection or cursor. DB-API 2.0 fixes no type for either.
Raw = Any


class Driver:
    """The facts about one driver; this class holds those true of any DB-API 2.0 module.

    Every method may be called from any thread, but for one connection never from two at once.
    None may be called on a connection that was opened in another process, except ``discard``,
    and that only once its socket has been severed.

    Args:
        dbmodule: the driver's module, where the DB-API exception classes are found.
    """

    #: Top-level packages whose connections this class speaks for.
    packages: tuple[str, ...] = ()

    #: The driver does not tell its socket, so it is found by comparing the open descriptors
    #: before and after ``connect()``, and those calls are made one at a time.
    hides_socket = False

    #: An idle connection must not be inherited at all: it is closed before every fork.
    close_before_fork = False

    #: Cursors left open keep locks or results alive, so a release closes them.
    close_cursors = False

    #: A cursor's finaliser reads what is left of its result from the socket. The pool keeps such
    #: cursors alive over a fork.
    cursors_speak = False

    #: The end of the driver's own ``with connection:`` closes the connection and does no more.
    exit_only_closes = False

    def __init__(self, dbmodule: ModuleType) -> None:
        self.dbmodule = dbmodule

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "dbmodule": self.dbmodule.__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, dbmodule=import_module(state["dbmodule"]))

    def fileno(self, raw: Raw) -> int | None:
        """The descriptor of the connection's socket, or None where the driver does not tell.

        None, never an exception, for one that is closed. A driver may go on telling the number of a
        socket that it has closed after an error, and which is another file's by now.
        """
        return None

    def in_transaction(self, raw: Raw) -> bool | None:
        """False only if the connection is surely usable and outside a transaction.

        None means that it cannot be known without asking the server. No input or output.
        """
        return None

    def status(self, raw: Raw) -> Any:
        """The driver's own word for the state of the transaction; without one, whether it is open.

        No input or output. This and ``is_closed`` may be asked while another thread is inside a
        call of the connection's.
        """
        return self.in_transaction(raw)

    def is_closed(self, raw: Raw) -> bool:
        """True if the driver itself knows that the connection is closed or broken. No I/O."""
        return False

    def reset(self, raw: Raw) -> None:
        """End whatever transaction is open. What it raises condemns the connection."""
        raw.rollback()

    def is_disconnect(self, error: BaseException) -> bool:
        """True if ``error`` says that its connection, and likely the older ones, are of no use.

        Besides a lost connection that is a server that shuts down, and one that has become
        read-only after a failover.
        """
        return False

    def is_full(self, error: BaseException) -> bool:
        """True if ``error``, raised by ``connect()``, says that the server has no room for more."""
        return False

    def session_id(self, raw: Raw) -> int | str | None:
        """The server's own number for this session, where the driver knows it without asking."""
        return None

    def accept(self, raw: Raw) -> None:
        """Look at the first connection of a pool; raise if it cannot be pooled at all."""

    def enter(self, raw: Raw) -> None:
        """The beginning of the driver's own ``with connection:``."""
        type(raw).__enter__(raw)

    def leave(
        self,
        raw: Raw,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        """The end of the driver's own ``with connection:``, without closing the connection.

        Returns True where the driver's own would have closed it: the pool's handle is then closed.
        """
        if self.exit_only_closes and not self.overrides_exit(raw):
            return True
        type(raw).__exit__(raw, exc_type, exc, tb)
        return False

    def overrides_exit(self, raw: Raw) -> bool:
        """True if ``with connection:`` is that of a class outside of ``packages``, the user's."""
        home = getattr(type(raw).__exit__, "__module__", None) or ""
        return home.partition(".")[0] not in self.packages

    def discard(self, raw: Raw) -> None:
        """Free an inherited connection in a child, its socket severed, without waiting or speaking.

        Called only for connections that no other thread was using at the fork.
        """
        raw.close()

    def poisons(self) -> str | None:
        """Why a child must not open connections of its own after it inherited one in use.

        None where the driver knows of no such reason. Otherwise the end of a sentence.
        """
        return None

    @property
    def interface_error(self) -> type[Exception]:
        """The driver's ``InterfaceError``, or the nearest thing it has."""
        for name in ("InterfaceError", "Error"):
            found = getattr(self.dbmodule, name, None)
            if isinstance(found, type) and issubclass(found, Exception):
                return found
        return Exception
