"""What a process has of a semaphore once, whoever of its code uses it: files, locks, map."""

from __future__ import annotations

import mmap
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from nimue import fork
from nimue.error import (
    NimueInvalidParameterValue,
    NimueSemaphoreLost,
    NimueSemaphoreUnsafe,
    NimueSemaphoreVersionMismatch,
)
from nimue.process import immortalise
from nimue.semaphore import epoch
from nimue.semaphore.files import OpenFile, allocate, guard, open_file
from nimue.semaphore.layout import ATTACH, SIZE, SLOTS, Map
from nimue.semaphore.locks import RecordLocks
from nimue.semaphore.presence import Presence

if TYPE_CHECKING:
    from nimue.semaphore.epoch import Epoch

#: Shared by all copies of this package in the interpreter: two cores on one file would both be
#: granted the same byte, for the kernel sees one owner.
_known: ModuleType = sys.modules.setdefault(
    "_nimue_semaphores_v1", ModuleType("_nimue_semaphores_v1")
)
#: By device and inode of the lock file.
cores: dict[tuple[int, int], Core] = _known.__dict__.setdefault("cores", {})
#: The descriptors of lock files that were opened here, and never closed.
_opened: set[OpenFile] = _known.__dict__.setdefault("opened", set())


class Core:
    """One lock file, opened once and not closed, and the map that goes with it.

    A child inherits it, and uses it with a presence of its own.
    """

    def __init__(self, base: str, file: OpenFile, locks: RecordLocks, map: Map) -> None:
        self.base, self.file, self.locks, self.map = base, file, locks, map
        self._key = file.device, file.inode
        #: What fstat(2) says from the second field on, while there is nothing to say against it.
        self._sound = file.inode, file.device, 1
        self.name = os.path.basename(base)
        #: Who uses it in this process; a child's copy speaks for the child.
        self.handles: WeakSet[Any] = WeakSet()
        now = epoch.here()
        self.here = Presence(self, now)
        self._presences: dict[Epoch, Presence] = {now: self.here}

    def presence(self) -> Presence:
        """The running process's own, attached."""
        here = self.here
        if here.epoch is epoch.here() and here.is_in:
            return here
        return self._enter()

    def current(self) -> Presence:
        """The running process's own, attached or not.

        Threads of a child come here together, and none may wait for a lock of the parent's to agree
        on one: ``setdefault`` decides.
        """
        now = epoch.here()
        here = self.here
        if here.epoch is not now:
            here = self._presences.setdefault(now, Presence(self, now))
        return here

    def _enter(self) -> Presence:
        presence = self.current()
        with presence.entering:
            before = self.here
            if before is not presence:
                before.forsake()  # in here only: who closes a number twice closes another's file
                self.here = presence
                self._presences = {presence.epoch: presence}
            if not presence.is_in:
                presence.enter()
        return presence

    def fault(self) -> str | None:
        """Why the lock file does not serve any more; None if it does."""
        fd = self.locks.fd
        try:
            status = os.fstat(fd)
        except OSError:
            return "its descriptor was closed"
        if status[1:4] == self._sound:
            # Against a thread that has parted from it meanwhile, and opened a new one: that may
            # have both the descriptor's number and the inode's.
            return None if self.locks.fd == fd else "another thread has let go of it"
        if (status.st_dev, status.st_ino) != self._key:
            return "its descriptor was closed, and the number is another file's"
        return None if status.st_nlink else "it was removed"

    def part(self, fault: str) -> None:
        """Let go of a lock file that does not serve any more, so that it can be opened anew.

        That is a child's case which had not attached yet when the last one left, or which became a
        daemon and closed all descriptors.

        Raises:
            NimueSemaphoreLost: this process holds permits of it, or others are still attached.
        """
        presence = self.current()
        told = f"semaphore {self.name!r}: the lock file {self.base}.lock is lost: {fault}"
        try:
            with presence.lock:
                self._part_locked(presence, fault, told)
        finally:
            presence.settle()

    def _part_locked(self, presence: Presence, fault: str, told: str) -> None:
        if self.locks.fd < 0:  # another thread was faster, and its number may be another file's now
            return
        if not presence.is_idle_locked():
            count = presence.slots.count()
            did = f"held {count} permits" if count else "waited for a permit"
            raise NimueSemaphoreLost(f"{told}, while this process {did}")
        if fault == "it was removed":
            presence.leave_locked()
            pid = self.locks.other(ATTACH)
            if pid is not None:
                raise NimueSemaphoreLost(
                    f"{told}, and others still use it (process {pid or 'of another namespace'}): "
                    "a new one would be another limit; end them all"
                )
        elif _key_of(self.base) != self._key:
            raise NimueSemaphoreLost(f"{told}, and the file there now is another")
        else:
            # The map has a descriptor too, which is closed with it: that may be another's as well.
            immortalise(self.map.bytes)
        self.forget_locked(presence)

    def is_unused(self) -> bool:
        """Whether nobody else is attached, and nothing of this process stands for it."""
        return not self.handles and self.locks.other(ATTACH) is None

    def forget_locked(self, presence: Presence) -> None:
        """Use these files no more. Only while nothing is held."""
        if self.locks.fd < 0:  # what has its number now is another core's
            return
        cores.pop(self.file[1:], None)
        _opened.discard(self.file)
        presence.is_in = False
        presence.forsake()
        self.locks.fd = -1
        self.file.close()


