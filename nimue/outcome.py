"""What came of the work, told to the state: each answers with what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimue import sharing

if TYPE_CHECKING:
    from nimue.entry import Entry
    from nimue.semaphore import Demand
    from nimue.state import State
    from nimue.work import Work


def arrived(state: State, entry: Entry, now: float) -> list[Work]:
    """``entry`` is connected: to a waiter, or idle; or closed if it comes too late."""
    with state.lock:
        state.checking.add(entry)
        state.connecting.discard(entry)
        state.figures.opened += 1
        state.backoff.succeeded()
        entry.since = entry.checked = now
        entry.soiled = state.soil
        is_current = entry.generation == state.generation
        entry.retire_at = now + (state.settings.lifetime() if is_current else 0.0)
        return state.settle_locked(entry, now)


def failed_to_connect(
    state: State, entry: Entry, error: BaseException, now: float, full: bool = False
) -> list[Work]:
    """``connect()`` failed: tell the waiters if nothing else can serve them, and back off.

    If the server was ``full``, another process's connection may still make room for them.
    """
    with state.lock:
        state.death_locked(entry)
        state.figures.failed += 1
        state.backoff.failed(error, now)
        state.figures.refused += full
        state.refilling = False
        if not state.entries and not full:
            state.waiters.fail_all(lambda: error)
        works = state.plan_locked(now)
    state.post(None)
    return works


def went_without(state: State, entry: Entry, now: float) -> list[Work]:
    """There was no permit for ``entry``, or nobody who waits for it any more."""
    with state.lock:
        state.death_locked(entry)
        state.refilling = False
        works = state.plan_locked(now)
    if state.is_shut:
        state.post(None)
    return works


def returned(
    state: State, entry: Entry, fit: bool, now: float, demand: Demand | None = None
) -> list[Work]:
    """A release is done with ``entry``: it goes on, or is to be closed."""
    with state.lock:
        if entry not in state.checking:  # taken for a dead thread's, and closed
            return []
        entry.thread = 0
        if demand is not None:
            entry.rested = now
        if fit and sharing.must_yield_locked(state, entry, now, demand):
            return sharing.yield_locked(state, entry, now)
        return state.settle_locked(entry, now) if fit else state.condemn_locked(entry)


def checked(state: State, entry: Entry, fit: bool, now: float) -> list[Work]:
    """A health check is done with ``entry``."""
    with state.lock:
        entry.checked = now
        if not fit:
            state.figures.cleaned_dead += 1
            return state.condemn_locked(entry)
        if entry.since < 0.0:  # it was under suspicion
            entry.since = now
        return state.settle_locked(entry, now)


def closed_down(state: State, entry: Entry, now: float) -> list[Work]:
    """``entry`` is closed, or as closed as it will be."""
    with state.lock:
        state.death_locked(entry)
        state.figures.closed += 1
        works = state.plan_locked(now)
    if state.is_shut:
        state.post(None)
    return works
