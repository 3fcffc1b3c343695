"""Migrations: files of steps, each applied once and in order, over a database of ``nimue``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nimue.rider.error import MigrateError, RiderError, RiderLocked, RollbackError

if TYPE_CHECKING:
    from nimue.rider.migration import step
    from nimue.rider.rider import Rider

__all__ = ["MigrateError", "Rider", "RiderError", "RiderLocked", "RollbackError", "step"]


#: What applies migrations is imported when asked for: each ``nimue ...`` comes by here.
_MODULES = {"Rider": "nimue.rider.rider", "step": "nimue.rider.migration"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