def _key_of(base: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(base + ".lock")
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def attach(base: str, limit: int | None) -> Core:
    """This process's core for the semaphore at ``base``, which is made if there is none.

    Raises:
        NimueInvalidParameterValue: there is none, and no limit to make one with.
        NimueSemaphoreError: its files cannot be used.
    """
    fork.settle()
    with fork.gate(), epoch.here().attaching:
        key = _key_of(base)
        core = None if key is None else cores.get(key)
        if core is None:
            with guard(base):
                core = _open(base, limit)
            cores[core.file[1:]] = core
        core.presence()
        return core


def _open(base: str, limit: int | None) -> Core:
    path = base + ".lock"
    key = _key_of(base)
    if key is None and limit is None:
        raise NimueInvalidParameterValue(f"there is no semaphore {base}: give a limit to make it")
    if key is not None and is_open_here(key):
        raise NimueSemaphoreUnsafe(
            f"{path} is open in this process already, in another interpreter or by other means: "
            "the kernel would grant both the same permits"
        )
    file = open_file(path)
    try:
        if _key_of(base) != file[1:]:
            raise NimueSemaphoreLost(f"{path} was replaced while it was opened")
        _opened.add(file)
        locks = RecordLocks(file.fd)
        if not locks.share(ATTACH):
            raise NimueSemaphoreLost(f"{path} is locked as one that is being destroyed")
        return Core(base, file, locks, _open_map(base, file, locks, limit))
    except BaseException:
        _opened.discard(file)
        os.close(file.fd)  # frees the locks of this process on it: there is but ATTACH
        raise


def is_open_here(key: tuple[int, int]) -> bool:
    """Whether a descriptor of this process, but for our own, is of that file."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        try:
            status = os.stat(f"{folder}/{name}")
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == key and OpenFile(int(name), *key) not in _opened:
            return True
    return False


def _open_map(base: str, file: OpenFile, locks: RecordLocks, limit: int | None) -> Map:
    """Under the guard. What is not ours is made anew, unless somebody uses it."""
    path = base + ".map"
    opened = open_file(path)
    try:
        is_new = os.fstat(opened.fd).st_size < SIZE
        if is_new:
            allocate(path, opened.fd, SIZE)
        map = Map(mmap.mmap(opened.fd, SIZE))
    finally:
        os.close(opened.fd)
    user = locks.other(ATTACH)
    foreign = map.foreign()
    is_ours = not is_new and foreign is None and map.is_of(file.inode, file.device)
    if user is None:
        if limit is not None and (not is_ours or map.limit != limit):
            map.format(limit, file.inode, file.device)
        elif not is_ours:
            raise NimueInvalidParameterValue(f"{path} is unusable: give a limit to make it anew")
        return map
    if is_ours:
        return map
    if is_new or foreign is None:
        raise NimueSemaphoreLost(
            f"{path} was removed or replaced, and process {user} still uses the one before: a new "
            "one would not know what it holds; end all processes that use it"
        )
    raise NimueSemaphoreVersionMismatch(
        f"{path} is of another version or machine: {foreign}; process {user} uses it. Allowed is "
        "one version at a time: choose another name or directory, or end those"
    )


def check_limit(limit: int) -> int:
    """The limit, if it can be one.

    Raises:
        NimueInvalidParameterValue: it cannot.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= SLOTS:
        raise NimueInvalidParameterValue(
            f"limit must be a whole number from 1 to {SLOTS}, not {limit!r}"
        )
    return limit
