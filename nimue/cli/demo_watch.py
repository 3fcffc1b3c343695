"""The server's view: which process has how many sessions, from pg_stat_activity."""

import threading
import time
from collections import Counter, deque
from typing import Any

from nimue.cli import extra
from nimue.cli.demo_verdict import DemoFailed, Sessions

QUERY = """
select pid, application_name from pg_stat_activity where application_name like %s
"""
INTERVAL = 0.01
#: A session that is closed is listed until its server process has ended; seconds that this takes.
CLOSING = 0.1


def connect(dsn: str, name: str) -> Any:
    psycopg2 = extra.load("psycopg2")
    try:
        conn = psycopg2.connect(dsn, application_name=name, connect_timeout=10)
    except psycopg2.Error as error:
        raise DemoFailed(f"cannot connect to the server: {str(error).strip()}") from None
    conn.autocommit = True
    return conn


def room(conn: Any) -> int:
    """How many more sessions the server has room for."""
    with conn.cursor() as cursor:
        cursor.execute(
            "select current_setting('max_connections')::int"
            " - current_setting('superuser_reserved_connections')::int"
            " - (select count(*) from pg_stat_activity where backend_type = 'client backend')"
        )
        return int(cursor.fetchone()[0])


class Census:
    """Looks folded one by one: pure but for the times it is told.

    A look says which process each session is of. Only sessions that a look `closing` seconds
    before has seen as well are counted among the most; `moment` is the most of any one look.
    From the kill on, the killed worker's sessions are no longer counted among the living:
    the server takes a moment to notice that their client is gone.
    """

    def __init__(self, master: int, closing: float = 0.0) -> None:
        self.master = master
        self.now: dict[int, int] = {}
        self.moment = 0
        self.most = 0
        self.most_each = 0
        self.samples = 0
        self.gap = 0.0
        self.killed: tuple[int, float] | None = None
        self.reaped: float | None = None
        self._closing = closing
        self._earlier: deque[tuple[float, dict[int, int]]] = deque()
        self._first: float | None = None
        self._last: float | None = None

    @property
    def interval(self) -> float:
        """Seconds between two samples, on average."""
        if self._first is None or self._last is None:
            return 0.0
        return (self._last - self._first) / max(1, self.samples - 1)

    def fold(self, when: float, sample: dict[int, int]) -> None:
        if self._last is not None:
            self.gap = max(self.gap, when - self._last)
        else:
            self._first = when
        self._last = when
        self.samples += 1
        self.now = dict(Counter(sample.values()))
        dead = self.killed[0] if self.killed else None
        if self.killed and dead not in self.now and self.reaped is None and when >= self.killed[1]:
            self.reaped = when - self.killed[1]
        self.moment = max(self.moment, sum(pid != dead for pid in sample.values()))
        lasting = Counter(self._lasting(when, sample).values())
        self.most = max(self.most, sum(n for pid, n in lasting.items() if pid != dead))
        each = [n for pid, n in lasting.items() if pid != self.master]
        self.most_each = max([self.most_each, *each])

    def _lasting(self, when: float, sample: dict[int, int]) -> dict[int, int]:
        """Those of the sample that were there before."""
        self._earlier.append((when, sample))
        while len(self._earlier) > 1 and self._earlier[1][0] <= when - self._closing:
            self._earlier.popleft()
        then, seen = self._earlier[0]
        if then > when - self._closing:
            return {}
        return {session: pid for session, pid in sample.items() if session in seen}


class Watch:
    """A thread with a connection of its own that samples the sessions of this run."""

    def __init__(self, conn: Any, run: str, closing: float) -> None:
        self._conn = conn
        self._run = run
        self._closing = closing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="nimue-demo-watch", daemon=True)
        self.census = Census(0)
        self.before = 0
        self.error: str | None = None

    def sample(self) -> dict[int, int]:
        """Of each session, the process."""
        with self._conn.cursor() as cursor:
            cursor.execute(QUERY, (self._run + " %",))
            return {int(pid): int(name.split()[-1]) for pid, name in cursor.fetchall()}

    def note_before(self) -> None:
        self.before = len(self.sample())

    def start(self, master: int) -> None:
        self.census = Census(master, self._closing)
        self._thread.start()

    def _look(self) -> None:
        try:
            while not self._stop.wait(INTERVAL):
                began = time.monotonic()
                self.census.fold(began, self.sample())
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"

    def settle(self, bound: float) -> int:
        """The sessions left once none is, or after `bound` seconds."""
        deadline = time.monotonic() + bound
        while self.census.now and self.error is None and time.monotonic() < deadline:
            time.sleep(INTERVAL)
        return sum(self.census.now.values())

    def check(self) -> None:
        if self.error is not None:
            raise DemoFailed(f"lost sight of the server: {self.error}")

    def result(self, after: int) -> Sessions:
        self.check()
        seen = self.census
        return Sessions(
            before=self.before,
            most=seen.most,
            moment=seen.moment,
            most_each=seen.most_each,
            after=after,
            reaped=seen.reaped,
            samples=seen.samples,
            interval=seen.interval,
            gap=seen.gap,
        )

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5)
        self._conn.close()
