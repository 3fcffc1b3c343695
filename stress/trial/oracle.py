"""What is seen from outside, whatever the pools say: sessions, permits, processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from nimue.cli import extra
from stress.databases import Database, ServerAway
from stress.trial.record import Health, Look
from stress.watch import Census, Watch

#: Seconds between two looks at the processes.
SAMPLE = 1.0
#: A session that is closed is listed until its server process has ended: no longer than this.
LASTING = 0.15


class Sessions(Watch):
    """The sessions of a trial, with every change written down."""

    def __init__(self, database: Database, mark: str, begun: float) -> None:
        super().__init__(LASTING)
        self._database, self._mark, self._begun = database, mark, begun
        self.looks: list[Look] = []
        #: The most that one process had in two looks so far apart.
        self.most_of_one = 0
        #: What the two parties said then.
        self.close_up = ""
        self._by_process: dict[int, Census] = {}

    @property
    def now(self) -> dict[int, int]:
        return dict(self.looks[-1].sessions) if self.looks else {}

    def sessions(self) -> dict[int, int]:
        return self._database.sessions(self._mark)

    def look(self) -> None:
        with suppress(ServerAway):
            when = time.monotonic()
            self._fold(when, self.sessions())

    def leave(self) -> None:
        self._database.leave()

    def _fold(self, when: float, listed: dict[int, int]) -> None:
        self.census.fold(when, frozenset(listed))
        counts = Counter(listed.values())
        self._fold_each(when, listed, counts)
        if not self.looks or self.looks[-1].sessions != counts:
            self.looks.append(Look(when - self._begun, dict(counts)))

    def _fold_each(self, when: float, listed: dict[int, int], counts: Counter[int]) -> None:
        for pid in self._by_process.keys() - counts.keys():
            del self._by_process[pid]
        for pid, count in counts.items():
            if pid and count > self.most_of_one:
                census = self._by_process.setdefault(pid, Census(LASTING))
                census.fold(when, frozenset(one for one, of in listed.items() if of == pid))
                if census.lasting > self.most_of_one:
                    self.most_of_one = census.lasting
                    self.close_up = self._look_closer(pid, listed)

    def _look_closer(self, pid: int, listed: dict[int, int]) -> str:
        backends = [one for one, of in listed.items() if of == pid]
        try:
            told = "; ".join(self._database.doing(backends))
        except ServerAway as error:
            told = f"it does not say more ({error})"
        return (
            f"process {pid} is connected to {_ports(pid)} by the system's list, and has"
            f" {len(backends)} sessions by the server's: {told}"
        )


def _ports(pid: int) -> str:
    psutil = extra.load("psutil")
    try:
        process = psutil.Process(pid)
        look = getattr(process, "net_connections", None) or process.connections
        counts = Counter(one.raddr.port for one in look("tcp") if one.raddr)
    except psutil.Error as error:
        return f"nobody knows where ({error})"
    return ", ".join(f"port {port} ({count} times)" for port, count in sorted(counts.items()))


class Processes:
    """Memory, descriptors and threads of the workers, once a second."""

    def __init__(self, begun: float) -> None:
        self._psutil = extra.load("psutil")
        self._begun, self._due = begun, 0.0
        self.samples: list[Health] = []

    def look(self, pids: Callable[[], Sequence[int]]) -> None:
        """Look, if it is time to."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + SAMPLE
            for pid in pids():
                with suppress(self._psutil.Error, OSError):
                    self.samples.append(self._sample(self._psutil.Process(pid), now))

    def _sample(self, process: Any, now: float) -> Health:
        with process.oneshot():
            return Health(
                now - self._begun,
                process.pid,
                process.memory_info().rss,
                process.num_fds(),
                process.num_threads(),
            )
