"""The WSGI application of a trial. Its desk is made at import: in a preloading master, or by each
worker."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from stress.trial.brief import Brief
from stress.trial.desk import OK, Desk

#: Seconds in which a server that is down has to come up again.
PATIENCE = 20.0


def _make(brief: Brief) -> Desk:
    """The desk, as soon as its pool opens: gunicorn ends when a worker cannot be imported."""
    deadline, over = time.monotonic() + PATIENCE, Path(brief.folder) / "over"
    while True:
        try:
            return Desk(brief)
        except Exception:
            if time.monotonic() > deadline or over.exists():
                raise
            time.sleep(0.1)


desk = _make(Brief.here())
_entering = threading.Lock()
#: Which process has come to work; 0 in a master.
_entered = 0


def enter() -> None:
    """Come to work, before the first question, which two threads may bring at once."""
    global _entered
    with _entering:
        if _entered != os.getpid():
            desk.enter()
            _entered = os.getpid()


def leave() -> None:
    """A worker, or a preloading master, ends in order."""
    if _entered == os.getpid():
        desk.leave()
    elif not _entered:
        desk.pool.close(desk.brief.timeout)
    # Else it was forked in the middle of a question, and its end is that question's affair.


def hang(is_deaf: bool) -> None:
    """Hold a connection until the server puts this worker down; a deaf one only by SIGKILL."""
    conn = desk.pool.acquire()
    error: BaseException | None = None
    try:
        conn.cursor().execute("select 1")
        if is_deaf:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGABRT])
        time.sleep(desk.brief.bound)
    except BaseException as caught:
        error = caught
        raise
    finally:
        desk.pool.release(conn, error)


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """``/token`` is a question, ``/`` asks who is there; ``/hang`` and ``/hang.deaf`` hang."""
    enter()
    path, status = environ["PATH_INFO"][1:], "200 OK"
    told: dict[str, Any] = {"pid": os.getpid()}
    if path in ("hang", "hang.deaf"):
        hang(is_deaf=path.endswith("deaf"))
    elif path:
        answer = desk.answer(path, Random(f"{desk.brief.seed} {path}"))
        told = answer.as_dict()
        if answer.outcome != OK:
            status = "500 Internal Server Error"
    body = json.dumps(told).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


with suppress(ImportError):  # it is there only inside a uWSGI
    import uwsgi

    uwsgi.atexit = leave
