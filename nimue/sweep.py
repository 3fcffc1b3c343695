"""What the monitor decides. A function of the time: it returns the work and the next wake-up."""

from __future__ import annotations

import logging
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from nimue.work import CHECK_STUCK, CONNECT_STUCK, Task, Work

if TYPE_CHECKING:
    from nimue.entry import Entry
    from nimue.state import State

logger = logging.getLogger("nimue")

#: With nothing to do, the next look, in seconds from now.
LEISURE = 3600.0


def sweep(state: State, now: float) -> tuple[list[Work], float]:
    """Look after one pool at the time ``now``.

    Returns what is to be done in the background, and the time of the next look. The only output is
    to the log.
    """
    cycle = now >= state.next_cycle
    if cycle:
        state.look_at_logging()
    news, state.news = state.news, []
    for message in news:
        logger.info("pool %r: %s", state.name, message)
    with state.lock:
        if state.is_shut:
            return [], now + LEISURE
        if cycle or now >= state.next_drop:
            _ask_for_dropped_locked(state)
        works = _cycle_locked(state, now) if cycle else []
        works += state.plan_locked(now)
        leaks, leak_at = _leaks_locked(state, now)
        next_times = state.next_cycle, state.next_drop, leak_at, look_again_at_locked(state, now)
        wake_at = min(next_times)
        state.next_look = wake_at
    for entry in leaks:
        with suppress(Exception):  # a log's filter may raise, and the works must not be lost
            _report_leak(state, entry, now)
    return works, wake_at


def look_again_at_locked(state: State, now: float) -> float:
    """When the plan may change for those who wait, though nothing happens till then."""
    times = [state.backoff.retry_at]
    if state.waiters:
        times += [entry.busy_since + CHECK_STUCK for entry in state.checking]
        times += [entry.busy_since + CONNECT_STUCK for entry in state.connecting]
    elif not state.refilling:
        return now + LEISURE
    return min((moment for moment in times if moment > now), default=now + LEISURE)


def _ask_for_dropped_locked(state: State) -> None:
    """Have word sent again of what was dropped; an interrupt may have cut it short before."""
    state.next_drop = inf
    for entry in state.entries:
        if entry.watch is not None and entry.watch() is None:
            state.post(entry.watch)


def _cycle_locked(state: State, now: float) -> list[Work]:
    """One round of ``cleanup_interval``: retire, have the idle ones checked, refill."""
    settings = state.settings
    state.next_cycle = now + settings.cleanup_interval
    state.figures.cycles += 1
    for entry in state.entries:
        if entry.retire_at <= now:
            entry.soiled = True
    works = state.take_idle_where_locked(lambda entry: entry.retire_at <= now)
    living = len(state.entries) - len(state.closing)
    surplus = living - settings.poolmax
    spare = living - settings.poolmin

    # `idle` is in the order of last use: the longest unused go first.
    def overdue(entry: Entry) -> bool:
        nonlocal surplus, spare
        if surplus <= 0 and (spare <= 0 or now - entry.since < settings.idle_timeout):
            return False
        surplus -= 1
        spare -= 1
        return True

    idle = state.take_idle_where_locked(overdue)
    state.figures.cleaned_idle += len(idle)
    works += idle
    # Not in a process that has never used the pool, as one that was sent a copy of it.
    state.refilling = state.refilling or state.figures.births > 0
    if state.idle:
        works.append(Work(Task.PATROL))
    return works


def _leaks_locked(state: State, now: float) -> tuple[list[Entry], float]:
    """Entries newly out for longer than ``leak_timeout``, and when to look again."""
    limit = state.settings.leak_timeout
    if limit is None:
        for entry in state.entries:  # else a later report could show an older holder's stack
            entry.stack = None
        return [], now + LEISURE
    leaks = []
    for entry in state.entries:
        if entry.thread and not entry.leaked and now - entry.since >= limit:
            entry.leaked = entry.soiled = True
            leaks.append(entry)
    return leaks, now + limit / 2


def _report_leak(state: State, entry: Entry, now: float) -> None:
    logger.warning(
        "pool %r: connection %d has been out for %.1f s; it was taken at %s\n%s",
        state.name,
        entry.number,
        now - entry.since,
        entry.place(),
        "".join(entry.stack.format()) if entry.stack else "",
    )


def suspect(state: State) -> list[Work]:
    """A connection was found broken: the idle ones are older, so have them checked."""
    with state.lock:
        for _, _, entry in state.idle:
            entry.since = -1.0
        return [Work(Task.PATROL)] if state.idle and not state.is_shut else []


def next_suspect(state: State, before: float) -> Entry | None:
    """The idle entry longest unused of those not checked since ``before``; now it is being."""
    with state.lock:
        for spare in state.idle:
            if spare[2].checked < before and state.idle.unshelve(spare):
                return state.inspect_locked(spare[2]).entry
        return None
