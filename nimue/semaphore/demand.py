"""What those who wait ask of those who hold."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from nimue.semaphore.layout import FREE, HELD, HINTS, HINTS_END, MEMBERS, SUSPECT, WAITS

if TYPE_CHECKING:
    from nimue.semaphore.core import Core


class Demand(NamedTuple):
    """The wants of the other processes, as one that holds permits sees them."""

    #: How many permits: for threads that wait, and above a limit that was lowered.
    wanted: int
    #: The limit divided by the processes that hold or wait, rounded up.
    share: int
    #: The fewest permits that any process has which waits.
    least: int


def read_demand(core: Core) -> Demand | None:
    """None if nobody else wants a permit. By the kernel's word, and what the dead left is cleared.

    Who has not taken what was free for it, for it is stopped, wants nothing; nor does anybody what
    lies free. Nobody's lock is needed, and nothing stands still meanwhile: it is a reading, not a
    promise.
    """
    presence, map = core.current(), core.map
    waiting: dict[tuple[int, int], int] = {}
    has_dead = False
    found = [k for k in map.places(WAITS, WAITS + MEMBERS, 1) if k != presence.members.number]
    for member in found:
        if not presence.members.is_live(member):
            has_dead = True
        elif not map.bytes[SUSPECT + member]:
            row = map.member(member)
            waiting[row.pid, row.namespace] = max(1, row.threads)
    if has_dead:
        presence.others_wait()
    excess = map.excess
    wanted = sum(waiting.values()) + excess - map.bytes[HINTS:HINTS_END].count(FREE)
    if wanted <= 0:
        return None
    holding: Counter[tuple[int, int]] = Counter()
    for slot in map.places(HINTS, HINTS_END, HELD):
        holder = map.slot(slot)
        holding[holder.pid, holder.namespace] += 1
    me = presence.epoch.identity
    processes = len(holding.keys() | waiting.keys() | {(me.pid, me.namespace)})
    return Demand(
        wanted,
        -(-map.limit // processes),
        0 if excess else min(holding[process] for process in waiting),
    )
