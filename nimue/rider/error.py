"""What rider raises of its own. The cause is the driver's exception, where there is one."""

from __future__ import annotations

from nimue.error import NimueError


class RiderError(NimueError):
    """A command of rider could not be carried out; the message is for its user."""


class MigrateError(RiderError):
    """A migration could not be applied; those after it were not tried."""


class RollbackError(RiderError):
    """A migration could not be rolled back; those before it were not tried."""


class RiderLocked(RiderError, TimeoutError):
    """Another process migrated the same database for all the time that was allowed."""


def words(error: BaseException) -> str:
    """What an exception says, and of what kind it is."""
    return ": ".join(filter(None, (type(error).__name__, str(error).strip())))
