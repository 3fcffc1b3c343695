"""One connection, one holder at a time."""

from __future__ import annotations

import logging
from _thread import get_ident
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from sys import _getframe
from threading import TIMEOUT_MAX
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nimue.acquire import acquire
from nimue.callback import HealthCheck, healthcheck_callback_std
from nimue.drivers.base import Driver
from nimue.error import NimueInvalidParameterValue, NimueNestedUseError
from nimue.fork import door, settle
from nimue.pool import NimueConnectionPool
from nimue.settings import DEFAULT, check_timeout, refuse

if TYPE_CHECKING:
    from nimue.connection import NimueConnection
    from nimue.entry import Entry
    from nimue.state import State

logger = logging.getLogger("nimue.managed")


class ManagedConnection:
    """One connection that threads use in turn; it is opened when it is needed.

    ::

        manager = ManagedConnection("postgres:///shop")

        with manager() as connection:       # the driver's own object, nobody else has it
            connection.cursor().execute("...")
            connection.commit()

    It is a pool of one, with that pool's rules: first come, first served; a connection that has
    been unused for a while is checked before it is given out, and replaced if it is lost; a forked
    child starts closed, and what it inherits is severed. Unlike a pool's, the object is the
    driver's: what is set on it stays set until it is closed, and in a child that C code forked it
    is cut off only when this manager is next used there, or left.

    Args:
        connfunc: returns an open connection, called with ``connargs`` and ``connkwargs``; or a
            connection string of libpq's, for psycopg2.
        name: what it is called in logs and errors; a pickled one is rebuilt once per name.
        timeout: seconds that a use waits for its turn, and for the connection; None for ever.
        healthcheck_idle: a connection last taken within so many seconds is not checked again.
        healthcheck_callback: the check, see :mod:`nimue.callback`.
        on_connect: called with each new connection of the driver's, to set up its session.
        driver: facts about the driver, if yours are better than ours.

    Raises:
        NimueInvalidParameterValue: a parameter is not allowed.
        ImportError: a connection string was given, and there is no psycopg2.
    """

    def __init__(
        self,
        connfunc: Callable[..., Any] | str | None = None,
        connargs: Sequence[Any] | None = None,
        connkwargs: Mapping[str, Any] | None = None,
        *,
        dsn: str | None = None,
        name: str | None = None,
        timeout: float | None = 30.0,
        healthcheck_idle: float = 1.0,
        healthcheck_callback: HealthCheck = healthcheck_callback_std,
        on_connect: Callable[[Any], object] | None = None,
        driver: Driver | None = None,
    ) -> None:
        connfunc, dsn = _told_apart(connfunc, dsn)
        #: The connection string as it was given, password and all; None with a ``connfunc``.
        self.dsn = dsn
        self._label = _origin(connfunc) if dsn is None else _without_password(dsn)
        self._pool = NimueConnectionPool(
            connfunc,
            connargs,
            connkwargs,
            poolmin=0,
            poolmax=1,
            idle_timeout=TIMEOUT_MAX,
            max_lifetime=None,
            name=name,
            timeout=timeout,
            healthcheck_idle=healthcheck_idle,
            healthcheck_callback=healthcheck_callback,
            on_connect=on_connect,
            driver=driver,
        )

    def __call__(
        self, close: bool = False, timeout: float | None = DEFAULT, blocking: bool = True
    ) -> Use:
        """A context manager that waits for its turn and yields the driver's connection.

        A transaction that the block leaves open is rolled back, and that is an error; one left
        open by an exception is rolled back with a warning in the log. After an exception of the
        driver's the connection is closed.

        Args:
            close: close the connection at the end.
            timeout: seconds to wait; None waits for ever; by default as long as the manager says.
            blocking: False does not wait for another's use to end. It does wait for the
                connection to be opened or checked, up to the timeout.

        Raises:
            RuntimeError: on leaving, the block has neither committed nor rolled back.
            NimueNestedUseError: this thread has the connection already.
            NimuePoolTimeout: it did not come in time; says who has it.
            NimueNoConnectionAvailable: it is in use, and the call may not wait for that.
            NimueInheritedConnectionError: on leaving, in a child of a fork inside the block.
            Exception: the driver's own, when it could not be opened.
        """
        for parameter, value in (("close", close), ("blocking", blocking)):
            if not isinstance(value, bool):
                raise refuse(parameter, value, "True or False")
        if timeout is not DEFAULT:
            check_timeout(timeout)
        return Use(self._pool, close, timeout, blocking)

    @property
    def closed(self) -> bool:
        """Whether there is no open connection in this process now."""
        return self._open_one() is None

    @property
    def status(self) -> Any:
        """The driver's transaction status; None when there is no connection.

        That of ``psycopg2.extensions`` or of ``psycopg.pq``; elsewhere whether a transaction is
        open, and None too where the driver does not know.
        """
        raw, driver = self._open_one(), self._pool.driver
        return None if raw is None or driver is None else driver.status(raw)

    def close(self) -> None:
        """Close the connection: now, or when who uses it leaves. The next use opens another."""
        self._pool.drain()

    def _open_one(self) -> Any:
        if not door[0]:
            settle()
        driver = self._pool.driver
        for entry in list(self._pool._state.entries):
            raw = entry.raw  # None while it is being opened
            if raw is not None and driver is not None and not driver.is_closed(raw):
                return raw
        return None

    def __str__(self) -> str:
        return self._label

    def __repr__(self) -> str:
        return f"<ManagedConnection: {self._label} ({'closed' if self.closed else 'open'})>"


