"""Migrations: files of steps, each applied once and in order, over a database of ``nimue``."""

from __future__ import annotations

from nimue.rider.error import MigrateError, RiderError, RiderLocked, RollbackError
from nimue.rider.migration import step
from nimue.rider.rider import Rider

__all__ = ["MigrateError", "Rider", "RiderError", "RiderLocked", "RollbackError", "step"]
