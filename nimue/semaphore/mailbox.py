"""Named pipes by which one process wakes another: buffered, pollable, opened by path."""

from __future__ import annotations

import errno
import os

from nimue.error import NimueSemaphoreError
from nimue.semaphore.files import OpenFile, make_pipe, open_pipe

#: What a mailbox is for, and the letter in its file's name.
WAKE, POKE = "w", "p"

#: So many other ends are kept open: of hundreds of processes, one for each would be too many.
KEPT = 16


class Mailbox:
    """This process's own end of one pipe: readable when somebody has written.

    What is written before the reader sleeps is kept, so no wake-up is lost between the two.
    """

    __slots__ = ("_path", "file")

    def __init__(self, path: str) -> None:
        self._path = path
        make_pipe(path)
        self.file = self._open()
        self.drain()

    def _open(self) -> OpenFile:
        # For writing as well, although nothing is written: a pipe whose last writer leaves would
        # be readable for ever.
        return open_pipe(self._path, os.O_RDWR)

    @property
    def fd(self) -> int:
        return self.file.fd

    def drain(self) -> int:
        """Take all that is there; returns how many have written."""
        if not self.file.is_same():
            self.file = self._open()
        count = 0
        while True:
            try:
                data = os.read(self.file.fd, 4096)
            except BlockingIOError:
                return count
            count += len(data)
            if len(data) < 4096:
                return count

    def close(self) -> None:
        self.file.close()


class Post:
    """The other ends, opened when first written to, and ``KEPT``: pipes are never made anew."""

    __slots__ = ("_base", "_writers")

    def __init__(self, base: str, letter: str) -> None:
        self._base = f"{base}.{letter}"
        self._writers: dict[int, OpenFile] = {}

    def send(self, member: int) -> bool:
        """Write to a member; False if nobody can be there to read."""
        for _ in range(2):
            try:
                writer = self._writers.get(member)
                if writer is None or not writer.is_same():
                    writer = open_pipe(f"{self._base}{member}", os.O_WRONLY)
                    self._writers[member] = writer
                    if len(self._writers) > KEPT:
                        self._writers.pop(next(iter(self._writers))).close()
                os.write(writer.fd, b"!")
            except BlockingIOError:
                return True  # full: it has mail enough
            except OSError as error:
                stale = self._writers.pop(member, None)
                if stale is not None:
                    stale.close()
                if error.errno in (errno.ENXIO, errno.ENOENT):
                    return False
            except NimueSemaphoreError:
                return False
            else:
                return True
        return False

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()
