"""Record locks: the only truth about who holds, waits, or is there at all."""

from __future__ import annotations

import errno
import functools
import sys

from nimue.error import NimueSemaphoreLost
from nimue.process import pack_flock, read_flock
from nimue.semaphore.layout import LOCK_BYTES

if sys.platform != "win32":
    import fcntl

_TAKEN = (errno.EAGAIN, errno.EACCES)


@functools.cache
def _records(kind: int) -> list[bytes]:
    return [pack_flock(kind, byte) for byte in range(LOCK_BYTES)]


class RecordLocks:
    """The bytes of one lock file, each of which one process can hold locked.

    The kernel frees them when the process ends, however it ends. A forked child owns none of its
    parent's, cannot free them, and does not keep them: they belong to a process and an inode, not
    to a descriptor. For the same reason:

    - two threads, or two objects, of one process are one owner, and both are granted the same
      byte: whoever uses this has a lock of the process's own;
    - any ``close()`` of a descriptor of that inode frees all of the process's bytes: the file is
      opened once, is never mapped, and is closed only when nothing is held.

    Nothing here ever waits.
    """

    __slots__ = ("_exclusive", "_free", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._exclusive, self._free = _records(fcntl.F_WRLCK), _records(fcntl.F_UNLCK)

    def take(self, byte: int) -> bool:
        """Lock that byte; False if another process has it. What we have already stays ours."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLK, self._exclusive[byte])
        except (OSError, ValueError) as error:
            return self._refused(error)
        return True

    def looks_free(self, byte: int) -> bool:
        """Whether no other process has that byte locked. A third of the price of a refused take."""
        try:
            answer = fcntl.fcntl(self.fd, fcntl.F_GETLK, self._exclusive[byte])
        except (OSError, ValueError) as error:
            return self._refused(error)
        return answer == self._free[byte]

    def share(self, byte: int) -> bool:
        """Lock that byte together with others who share it."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLK, pack_flock(fcntl.F_RDLCK, byte))
        except (OSError, ValueError) as error:
            return self._refused(error)
        return True

    def _refused(self, error: OSError | ValueError) -> bool:
        if isinstance(error, OSError) and error.errno in _TAKEN:
            return False
        raise NimueSemaphoreLost(
            f"the lock file's descriptor {self.fd} does not serve any more ({error})"
        ) from error

    def give_back(self, byte: int) -> None:
        """Unlock that byte; nothing happens if it is not ours."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLK, self._free[byte])
        except (OSError, ValueError):
            pass  # the descriptor was closed: the kernel has freed all then

    def other(self, byte: int) -> int | None:
        """The pid of another process that has that byte locked, 0 if it is in another namespace.

        None if nobody else has it. The system call also orders what this process wrote to shared
        memory before it, against another's lock or unlock after it.
        """
        try:
            answer = fcntl.fcntl(self.fd, fcntl.F_GETLK, self._exclusive[byte])
        except (OSError, ValueError) as error:
            self._refused(error)
            return None
        kind, pid = read_flock(answer)
        return None if kind == fcntl.F_UNLCK else max(0, pid)
