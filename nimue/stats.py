"""What can be seen of a pool: frozen snapshots."""

from __future__ import annotations

from typing import NamedTuple


class Figures:
    """What one pool has done in one process. The pool's lock guards them."""

    __slots__ = (
        "births",
        "cleaned_dead",
        "cleaned_idle",
        "closed",
        "cycles",
        "failed",
        "inherited",
        "longest_wait",
        "lost",
        "opened",
        "refused",
        "severed",
        "shed",
        "timeouts",
        "wait_seconds",
    )

    def __init__(self) -> None:
        self.births = self.opened = self.failed = self.closed = 0
        self.timeouts = self.lost = self.shed = self.refused = 0
        self.cleaned_dead = self.cleaned_idle = self.cycles = 0
        self.inherited = self.severed = 0
        self.wait_seconds = self.longest_wait = 0.0

    def waited(self, seconds: float) -> None:
        self.wait_seconds += seconds
        self.longest_wait = max(self.longest_wait, seconds)


class NimueConnectionPoolStats(NamedTuple):
    """One pool in one process, at one moment. Counts since the pool was made, or since the fork.

    ``poolsize == poolused + poolfree + checking``; connections being opened come on top.
    """

    #: the pool's name
    name: str
    #: the process these figures are about
    pid: int
    #: limits in force
    poolmin: int
    poolmax: int
    #: open connections
    poolsize: int
    #: of these: with a holder, or on the way to one
    poolused: int
    #: of these: idle, ready to be acquired
    poolfree: int
    #: of these: in the hands of a background thread (health check, reset, close)
    checking: int
    #: ``connect()`` calls under way
    connecting: int
    #: threads that wait for a connection now
    waiting: int
    #: connections opened, ``connect()`` calls that failed, connections closed by the pool
    opened: int
    failed: int
    closed: int
    #: requests that ran into their timeout, handles dropped unclosed
    timeouts: int
    lost: int
    #: seconds waited in all by those who had to wait, and the longest wait, in seconds
    wait_seconds: float
    longest_wait: float
    #: connections of the parent found in this process after a fork, and how many of them were
    #: severed from their server
    inherited: int
    severed: int
    #: as in nimue 0.0.3: closed by the background checks as dead or idle, and their rounds
    connections_cleaned_dead: int
    connections_cleaned_idle: int
    cleanup_cycles: int
    #: under ``totalmax``: connections closed because another process waited, and connections that
    #: the server refused because it was full
    shed: int
    refused: int


class NimueProcessStats(NamedTuple):
    """One process of those that share a limit: what its pools under that limit do, in sum."""

    pid: int
    #: its command line; empty where that cannot be read
    command: str
    #: permits that it holds, by the kernel's word: connections, and those being opened or closed
    permits: int
    #: as in ``poolstats()``
    poolused: int
    poolfree: int
    connecting: int
    waiting: int
    opened: int
    failed: int
    closed: int
    timeouts: int
    #: connections closed because another process waited, and those that the server refused
    shed: int
    refused: int
    #: seconds waited in all, and seconds of the longest hold of those under way
    wait_seconds: float
    longest_hold: float
    #: seconds since the process told all this, but for ``permits``; None if it never has
    age: float | None


class NimueTotalStats(NamedTuple):
    """A limit and all processes that share it, at one moment; a row each, and the sums."""

    #: the name of the limit: the pool's, or one made up for a pool without a name
    name: str
    #: permits at most, permits held, and those held above a limit that was lowered
    totalmax: int
    held: int
    excess: int
    #: permits taken back from processes that were killed, since the limit was first used
    reclaimed: int
    #: how often ``drain(everywhere=True)`` was called
    generation: int
    #: by pid
    processes: tuple[NimueProcessStats, ...]
    #: sums over ``processes``
    poolused: int
    poolfree: int
    connecting: int
    waiting: int
    opened: int
    failed: int
    closed: int
    timeouts: int
    shed: int
    refused: int
