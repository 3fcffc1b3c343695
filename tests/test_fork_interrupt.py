"""Ctrl-C in the middle of a fork: in what the pool does before it, and after it in either process.

CPython tells of what a hook raises, and goes on. The parent must be as whole as after any other
fork, and the child a child. Each place that the hooks come by is interrupted once, by each way
that leads there; see ``Blow`` for where CPython looks for signals.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from types import FrameType

import pytest

from nimue import NimueConnectionPool, NimueInheritedConnectionError, fork, monitor
from nimue.process import forget_gone
from tests.children import Child
from tests.fakes import FakeServer, spawn, until
from tests.test_interrupt import Blow, make, whole

pytestmark = pytest.mark.filterwarnings("ignore:.*KeyboardInterrupt")


class BlowOnce(Blow):
    """Counts each place once for each that calls it: to wait is to come by again and again."""

    def __init__(self, n: int) -> None:
        super().__init__("calls", n, KeyboardInterrupt)
        self._seen: set[object] = set()

    def _count(self, frame: FrameType, event: str) -> None:
        caller = frame.f_back
        place = (frame.f_code, frame.f_lasti, event, caller and (caller.f_code, caller.f_lasti))
        if place not in self._seen:
            self._seen.add(place)
            super()._count(frame, event)


def forked(blow: Blow) -> int:
    with warnings.catch_warnings():
        # The hook that would have ended the monitor's thread may be what is interrupted.
        warnings.simplefilter("ignore", DeprecationWarning)
        with blow:
            return os.fork()


def in_use(server: FakeServer, **settings: object) -> tuple[NimueConnectionPool, list, Callable]:
    """One is with a holder, one idle."""
    pool = make(server, **settings)
    held = [pool.getconnection()]
    return pool, held, lambda: None


def at_rest(server: FakeServer) -> tuple[NimueConnectionPool, list, Callable]:
    """All are idle, and go before the fork."""
    pool = make(server)
    pool.getconnection().close()
    return pool, [], lambda: None


def awaited(server: FakeServer) -> tuple[NimueConnectionPool, list, Callable]:
    """A thread waits, and is to be served after the fork."""
    pool = make(server)
    held = [pool.getconnection() for _ in range(2)]
    waiting = spawn(lambda: pool.getconnection(timeout=10).close())
    until(lambda: pool._state.waiters)
    return pool, held, waiting.result


def limited(server: FakeServer) -> tuple[NimueConnectionPool, list, Callable]:
    """Under a limit of all processes, whose permits are not to be lost."""
    return in_use(server, totalmax=2)


def lives(pool: NimueConnectionPool, held: list) -> bool:
    """For the child: what it inherits is refused, and the pool is one like any other."""
    for conn in held:
        with pytest.raises(NimueInheritedConnectionError):
            conn.cursor()
    pool.getconnection(timeout=10).close()
    return monitor.here.is_alive


@pytest.mark.parametrize("scene", [in_use, at_rest, awaited, limited])
def test_anywhere(socket_server: FakeServer, monkeypatch: pytest.MonkeyPatch, scene) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: told.append(repr(seen.exc_value)))
    n, landed = 0, True
    while landed:
        n += 1
        landed = interrupt(socket_server, scene, n)
    assert n > 50
    assert set(told) == {"KeyboardInterrupt()"}


def interrupt(server: FakeServer, scene, n: int) -> bool:
    """Fork, interrupted at the ``n``-th place; whether there was one, in either process."""
    pool, held, end = scene(server)
    until(lambda: forget_gone(pool._state.crew) or not pool._state.crew)
    blow = BlowOnce(n)
    child = Child(lambda: (lives(pool, held), blow.landed), fork=lambda: forked(blow))
    print(n, blow.landed)  # told of a failure
    is_alive, landed_there = child.result()
    assert is_alive, landed_there
    assert not fork.is_near(), f"the gate is shut since {blow.landed}"
    bequest = pool._state.bequest
    assert bequest is None or not bequest.entries, blow.landed
    for conn in held:
        conn.close()
    end()
    pool.getconnection(timeout=10).close()  # the monitor runs again from here
    assert monitor.here.is_alive, blow.landed
    whole(pool, server, 2)
    pool.close(10)
    return bool(blow.landed or landed_there)
