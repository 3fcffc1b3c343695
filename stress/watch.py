"""The server's own count of sessions, while others are at work."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection
from typing import Any

#: Seconds between two looks.
INTERVAL = 0.01
#: Seconds that a session which is closed is listed at most.
CLOSING = 0.1

LISTED = """
select pid from pg_stat_activity
where application_name = %s and backend_type = 'client backend'
"""


class Census:
    """Looks folded one by one: pure but for the times it is told.

    Args:
        lasting: seconds. One that is closed is seen until its server process has ended; it does
            not last as long.
    """

    def __init__(self, lasting: float) -> None:
        self._lasting = lasting
        self.looks = 0
        #: The most seen in one look, and the most that a look so much later still saw.
        self.most = 0
        self.lasting = 0
        self._earlier: deque[tuple[float, frozenset[int]]] = deque()

    def fold(self, when: float, pids: frozenset[int]) -> None:
        self.looks += 1
        self.most = max(self.most, len(pids))
        self._earlier.append((when, pids))
        while len(self._earlier) > 1 and self._earlier[1][0] <= when - self._lasting:
            self._earlier.popleft()
        then, seen = self._earlier[0]
        if then <= when - self._lasting:
            self.lasting = max(self.lasting, len(pids & seen))


class Watch(ABC):
    """A thread that looks at the server's list of sessions again and again."""

    def __init__(self, lasting: float) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sessions", daemon=True)
        self.census = Census(lasting)
        #: What has ended the watch before its time.
        self.error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(10)

    def settled(self, bound: float) -> int:
        """Sessions left when there are none any more, or after ``bound`` seconds."""
        deadline = time.monotonic() + bound
        while (left := len(self.sessions())) and time.monotonic() < deadline:
            time.sleep(INTERVAL)
        return left

    @abstractmethod
    def sessions(self) -> Collection[int]:
        """The server processes that it lists now."""

    @abstractmethod
    def look(self) -> None:
        """Look once, and fold it into the census."""

    def leave(self) -> None:  # noqa: B027
        """The thread's last act."""

    def _watch(self) -> None:
        try:
            while not self._over.wait(INTERVAL):
                self.look()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self.leave()


class PostgresWatch(Watch):
    """The sessions of one mark, over a connection of its own."""

    def __init__(self, conn: Any, mark: str) -> None:
        super().__init__(CLOSING)
        self._conn = conn
        self._mark = mark

    def sessions(self) -> frozenset[int]:
        with self._conn.cursor() as cursor:
            cursor.execute(LISTED, (self._mark,))
            return frozenset(pid for (pid,) in cursor.fetchall())

    def look(self) -> None:
        when = time.monotonic()
        self.census.fold(when, self.sessions())
