"""What a process gives up for others that wait, and when it does."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimue.entry import Entry
    from nimue.semaphore import Demand
    from nimue.state import State
    from nimue.work import Work

#: Seconds after which a permit goes to a process that waits and has fewer: where there are more
#: processes than permits, each gets its turn.
QUANTUM = 0.2

#: Seconds for which a process that has no more than those that wait does not compare again, as long
#: as the same ones wait.
KEEP = 0.05

#: Seconds for which a connection that was given up counts as one on its way to who waits: that one
#: is seen waiting until it has closed, and the permit has come.
ON_ITS_WAY = 0.003


#: The same for an idle one, while a connection of its pool is still being closed: who asked for it
#: may ask again meanwhile.
STILL_CLOSING = 0.1


def demand_of(pools: int, limit: int, least: int) -> Demand:
    """The demand of so many pools of this process beside the one that is asked."""
    from nimue.semaphore import Demand

    return Demand(pools, -(-limit // (pools + 1)), least)


def both(one: Demand, other: Demand) -> Demand:
    """Two demands at once."""
    return one._replace(
        wanted=one.wanted + other.wanted,
        share=min(one.share, other.share),
        least=min(one.least, other.least),
    )


def must_yield_locked(state: State, entry: Entry, now: float, demand: Demand | None) -> bool:
    """Whether a connection that comes back is to be closed, for another process to open one.

    If nobody waits here; or, though somebody does, if this process has more than its share, or has
    had more than one that waits for long enough.
    """
    if demand is None:
        return False
    state.yielded = [moment for moment in state.yielded if now - moment < ON_ITS_WAY]
    if len(state.yielded) >= demand.wanted:
        return False
    if not state.waiters:
        return True
    mine = len(state.entries) - len(state.connecting) - len(state.closing)
    if mine > demand.share:
        return True
    if mine <= demand.least:
        state.kept = (state.kept[0], now + KEEP)
    return mine > demand.least and now - entry.permitted >= QUANTUM


def yield_locked(state: State, entry: Entry, now: float) -> list[Work]:
    """Have ``entry``, which is in nobody's hands, closed for another process."""
    state.yielded.append(now)
    works = state.condemn_locked(entry)
    state.refilling = False  # `poolmin` is a wish: the next round of checks tries again
    state.figures.shed += 1
    return works


def shed(state: State, count: int) -> list[Work]:
    """Have so many idle connections closed for other processes, the longest unused first.

    Those count that were given up a moment ago and are still being closed.
    """
    now = monotonic()
    works: list[Work] = []
    with state.lock:
        if state.closing:
            count -= sum(now - moment < STILL_CLOSING for moment in state.yielded)
        if not state.waiters:
            for spare in list(state.idle):
                if len(works) >= count:
                    break
                if state.idle.unshelve(spare):
                    works += yield_locked(state, spare[2], now)
    return works
