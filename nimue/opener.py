"""Background threads that connect, check and close: none while there is nothing to do.

A caller never runs ``connect()`` or a health check itself: its timeout could not be kept when the
server's host does not answer. Each thread here does one piece of work and what follows from it,
and ends.
"""

from __future__ import annotations

import logging
import threading
from _thread import get_ident
from time import monotonic
from typing import TYPE_CHECKING

from nimue import outcome, process, upkeep
from nimue.sweep import next_suspect
from nimue.work import Task, Work

if TYPE_CHECKING:
    from nimue.state import State

logger = logging.getLogger("nimue")

#: Threads stay in ``crew`` until they have been seen gone, for a fork has to wait for that; beyond
#: so many they are looked at.
CROWD = 16


def start(state: State, works: list[Work]) -> None:
    """Have all of it done in the background."""
    for work in works:
        if len(state.crew) > CROWD:
            process.forget_gone(state.crew)
        thread = threading.Thread(
            target=_labour, args=(state, work, get_ident()), name=f"nimue-{work.task.value}"
        )
        thread.daemon = True
        state.crew.add(thread)
        try:
            process.start(thread)
        except Exception as error:
            state.crew.discard(thread)
            start(state, _decline(state, work, error))


def fill(state: State, wanted: int) -> None:
    """Open so many, one after the other, in this thread: for the pool's constructor.

    Fewer, if there are no permits for more, or no room for them at the server: nobody is made to
    wait for what nobody has asked for.
    """
    for have in range(wanted):
        with state.lock:
            entry = state.birth_locked(monotonic())
        try:
            permitted = upkeep.open_for(state, entry, False)
        except Exception as error:
            if not upkeep.is_full(state, error):
                raise
            run(state, upkeep.connect_failed(state, entry, error))
            told = "pool %r: %d of %d connections: the server refused more, below totalmax"
            logger.warning(told, state.name, have, wanted)
            break
        outcome_of = outcome.arrived if permitted else outcome.went_without
        run(state, outcome_of(state, entry, monotonic()))
        if not permitted:
            logger.info("pool %r: %d of %d connections: no more permits", state.name, have, wanted)
            break
    state.limit.tell(state)


def run(state: State, works: list[Work]) -> None:
    """Close what is to be closed in this thread, and have the rest done in the background."""
    while works:
        work = works.pop(0)
        if work.task is Task.CLOSE:
            works += _do(state, work)
        else:
            start(state, [work])


def _labour(state: State, work: Work | None, planner: int) -> None:
    from nimue.claims import mend

    while work is not None:
        if work.entry is not None and not state.take_over(work.entry, planner):
            return
        planner = get_ident()
        try:
            works = _do(state, work)
            state.limit.tell(state)
        except BaseException:
            # Of the user's code or the driver's; there is nobody to tell but the log.
            logger.exception("pool %r: %s failed", state.name, work.task.value)
            if work.task is Task.CLOSE and work.entry is not None:
                upkeep.bury(state, work.entry)
            mend(state)
            works = []
        work = works.pop() if works else None
        start(state, works)
    state.limit.leave(state)


def _do(state: State, work: Work) -> list[Work]:
    if work.entry is None:
        return _patrol(state)
    if work.task is Task.CONNECT:
        if state.makes_way:
            upkeep.bury(state, work.entry)
            return []
        return upkeep.connect(state, work.entry)
    if work.task is Task.CHECK:
        return upkeep.check(state, work.entry)
    if work.task is Task.TIDY:
        return upkeep.tidy(state, work.entry)
    return upkeep.close(state, work.entry)


def _patrol(state: State) -> list[Work]:
    """Check the idle entries one after the other; each can be acquired until its turn comes."""
    before = monotonic()
    while (entry := next_suspect(state, before)) is not None:
        start(state, upkeep.check(state, entry))
    return []


def _decline(state: State, work: Work, error: BaseException) -> list[Work]:
    """No thread could be had, or it failed: nothing may be left in nobody's hands."""
    entry = work.entry
    if entry is None:
        return []
    if work.task is Task.CONNECT:
        return upkeep.connect_failed(state, entry, error)
    return upkeep.close(state, entry)
