"""What a pool tells about itself: figures, and errors that explain themselves."""

from __future__ import annotations

import threading
from math import inf
from typing import TYPE_CHECKING

from nimue.stats import NimueConnectionPoolStats

if TYPE_CHECKING:
    from nimue.entry import Entry
    from nimue.semaphore import Figures
    from nimue.state import State

#: Who holds a connection, for how many seconds, and the place where it was taken.
Fact = tuple[int, float, str]

#: How many of those who hold a connection are named in an error.
NAMED = 5


def stats(state: State) -> NimueConnectionPoolStats:
    """A snapshot of the pool in this process."""
    figures = state.figures
    with state.lock:
        size = len(state.entries) - len(state.connecting)
        checking = len(state.checking) + len(state.closing)
        free = len(state.idle)
        return NimueConnectionPoolStats(
            name=state.name,
            pid=state.pid,
            poolmin=state.settings.poolmin,
            poolmax=state.settings.poolmax,
            poolsize=size,
            poolused=size - free - checking,
            poolfree=free,
            checking=checking,
            connecting=len(state.connecting),
            waiting=len(state.waiters),
            opened=figures.opened,
            failed=figures.failed,
            closed=figures.closed,
            timeouts=figures.timeouts,
            lost=figures.lost,
            wait_seconds=figures.wait_seconds,
            longest_wait=figures.longest_wait,
            inherited=figures.inherited,
            severed=figures.severed,
            connections_cleaned_dead=figures.cleaned_dead,
            connections_cleaned_idle=figures.cleaned_idle,
            cleanup_cycles=figures.cycles,
            shed=figures.shed,
            refused=figures.refused,
        )


def figures(states: list[State], now: float) -> Figures:
    """What a process tells all others: its pools that share a limit, in one row."""
    from nimue.semaphore import Figures

    rows = [stats(state) for state in states]
    since = [began for state in states if (began := _longest_since(state)) is not None]
    return Figures(
        in_use=sum(row.poolused for row in rows),
        idle=sum(row.poolfree for row in rows),
        connecting=sum(row.connecting for row in rows),
        waiting=sum(row.waiting for row in rows),
        opened=sum(row.opened for row in rows),
        failed=sum(row.failed for row in rows),
        timeouts=sum(row.timeouts for row in rows),
        closed=sum(row.closed for row in rows),
        waited_ns=int(sum(row.wait_seconds for row in rows) * 1e9),
        longest_since_ns=int(max(0.0, min(since, default=0.0)) * 1e9),
        poolmin=sum(row.poolmin for row in rows),
        poolmax=sum(row.poolmax for row in rows),
        shed=sum(row.shed for row in rows),
        refused=sum(row.refused for row in rows),
        generation=max((state.generation for state in states), default=0),
        told_ns=int(now * 1e9),
    )


def _longest_since(state: State) -> float | None:
    with state.lock:
        return min((entry.since for entry in state.entries if entry.thread), default=None)


def shortage(state: State, now: float) -> str:
    """Which limit was hit, who waits, and who has held connections longest."""
    settings = state.settings
    with state.lock:
        held = _held_locked(state)
        total, waiting = len(state.entries), len(state.waiters)
        facts = [_fact(entry, now) for entry in held[:NAMED]]
        mine = [entry for entry in held if entry.was_taken_here()]
        unpermitted = sum(entry.busy_since == inf for entry in state.connecting)
        under_way = len(state.connecting) + len(state.checking) + len(state.closing) - unpermitted
        total -= unpermitted
    if total >= settings.poolmax:
        text = f"all {total} connections of poolmax={settings.poolmax} are taken"
    else:
        text = f"{total} of poolmax={settings.poolmax} connections exist"
    text += f" ({len(held)} in use, {under_way} being opened, checked or closed), {waiting} waiting"
    if unpermitted:
        text += f", for which {unpermitted} permits are waited for"
    text += _longest(facts)
    text += state.limit.told()
    if state.figures.refused:
        text += f"; the server refused {state.figures.refused} connections as one too many"
    if mine:
        text += (
            f"; this very thread holds {len(mine)} of them: a thread that waits for a second "
            "connection while it holds one can wait for itself"
        )
    return text


def outstanding(state: State, now: float) -> str:
    """How many connections other threads have still, and who has held them longest."""
    with state.lock:
        held = [entry for entry in _held_locked(state) if not entry.was_taken_here()]
        facts = [_fact(entry, now) for entry in held[:NAMED]]
    return f"{len(held)} of its connections are still out{_longest(facts)}"


def _held_locked(state: State) -> list[Entry]:
    """What is with holders; the longest held first."""
    return sorted((entry for entry in state.entries if entry.thread), key=lambda e: e.since)


def _fact(entry: Entry, now: float) -> Fact:
    return entry.thread, now - entry.since, entry.place()


def _longest(facts: list[Fact]) -> str:
    return "; held longest: " + ", ".join(_holder(*fact) for fact in facts) if facts else ""


def _holder(ident: int, seconds: float, place: str) -> str:
    """One holder: how long, who, and where it was taken."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    who = names.get(ident, f"thread {ident}, which has ended")
    return f"{seconds:.1f} s by {who} ({place})"
