"""A thousand forks under load: no wrong answer, no child that hangs, no session that stays."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import warnings

import pytest

from nimue import NimueConnectionPool
from tests.children import Child, in_script
from tests.fakes import spawn

FORKS = 1000
AT_ONCE = 8
#: The interpreter's finalisation takes longer than all the rest.
LEAVES = ["os._exit", signal.SIGKILL, "os._exit", signal.SIGTERM] * 10 + ["sys.exit"]


def token(conn, word):
    cursor = conn.cursor()
    cursor.execute("select %s", (word,))
    ((answer,),) = cursor.fetchall()
    cursor.close()
    assert answer == word, f"asked for {word}, got {answer}"


def child(pool, serial, handle):
    """A few queries on connections of its own; says how many answers were right."""
    for n in range(2):
        with pool.connection(timeout=15) as conn:
            token(conn, f"child {serial} {os.getpid()} {n}")
            if n:
                token(conn, f"child {serial} {os.getpid()} again")
    if handle is not None:
        handle.close()
    return 3


class Load:
    """Threads of the parent that acquire, ask and release all the while."""

    def __init__(self, pool, threads):
        self.pool = pool
        self.answers = 0
        self.stop = threading.Event()
        self._numbers = itertools.count()
        self._threads = [spawn(self._work) for _ in range(threads)]

    def _work(self):
        while not self.stop.is_set():
            with self.pool.connection(timeout=15) as conn:
                for _ in range(3):
                    word = f"parent {next(self._numbers)}"
                    token(conn, word)
                    self.answers += 1
                    # Some time between a query and the next, as an application has it.
                    self.stop.wait(0.002)

    def end(self):
        self.stop.set()
        for thread in self._threads:
            thread.result(30)


def storm(connector):
    """The right answers of the children and of the load, and how the pool is at the end."""
    pool = NimueConnectionPool(connector, poolmin=1, poolmax=3, timeout=15)
    load = Load(pool, 3)
    serials = itertools.count()
    leaves = itertools.cycle(LEAVES)
    answers = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(FORKS // AT_ONCE):
            # The forking thread itself holds one at each second batch.
            mine = pool.getconnection() if next(serials) % 2 else None
            batch = [
                Child(
                    child,
                    pool,
                    next(serials),
                    mine,
                    leave=next(leaves),
                    expect_threads=True,
                    timeout=30,
                )
                for _ in range(AT_ONCE)
            ]
            if mine is not None:
                token(mine, "mine")
                mine.rollback()
                mine.close()
            answers += sum(one.result() for one in batch)
    load.end()
    stats = pool.poolstats()
    pool.close()
    return answers, load.answers, stats


@pytest.mark.server
def test_a_thousand_forks_under_load(postgres):
    # In a process of its own: what a fork costs is the size of its parent, and this one is large.
    answers, loads, stats = in_script(storm, postgres.connector("psycopg2"), timeout=300)
    assert answers == 3 * FORKS
    assert loads > FORKS / 10
    assert stats.timeouts == 0
    postgres.expect_sessions(0)
