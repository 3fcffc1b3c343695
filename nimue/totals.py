"""The figures of all processes that share a limit."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from nimue.error import NimueInvalidParameterValue
from nimue.stats import NimueProcessStats, NimueTotalStats
from nimue.totalmax import SharedLimit

if TYPE_CHECKING:
    from nimue.semaphore import Row, Snapshot
    from nimue.state import State


def totalstats(state: State) -> NimueTotalStats:
    """A row for each process that holds permits, waits for one or shows figures, and the sums."""
    limit = state.limit
    if not isinstance(limit, SharedLimit):
        raise NimueInvalidParameterValue(
            f"pool {state.name!r} has no totalmax: what other processes do is not known; "
            "poolstats() tells of this one"
        )
    limit.publish(state, monotonic())
    return gather(limit.semaphore.snapshot(), limit.semaphore.family.rows())


def gather(snapshot: Snapshot, shown: Iterable[Row]) -> NimueTotalStats:
    """The same from what was seen of a semaphore, by a process that need have no part in it."""
    rows = {(row.pid, row.namespace): row for row in shown}
    permits = {
        (holder.pid, holder.namespace): holder.count
        for holder in snapshot.holders
        if not holder.is_dead
    }
    now = monotonic_ns()
    known = [_process(row, permits.pop(key, 0), now) for key, row in rows.items()]
    known += [_unknown(pid, count) for (pid, _), count in permits.items()]
    return _sum(snapshot, sorted(known, key=lambda process: process.pid))


def _process(row: Row, permits: int, now: int) -> NimueProcessStats:
    figures = row.figures
    since = figures.longest_since_ns
    return NimueProcessStats(
        pid=row.pid,
        command=row.command,
        permits=permits,
        poolused=figures.in_use,
        poolfree=figures.idle,
        connecting=figures.connecting,
        waiting=figures.waiting,
        opened=figures.opened,
        failed=figures.failed,
        closed=figures.closed,
        timeouts=figures.timeouts,
        shed=figures.shed,
        refused=figures.refused,
        wait_seconds=figures.waited_ns / 1e9,
        longest_hold=max(0, now - since) / 1e9 if since else 0.0,
        age=max(0, now - figures.told_ns) / 1e9 if figures.told_ns else None,
    )


def _unknown(pid: int, permits: int) -> NimueProcessStats:
    """One that has told nothing yet, or never will: it uses the semaphore without a pool."""
    return NimueProcessStats(
        pid, "", permits, *(0,) * 10, wait_seconds=0.0, longest_hold=0.0, age=None
    )


def _sum(snapshot: Snapshot, processes: list[NimueProcessStats]) -> NimueTotalStats:
    def total(name: str) -> int:
        return sum(getattr(process, name) for process in processes)

    return NimueTotalStats(
        name=snapshot.name,
        totalmax=snapshot.limit,
        held=snapshot.held,
        excess=snapshot.excess,
        reclaimed=snapshot.reclaimed,
        generation=snapshot.generation,
        processes=tuple(processes),
        poolused=total("poolused"),
        poolfree=total("poolfree"),
        connecting=total("connecting"),
        waiting=total("waiting"),
        opened=total("opened"),
        failed=total("failed"),
        closed=total("closed"),
        timeouts=total("timeouts"),
        shed=total("shed"),
        refused=total("refused"),
    )