class Use:
    """One turn at a managed connection, from ``with`` to the end of its block."""

    __slots__ = ("_blocking", "_close", "_handle", "_pool", "_timeout")

    def __init__(
        self, pool: NimueConnectionPool, close: bool, timeout: float | None, blocking: bool
    ) -> None:
        self._pool, self._close, self._timeout, self._blocking = pool, close, timeout, blocking
        self._handle: NimueConnection | None = None

    def __enter__(self) -> Any:
        if not door[0]:
            self._pool._enter()
        state = self._pool._state
        _refuse_nested(state)
        seconds = state.settings.timeout if self._timeout is DEFAULT else self._timeout
        frame = _getframe(1)
        self._handle = handle = acquire(state, None, seconds, frame, if_free=not self._blocking)
        return handle._lease[0].raw

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        # Another thread's turn through the same object may begin as soon as this one has ended.
        handle, self._handle = self._handle, None
        assert handle is not None
        try:
            if not door[0]:
                settle()
            entry = handle._lease[0]
            if entry.state is not None:
                _conclude(entry, entry.state, exc, self._close)
            elif exc is None:
                handle.raw  # noqa: B018  (entered before a fork, left in the child: this raises)
        finally:
            handle.close()


def _refuse_nested(state: State) -> None:
    """A thread that waits for what it has itself would wait for ever.

    So it is not let wait either if it has handed its turn to another thread, to be left there.
    """
    for entry in list(state.entries):
        if entry.thread == get_ident():
            raise NimueNestedUseError(
                f"pool {state.name!r}: this thread uses the managed connection already (taken at "
                f"{entry.place()}): use that one, or leave its block first"
            )


def _conclude(entry: Entry, state: State, exc: BaseException | None, close: bool) -> None:
    """Decide what becomes of the connection at the end of a block, before its release."""
    driver = state.driver
    is_drivers = isinstance(exc, getattr(driver.dbmodule, "Error", ()))
    if close or is_drivers:
        entry.soiled, entry.retire_at = True, 0.0
    if exc is not None and is_drivers:
        entry.broken = driver.is_disconnect(exc)
        return
    if not _is_in_transaction(driver, entry.raw):
        return
    failure = _roll_back(entry, driver)
    if exc is None:
        raise RuntimeError(
            "Did not commit or rollback open transaction before releasing connection."
        ) from failure
    logger.warning(
        "pool %r: %s after an exception in the block: %s",
        state.name,
        "rolled back" if failure is None else f"rollback failed ({type(failure).__name__})",
        type(exc).__name__,
        exc_info=exc,
    )


def _is_in_transaction(driver: Driver, raw: Any) -> bool:
    """Whether it surely is. Where that is not known, the release rolls back without a word."""
    try:
        return not driver.is_closed(raw) and driver.in_transaction(raw) is True
    except Exception:  # the release finds out what is the matter
        return False


def _roll_back(entry: Entry, driver: Driver) -> Exception | None:
    """End the transaction; what that raises is returned, and the connection is condemned."""
    entry.broken = entry.soiled = True  # until it has worked: a signal handler may cut it short
    try:
        driver.reset(entry.raw)
    except Exception as error:
        return error
    entry.broken = False
    return None


def _told_apart(
    connfunc: Callable[..., Any] | str | None, dsn: str | None
) -> tuple[Callable[..., Any], str | None]:
    """What connects, and the connection string, if that is what was given, in either place."""
    if dsn is not None and connfunc is not None:
        raise NimueInvalidParameterValue("dsn must not be given together with connfunc")
    given = connfunc if dsn is None else dsn
    if isinstance(given, str) and given:
        import psycopg2

        return partial(psycopg2.connect, given), given
    if dsn is None and callable(connfunc):
        return connfunc, None
    raise NimueInvalidParameterValue(
        f"{'connfunc' if dsn is None else 'dsn'} must be a connection string for psycopg2, or "
        "connfunc a callable that returns a connection, not "
        + ("an empty string" if given == "" else f"a {type(given).__name__}")
    )


def _origin(connfunc: Any) -> str:
    """What a callable is called; never its arguments."""
    named = connfunc if hasattr(connfunc, "__qualname__") else type(connfunc)
    return f"{named.__module__}.{named.__qualname__}"


def _is_misread(told: dict[str, str]) -> bool:
    """Whether a part of the password may have been taken for something else."""
    rest = "".join(told.get(option, "") for option in ("user", "port", "dbname"))
    hosts = told.get("host", "").split(",")
    is_odd = any("@" in host or ("/" in host and host[0] != "/") for host in hosts)
    return is_odd or any(mark in rest for mark in "@:/")


def _without_password(dsn: str) -> str:
    """The connection string as it is, or, where there is a secret in it, the rest of it."""
    import psycopg2
    from psycopg2.extensions import make_dsn, parse_dsn

    try:
        told = parse_dsn(dsn)
    except psycopg2.Error:  # nobody can say what in it is the password
        return "a connection string that libpq does not understand"
    if _is_misread(told):
        return "a connection string with an unquoted @, : or /"
    harmless = {
        option: value
        for option, value in told.items()
        if not any(word in option for word in ("pass", "secret", "scram"))
    }
    return dsn if harmless == told else str(make_dsn(**harmless))
