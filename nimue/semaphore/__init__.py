"""The right to be connected: an entry owns one permit from before it connects until it is closed.

Without a shared limit there is nothing to ask, and a permit is always granted. With one, the
permits are locks of the kernel's, which no process can leave locked when it dies.
"""

from nimue.semaphore.family import Family
from nimue.semaphore.files import names
from nimue.semaphore.layout import Figures
from nimue.semaphore.shared import SharedSemaphore
from nimue.semaphore.snapshot import Holder, Row, Snapshot, WaitingProcess
from nimue.semaphore.unlimited import UNLIMITED, Permit, Unlimited

__all__ = [
    "UNLIMITED",
    "Family",
    "Figures",
    "Holder",
    "Permit",
    "Row",
    "SharedSemaphore",
    "Snapshot",
    "Unlimited",
    "WaitingProcess",
    "names",
]
