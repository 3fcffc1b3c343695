"""What the tests of forks have in common: pools over the fake server, and what they are asked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from nimue import NimueConnectionPool
from tests import children
from tests.fakes import FakeDriver, FakeServer, until

#: What a child is to find at its finalisation, and no frame of a test keeps.
kept: dict[str, Any] = {}


def make_pool(server: FakeServer, **options: Any) -> NimueConnectionPool:
    options = {"poolmin": 0, "poolmax": 5, "driver": FakeDriver(), **options}
    return NimueConnectionPool(server.connect, **options)


def ask(handle: Any, word: str = "word") -> bool:
    """A whole transaction, and whether the answer is right."""
    with handle.cursor() as cursor:
        cursor.execute("select ?", [word])
        answer = cursor.fetchall()
    handle.commit()
    return bool(answer == [(word,)])


def serves(pool: NimueConnectionPool, timeout: float = 10) -> int:
    """The serial number of a connection of this process's own, which answers."""
    handle = pool.getconnection(timeout=timeout)
    assert handle.raw._session.pid == os.getpid()
    assert ask(handle)
    serial: int = handle.serial
    handle.close()
    return serial


def said(server: FakeServer) -> list[bytes]:
    """All that has come over each socket, from whatever process, when nothing is under way."""
    until(_others_rest)
    return [session.received() for session in server.sessions]


def end(pool: NimueConnectionPool) -> None:
    """Close the pool, and wait for what it has under way in the background."""
    pool.close(timeout=10)
    until(lambda: not any(thread.is_alive() for thread in list(pool._state.crew)))


def nimue_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nimue")]


def c_child(fn: Callable[..., Any], *args: Any, **options: Any) -> children.Child:
    """As in ``children``, once every other thread of this process rests.

    The interpreter's own lock does not survive a C fork at which a thread waits for it, whatever
    a pool does. Servers that fork so do it while nothing else runs.
    """
    options.pop("expect_threads", None)
    return children.Child(fn, *args, fork=_fork_at_rest, **options)


def c_forked(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return c_child(fn, *args, **options).result()


def _fork_at_rest() -> int:
    until(_others_rest)
    return children.c_fork()


def _others_rest() -> bool:
    """Nobody ran, or wanted to, while this thread slept and the interpreter's lock was free."""
    before = _activity()
    time.sleep(0.012)
    after = _activity()
    return after == before and all(state in ("sleeping", "ended") for state, _ in after.values())


def _activity() -> dict[str, tuple[str, str]]:
    """Of each other thread its state, and how often it has begun and ceased to run."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        if int(task) != threading.get_native_id():
            try:
                with open(f"/proc/self/task/{task}/status") as file:
                    text = file.read()
            except OSError:
                found[task] = "ended", ""
            else:
                state = text.partition("\nState:")[2].partition("(")[2].partition(")")[0]
                found[task] = state, text.partition("\nvoluntary_ctxt_switches:")[2]
    return found


def forked(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """As in ``children``, in a test that has threads of its own."""
    return children.forked(fn, *args, expect_threads=True, **options)
