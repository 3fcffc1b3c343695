"""What a pool does about a fork: the parent before it, the child after it.

The rule for the child: sever first, by system calls alone, and at once; then, on first use,
replace the state, lock and all, and let go of what can be let go of. What another thread of the
parent was using at the fork is never given to the driver again, for the driver's own lock may be
held for ever; it is kept from finalisation instead.
"""

from __future__ import annotations

import os
import threading
import time
from _thread import get_ident
from array import array
from itertools import chain
from typing import TYPE_CHECKING

from nimue import claims, upkeep
from nimue.connection import Refusal
from nimue.error import NimueError, NimueInheritedConnectionError
from nimue.fork import put_off
from nimue.process import NO_SOCKET, await_end, forget_gone, immortalise, open_void, sever

if TYPE_CHECKING:
    from nimue.entry import Entry
    from nimue.fork import Fork
    from nimue.state import State
    from nimue.work import Work


class Bequest:
    """What a child would inherit, made ready by the parent: those in use first, then the idle.

    A child copies each page of memory that it touches, and to look at an object is to touch it. So
    the numbers of all sockets stand in one block, and of the entries it need not look at any that
    lies idle.
    """

    __slots__ = ("entries", "numbers", "of", "out", "severed")

    def __init__(self, state: State) -> None:
        self.of = _age(state)
        idle = {entry for _, _, entry in state.idle}
        in_use = [entry for entry in list(state.entries) if entry not in idle]
        self.entries = [entry for entry in in_use if entry.raw is not None]
        self.out = len(self.entries)
        self.entries += idle
        sockets = (entry.socket or NO_SOCKET for entry in self.entries)
        self.numbers = array("Q", chain.from_iterable(sockets))
        self.severed = bytearray(len(self.entries))

    def sever(self) -> None:
        """Cut this process off from all that still are what they were."""
        try:
            void = open_void()
        except OSError:  # no descriptor left: everything becomes immortal instead
            return
        try:
            sever(self.numbers, self.severed, void)
        finally:
            os.close(void)


def _age(state: State) -> tuple[int, int]:
    """How many connections the pool has begun to open so far, and how many it has opened."""
    return state.figures.births, state.figures.opened


def before_fork(state: State, fork: Fork) -> bool:
    """Let background threads end, and go dormant if nothing is in use; True if a child inherits.

    A dormant pool has no connection that a child could inherit; its next acquire wakes it. While
    somebody waits, the background threads are left alone: they are needed, and a process with
    waiting threads forks with threads anyway.
    """
    if state.pid != os.getpid():  # an ancestor's, that somebody's handle keeps alive
        return False
    state.bequest = None
    me, deadline = get_ident(), fork.deadline
    if not (state.entries or state.crew or state.waiters):
        return False
    # One that ends may have started another for what follows from its work.
    while (crew := _others(state)) and not state.waiters and time.monotonic() < deadline:
        await_end(crew, deadline)
        forget_gone(state.crew)
    if state.waiters or state.leavers:
        put_off(state.wake)
    if state.is_inside:  # a signal handler forks, and its own thread is inside the lock
        return True
    try:
        if not state.lock.acquire(timeout=max(0.01, deadline - time.monotonic())):
            return True
        in_use = len(state.entries) > len(state.idle) or state.waiters
        driver = state.known_driver
        keeps = not (driver is not None and driver.close_before_fork)
        # Under a limit of all processes the idle ones are let go: no thread is left to hear who
        # asks for them.
        if in_use and keeps and not state.limit.is_shared:
            state.bequest = Bequest(state)
            return bool(state.entries)
        # From here on something is taken out of its place; not what the thread has in hand already.
        fork.spared[state] = [entry for entry in state.entries if entry.worker == me]
        works = _doze_locked(state)
    finally:
        # It is not had if the time was up, or if Ctrl-C came before.
        try:
            state.lock.release()
        except RuntimeError:
            pass
    upkeep.close_all(state, works)
    state.limit.rest(state)
    # Who leaves nothing is not told that the fork is over; the next may come without a word.
    state.bequest = Bequest(state) if state.entries else None
    return state.bequest is not None


def fork_is_over(state: State, fork: Fork, cut_short: bool) -> None:
    """In the parent: forget what was made ready, and mend it if it was cut short."""
    if state.pid != os.getpid():
        return
    state.bequest = None
    if not cut_short:
        return
    if state in fork.spared:
        claims.mend(state, fork.spared[state])
    if state.entries or state.waiters:
        # The monitor learns of what was just taken out, and hears what others want.
        put_off(state.wake)


def doze(state: State) -> None:
    """Go dormant as before a fork, where forks come that no hook tells of."""
    try:
        with state.lock:
            works = _doze_locked(state)
        upkeep.close_all(state, works)
        state.limit.rest(state)
    except BaseException:
        claims.mend(state)
        raise


