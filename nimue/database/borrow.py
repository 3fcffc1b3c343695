"""How a thread comes by its connection, and for how long it waits."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from nimue.connection import NimueConnection
from nimue.database.bound import Bound, Here
from nimue.error import (
    MaxConnectionsExceeded,
    NimueInvalidParameterValue,
    NimueNoConnectionAvailable,
    NimuePoolTimeout,
)
from nimue.pool import NimueConnectionPool
from nimue.settings import seconds, whole

#: Seconds that a ``connect()`` may take where the caller did not want to wait for other threads.
OPENING = 30.0

#: Seconds in which another process may give up an idle connection before ``totalmax`` is exhausted.
HANDOVER = 1.0

#: Seconds; longer than any process lives.
NEVER = 1e9


def check_max_connections(value: object) -> int:
    number = _number("max_connections", value, "a whole number of at least 1")
    whole("max_connections", number, 1, "a whole number of at least 1")
    return int(number)


def check_timeout(value: object) -> float | None:
    """Seconds to wait when all connections are lent; None not at all, 0 for ever."""
    if value is None:
        return None
    allowed = "None, 0 (for ever) or a number of seconds"
    number = _number("timeout", value, allowed)
    seconds("timeout", number, allowed)
    return float(number)


def times(stale_timeout: object) -> dict[str, Any]:
    """The pool's parameters for that ``stale_timeout``."""
    allowed = "None or a number of seconds, 0 or more"
    number = _number("stale_timeout", stale_timeout, allowed)
    if number is not None:
        seconds("stale_timeout", number, allowed)
    if not number:
        return {"idle_timeout": NEVER, "max_lifetime": None}
    return {
        "idle_timeout": number,
        "max_lifetime": number,
        "cleanup_interval": min(60.0, number),
    }


def _number(parameter: str, value: Any, allowed: str) -> Any:
    """A number that comes as text, as from the environment.

    Other text is not repeated: who takes this for a driver's ``connect()`` gives a password here.
    """
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    if not isinstance(value, int | float | None):
        told = f"{parameter} must be {allowed}, not a {type(value).__name__}"
        raise NimueInvalidParameterValue(f"{told}; what the driver is told goes in by keyword")
    return value


def acquire(
    pool: NimueConnectionPool, here: Here, mine: Bound, timeout: float | None
) -> NimueConnection:
    """A connection of the pool's, by the rules of a database's ``timeout``.

    Raises:
        MaxConnectionsExceeded, NimuePoolTimeout, Exception: see ``PooledDatabase.connect``.
    """
    try:
        if timeout is None:
            return _acquire_at_once(pool, here, mine)
        return _get(pool, timeout or None)
    except NimuePoolTimeout as error:
        if timeout is None and not is_exhausted(pool):
            raise
        raise MaxConnectionsExceeded(str(error)) from error


def _acquire_at_once(pool: NimueConnectionPool, here: Here, mine: Bound) -> NimueConnection:
    """One that is idle or can be opened. Those that are lent are not waited for."""
    if here.ahead_of(mine) >= pool.poolmax:
        raise MaxConnectionsExceeded(
            f"all {pool.poolmax} connections of {pool.name!r} are lent (max_connections), and "
            "timeout=None does not wait for one to come back"
        )
    if pool.totalmax is None:
        return _get(pool, OPENING)
    try:
        return _get(pool, HANDOVER)
    except NimuePoolTimeout:
        if not is_exhausted(pool):
            return _get(pool, OPENING)
        with suppress(NimueNoConnectionAvailable):
            return _get(pool, 0)  # opened between the two, and idle by now
        raise


def is_exhausted(pool: NimueConnectionPool) -> bool:
    """Whether no ``connect()`` is under way that has a permit: other processes have them all."""
    if pool.totalmax is None:
        return False
    return not any(entry.permit is not None for entry in list(pool._state.connecting))


def _get(pool: NimueConnectionPool, timeout: float | None) -> NimueConnection:
    handle: NimueConnection = pool.getconnection(timeout=timeout)
    return handle
