"""The set-ups that can be tried: how the processes are started, asked, and ended.

Each module has one subclass of ``Scenario`` (``stress.scenarios.base``), named in ``SCENARIOS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from stress.scenarios.base import Scenario

#: By name, the module here and its class.
SCENARIOS: Mapping[str, tuple[str, str]] = {
    "threads": ("own", "Threads"),
    "forks": ("own", "Forks"),
    "spawn": ("own", "Spawn"),
    "prefork": ("own", "Prefork"),
    "pool": ("pool", "Pools"),
    "celery": ("celery", "Celery"),
    "gunicorn": ("gunicorn", "Gunicorn"),
    "uwsgi": ("uwsgi", "Uwsgi"),
}


def scenario(name: str) -> type[Scenario]:
    """The class of that name."""
    module, cls = SCENARIOS[name]
    found: type[Scenario] = getattr(importlib.import_module(f"stress.scenarios.{module}"), cls)
    return found
