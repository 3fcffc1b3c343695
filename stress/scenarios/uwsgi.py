"""uWSGI: workers that are forked in C, with and without hooks, threads, and a preloaded
application."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from nimue.cli.demo_process import until
from stress.scenarios.served import Served

#: Its master ends by itself when nobody is left to end it; the workers go with it. An alarm
#: outlasts the exec of a reload, and is set anew by that.
PROGRAM = "import signal, pyuwsgi; signal.alarm({bound}); pyuwsgi.run()"
#: What can be said to the master: reload the workers, or all of itself by exec; end in order.
WORKERS, ALL, END = b"w", b"r", b"q"
HOOKS = ("--enable-threads", "--py-call-uwsgi-fork-hooks")
#: Seconds after which a worker that has come to no work hangs: it was forked while a thread of the
#: master had the interpreter's lock, for which uWSGI waits only with ``HOOKS``.
MUTE = 10.0
#: Seconds between two looks for such, each of which goes through all processes there are.
LOOK = 0.5


class Uwsgi(Served):
    """Its master is told what to do over a fifo: a signal between exec and handler would kill."""

    name = "uwsgi"
    summary = "uWSGI's workers, asked over HTTP"
    needs = ("pyuwsgi", "psutil")
    variants: Mapping[str, str] = {
        "default": "forked in C, and no Python code is told of it",
        "enable-threads": "--enable-threads",
        "threads-2": "--threads 2: two questions at once in each worker",
        "osafterfork": "--py-call-osafterfork: Python's hooks in the child alone",
        "fork-hooks": "--py-call-uwsgi-fork-hooks: Python's hooks before and after",
        "lazy": "--lazy-apps: the application imported by each worker",
        "recycle": "fork-hooks, workers that leave after some 60 questions",
        "reload": "fork-hooks, new workers every two seconds, by turns with an exec of the master",
    }
    fixed: Mapping[str, int] = {"threads": 1}
    said: Mapping[str, str] = {"recycle": r"The work of process (\d+) is done"}

    _count = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: Since when each worker is known; None for who has come to work, or was told of.
        self._mute: dict[int, float | None] = {}
        self._look = 0.0

    @property
    def abreast(self) -> int:
        return 2 if self.variant == "threads-2" else 1

    def command(self, fd: int) -> list[str]:
        of_variant: Mapping[str, tuple[str, ...]] = {
            "default": (),
            "enable-threads": ("--enable-threads",),
            "threads-2": ("--threads", "2"),
            "osafterfork": ("--enable-threads", "--py-call-osafterfork"),
            "fork-hooks": HOOKS,
            "lazy": ("--enable-threads", "--lazy-apps"),
            "recycle": (*HOOKS, "--max-requests=60", "--min-worker-lifetime=0"),
            "reload": HOOKS,
        }
        return [
            *(sys.executable, "-c", PROGRAM.format(bound=int(self.brief.bound))),
            *("--http-socket", f"fd://{fd}", "--master", "--processes", str(self.processes)),
            *("--module", "stress.scenarios.app:application", "--need-app", "--no-orphans"),
            *("--master-fifo", str(self.folder / "uwsgi.fifo"), "--disable-logging"),
            *("--forkbomb-delay", "0", "--worker-reload-mercy", "15"),
            *of_variant[self.variant],
        ]

    def tend(self) -> None:
        super().tend()
        now = time.monotonic()
        if now < self._look:
            return
        self._look = now + LOOK
        for pid in self.workers():
            since = self._mute.setdefault(pid, now)
            if since is None:
                continue
            if (self.folder / "diaries" / f"w{pid}").exists():
                self._mute[pid] = None
            elif now - since > MUTE:
                self._mute[pid] = None
                self.happened("mute", f"worker {pid} hangs at its start")

    def befall(self) -> None:
        if self.variant == "reload":
            self._count += 1
            what = WORKERS if self._count % 2 else ALL
            if self.say(what):
                self.happened("reload", "of the workers" if what == WORKERS else "with an exec")

    def say(self, what: bytes) -> bool:
        """Say it to the master; whether it listens: not at its start, nor when it has ended."""
        try:
            fifo = os.open(self.folder / "uwsgi.fifo", os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ENOENT):
                raise
            return False
        try:
            os.write(fifo, what)
        except BrokenPipeError:
            return False
        finally:
            os.close(fifo)
        return True

    def end(self, deadline: float) -> None:
        # What it is told in the middle of a reload is lost: so it is told again.
        while self.is_alive and time.monotonic() < deadline:
            self.say(END)
            until(lambda: not self.is_alive, min(2.0, deadline - time.monotonic()))
