"""The right to be connected, shared by processes.

The permits are locks of the kernel's, which no process can leave locked when it dies. All of this
is imported when it is asked for: who sets no ``totalmax`` does not pay for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nimue.semaphore.permit import Permit

if TYPE_CHECKING:
    from nimue.semaphore.demand import Demand
    from nimue.semaphore.family import Family
    from nimue.semaphore.files import names
    from nimue.semaphore.layout import Figures, News
    from nimue.semaphore.observer import Observation, observe
    from nimue.semaphore.shared import SharedSemaphore
    from nimue.semaphore.snapshot import Holder, Row, Snapshot, WaitingProcess

__all__ = [
    "Demand",
    "Family",
    "Figures",
    "Holder",
    "News",
    "Observation",
    "Permit",
    "Row",
    "SharedSemaphore",
    "Snapshot",
    "WaitingProcess",
    "names",
    "observe",
]

_HOMES = {
    "Demand": "demand",
    "Family": "family",
    "Figures": "layout",
    "Holder": "snapshot",
    "News": "layout",
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
