"""What a process gives up for others that wait, and when it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimue.entry import Entry
    from nimue.semaphore import Demand
    from nimue.state import State
    from nimue.work import Work

#: Seconds after which a permit goes to a process that waits and has fewer: where there are more
#: processes than permits, each gets its turn.
QUANTUM = 0.2


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
    had more than one that waits for long enough. No more at a time than are wanted: who waits is
    still seen waiting until the first of them is closed.
    """
    if demand is None or len(state.closing) >= demand.wanted:
        return False
    if not state.waiters:
        return True
    mine = len(state.entries) - len(state.connecting) - len(state.closing)
    return mine > demand.share or (mine > demand.least and now - entry.permitted >= QUANTUM)


def yield_locked(state: State, entry: Entry) -> list[Work]:
    """Have ``entry``, which is in nobody's hands, closed for another process."""
    works = state.condemn_locked(entry)
    state.refilling = False  # `poolmin` is a wish: the next round of checks tries again
    state.figures.shed += 1
    return works


def shed(state: State, count: int) -> list[Work]:
    """Have so many idle connections closed for other processes, the longest unused first."""
    works: list[Work] = []
    with state.lock:
        if not state.waiters:
            for spare in list(state.idle):
                if len(works) == count:
                    break
                if state.idle.unshelve(spare):
                    works += yield_locked(state, spare[2])
    return works
