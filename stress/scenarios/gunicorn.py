"""gunicorn: forked workers of one thread or several, with and without a preloaded application."""

from __future__ import annotations

import http.client
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from nimue.cli.demo_process import until
from stress.scenarios.served import PATIENCE, Line, NoAnswer, Served

SYNC, PRELOAD = ("--worker-class", "sync"), ("--preload",)
#: Seconds after which gunicorn takes a worker for dead in the variant ``timeout``.
TIMEOUT = 2


class Gunicorn(Served):
    """With a question that hangs, in ``timeout``, gunicorn is asked by a thread of its own."""

    name = "gunicorn"
    summary = "gunicorn's workers, asked over HTTP"
    needs = ("gunicorn", "psutil")
    variants: Mapping[str, str] = {
        "sync": "one thread, the application imported by each worker",
        "sync-preload": "one thread, the application preloaded",
        "gthread": "threads and kept connections, the application imported by each worker",
        "gthread-preload": "threads and kept connections, the application preloaded",
        "recycle": "gthread-preload, workers that leave after some 60 to 100 questions",
        "reload": "gthread, HUP every two seconds: new workers for all",
        "timeout": "sync-preload, questions that hang until gunicorn kills the worker",
        "ttin": "sync-preload, one worker more, and one less",
    }
    said: Mapping[str, str] = {
        "recycle": r"\[(\d+)\] \[INFO\] Autorestarting worker",
        "timeout": r"WORKER TIMEOUT \(pid:(\d+)\)",
    }

    _count = 0
    _hanging: threading.Thread | None = None

    @property
    def is_kept(self) -> bool:
        return self.abreast > 1

    @property
    def abreast(self) -> int:
        has_threads = self.variant in ("gthread", "gthread-preload", "recycle", "reload")
        return self.brief.threads if has_threads else 1

    def command(self, fd: int) -> list[str]:
        gthread = ("--worker-class", "gthread", "--threads", str(self.brief.threads))
        of_variant: Mapping[str, tuple[str, ...]] = {
            "sync": SYNC,
            "sync-preload": (*SYNC, *PRELOAD),
            "gthread": gthread,
            "gthread-preload": (*gthread, *PRELOAD),
            "recycle": (*gthread, *PRELOAD, "--max-requests=60", "--max-requests-jitter=40"),
            "reload": gthread,
            "timeout": (*SYNC, *PRELOAD, "--timeout", str(TIMEOUT)),
            "ttin": (*SYNC, *PRELOAD),
        }
        return [
            *(sys.executable, "-m", "gunicorn", "-c", "python:stress.scenarios.gunicorn_conf"),
            *("--bind", f"fd://{fd}", "--workers", str(self.processes)),
            *("--worker-tmp-dir", str(self.folder), *of_variant[self.variant]),
            "stress.scenarios.app:application",
        ]

    def befall(self) -> None:
        if self._has_hanging:
            return
        self._count += 1
        if self.variant == "reload":
            self.happened("reload", f"HUP to {self.master}")
            self.tell(signal.SIGHUP)
        elif self.variant == "ttin":
            is_more = self._count % 2 == 1
            self.happened("workers", "one more" if is_more else "one less")
            self.tell(signal.SIGTTIN if is_more else signal.SIGTTOU)
        elif self.variant == "timeout":
            # SIGABRT has a worker leave, through the question; every other one has to be killed.
            path = "/hang.deaf" if self._count % 2 else "/hang"
            self.happened("hang", path)
            self._hanging = threading.Thread(target=self._hang, args=(path,), daemon=True)
            self._hanging.start()

    def _hang(self, path: str) -> None:
        line = Line(self._port, self.brief.timeout + PATIENCE, is_kept=False)
        with suppress(OSError, http.client.HTTPException, NoAnswer):
            line.ask(path)

    @property
    def _has_hanging(self) -> bool:
        return self._hanging is not None and self._hanging.is_alive()

    def end(self, deadline: float) -> None:
        # One that hangs is not ended in order: gunicorn has to see to it first.
        until(lambda: not self._has_hanging, deadline - time.monotonic())
        self.tell(signal.SIGTERM)
        until(lambda: not self.is_alive, deadline - time.monotonic())
