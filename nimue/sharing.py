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

#: Seconds that a connection which nobody here waits for lies idle before it goes to another
#: process: who works without a pause, in one thread, has taken it again by then.
LINGER = 0.003

#: Seconds for which a connection that was given up counts as one on its way to who waits: that one
#: is seen waiting until it has closed, and the permit has come.
ON_ITS_WAY = 0.003

#: The same while it is still being closed: who asked for it may ask again meanwhile.
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


def on_their_way_locked(state: State, now: float) -> int:
    """How many connections were given up whose permits those who wait may not have yet."""
    state.yielded = [moment for moment in state.yielded if now - moment < STILL_CLOSING]
    recent = sum(now - moment < ON_ITS_WAY for moment in state.yielded)
    return max(recent, min(len(state.closing), len(state.yielded)))


def must_yield_locked(state: State, entry: Entry, now: float, demand: Demand | None) -> bool:
    """Whether a connection that comes back is to be closed, for another process to open one.

    So it is if this process has more than its share, or has had more than one that waits for long
    enough; whoever waits here. With one more than the others it would only change places with
    them. What is kept, and nobody waits for here, goes a moment later.
    """
    if demand is None or on_their_way_locked(state, now) >= demand.wanted:
        return False
    mine = len(state.entries) - len(state.connecting) - len(state.closing)
    if mine > demand.share and mine > demand.least + 1:
        return True
    if mine > demand.least:
        return now - entry.permitted >= QUANTUM
    state.kept = (state.kept[0], now + KEEP)
    return False


def yield_locked(state: State, entry: Entry, now: float) -> list[Work]:
    """Have ``entry``, which is in nobody's hands, closed for another process."""
    state.yielded.append(now)
    works = state.condemn_locked(entry)
    state.refilling = False  # `poolmin` is a wish: the next round of checks tries again
    state.figures.shed += 1
    return works


def shed(state: State, count: int) -> list[Work]:
    """Have so many idle connections closed for other processes, the longest unused first.

    Those count that are on their way already. What came back a moment ago is left.
    """
    now = monotonic()
    works: list[Work] = []
    with state.lock:
        if not state.waiters:
            count -= on_their_way_locked(state, now)
            for spare in list(state.idle):
                if len(works) >= count:
                    break
                if now - spare[2].rested >= LINGER and state.idle.unshelve(spare):
                    works += yield_locked(state, spare[2], now)
    return works


def lingers(state: State, now: float) -> bool:
    """Whether an idle connection is kept for this process's own threads, for a moment."""
    return any(now - spare[2].rested < LINGER for spare in list(state.idle))


def has_lingered(state: State, now: float, tick: float) -> int:
    """How many were kept so, and nobody came."""
    return sum(LINGER <= now - spare[2].rested < tick for spare in list(state.idle))
