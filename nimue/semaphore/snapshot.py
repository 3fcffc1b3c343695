"""What can be seen of a semaphore, from any process, without a lock that anyone else needs."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING

from nimue.process import command_line
from nimue.semaphore.layout import (
    CONNECTING,
    HELD,
    HINTS,
    HINTS_END,
    IDLE,
    MEMBERS,
    SLOT,
    TURNS,
    WAITS,
    Figures,
)

if TYPE_CHECKING:
    from nimue.semaphore.core import Core


@dataclass(frozen=True)
class Holder:
    """A process and the permits it has."""

    pid: int
    #: Of how many permits.
    count: int
    #: Seconds since it took the one that it has longest.
    since: float
    #: Its process is gone: whoever asks next takes them.
    is_dead: bool
    #: It is in another pid namespace, and ``pid`` is its number there.
    is_elsewhere: bool
    #: That of ``pid``; 0 where the platform does not tell.
    namespace: int


@dataclass(frozen=True)
class WaitingProcess:
    """A process and its threads that wait, the first of the queue first."""

    pid: int
    threads: int
    #: Seconds since the oldest of them began.
    since: float
    is_elsewhere: bool
    namespace: int


@dataclass(frozen=True)
class Snapshot:
    """A semaphore at one moment, as far as moving things can be seen at one."""

    name: str
    directory: str
    limit: int
    #: Permits held above the limit, since it was lowered.
    excess: int
    holders: tuple[Holder, ...]
    waiters: tuple[WaitingProcess, ...]
    #: How many have a turn to connect.
    connecting: int
    generation: int
    #: Permits taken from dead holders, in all.
    reclaimed: int

    @property
    def held(self) -> int:
        """Permits held by the living."""
        return sum(holder.count for holder in self.holders if not holder.is_dead)

    def __str__(self) -> str:
        held = [_holder(holder) for holder in self.holders]
        waiting = [
            f"process {waiter.pid} ({waiter.threads} threads, {waiter.since:.1f} s)"
            for waiter in self.waiters
        ]
        return (
            f"limit {self.limit}, held: {', '.join(held) or 'none'}; "
            f"waiting: {', '.join(waiting) or 'none'}"
        )


def _holder(holder: Holder) -> str:
    where = " of another namespace" if holder.is_elsewhere else ""
    dead = ", dead" if holder.is_dead else ""
    return f"{holder.count} by process {holder.pid}{where} (for up to {holder.since:.1f} s{dead})"


@dataclass(frozen=True)
class Row:
    """A process that shows figures."""

    pid: int
    #: When it started, in clock ticks since boot; 0 where the platform does not tell.
    started: int
    command: str
    has_idle: bool
    is_elsewhere: bool
    namespace: int
    figures: Figures


def take_snapshot(core: Core) -> Snapshot:
    map = core.map
    return Snapshot(
        core.name,
        core.base[: -len(core.name) - 1],
        map.limit,
        map.excess,
        tuple(_holders(core)),
        tuple(_waiters(core)),
        sum(_is_taken(core, byte) for byte in range(CONNECTING, CONNECTING + TURNS)),
        map.generation,
        map.reclaimed(),
    )


def _is_taken(core: Core, byte: int) -> bool:
    return byte in core.current().slots.held or core.locks.other(byte) is not None


def _holders(core: Core) -> list[Holder]:
    """By the kernel's word; a slot that looks held and is not belongs to a dead process."""
    presence, now = core.current(), monotonic_ns()
    namespace = presence.epoch.identity.namespace
    found: dict[tuple[int, int, bool], tuple[int, int]] = {}
    for slot in core.map.places(HINTS, HINTS_END, HELD):
        row = core.map.slot(slot)
        is_dead = not _is_taken(core, SLOT + slot)
        if is_dead and core.map.bytes[HINTS + slot] != HELD:
            continue  # given back meanwhile
        key = row.pid, row.namespace, is_dead
        count, since = found.get(key, (0, now))
        found[key] = count + 1, min(since, row.since)
    return [
        Holder(pid, count, max(0, now - since) / 1e9, is_dead, home != namespace, home)
        for (pid, home, is_dead), (count, since) in found.items()
    ]


def _waiters(core: Core) -> list[WaitingProcess]:
    presence, now = core.current(), monotonic_ns()
    namespace = presence.epoch.identity.namespace
    found = []
    for member in presence.queue.order():
        row = core.map.member(member)
        if presence.members.is_live(member) and core.map.bytes[WAITS + member]:
            waited = max(0, now - row.ticket) / 1e9
            is_elsewhere = row.namespace != namespace
            found.append(WaitingProcess(row.pid, row.threads, waited, is_elsewhere, row.namespace))
    return found


def read_rows(core: Core) -> list[Row]:
    """The rows of the living; one that leaves meanwhile is left out."""
    presence = core.current()
    namespace = presence.epoch.identity.namespace
    rows = []
    for member in range(MEMBERS):
        if presence.members.is_live(member):
            row, figures = core.map.member(member), core.map.figures(member)
            is_elsewhere = row.namespace != namespace
            command = "" if is_elsewhere else command_line(row.pid)
            has_idle = bool(core.map.bytes[IDLE + member])
            if row.pid and presence.members.is_live(member):
                who = row.pid, row.started, command
                rows.append(Row(*who, has_idle, is_elsewhere, row.namespace, figures))
    return rows
