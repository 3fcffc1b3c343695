"""What changes a semaphore for all who use it: another limit, another generation, its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import sleep

from nimue import fork
from nimue.error import NimueSemaphoreError, NimueSemaphoreInUse, NimueSemaphoreLost
from nimue.semaphore import epoch
from nimue.semaphore.core import Core, cores, is_open_here
from nimue.semaphore.files import PATIENCE, PRIVATE, files_of, guard, names, open_file
from nimue.semaphore.layout import ATTACH, EDIT, FREE, HINTS, RETIRED, SLOT, SLOTS
from nimue.semaphore.locks import RecordLocks
from nimue.semaphore.presence import Presence

#: How often the right to edit is asked for, a millisecond apart.
_TRIES = 1000

#: So many semaphores without a name, left behind by processes that were killed, are removed at
#: most when another is made.
_SWEEP = 100


@contextmanager
def _editing_locked(presence: Presence, locks: RecordLocks) -> Iterator[bool]:
    """Be the only process that edits the header; False if one that has been stopped is at it.

    The presence's lock keeps the other threads out, for whom the kernel's is no lock.
    """
    taken = False
    try:
        for _ in range(_TRIES):
            taken = locks.take(EDIT)
            if taken:
                break
            sleep(0.001)
        yield taken
    finally:
        if taken:
            locks.give_back(EDIT)


def resize(core: Core, limit: int) -> None:
    """Let this be the limit from now on, while all goes on.

    Growing is at once. Shrinking retires what is free; what is held above the new limit is the
    excess, retired as it comes back. Never are more held than the larger of the two limits.
    """
    presence = core.presence()
    try:
        with guard(core.base), presence.lock, _editing_locked(presence, core.locks) as alone:
            if not alone:
                raise NimueSemaphoreInUse(
                    f"semaphore {core.name!r} cannot be resized: a process has been stopped while "
                    "it changed it"
                )
            _resize_locked(core, presence, limit)
            presence.queue.wake()
    finally:
        presence.settle()


def _resize_locked(core: Core, presence: Presence, limit: int) -> None:
    core.map.limit = limit
    hints, in_service = core.map.bytes, core.map.in_service()
    for slot in range(SLOTS):
        if in_service >= limit:
            break
        if hints[HINTS + slot] == RETIRED:
            hints[HINTS + slot] = FREE
            in_service += 1
    for slot in reversed(range(SLOTS)):
        if in_service <= limit:
            break
        if hints[HINTS + slot] == RETIRED or SLOT + slot in presence.slots.held:
            continue
        if core.locks.take(SLOT + slot):
            hints[HINTS + slot] = RETIRED
            in_service -= 1
            core.locks.give_back(SLOT + slot)
    core.map.excess = max(0, in_service - limit)


def renew(core: Core) -> int:
    """Begin a new generation, and return its number.

    One process at a time adds one. If one has been stopped in the middle of it, the next does not
    wait for it longer than a second: two that renew just then may count as one.
    """
    presence = core.presence()
    try:
        with presence.lock, _editing_locked(presence, core.locks):
            core.map.generation += 1
            return core.map.generation
    finally:
        presence.settle()


def leave(core: Core) -> None:
    """Be attached no longer. The next use attaches again.

    Raises:
        NimueSemaphoreInUse: this process holds permits, or waits for one.
    """
    presence = core.current()
    if presence.is_in:
        try:
            with presence.lock:
                _check_idle_locked(core, presence, "left")
                presence.leave_locked()
        finally:
            presence.settle()


def _check_idle_locked(core: Core, presence: Presence, what: str) -> None:
    if not presence.is_idle_locked():
        raise NimueSemaphoreInUse(
            f"semaphore {core.name!r} cannot be {what}: this process itself holds "
            f"{presence.slots.count()} permits, and {len(presence.waiters)} of its threads wait"
        )


def let_go(core: Core) -> None:
    """Leave, and close the files; take those of a private one along if nobody else is attached.

    Raises:
        NimueSemaphoreInUse: as for ``leave``.
    """
    leave(core)
    if core.name.startswith(PRIVATE):
        with suppress(NimueSemaphoreInUse, NimueSemaphoreLost):
            destroy(core)
            return
        leave(core)
    fork.settle()
    with fork.gate(), epoch.here().attaching:
        presence = core.current()
        try:
            with presence.lock:
                if not presence.is_in:  # else another thread has come back meanwhile
                    core.forget_locked(presence)
        finally:
            presence.settle()


def let_unused_go() -> None:
    """The same for those of which all objects in this process were dropped, not closed."""
    for core in list(cores.values()):
        if not core.handles:
            with suppress(NimueSemaphoreError, OSError):
                let_go(core)


def destroy(core: Core, patience: float = PATIENCE) -> None:
    """Remove the files, which nobody else may be attached to.

    Raises:
        NimueSemaphoreInUse: somebody is, or this process holds permits.
        NimueSemaphoreLost: the files are gone or replaced already.
    """
    fork.settle()
    with fork.gate(), epoch.here().attaching:
        presence = core.presence()
        try:
            with guard(core.base, patience), presence.lock:
                _destroy_locked(core, presence)
        finally:
            presence.settle()


def _destroy_locked(core: Core, presence: Presence) -> None:
    fault = core.fault()
    if fault is not None:
        raise NimueSemaphoreLost(f"semaphore {core.name!r} cannot be destroyed: {fault}")
    _check_idle_locked(core, presence, "destroyed")
    if not core.locks.take(ATTACH):
        pid = core.locks.other(ATTACH)
        raise NimueSemaphoreInUse(
            f"semaphore {core.name!r} cannot be destroyed: process "
            f"{pid or 'of another namespace'} is attached to it, and perhaps others"
        )
    try:
        _unlink(core.base)
    except BaseException:
        core.locks.share(ATTACH)
        raise
    core.forget_locked(presence)


def _unlink(base: str) -> None:
    for path in files_of(base):
        os.unlink(path)


def remove_private() -> None:
    """At the end of a process: take along those without a name that nobody else is attached to.

    A forked child that has not attached yet makes it anew; see ``Core.part``. What is held is left:
    the connections that go with it are still open.
    """
    for core in list(cores.values()):
        if core.name.startswith(PRIVATE):
            with suppress(NimueSemaphoreError, OSError):
                destroy(core, patience=0.2)


def sweep(directory: str) -> None:
    """Remove what processes that were killed have left of semaphores without a name."""
    left = [name for name in names(directory) if name.startswith(PRIVATE)]
    if not left:
        return
    fork.settle()
    expected = NimueSemaphoreError, OSError
    with (
        fork.gate(),
        epoch.here().attaching,
        suppress(*expected),
        guard(os.path.join(directory, PRIVATE), patience=0.2),
    ):
        for name in left[:_SWEEP]:
            with suppress(*expected):
                _remove_stale(os.path.join(directory, name))


def _remove_stale(base: str) -> None:
    status = os.lstat(base + ".lock")
    key = status.st_dev, status.st_ino
    if key in cores or is_open_here(key):
        return  # to close it would free what is held here
    file = open_file(base + ".lock", create=False)
    try:
        if file[1:] == key and RecordLocks(file.fd).take(ATTACH):
            _unlink(base)
    finally:
        os.close(file.fd)
