"""The server of a trial, as the faults and the oracle see it: nimue knows nothing of this.

::

    database = make("postgres")                  # or mariadb, sqlite
    try:
        database.open(dsn, folder)
        database.create_ledger()
        address = database.address("psycopg2", proxy.port)
        ...
    finally:
        database.close()

``sessions`` and ``tally`` may be called from one thread while ``terminate``, ``restart`` and
``take_rest`` are from another. While the server is down, they raise ``ServerAway``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from stress.databases.admin import ServerAway
from stress.databases.base import Database, Rest

__all__ = ["WHERE", "Database", "Rest", "ServerAway", "make"]

#: By the name that dialects have for it, the module here and its class.
WHERE: Mapping[str, tuple[str, str]] = {
    "postgres": ("postgres", "PostgreSQL"),
    "mariadb": ("mariadb", "MariaDB"),
    "sqlite": ("sqlite", "SQLite"),
}


def make(server: str, noted: set[int] | None = None) -> Database:
    """That of a dialect's ``server``, not open yet.

    Args:
        server: its name.
        noted: the ids of the processes that it starts are put there while they live.

    Raises:
        ValueError: there is no such server.
    """
    if server not in WHERE:
        raise ValueError(f"server={server!r}: it is one of {', '.join(WHERE)}")
    module, name = WHERE[server]
    made: Database = getattr(importlib.import_module(f"stress.databases.{module}"), name)(noted)
    return made
