"""Everything at once on a real server, for a while; the server's table is the judge.

Eight threads ask and write, each answer and each row with a token of its own. Meanwhile sessions
are terminated, children forked, handles dropped, the pool drained and resized. What a cut leaves
unknown (the commit was under way) is counted apart. The order of the mischief is that of a seed.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest

from nimue import NimueConnectionPool
from tests.children import Child
from tests.fakes import until
from tests.servers import Postgres

SECONDS = float(os.environ.get("NIMUE_SOAK_SECONDS", "7"))
THREADS = 8


class Ledger:
    """What the threads believe to have written, and what else they have seen."""

    def __init__(self) -> None:
        self.committed: set[int] = set()
        self.unknown: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []


def descriptors() -> Counter[str]:
    """What this process has open, by kind."""
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{name}").partition(":")[0]] += 1
        except OSError:
            pass
    return kinds


def ask(pool: NimueConnectionPool, token: int) -> None:
    conn = pool.getconnection(timeout=20.0)
    try:
        cursor = conn.cursor()
        cursor.execute("SELECT %s::bigint", (token,))
        (answer,) = cursor.fetchone()
        if answer != token:
            raise AssertionError(f"asked {token}, was told {answer}")
    finally:
        conn.close()


class Worker:
    """One thread: questions, writes, writes taken back, handles dropped."""

    def __init__(
        self, number: int, seed: int, pool: NimueConnectionPool, table: str, ledger: Ledger
    ) -> None:
        self.number, self.pool, self.table, self.ledger = number, pool, table, ledger
        self.dice = random.Random(f"{seed}-{number}")
        self.turns = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, name=f"soak-{number}", daemon=True)

    def run(self) -> None:
        deeds: list[Callable[[int], None]] = [self.ask, self.write, self.abort, self.drop]
        while not self.done.is_set():
            self.turns += 1
            token = self.number * 10_000_000 + self.turns
            (deed,) = self.dice.choices(deeds, (40, 40, 15, 5))
            try:
                deed(token)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                self.ledger.counts["cut"] += 1
            except BaseException as error:
                self.ledger.wrong.append(f"{self.thread.name} in {deed.__name__}: {error!r}")
            self.done.wait(0.001)

    def ask(self, token: int) -> None:
        ask(self.pool, token)
        self.ledger.counts["asked"] += 1

    def write(self, token: int) -> None:
        conn = self.pool.getconnection(timeout=20.0)
        try:
            conn.cursor().execute(f"INSERT INTO {self.table} VALUES (%s)", (token,))
            self.ledger.unknown.add(token)
            conn.commit()
            self.ledger.committed.add(token)
            self.ledger.unknown.discard(token)
        finally:
            conn.close()
        self.ledger.counts["written"] += 1

    def abort(self, token: int) -> None:
        """Returned in the middle of a transaction: nothing of it may stay."""
        conn = self.pool.getconnection(timeout=20.0)
        try:
            conn.cursor().execute(f"INSERT INTO {self.table} VALUES (%s)", (-token,))
        finally:
            conn.close()
        self.ledger.counts["aborted"] += 1

    def drop(self, token: int) -> None:
        conn = self.pool.getconnection(timeout=20.0)
        conn.cursor().execute(f"INSERT INTO {self.table} VALUES (%s)", (-token,))
        self.ledger.counts["dropped"] += 1


def in_child(pool: NimueConnectionPool, base: int) -> int:
    for token in range(base, base + 5):
        ask(pool, token)
    return pool.poolstats().opened


class Mischief:
    """What happens to the pool meanwhile, one thing after the other, in the main thread."""

    def __init__(self, seed: int, pool: NimueConnectionPool, postgres: Postgres) -> None:
        self.dice = random.Random(seed)
        self.pool, self.postgres = pool, postgres
        self.counts: Counter[str] = Counter()

    def step(self) -> None:
        deeds = [self.terminate, self.fork, self.drain, self.resize]
        (deed,) = self.dice.choices(deeds, (50, 15, 15, 20))
        deed()
        self.counts[deed.__name__] += 1

    def terminate(self) -> None:
        sessions = self.postgres.sessions()
        many = self.dice.choice((1, 1, 1, len(sessions)))
        for session in self.dice.sample(sessions, min(many, len(sessions))):
            self.postgres.sql("SELECT pg_terminate_backend(%s)", session.pid)

    def fork(self) -> None:
        # Its own connections are its own: nobody terminates them, so it may hear of no error.
        leave = self.dice.choice(("os._exit", "sys.exit"))
        base = 900_000_000 + 10 * self.counts["fork"]
        child = Child(in_child, self.pool, base, leave=leave, expect_threads=True)
        # Of another thread, whose handle was dropped meanwhile.
        child._warnings = [w for w in child._warnings if w.category is not ResourceWarning]
        assert child.result() >= 1

    def drain(self) -> None:
        self.pool.drain()

    def resize(self) -> None:
        poolmax = self.dice.randint(2, 8)
        self.pool.poolmin = min(self.pool.poolmin, poolmax)
        self.pool.poolmax = poolmax
        self.pool.poolmin = self.dice.randint(0, poolmax)


@contextmanager
def table_of(postgres: Postgres) -> Iterator[str]:
    table = f"t_{postgres.name}"
    postgres.sql(f"CREATE TABLE {table} (i bigint)")
    yield table
    postgres.sql(f"DROP TABLE {table}")


def judge(ledger: Ledger, rows: list[Any]) -> None:
    found = Counter(row[0] for row in rows)
    twice = [token for token, times in found.items() if times > 1]
    missing = ledger.committed - found.keys()
    strange = found.keys() - ledger.committed - ledger.unknown
    assert (twice, sorted(missing), sorted(strange)) == ([], [], [])
    assert ledger.wrong == []


def soak(postgres: Postgres, table: str, seed: int) -> None:
    ledger = Ledger()
    pool = NimueConnectionPool(
        postgres.connector("psycopg2"),
        poolmin=2,
        poolmax=6,
        cleanup_interval=0.2,
        healthcheck_idle=0.05,
        idle_timeout=0.5,
        max_lifetime=2.0,
    )
    workers = [Worker(number, seed, pool, table, ledger) for number in range(THREADS)]
    mischief = Mischief(seed, pool, postgres)
    for worker in workers:
        worker.thread.start()
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            seen = [worker.turns for worker in workers]
            mischief.step()
            # Everybody has had turns since, whatever has been done to them.
            until(
                lambda seen=seen: all(
                    worker.turns > turns + 2 for worker, turns in zip(workers, seen, strict=True)
                )
            )
    finally:
        for worker in workers:
            worker.done.set()
        for worker in workers:
            worker.thread.join(30)
    stuck = [worker.thread.name for worker in workers if worker.thread.is_alive()]
    assert stuck == []
    gc.collect()
    until(lambda: (s := pool.poolstats()).poolused == s.checking == s.connecting == 0)
    stats = pool.poolstats()
    assert stats.poolsize <= stats.poolmax
    assert (stats.waiting, stats.timeouts) == (0, 0)
    assert stats.lost <= ledger.counts["dropped"] + ledger.counts["cut"]
    assert stats.lost >= ledger.counts["dropped"]
    # Both change while what was idle for too long is closed.
    until(lambda: len(postgres.sessions()) == pool.poolstats().poolsize)
    judge(ledger, postgres.sql(f"SELECT i FROM {table}"))
    for deed in ("asked", "written", "aborted", "dropped", "cut"):
        assert ledger.counts[deed], f"{deed}: never; {ledger.counts}"
    assert mischief.counts["fork"], mischief.counts
    pool.close(10)


@pytest.mark.server
@pytest.mark.filterwarnings("ignore:a connection of pool .* was dropped:ResourceWarning")
def test_soak(postgres: Postgres) -> None:
    seed = int(os.environ.get("NIMUE_SOAK_SEED") or random.randrange(1 << 32))
    postgres.sessions()  # the administrator's connection is there
    before, threads = descriptors(), threading.active_count()
    with table_of(postgres) as table:
        try:
            soak(postgres, table, seed)
        except BaseException:
            print(f"NIMUE_SOAK_SEED={seed}")
            raise
        postgres.expect_sessions(0)
    gc.collect()
    until(
        lambda: threading.active_count() <= threads + 1,  # the monitor may have come
        message=lambda: f"{threading.enumerate()}; NIMUE_SOAK_SEED={seed}",
    )
    after = descriptors()
    assert after - before == Counter(), f"left open; NIMUE_SOAK_SEED={seed}"


def test_the_judge_sees() -> None:
    """A row twice, a row missing, a row from nowhere, and nothing of the kind."""
    ledger = Ledger()
    ledger.committed, ledger.unknown = {1, 2}, {3}
    judge(ledger, [(1,), (2,)])
    judge(ledger, [(1,), (2,), (3,)])
    for rows in ([(1,), (1,), (2,)], [(1,)], [(1,), (2,), (-4,)]):
        with pytest.raises(AssertionError):
            judge(ledger, rows)
