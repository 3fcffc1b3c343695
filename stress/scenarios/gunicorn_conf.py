"""The settings that all gunicorns of the trials share. gunicorn reads this module by name."""

from __future__ import annotations

import sys
from typing import Any

from stress.trial.brief import Brief
from stress.trial.desk import guard

keepalive = 5
graceful_timeout = 15
control_socket_disable = True


def when_ready(server: Any) -> None:
    """The master, too, ends by itself when nobody is left to end it; its workers follow it."""
    guard(Brief.here())


def _leave() -> None:
    app = sys.modules.get("stress.scenarios.app")
    if app is not None:
        app.leave()


def worker_exit(server: Any, worker: Any) -> None:
    _leave()


def on_exit(server: Any) -> None:
    """In the master, which has a desk if it has preloaded the application."""
    _leave()
