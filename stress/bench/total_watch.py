"""The server's own count of sessions, in pg_stat_activity, while clients are at work."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

QUERY = """
select pid from pg_stat_activity
where application_name = %s and backend_type = 'client backend'
"""
INTERVAL = 0.01
#: A session that is closed is seen until its server process has ended; it does not last as long.
LASTING = 0.1


class Census:
    """Looks folded one by one: pure but for the times it is told."""

    def __init__(self, lasting: float = LASTING) -> None:
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


class Watch:
    """A thread that looks at the sessions of one mark, over a connection of its own."""

    def __init__(self, conn: Any, mark: str) -> None:
        self._conn = conn
        self._mark = mark
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="total-watch", daemon=True)
        self.census = Census()
        self.error: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5)

    def settled(self, bound: float) -> int:
        """Sessions left when there are none any more, or after ``bound`` seconds."""
        deadline = time.monotonic() + bound
        while (left := len(self._sessions())) and time.monotonic() < deadline:
            time.sleep(INTERVAL)
        return left

    def _look(self) -> None:
        try:
            while not self._stop.wait(INTERVAL):
                when = time.monotonic()
                self.census.fold(when, self._sessions())
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"

    def _sessions(self) -> frozenset[int]:
        with self._conn.cursor() as cursor:
            cursor.execute(QUERY, (self._mark,))
            return frozenset(pid for (pid,) in cursor.fetchall())
