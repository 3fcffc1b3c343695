"""Migrations: files of steps, each applied once and in order, over a database of ``nimue``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nimue.rider.error import MigrateError, RiderError, RiderLocked, RollbackError

if TYPE_CHECKING:
    from nimue.rider.migration import step
    from nimue.rider.rider import Rider

__all__ = ["MigrateError", "Rider", "RiderError", "RiderLocked", "RollbackError", "step"]


def __getattr__(name: str) -> Any:
    """What applies migrations is imported when asked for: each ``nimue ...`` comes by here."""
    if name == "Rider":
        from nimue.rider.rider import Rider

        return Rider
    if name == "step":
        from nimue.rider.migration import step

        return step
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
