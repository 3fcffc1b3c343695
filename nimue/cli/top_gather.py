"""What `nimue top` knows: the semaphores of a user, and the processes at each, at one moment.

The names of the fields are the keys of ``--json``. Nothing here draws, and nothing is changed by
being looked at.
"""

import socket
import time
from dataclasses import dataclass
from typing import Any

from nimue.cli import extra
from nimue.error import NimueError
from nimue.process import command_line
from nimue.semaphore import Figures, Holder, Observation, Row, WaitingProcess, names, observe
from nimue.semaphore.files import find_directory

ALIVE, STOPPED, DEAD = "alive", "stopped", "dead"

#: A process at one semaphore: its number, the namespace of that, and whether it is dead. A number
#: whose owner died may be another's now.
Who = tuple[int, int, bool]


@dataclass(frozen=True)
class Pool:
    """What a process tells of its pool; as old as ``told_seconds``, None if it does not say."""

    in_use: int
    idle: int
    connecting: int
    #: Threads in the pool's own queue.
    waiting: int
    opened: int
    failed: int
    timeouts: int
    closed: int
    waited_seconds: float
    #: The longest hold of those under way; None if nothing is out.
    longest_seconds: float | None
    poolmin: int
    poolmax: int
    shed: int
    refused: int
    generation: int
    told_seconds: float | None


@dataclass(frozen=True)
class Process:
    """A process that holds, waits, or shows figures."""

    pid: int
    #: Its pid means nothing here: it is the number in that namespace.
    elsewhere: bool
    namespace: int
    #: "alive", "stopped" (by a signal or a tracer), or "dead": what it held is free to be taken.
    state: str
    command: str
    permits: int
    #: Since it took the permit that it has longest; None if it has none.
    held_seconds: float | None
    waiting_threads: int
    #: Since the one that has waited longest began; None if none waits.
    waiting_seconds: float | None
    #: Established TCP connections, but those to a port that it listens at; None if not known.
    tcp_sockets: int | None
    #: Unix stream sockets without a name, as a client's and a socket pair's; None if not known.
    unix_sockets: int | None
    pool: Pool | None


@dataclass(frozen=True)
class Semaphore:
    """One semaphore. If there is an ``error``, it is all that is known."""

    name: str
    error: str | None
    #: Whether any process is attached to it.
    used: bool | None = None
    limit: int | None = None
    #: Permits held by the living.
    held: int | None = None
    #: Of these, how many are above a limit that was lowered.
    excess: int | None = None
    #: Turns to connect that are taken.
    connecting: int | None = None
    generation: int | None = None
    #: Permits that were taken from dead holders, ever.
    reclaimed: int | None = None
    processes: tuple[Process, ...] = ()


@dataclass(frozen=True)
class Picture:
    directory: str
    semaphores: tuple[Semaphore, ...]


class UnknownName(Exception):
    """There is no semaphore of the name asked for."""


def look(directory: str | None, name: str | None) -> Picture:
    """All semaphores in the directory, or that one.

    Raises:
        UnknownName: there is none of that name; says which there are.
        NimueError: the directory is not to be trusted.
    """
    folder, exists = find_directory(directory)
    known = names(folder) if exists else []
    if name is not None and name not in known:
        raise UnknownName(
            f"there is no semaphore {name!r} in {folder}; there "
            + (f"are: {', '.join(known)}" if known else "is none at all")
        )
    wanted = known if name is None else [name]
    seen = [_semaphore(each, folder) for each in wanted]
    return Picture(folder, tuple(each for each in seen if each is not None))


def _semaphore(name: str, directory: str) -> Semaphore | None:
    """None if it is gone by now."""
    try:
        found = observe(name, directory)
    except (NimueError, OSError) as error:
        return Semaphore(name, str(error))
    if found is None:
        return None
    seen = found.snapshot
    return Semaphore(
        name=name,
        error=None,
        used=found.is_used,
        limit=seen.limit,
        held=seen.held,
        excess=seen.excess,
        connecting=seen.connecting,
        generation=seen.generation,
        reclaimed=seen.reclaimed,
        processes=_processes(found),
    )


def _processes(found: Observation) -> tuple[Process, ...]:
    snapshot = found.snapshot
    holders = {(one.pid, one.namespace, one.is_dead): one for one in snapshot.holders}
    waiters = {(one.pid, one.namespace, False): one for one in snapshot.waiters}
    rows = {(one.pid, one.namespace, False): one for one in found.rows}
    return tuple(
        _process(who, holders.get(who), waiters.get(who), rows.get(who))
        for who in sorted({*holders, *waiters, *rows})
    )


def _process(
    who: Who, holder: Holder | None, waiter: WaitingProcess | None, row: Row | None
) -> Process:
    pid, namespace, is_dead = who
    elsewhere = any(part is not None and part.is_elsewhere for part in (holder, waiter, row))
    state, tcp, unix = DEAD if is_dead else ALIVE, None, None
    is_seen = not is_dead and not elsewhere
    if is_seen:
        state, tcp, unix = _beside(pid)
    return Process(
        pid=pid,
        elsewhere=elsewhere,
        namespace=namespace,
        state=state,
        command=command_line(pid) if is_seen else "",
        permits=holder.count if holder else 0,
        held_seconds=holder.since if holder else None,
        waiting_threads=waiter.threads if waiter else 0,
        waiting_seconds=waiter.since if waiter else None,
        tcp_sockets=tcp,
        unix_sockets=unix,
        pool=_pool(row.figures) if row and row.figures != Figures() else None,
    )


def _pool(figures: Figures) -> Pool:
    def since(then: int) -> float | None:
        return max(0, time.monotonic_ns() - then) / 1e9 if then else None

    return Pool(
        in_use=figures.in_use,
        idle=figures.idle,
        connecting=figures.connecting,
        waiting=figures.waiting,
        opened=figures.opened,
        failed=figures.failed,
        timeouts=figures.timeouts,
        closed=figures.closed,
        waited_seconds=figures.waited_ns / 1e9,
        longest_seconds=since(figures.longest_since_ns),
        poolmin=figures.poolmin,
        poolmax=figures.poolmax,
        shed=figures.shed,
        refused=figures.refused,
        generation=figures.generation,
        told_seconds=since(figures.told_ns),
    )


def _beside(pid: int) -> tuple[str, int | None, int | None]:
    """What the kernel tells of a process beside: its state, and its sockets of both kinds."""
    psutil = extra.load("psutil")
    try:
        process = psutil.Process(pid)
        status = process.status()
    except psutil.NoSuchProcess:  # a moment ago it was there
        return DEAD, None, None
    except psutil.Error:
        return ALIVE, None, None
    stopped = status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    try:
        tcp, unix = _sockets(psutil, process)
    except (psutil.Error, OSError):
        return STOPPED if stopped else ALIVE, None, None
    return STOPPED if stopped else ALIVE, tcp, unix


def _sockets(psutil: Any, process: Any) -> tuple[int, int]:
    connections = getattr(process, "net_connections", None) or process.connections
    tcp, unix = connections("tcp"), connections("unix")
    listens = {one.laddr.port for one in tcp if one.status == psutil.CONN_LISTEN}
    return (
        sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port not in listens for one in tcp),
        sum(not one.laddr and one.type == socket.SOCK_STREAM for one in unix),
    )
