"""What the one thread that waits for a whole process sleeps on."""

from __future__ import annotations

import select

from nimue.process import Identity, open_pidfd
from nimue.semaphore.files import OpenFile, hold
from nimue.semaphore.layout import HELD, HINTS, HINTS_END, Map
from nimue.semaphore.mailbox import Mailbox


class Watch:
    """The mailbox, and the processes whose death would let this one go on.

    For the head of the queue these are the holders, for others the head. Only where the pid means
    the same here as there; a number that has been reused since wakes for nothing, or later.
    """

    def __init__(self, map: Map, who: Identity) -> None:
        self._map, self._who = map, who
        self._watched: dict[int, OpenFile] = {}

    def choose_locked(self, head: int | None) -> None:
        wanted = self._holders() if head is None else self._process_of(head)
        for pid in [pid for pid in self._watched if pid not in wanted]:
            self._watched.pop(pid).close()
        for pid in wanted - self._watched.keys():
            fd = open_pidfd(pid)
            if fd is not None:
                self._watched[pid] = hold(fd)

    def _holders(self) -> set[int]:
        rows = map(self._map.slot, self._map.places(HINTS, HINTS_END, HELD))
        return {row.pid for row in rows if row.namespace == self._who.namespace} - {
            0,
            self._who.pid,
        }

    def _process_of(self, member: int) -> set[int]:
        row = self._map.member(member)
        return {row.pid} - {0} if row.namespace == self._who.namespace else set()

    def sleep(self, mailbox: Mailbox, seconds: float) -> bool:
        """Sleep until there is mail, or one of those watched ends; False if neither happened."""
        poll = select.poll()
        poll.register(mailbox.fd, select.POLLIN)
        for file in list(self._watched.values()):
            poll.register(file.fd, select.POLLIN)
        seen = {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000 + 0.999)}
        if mailbox.fd in seen:
            mailbox.drain()
        for pid, file in list(self._watched.items()):
            if file.fd in seen:
                self._watched.pop(pid, None)
                file.close()
        return bool(seen)

    def close(self) -> None:
        while self._watched:
            self._watched.popitem()[1].close()
