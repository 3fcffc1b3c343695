"""The columns of `nimue top`: what each is called, counts, and shows of a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimue.cli.top_gather import Pool, Process, Semaphore

Cell = Callable[["Process"], str]


@dataclass(frozen=True)
class Column:
    """``silent``: the column is left out where no process has any other cell than these."""

    heading: str
    meaning: str
    cell: Cell
    silent: tuple[str, ...] = ()

    def is_shown(self, processes: Sequence[Process]) -> bool:
        return not self.silent or any(self.cell(one) not in self.silent for one in processes)


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def plain(text: str) -> str:
    """On one line, and without what a terminal would take for a command."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def known(number: int | None) -> str:
    return "?" if number is None else f"{number}"


def _state(process: Process) -> str:
    words = [process.state] if process.state != "alive" else []
    return ", ".join(words + ["elsewhere"] * process.elsewhere)


def _held(process: Process) -> str:
    return "" if process.held_seconds is None else duration(process.held_seconds)


def _wait(process: Process) -> str:
    if process.waiting_seconds is None:
        return ""
    return f"{process.waiting_threads}, {duration(process.waiting_seconds)}"


def _longest(pool: Pool) -> str:
    return "" if pool.longest_seconds is None else duration(pool.longest_seconds)


def _told(tell: Callable[[Pool], object]) -> Cell:
    return lambda process: "" if process.pool is None else f"{tell(process.pool)}"


_NOTHING, _NONE = ("",), ("", "0")

COMMAND = Column("command", "its command line", lambda one: plain(one.command), _NOTHING)
COLUMNS = (
    Column("pid", "its number; of another pid namespace if 'elsewhere'", lambda one: f"{one.pid}"),
    Column(
        "state",
        "'stopped' by a signal or a tracer, 'dead' (its permits are free to be taken), 'elsewhere':"
        " in another pid namespace, so nothing but this semaphore tells of it",
        _state,
        _NOTHING,
    ),
    Column("permits", "permits held, by the kernel's word", lambda one: f"{one.permits}"),
    Column("held", "since it took the permit that it has longest", _held, _NOTHING),
    Column(
        "tcp",
        "established TCP connections, to whatever server, but without those to a port at which the"
        " process itself listens; '?' if not known",
        lambda one: known(one.tcp_sockets),
    ),
    Column(
        "unix",
        "Unix stream sockets without a name of their own: a client's connections, and also socket"
        " pairs; the kernel does not tell psutil whether they are connected",
        lambda one: known(one.unix_sockets),
        (*_NONE, "?"),
    ),
    Column(
        "permit wait", "threads that wait for a permit, and the first since when", _wait, _NOTHING
    ),
    Column("in use", "connections out", _told(lambda pool: pool.in_use), _NOTHING),
    Column("idle", "idle connections", _told(lambda pool: pool.idle), _NOTHING),
    Column("connecting", "being opened", _told(lambda pool: pool.connecting), _NONE),
    Column("waiting", "threads in the pool's own queue", _told(lambda pool: pool.waiting), _NONE),
    Column("opened", "connections opened, ever", _told(lambda pool: pool.opened), _NONE),
    Column("failed", "attempts to open one that failed", _told(lambda pool: pool.failed), _NONE),
    Column("timeouts", "threads that waited in vain", _told(lambda pool: pool.timeouts), _NONE),
    Column("longest", "the longest hold of those under way", _told(_longest), _NOTHING),
    Column(
        "shed",
        "connections given up because another process waited",
        _told(lambda pool: pool.shed),
        _NONE,
    ),
    Column(
        "refused",
        "connections that the server refused because it was full",
        _told(lambda pool: pool.refused),
        _NONE,
    ),
    COMMAND,
)


def headline(semaphore: Semaphore) -> str:
    """What there is to say of a semaphore itself, but for its name."""
    if semaphore.error is not None:
        return plain(semaphore.error)
    parts = [f"{semaphore.held} of {semaphore.limit} permits held"]
    if semaphore.excess:
        parts.append(f"{semaphore.excess} above the lowered limit")
    parts.append(f"{semaphore.connecting} connecting")
    parts.append(f"generation {semaphore.generation}")
    parts.append(f"{semaphore.reclaimed} reclaimed from the dead")
    if not semaphore.used:
        parts.append("unused")
    return ", ".join(parts)


def explain() -> str:
    """The help's list of columns."""
    import textwrap

    lines = ["columns (those with nothing to tell are left out):"]
    for column in COLUMNS:
        meaning = textwrap.wrap(column.meaning, 62)
        lines.append(f"  {column.heading:<13} {meaning[0]}")
        lines += [f"{'':16}{line}" for line in meaning[1:]]
    lines.append("\nThose from 'in use' to 'refused' are what the process tells of its pool.")
    return "\n".join(lines)
