"""Health checks to choose from, or to build one of your own from.

A health check is a callable ``check(conn, dbmodule, logger)`` or ``check(conn, dbmodule)`` that
returns True if the connection is fit for use. ``conn`` is the driver's own connection,
``dbmodule`` the driver's module, ``logger`` a :class:`logging.Logger`. It runs in a background
thread, never under a lock; what it raises counts as unfit and is logged. None does too: it is what
a check returns that has forgotten its ``return``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

#: ``(conn, dbmodule, logger) -> bool`` or ``(conn, dbmodule) -> bool``
HealthCheck = Callable[..., Any]

_logger = logging.getLogger("nimue")


def healthcheck_callback_std(
    conn: Any, dbmodule: ModuleType, logger: logging.Logger | None = None
) -> bool:
    """Check with ``SELECT 1``: PostgreSQL, MySQL, MariaDB, SQLite, SQL Server and others."""
    return healthcheck_callback_base(conn, dbmodule, logger, "SELECT 1")


def healthcheck_callback_oracle(
    conn: Any, dbmodule: ModuleType, logger: logging.Logger | None = None
) -> bool:
    """Check with ``SELECT 1 FROM DUAL``: Oracle."""
    return healthcheck_callback_base(conn, dbmodule, logger, "SELECT 1 FROM DUAL")


def healthcheck_callback_base(
    conn: Any, dbmodule: ModuleType, logger: logging.Logger | None, query: str
) -> bool:
    """Check with a query of your choice.

    True if the query and a rollback went through. The module's ``OperationalError`` and
    ``InterfaceError`` say that the connection is gone; any other exception is unexpected, is
    logged, and says so too.
    """
    gone = tuple(
        getattr(dbmodule, name)
        for name in ("OperationalError", "InterfaceError")
        if hasattr(dbmodule, name)
    )
    try:
        with contextlib.closing(conn.cursor()) as cursor:
            cursor.execute(query)
            cursor.fetchall()
        conn.rollback()
    except gone:
        return False
    except Exception:
        (logger or _logger).exception("unexpected exception in a health check")
        return False
    return True


@functools.lru_cache(maxsize=64)
def say_nothing_came(check: HealthCheck, pool: str) -> None:
    """Warn, once for each, of a check that returns None: every connection fails it."""
    _logger.warning(
        "pool %r: the health check %s returned None, which counts as unfit, so the connection is "
        "closed; a check must return True or False",
        pool,
        getattr(check, "__qualname__", type(check).__name__),
    )


@functools.lru_cache(maxsize=64)
def takes_logger(check: HealthCheck) -> bool:
    """Whether ``check`` takes the third parameter that nimue 0.0.3 passes."""
    import inspect

    try:
        inspect.signature(check).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # written in C, without a signature
        return True
    return True
