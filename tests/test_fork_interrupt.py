"""Ctrl-C in the middle of a fork: in what the pool does before it, and after it in either process.

CPython tells of what a hook raises, and goes on. The parent must be as whole as after any other
fork, and the child a child. Each call in the hooks is interrupted once, by each way that leads
there; see ``Blow`` for where CPython looks for signals.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType

import pytest

from nimue import (
    NimueConnectionPool,
    NimueInheritedConnectionError,
    fork,
    monitor,
    opener,
    upkeep,
)
from nimue.process import forget_gone
from nimue.state import State
from tests.children import Child
from tests.fakes import FakeServer, spawn, until
from tests.test_interrupt import HOME, Blow, make, whole


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


@pytest.fixture(autouse=True)
def _told(monkeypatch: pytest.MonkeyPatch):
    """What CPython tells of hooks: that they were interrupted, and nothing else."""
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: told.append(repr(seen.exc_value)))
    yield
    assert set(told) == {"KeyboardInterrupt()"}


@pytest.mark.parametrize("scene", [in_use, at_rest, awaited, limited])
def test_anywhere(socket_server: FakeServer, scene) -> None:
    n, landed = 0, True
    while landed:
        n += 1
        landed = interrupt(socket_server, scene, n)
    assert n > 50


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


class BlowAt(Blow):
    """Raises as a function of this name, anywhere in nimue, is entered, or has returned."""

    def __init__(self, name: str, event: str = "call") -> None:
        super().__init__("calls", 1, KeyboardInterrupt)
        self._name, self._event = name, event

    def _call(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        is_ours = code.co_filename.startswith(HOME)
        if is_ours and event == self._event and code.co_name == self._name:
            self._count(frame, event)


def fork_at(name: str, event: str = "call") -> None:
    blow = BlowAt(name, event)
    Child(lambda: None, fork=lambda: forked(blow)).result()
    assert blow.landed, name


def test_two_forks_one_after_the_other(server: FakeServer) -> None:
    """What is interrupted after one is not missed after the next."""
    pool = make(server)
    for name in ("_make_sure", "_after_in_parent", "_make_sure", "_take_back", "make_up"):
        fork_at(name)
        assert not fork.is_near(), name
    pool.getconnection().close()
    whole(pool, server, 2)
    Child(lambda: None).result()
    assert not fork._here.gate._forks
    pool.close()


def test_both_hooks_after_it(server: FakeServer, monkeypatch) -> None:
    """Nobody opens the gate again; after as long as a fork may take, it does not count as shut."""
    pool = make(server)
    take_back, cut = fork._take_back, []

    def interrupted(under_way: fork.Fork) -> None:
        if len(cut) < 2:
            cut.append(under_way)
            raise KeyboardInterrupt
        take_back(under_way)

    monkeypatch.setattr(fork, "_take_back", interrupted)
    monkeypatch.setattr(fork, "PATIENCE", 60.0)
    Child(lambda: None, expect_threads=True).result()
    assert fork.is_near()
    assert cut[0] is cut[1]
    cut[0].deadline -= 2 * fork.PATIENCE
    assert not fork.is_near()
    Child(lambda: None, expect_threads=True).result()
    assert not fork._here.gate._forks
    pool.getconnection(timeout=10).close()
    whole(pool, server, 2)
    pool.close()


def test_what_was_planned_before_it_and_done_meanwhile(server: FakeServer, monkeypatch) -> None:
    """A background thread takes over from the one that forks, and that from it: then it is out."""
    server.allow.add("closed")
    pool = make(server, poolmin=1, poolmax=1)
    pool.getconnection().close()
    state, take_over, close = pool._state, State.take_over, upkeep._close

    def late(self: State, entry, planner: int) -> bool:
        monkeypatch.setattr(State, "take_over", take_over)
        until(fork.is_near)
        return take_over(self, entry, planner)

    def interrupted(*args) -> None:
        close(*args)
        if threading.current_thread() is threading.main_thread():
            monkeypatch.setattr(upkeep, "_close", close)
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "take_over", late)
    monkeypatch.setattr(upkeep, "_close", interrupted)
    with state.lock:
        work = state.inspect_locked(state.idle.take()[2])
    opener.start(state, [work])
    Child(lambda: None, expect_threads=True).result()
    pool.getconnection(timeout=10).close()
    whole(pool, server, 1)
    pool.close()


class Member:
    """Is told of forks after whoever has joined before, and does as it is told."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare
        fork.join(self)

    def before_fork(self, fork: fork.Fork) -> bool:
        self._prepare()
        return False

    def fork_is_over(self, fork: fork.Fork, cut_short: bool) -> None: ...
    def sever(self, forker: int | None) -> None: ...
    def settle_in_child(self, forker: int | None) -> None: ...


def test_what_outer_frames_have_in_hand_stays_there(server: FakeServer) -> None:
    """A callback forks: what the pool has given it is not to be closed under its hands."""
    seen = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    def on_return(raw) -> None:
        last = Member(interrupt)
        Child(lambda: None, expect_threads=True).result()
        del last
        seen.append((list(pool._state.closing), raw.closed))

    pool = make(server, on_return=on_return)
    pool.getconnection().close()
    assert seen == [([], 0)]
    pool._state.settings = pool._state.settings._replace(on_return=None)
    whole(pool, server, 2)
    pool.close()


def test_a_childs_fork_has_nothing_to_do_with_its_parents_pool(server: FakeServer) -> None:
    """A handle keeps that alive, with a lock that nobody may be left to free."""
    pool = make(server)
    held = pool.getconnection()
    parents = pool._state

    def in_child() -> int:
        pool.getconnection().close()
        locked, over = threading.Event(), threading.Event()

        def hold() -> None:
            with parents.lock:
                locked.set()
                over.wait(20)

        holder = spawn(hold)
        assert locked.wait(10)
        fork_at("_living", "return")
        over.set()
        holder.result()
        return len(parents.entries)

    assert Child(in_child, timeout=15).result() == 0
    Child(lambda: None, fork=lambda: forked(BlowAt("_before"))).result()
    held.close()
    pool.close()