def _doze_locked(state: State) -> list[Work]:
    state.refilling = False
    state.next_cycle = 0.0
    return state.take_idle_where_locked(lambda entry: True)


def _others(state: State) -> list[threading.Thread]:
    """The pool's background threads that are on their way, but for the one that forks."""
    me = threading.current_thread()
    return [thread for thread in list(state.crew) if thread is not me and thread.ident is not None]


def sever_in_child(state: State, forker: int | None) -> None:
    """Cut every inherited connection off, and deal with those that were in use.

    Those are refused from now on, whoever holds them. The rest lies idle in a state that nobody
    uses any more, and harms nobody until that is replaced; unless it could not be severed. Takes
    no lock of the parent's.
    """
    here = os.getpid()
    if here in (state.pid, state.severed_in):
        return
    bequest = state.bequest
    if bequest is None or bequest.of != _age(state):  # a fork that was held up, and others were not
        bequest = state.bequest = Bequest(state)
    bequest.sever()
    # From now on the figures of this state are those that the next one begins with.
    state.figures.inherited = len(bequest.entries)
    state.figures.severed = sum(bequest.severed)
    state.poison = state.poison or _poison(state, bequest.out)
    for entry, is_severed in zip(bequest.entries[: bequest.out], bequest.severed, strict=False):
        mine = (
            forker is not None
            and entry.was_taken_here()
            and not entry.caller
            and entry not in state.checking
            and entry not in state.closing
        )
        _part_with(state, entry, mine and bool(is_severed))
    if not all(bequest.severed):
        _part_with_idle(state, bequest)
    state.severed_in = here  # last: what is cut short is done again


def settle_in_child(state: State, forker: int | None) -> None:
    """Give the pool a new state, then let go of what lay idle in the old one."""
    if state.pid == os.getpid():
        return
    sever_in_child(state, forker)
    old = state.figures
    pool = state.pool()
    if pool is not None and pool._state is state:
        fresh = type(state)(state.name, state.settings, state.known_driver, pool, state.limit)
        fresh.is_shut, fresh.calm = state.is_shut, not state.is_shut
        fresh.generation = state.generation
        fresh.poison, fresh.verbose = state.poison, state.verbose
        fresh.apply(state.settings)
        fresh.figures.inherited, fresh.figures.severed = old.inherited, old.severed
        if old.inherited:
            fresh.news.append(
                f"process {fresh.pid} inherited {old.inherited} connections of process "
                f"{state.pid} and severed {old.severed}"
            )
        pool._state = fresh
    if state.bequest is not None:
        _part_with_idle(state, state.bequest)
    for entry in list(state.entries):  # opened after the fork was prepared
        _part_with(state, entry, False)
    state.idle.clear()
    state.waiters.clear()
    state.limit.part(state)


def _part_with_idle(state: State, bequest: Bequest) -> None:
    """Let go of what lay idle: at the fork, not a moment before when that was prepared."""
    idle = {entry for _, _, entry in state.idle}
    for entry, is_severed in zip(bequest.entries, bequest.severed, strict=True):
        if entry.state is state:
            can_let_go = bool(is_severed) or _is_file_at_rest(state, entry)
            _part_with(state, entry, can_let_go and entry in idle)


def _part_with(state: State, entry: Entry, can_let_go: bool) -> None:
    """Refuse all use of an inherited connection, and free it, or else keep it for ever."""
    state.entries.discard(entry)
    raw = entry.raw
    if raw is not None and not can_let_go:
        immortalise(raw)  # before anything that Ctrl-C could cut short has let go of it
    entry.raw, entry.state, entry.watch = _refusal(state), None, None
    if can_let_go and raw is not None:
        try:
            state.driver.discard(raw)
        except Exception:
            immortalise(raw)


def _is_file_at_rest(state: State, entry: Entry) -> bool:
    """A database in a file has no server to be cut off from.

    Closing it is safe while no transaction is open, and needed before another can be opened.
    """
    driver = state.driver
    return driver.close_before_fork and driver.in_transaction(entry.raw) is False


def _poison(state: State, in_use: int) -> NimueError | None:
    """Why this process must not open connections of its own, if it must not."""
    driver = state.known_driver
    if driver is None or not in_use:
        return None
    reason = driver.poisons()
    if reason is None:
        return None
    return NimueInheritedConnectionError(
        f"pool {state.name!r} cannot be used in process {os.getpid()}: when it was forked from "
        f"process {state.pid}, {in_use} of the pool's connections were in use there, and "
        f"{reason}"
    )


def _refusal(state: State) -> Refusal:
    origin = state.pid

    def make_error() -> NimueInheritedConnectionError:
        return NimueInheritedConnectionError(
            f"this connection belongs to process {origin}; process {os.getpid()}, forked from it, "
            "must not use it: acquire one from the pool in this process instead"
        )

    return Refusal(make_error)
