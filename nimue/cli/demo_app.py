"""The application of `nimue demo`: gunicorn imports it once, in the master, before it forks.

The master opens the pool and keeps one connection out, in the middle of a transaction. So every
worker inherits open connections and a handle in use: the pool must sever the former, refuse the
latter, and open connections of the worker's own.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from nimue import NimueConnectionPool, NimueInheritedConnectionError

FIGURES = ("poolused", "poolfree", "waiting", "opened", "inherited", "severed")
QUERY = "select %s::text, pg_backend_pid(), current_setting('application_name'), pg_sleep(%s)"

run = os.environ["NIMUE_DEMO_RUN"]
held = float(os.environ["NIMUE_DEMO_HELD"])
poolmax = int(os.environ["NIMUE_DEMO_POOLMAX"])
totalmax = int(os.environ["NIMUE_DEMO_TOTALMAX"]) or None


def connect() -> Any:
    """A connection whose session tells the server which process opened it."""
    import psycopg2

    dsn = os.environ["NIMUE_DEMO_DSN"]
    return psycopg2.connect(dsn, application_name=f"{run} {os.getpid()}", connect_timeout=10)


@dataclass
class Report:
    """What the master can say about its own connection: written at the start and at the end."""

    pid: int
    sessions: int
    before: tuple[int, int]
    after: tuple[int, int] | None = None

    def write(self) -> None:
        path = os.environ["NIMUE_DEMO_REPORT"]
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        os.replace(path + ".new", path)


def whoami() -> tuple[int, int]:
    """The session and the transaction of the connection that the master keeps."""
    with kept.cursor() as cursor:
        cursor.execute("select pg_backend_pid(), txid_current()")
        session, transaction = cursor.fetchone()
    return session, transaction


# Under a limit of all processes an idle connection of the master's would go to a worker that waits,
# sooner or later: there the master has none but the one that it keeps.
pool = NimueConnectionPool(
    connect,
    name=run,
    poolmin=1 if totalmax else min(2, poolmax),
    poolmax=poolmax,
    totalmax=totalmax,
    timeout=8,
)
kept = pool.getconnection()
report = Report(os.getpid(), pool.poolstats().poolsize, whoami())
report.write()


def refused() -> bool:
    """Whether this worker is kept from using the handle of the master."""
    try:
        kept.cursor()
    except NimueInheritedConnectionError:
        return True
    return False


def ask(token: str) -> dict[str, Any]:
    """What the database says when it is asked for `token`, and how the pool is."""
    with pool.connection() as conn:
        with conn.cursor() as cursor:
            cursor.execute(QUERY, (token, held))
            said, session, owner, _ = cursor.fetchone()
        stats = pool.poolstats()
    return {
        "token": said,
        "session": session,
        "owner": owner,
        "pid": os.getpid(),
        "refused": refused(),
        "figures": [getattr(stats, name) for name in FIGURES],
    }


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    status = "200 OK"
    try:
        answer = ask(environ["PATH_INFO"][1:])
    except Exception as error:
        status = "500 Internal Server Error"
        answer = {"pid": os.getpid(), "error": f"{type(error).__name__}: {error}"}
    body = json.dumps(answer).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


def close() -> None:
    """In the master, when all workers are gone: its connection must be as it was."""
    report.after = whoami()
    report.write()
    kept.close()
    pool.close(timeout=5)
