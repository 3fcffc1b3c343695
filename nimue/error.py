"""Everything nimue raises of its own. Errors of the driver reach the caller as they are."""

from __future__ import annotations


class NimueError(Exception):
    """Root of all errors of nimue."""


class NimueInvalidParameterValue(NimueError, ValueError):
    """A parameter has a value that is not allowed; nothing was opened or changed."""


class NimueDBModuleFailure(NimueError):
    """The driver's module cannot be found from the connections that ``connfunc`` returns."""


class NimuePoolClosedError(NimueError):
    """The pool has been closed, or was closed while this thread waited."""


class NimueNoConnectionAvailable(NimueError):
    """No connection could be had under the conditions of the call."""


class NimuePoolTimeout(NimueNoConnectionAvailable, TimeoutError):
    """No connection came within the timeout. A failed ``connect()`` meanwhile is the cause."""


class NimueNestedUseError(NimueError, RuntimeError):
    """A thread asked for the managed connection that it has already."""


class MaxConnectionsExceeded(NimueNoConnectionAvailable, ValueError):
    """A thread-bound database has lent all its connections, and waited as long as it may."""


class NimueSemaphoreError(NimueError):
    """A limit that processes share cannot be had, or not in the way that was asked."""


class NimueSemaphoreTimeout(NimueSemaphoreError, TimeoutError):
    """No permit came within the timeout."""


class NimueSemaphoreLimitMismatch(NimueSemaphoreError, ValueError):
    """The semaphore of that name is in use with another limit."""


class NimueSemaphoreVersionMismatch(NimueSemaphoreError):
    """The semaphore of that name is in use by another version or kind of program."""


class NimueSemaphoreInUse(NimueSemaphoreError):
    """Others, or other threads, use what was to be removed or changed."""


class NimueSemaphoreLost(NimueSemaphoreError):
    """Files of a semaphore in use were removed or replaced, or its descriptor was closed."""


class NimueSemaphoreUnsafe(NimueSemaphoreError):
    """The directory, or a file in it, is not this user's alone, or not of a kind that can serve."""


class NimueSemaphoreUnwritable(NimueSemaphoreError):
    """The directory is full, read-only, or not to be written by this user."""


class NimueSemaphoreUnsupported(NimueSemaphoreError):
    """This platform lacks what a shared semaphore is made of."""


class NimueInheritedConnectionError(NimueError):
    """A connection or cursor from before a fork was used in the child."""


class NimueConnectionClosed(NimueError):
    """A connection was used after its ``close()``; the driver's own ``InterfaceError`` as well."""


def inside_error(deed: str) -> NimueError:
    return NimueError(
        f"a finalizer or a signal handler cannot {deed} while its own thread is in the middle of a "
        "decision about the same pool"
    )


def closed_error(driver_error: type[Exception]) -> Exception:
    """What a returned connection raises: an error of ours that is the driver's own as well."""
    kind = _closed_kinds.get(driver_error)
    if kind is None:
        ours = NimueConnectionClosed
        kind = _closed_kinds[driver_error] = type(
            ours.__name__,
            (ours, driver_error),
            {"__module__": __name__, "__reduce__": lambda self: (closed_error, (driver_error,))},
        )
    return kind(
        "this connection has been returned to the pool (or detached from it); acquire another"
    )


_closed_kinds: dict[type[Exception], type[Exception]] = {}
