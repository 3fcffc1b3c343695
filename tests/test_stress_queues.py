"""Scenarios of tasks for workers: answers are right, a kill is survived, nothing is left."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest

from nimue import SharedSemaphore
from stress.scenarios import scenario
from stress.trial.brief import Brief
from stress.trial.desk import OK, REFUSED, UNKNOWN
from stress.trial.dialects import CREATE
from tests import children
from tests.fakes import until

pytestmark = [pytest.mark.harness, pytest.mark.server]

PROCESSES, LIMIT = 2, 3


@pytest.fixture
def brief(postgres, tmp_path) -> Iterator[Brief]:
    """A trial's, with a ledger of its own."""
    for name in ("diaries", "tickets", "limits"):
        (tmp_path / name).mkdir()
    postgres.sql(f"CREATE SCHEMA {postgres.name}")
    postgres.sql(CREATE.replace("stress_ledger", f"{postgres.name}.stress_ledger"))
    address = psycopg2.extensions.parse_dsn(postgres.dsn)
    yield Brief(
        contender="nimue",
        dialect="psycopg2",
        mark=postgres.name,
        connect={**address, "options": f"-c search_path={postgres.name}"},
        folder=str(tmp_path),
        seed=7,
        bound=60,
        totalmax=LIMIT,
        timeout=10,
    )
    postgres.sql(f"DROP SCHEMA {postgres.name} CASCADE")


def ends(folder: Path) -> list[dict[str, Any]]:
    """The answers that the callers have so far."""
    lines = [
        json.loads(line)
        for path in (folder / "diaries").glob("callers*")
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return [values[-1] for what, *values in lines if what == "end"]


def left_in_order(folder: Path, pid: int) -> bool:
    """Whether a worker has closed its pool before it ended."""
    return '\n["out", ' in (folder / "diaries" / f"w{pid}").read_text()


def answered(folder: Path, pids: set[int]) -> bool:
    """Whether each of them has served a question."""
    return pids <= {end["pid"] for end in ends(folder)}


def free_permits(brief: Brief) -> int:
    directory = Path(brief.folder) / "limits"
    with closing(SharedSemaphore(brief.mark, LIMIT, directory=directory)) as semaphore:
        taken = [permit for _ in range(LIMIT + 1) if (permit := semaphore.take(0)) is not None]
        for permit in taken:
            permit.give_back()
    return len(taken)


@pytest.mark.parametrize(
    "name, variant",
    [("pool", "fork"), ("pool", "executor-spawn"), ("celery", "prefork")],
)
def test_killed_worker(name, variant, brief, postgres, tmp_path):
    if name == "celery":
        pytest.importorskip("celery")
    befallen: list[str] = []
    trial = scenario(name)(brief, PROCESSES, variant, lambda kind, _: befallen.append(kind))
    try:
        trial.start()
        first = set(trial.workers())
        assert len(first) == PROCESSES
        until(lambda: answered(tmp_path, first), 20)
        os.kill(min(first), signal.SIGKILL)
        until(lambda: min(first) not in trial.workers(), 20)

        def replaced() -> bool:
            trial.tend()
            now = set(trial.workers())
            return len(now) == PROCESSES and answered(tmp_path, now)

        until(replaced, 20)
        trial.calm()
        last = trial.workers()
        assert trial.finish(20) == [], trial.log.read_text()
    finally:
        trial.close()
        trial.close()
    # A Pool is made anew only if the kill hit a lock's holder, an executor always.
    assert befallen in ([["remade"]] if variant == "executor-spawn" else [[], ["remade"]])
    assert trial.workers() == []
    assert [pid for pid in last if not left_in_order(tmp_path, pid)] == []
    assert children.left_over() == []
    until(lambda: not postgres.sql(SESSIONS, f"{brief.mark}.%"), 10)
    assert free_permits(brief) == LIMIT
    check(ends(tmp_path), dict(postgres.sql(f"SELECT token, pid FROM {brief.mark}.stress_ledger")))


SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s"


def check(found: list[dict[str, Any]], ledger: dict[str, int]) -> None:
    """What was told to be committed is, by whoever said so; of the kill alone nobody knows."""
    told = {end["token"]: end for end in found}
    assert len(told) == len(found)
    assert not [end for end in found if end["outcome"] == REFUSED or end["wrong"]]
    good = {token: end["pid"] for token, end in told.items() if end["outcome"] == OK}
    assert good.items() <= ledger.items()
    # Each caller may lose one question by the kill, and one more where all is made anew.
    assert sum(end["outcome"] == UNKNOWN for end in found) <= 2 * 4 * PROCESSES
