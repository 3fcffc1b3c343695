"""Only one process migrates a database at a time.

The lock is the server's and belongs to the session, or the kernel's where there is no server: so it
ends with the process that holds it, however that dies, and no commit of a step's own ends it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nimue.rider.error import RiderError, RiderLocked
from nimue.rider.needs import Database

#: Seconds between two attempts: the first, the most, and by what it grows.
FIRST, MOST, GROWTH = 0.02, 1.0, 1.5

_PG_HOLDER = (
    "select pid from pg_locks where locktype = 'advisory' and granted and objsubid = 1"
    " and database = (select oid from pg_database where datname = current_database())"
    " and (classid::bigint << 32) | objid::bigint = %s"
)


@contextmanager
def alone(db: Database, table: str, timeout: float) -> Iterator[None]:
    """Be the only one who changes what ``table`` tells of, after ``timeout`` seconds at most.

    Raises:
        RiderLocked: another process has been at it all the time.
    """
    with _ALONE[db.dialect](db, table, timeout):
        yield


@contextmanager
def _postgres(db: Database, table: str, timeout: float) -> Iterator[None]:
    digest = hashlib.sha256(f"nimue rider {table}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)

    def holder() -> str:
        return ", ".join(f"process {row['pid']}" for row in db.select(_PG_HOLDER, (key,)))

    with _session_lock(
        db,
        ("select pg_try_advisory_lock(%s) as done", (key,)),
        ("select pg_advisory_unlock(%s) as done", (key,)),
        lambda: f"PostgreSQL's {holder() or 'another session'}",
        timeout,
    ):
        yield


@contextmanager
def _mysql(db: Database, table: str, timeout: float) -> Iterator[None]:
    # One name space for all databases of the server, of at most 64 letters.
    (row,) = db.select("select database() as name", ())
    digest = hashlib.sha256(f"{row['name']}.{table}".encode()).hexdigest()
    name = f"nimue-rider-{digest[:32]}"

    def holder() -> str:
        return ", ".join(
            f"session {row['id']}" for row in db.select("select is_used_lock(%s) as id", (name,))
        )

    with _session_lock(
        db,
        ("select get_lock(%s, 0) as done", (name,)),
        ("select release_lock(%s) as done", (name,)),
        lambda: f"MySQL's {holder()}",
        timeout,
    ):
        yield


@contextmanager
def _session_lock(
    db: Database,
    take: tuple[str, tuple[object, ...]],
    give_back: tuple[str, tuple[object, ...]],
    holder: Callable[[], str],
    timeout: float,
) -> Iterator[None]:
    # Ctrl-C may come when the server has given the lock, and nobody here knows of it yet.
    is_ours = True
    try:
        is_ours = _comes(db, take, timeout)
        if not is_ours:
            raise RiderLocked(f"{holder()} has been migrating this database for {timeout:g} s")
        yield
    finally:
        if is_ours:
            _give_back(db, give_back)


def _comes(db: Database, take: tuple[str, tuple[object, ...]], timeout: float) -> bool:
    """Ask for the lock until it is had; False if it was not in time."""
    deadline, pause = time.monotonic() + timeout, FIRST
    while not db.select(*take)[0]["done"]:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(pause * GROWTH, MOST)
    return True


def _give_back(db: Database, statement: tuple[str, tuple[object, ...]]) -> None:
    """The session has the lock: where it cannot give it back it must not go on."""
    try:
        db.select(*statement)
    except BaseException as error:
        db.manual_close()
        if not isinstance(error, Exception):
            raise


@contextmanager
def _sqlite(db: Database, table: str, timeout: float) -> Iterator[None]:
    files = {row["name"]: row["file"] for row in db.select("pragma database_list", ())}
    path = files.get("main")
    if not path:  # in memory, this connection's own
        yield
        return
    from filelock import FileLock, Timeout

    # Who may write the database may lock it, whoever made the lock file. It stays: were it
    # removed, one process could lock the old file while another locks a new one.
    file = f"{path}.rider-lock"
    try:
        lock = FileLock(file, mode=stat.S_IMODE(os.stat(path).st_mode))
        lock.acquire(timeout=timeout, poll_interval=FIRST)
    except Timeout as error:
        raise RiderLocked(
            f"another process has had {file} locked for {timeout:g} s: it migrates this database"
        ) from error
    except OSError as error:
        raise RiderError(f"{file} cannot be locked: {error}") from error
    try:
        yield
    finally:
        lock.release()


_ALONE = {"postgres": _postgres, "mysql": _mysql, "sqlite": _sqlite}
