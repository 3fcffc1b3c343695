"""A semaphore seen by a process that has no part in it."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass

from nimue import fork
from nimue.error import (
    NimueSemaphoreLost,
    NimueSemaphoreUnsafe,
    NimueSemaphoreUnsupported,
    NimueSemaphoreVersionMismatch,
)
from nimue.process import has_record_locks
from nimue.semaphore import epoch
from nimue.semaphore.core import Core, cores, is_open_here
from nimue.semaphore.files import OpenFile, check_name, find_directory, open_to_read
from nimue.semaphore.layout import ATTACH, HINTS, MAGIC, SIZE, Map
from nimue.semaphore.locks import RecordLocks
from nimue.semaphore.snapshot import Row, Snapshot, read_rows, take_snapshot

#: Files in the making are a moment later made, or gone.
_ATTEMPTS, _PAUSE = 10, 0.005


@dataclass(frozen=True)
class Observation:
    """A semaphore, and the processes that show figures at it."""

    snapshot: Snapshot
    rows: tuple[Row, ...]
    #: Whether any process is attached; the files of a semaphore outlast its users.
    is_used: bool


def observe(name: str, directory: str | os.PathLike[str] | None = None) -> Observation | None:
    """Who holds, who waits, and what they tell; None if there is no such semaphore.

    Nothing is locked, made or written, so nobody can notice it, and nobody who has been stopped, in
    the middle of whatever, can hold it up.

    Raises:
        NimueInvalidParameterValue: the name cannot be one.
        NimueSemaphoreError: its files cannot be read, or are another version's.
    """
    if not has_record_locks():
        raise NimueSemaphoreUnsupported("there are no shared semaphores on this platform")
    folder, _ = find_directory(directory)
    base = os.path.join(folder, check_name(name))
    for left in reversed(range(_ATTEMPTS)):
        try:
            return _look(base)
        except FileNotFoundError:
            return None
        except NimueSemaphoreLost:
            if not left:
                raise
        time.sleep(_PAUSE)
    return None


def _look(base: str) -> Observation:
    """What is attached here must not be opened: to close it would free what is held here."""
    fork.settle()
    with fork.gate(), epoch.here().attaching:
        status = os.lstat(base + ".lock")
        key = status.st_dev, status.st_ino
        core = cores.get(key)
        if core is not None:
            return _read(core)
        if is_open_here(key):
            raise NimueSemaphoreUnsafe(f"{base}.lock is open in this process by other means")
        file = open_to_read(base + ".lock")
        try:
            return _read(Core(base, file, RecordLocks(file.fd), _read_map(base, file)))
        finally:
            os.close(file.fd)


def _read(core: Core) -> Observation:
    here = core.current()
    is_used = here.is_in or core.locks.other(ATTACH) is not None
    return Observation(take_snapshot(core), tuple(read_rows(core)), is_used)


def _read_map(base: str, file: OpenFile) -> Map:
    path = base + ".map"
    try:
        opened = open_to_read(path)
    except FileNotFoundError as error:
        raise NimueSemaphoreLost(f"{path} is missing") from error
    try:
        size = min(os.fstat(opened.fd).st_size, SIZE) // 8 * 8
        if size < HINTS:
            raise NimueSemaphoreLost(f"{path} is no map of a semaphore: it is too short")
        map = Map(mmap.mmap(opened.fd, size, access=mmap.ACCESS_READ))
    finally:
        os.close(opened.fd)
    if not any(map.bytes[: len(MAGIC)]):
        raise NimueSemaphoreLost(f"{path} was never finished")
    foreign = map.foreign()
    if foreign is not None:
        raise NimueSemaphoreVersionMismatch(f"{path} is of another version or machine: {foreign}")
    if size < SIZE or not map.is_of(file.inode, file.device):
        raise NimueSemaphoreLost(f"{path} does not belong to {base}.lock, or is cut short")
    return map
