"""nimue: a DB-API 2.0 connection pool for Python servers that fork."""

import logging

from nimue.connection import NimueConnection, NimueCursor
from nimue.error import (
    NimueConnectionClosed,
    NimueDBModuleFailure,
    NimueError,
    NimueInheritedConnectionError,
    NimueInvalidParameterValue,
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
from nimue.pool import DEFAULT, NimueConnectionPool
from nimue.semaphore import SharedSemaphore
from nimue.stats import NimueConnectionPoolStats

__all__ = [
    "DEFAULT",
    "NimueConnection",
    "NimueConnectionClosed",
    "NimueConnectionPool",
    "NimueConnectionPoolStats",
    "NimueCursor",
    "NimueDBModuleFailure",
    "NimueError",
    "NimueInheritedConnectionError",
    "NimueInvalidParameterValue",
    "NimueNoConnectionAvailable",
    "NimuePoolClosedError",
    "NimuePoolTimeout",
    "NimueSemaphoreError",
    "NimueSemaphoreInUse",
    "NimueSemaphoreLimitMismatch",
    "NimueSemaphoreLost",
    "NimueSemaphoreTimeout",
    "NimueSemaphoreUnsafe",
    "NimueSemaphoreUnsupported",
    "NimueSemaphoreUnwritable",
    "NimueSemaphoreVersionMismatch",
    "SharedSemaphore",
]

logging.getLogger("nimue").addHandler(logging.NullHandler())
