"""What rider asks of a database; those of ``nimue.database`` have all of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Database(Protocol):
    """One connection for this thread, between ``connect`` and ``close``."""

    @property
    def dialect(self) -> str:
        """``"postgres"``, ``"mysql"`` or ``"sqlite"``."""

    @property
    def conn(self) -> Any:
        """This thread's connection."""

    @property
    def is_trans(self) -> bool:
        """Whether this thread is inside ``atomic()``."""

    def connect(self) -> Any: ...

    def close(self) -> Any: ...

    def manual_close(self) -> Any:
        """Close this thread's connection for good, and its session with it."""

    def is_closed(self) -> bool: ...

    def sql(self, query: str, params: Sequence[Any] = ()) -> Any: ...

    def select(self, query: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]: ...

    def atomic(self, commit: bool = True) -> AbstractContextManager[Any]:
        """A transaction; a savepoint within one."""
