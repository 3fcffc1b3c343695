"""One client process of ``total``: ``python -m stress.bench.total_client <order as JSON>``.

It says ``ready`` when it has its pool, is told the window on standard input, and answers with one
line of JSON. It ends by itself: at a bound it shows where its threads stand, and leaves.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from nimue import NimueConnectionPool
from stress.bench.runs import start

#: Seconds that a request may take beyond the window, before its thread is told as stuck.
LATE = 10.0


@dataclass(frozen=True)
class Order:
    """What a client is to do. ``every``: seconds between requests; None asks without a pause."""

    connect: dict[str, Any]
    pool: dict[str, Any]
    statement: str
    threads: int
    every: float | None
    offset: float
    bound: float


@dataclass(frozen=True)
class Window:
    """Times of the monotonic clock, which all processes share: work, and when it is counted."""

    start: float
    counted: float
    end: float


@dataclass
class Answer:
    """Requests that ended in the window, waits of those that were due in it, connections."""

    requests: int = 0
    waits: list[float] = field(default_factory=list)
    opened: int = 0
    errors: list[str] = field(default_factory=list)


class Client:
    """The threads of one process, over its pool."""

    def __init__(self, pool: Any, order: Order, window: Window) -> None:
        self.pool = pool
        self.order = order
        self.window = window
        self.answer = Answer()
        self._lock = threading.Lock()

    def run(self) -> Answer:
        work = self._hot if self.order.every is None else self._quiet
        workers = start(work, self.order.threads)
        _sleep_until(self.window.counted)
        before = self.pool.poolstats().opened
        _sleep_until(self.window.end)
        self.answer.opened = self.pool.poolstats().opened - before
        for worker in workers:
            worker.join(max(0.0, self.window.end + LATE - time.monotonic()))
        if stuck := sum(worker.is_alive() for worker in workers):
            self.answer.errors.append(f"{stuck} threads are still waiting after {LATE:g} s")
        return self.answer

    def _hot(self) -> None:
        """One request after the other."""
        window, clock, done = self.window, time.monotonic, 0
        _sleep_until(window.start)
        try:
            while clock() < window.end:
                self._request()
                done += window.counted <= clock() < window.end
        except Exception as error:
            self.answer.errors.append(repr(error))
        with self._lock:
            self.answer.requests += done

    def _quiet(self) -> None:
        """A request at each due time; one that is late waits from when it was due."""
        assert self.order.every is not None
        window = self.window
        due = window.start + self.order.offset
        try:
            while due < window.end:
                _sleep_until(due)
                self._request()
                done = time.monotonic()
                if due >= window.counted:
                    self.answer.waits.append(done - due)
                self.answer.requests += window.counted <= done < window.end
                due += self.order.every
        except Exception as error:
            self.answer.errors.append(repr(error))

    def _request(self) -> None:
        conn = self.pool.getconnection()
        try:
            with conn.cursor() as cursor:
                cursor.execute(self.order.statement)
                cursor.fetchone()
        finally:
            conn.close()


def _sleep_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))


def _autocommit(raw: Any) -> None:
    """A statement is one trip to the server: no BEGIN before it, no ROLLBACK after it."""
    raw.autocommit = True


def main(text: str) -> None:
    import psycopg2

    order = Order(**json.loads(text))
    faulthandler.dump_traceback_later(order.bound, exit=True)
    pool = NimueConnectionPool(
        psycopg2.connect,
        connkwargs=order.connect,
        on_connect=_autocommit,
        timeout=LATE,
        **order.pool,
    )
    print("ready", flush=True)
    if line := sys.stdin.readline():
        answer = Client(pool, order, Window(*map(float, line.split()))).run()
        print(json.dumps(vars(answer)), flush=True)
    pool.close(timeout=5)


if __name__ == "__main__":
    main(sys.argv[1])
