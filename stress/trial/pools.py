"""The pools that can be tried, each by its name: nimue, its peers, and some with planted faults."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from stress.trial.brief import Brief

#: What opens a connection.
Connect = Callable[[], Any]


class Pool:
    """One pool, made before any fork; its ``acquire`` waits at most ``brief.timeout`` seconds."""

    def __init__(self, brief: Brief, connect: Connect) -> None:
        raise NotImplementedError

    def acquire(self) -> Any:
        """A connection, or the pool's own error."""
        raise NotImplementedError

    def release(self, conn: Any, error: BaseException | None) -> None:
        """Give back what ``acquire`` gave; ``error``: what its use ended in."""
        conn.close()

    def enter_child(self) -> None:
        """What its documentation asks for in a forked child, before anything else."""

    def close(self, timeout: float) -> None:
        """Close what is idle, and wait so many seconds for the rest."""


class Nimue(Pool):
    """As its README shows it: one pool, made before the fork, and nothing done in the child."""

    def __init__(self, brief: Brief, connect: Connect) -> None:
        from nimue import NimueConnectionPool

        self.pool = NimueConnectionPool(
            connect,
            poolmin=brief.poolmin,
            poolmax=brief.poolmax,
            totalmax=brief.totalmax,
            name=brief.mark if brief.totalmax is not None else None,
            timeout=brief.timeout,
            **brief.extra,
        )

    def acquire(self) -> Any:
        return self.pool.getconnection()

    def close(self, timeout: float) -> None:
        self.pool.close(timeout=timeout)


#: By name, the module and the class: a peer is imported by who tries it.
WHERE: Mapping[str, tuple[str, str]] = {
    "nimue": (__name__, "Nimue"),
    "planted: shares": ("stress.trial.planted", "Shares"),
    "planted: exceeds": ("stress.trial.planted", "Exceeds"),
    "planted: leaks": ("stress.trial.planted", "Leaks"),
    "planted: crosses": ("stress.trial.planted", "Crosses"),
    "planted: loses": ("stress.trial.planted", "Loses"),
    "planted: doubles": ("stress.trial.planted", "Doubles"),
    "planted: remains": ("stress.trial.planted", "Remains"),
    "sqlalchemy": ("stress.trial.peers", "SQLAlchemy"),
    "sqlalchemy-disposed": ("stress.trial.peers", "SQLAlchemyDisposed"),
    "psycopg_pool": ("stress.trial.peers", "PsycopgPool"),
    "psycopg_pool-anew": ("stress.trial.peers", "PsycopgPoolAnew"),
    "dbutils": ("stress.trial.peers", "DBUtils"),
    "dbutils-anew": ("stress.trial.peers", "DBUtilsAnew"),
    "psycopg2.pool": ("stress.trial.peers", "Psycopg2Pool"),
    "psycopg2.pool-anew": ("stress.trial.peers", "Psycopg2PoolAnew"),
    "nimue-0.0.3": ("stress.trial.peers", "Nimue003"),
}


def make(brief: Brief, connect: Connect) -> Pool:
    """The pool of this process, and of its forks."""
    module, name = WHERE[brief.contender]
    made: Pool = getattr(importlib.import_module(module), name)(brief, connect)
    return made
