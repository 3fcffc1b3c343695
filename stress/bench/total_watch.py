"""The server's own count of sessions, in pg_stat_activity, while clients are at work."""

from __future__ import annotations

import time
from typing import Any

from stress.watch import Watch

QUERY = """
select pid from pg_stat_activity
where application_name = %s and backend_type = 'client backend'
"""
#: Seconds that a session which is closed is listed at most.
LASTING = 0.1


class PostgresWatch(Watch):
    """The sessions of one mark, over a connection of its own."""

    def __init__(self, conn: Any, mark: str) -> None:
        super().__init__(LASTING)
        self._conn = conn
        self._mark = mark

    def sessions(self) -> frozenset[int]:
        with self._conn.cursor() as cursor:
            cursor.execute(QUERY, (self._mark,))
            return frozenset(pid for (pid,) in cursor.fetchall())

    def look(self) -> None:
        when = time.monotonic()
        self.census.fold(when, self.sessions())
