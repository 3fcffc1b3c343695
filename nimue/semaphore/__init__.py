"""The right to be connected: an entry owns one permit from before it connects until it is closed.

Without a shared limit there is nothing to ask, and a permit is always granted. With one, the
permits are locks of the kernel's, which no process can leave locked when it dies; all of that is
imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nimue.semaphore.unlimited import UNLIMITED, Permit, Unlimited

if TYPE_CHECKING:
    from nimue.semaphore.family import Family
    from nimue.semaphore.files import names
    from nimue.semaphore.layout import Figures
    from nimue.semaphore.observer import Observation, observe
    from nimue.semaphore.shared import SharedSemaphore
    from nimue.semaphore.snapshot import Holder, Row, Snapshot, WaitingProcess

__all__ = [
    "UNLIMITED",
    "Family",
    "Figures",
    "Holder",
    "Observation",
    "Permit",
    "Row",
    "SharedSemaphore",
    "Snapshot",
    "Unlimited",
    "WaitingProcess",
    "names",
    "observe",
]

_HOMES = {
    "Family": "family",
    "Figures": "layout",
    "Holder": "snapshot",
    "Observation": "observer",
    "Row": "snapshot",
    "SharedSemaphore": "shared",
    "Snapshot": "snapshot",
    "WaitingProcess": "snapshot",
    "names": "files",
    "observe": "observer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
