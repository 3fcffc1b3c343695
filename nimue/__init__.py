"""nimue: a DB-API 2.0 connection pool for Python servers that fork."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nimue.connection import NimueConnection, NimueCursor
from nimue.error import (
    MaxConnectionsExceeded,
    NimueConnectionClosed,
    NimueDBModuleFailure,
    NimueError,
    NimueInheritedConnectionError,
    NimueInvalidParameterValue,
    NimueNestedUseError,
    NimueNoConnectionAvailable,
    NimuePoolClosedError,
    NimuePoolTimeout,
    NimueSemaphoreError,
    NimueSemaphoreInUse,
    NimueSemaphoreLimitMismatch,
    NimueSemaphoreLost,
    NimueSemaphoreTimeout,
    NimueSemaphoreUnsafe,
    NimueSemaphoreUnsupported,
    NimueSemaphoreUnwritable,
    NimueSemaphoreVersionMismatch,
)
from nimue.pool import NimueConnectionPool
from nimue.settings import DEFAULT
from nimue.stats import NimueConnectionPoolStats, NimueProcessStats, NimueTotalStats

if TYPE_CHECKING:
    from nimue.managed import ManagedConnection
    from nimue.semaphore import SharedSemaphore

__all__ = [
    "DEFAULT",
    "ManagedConnection",
    "MaxConnectionsExceeded",
    "NimueConnection",
    "NimueConnectionClosed",
    "NimueConnectionPool",
    "NimueConnectionPoolStats",
    "NimueCursor",
    "NimueDBModuleFailure",
    "NimueError",
    "NimueInheritedConnectionError",
    "NimueInvalidParameterValue",
    "NimueNestedUseError",
    "NimueNoConnectionAvailable",
    "NimuePoolClosedError",
    "NimuePoolTimeout",
    "NimueProcessStats",
    "NimueSemaphoreError",
    "NimueSemaphoreInUse",
    "NimueSemaphoreLimitMismatch",
    "NimueSemaphoreLost",
    "NimueSemaphoreTimeout",
    "NimueSemaphoreUnsafe",
    "NimueSemaphoreUnsupported",
    "NimueSemaphoreUnwritable",
    "NimueSemaphoreVersionMismatch",
    "NimueTotalStats",
    "SharedSemaphore",
]


def __getattr__(name: str) -> Any:
    """What a pool without a shared limit has no use for is imported when it is asked for."""
    if name == "ManagedConnection":
        from nimue.managed import ManagedConnection

        return ManagedConnection
    if name == "SharedSemaphore":
        from nimue.semaphore import SharedSemaphore

        return SharedSemaphore
    if name == "__version__":
        from importlib.metadata import version

        return version("nimue")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
