"""The benchmark of a limit across processes: it measures what it says, and leaves nothing."""

from __future__ import annotations

import glob
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from nimue.cli.interrupt import Interrupts
from stress.bench import main as bench_main
from stress.bench import total, total_runs, total_servers
from stress.bench.report import verdict
from stress.bench.runs import Context
from stress.bench.total_client import Answer, Client, Order, Window
from stress.bench.total_parts import HOT, SKEW, Plan, percentile
from stress.bench.total_runs import BOUNCER, LIMIT, NIMUE, PROCESSES, STATIC, Run, pool_settings
from stress.bench.total_servers import RunFailed
from stress.watch import CLOSING, Census

pytestmark = pytest.mark.harness

pytest.importorskip("psutil")

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0
TINY = ("--quick", "--rounds", "1", "--seconds", "0.4")
needs_bouncer = pytest.mark.skipif(not total_servers.program(), reason="there is no pgbouncer")


def unlimited(contender: str, threads: int, name: str) -> dict[str, Any]:
    """In place of a shared limit, for tests of the benchmark alone: within it by themselves."""
    if contender != NIMUE:
        return pool_settings(contender, threads, name)
    return {"name": name, "poolmin": 0, "poolmax": {16: 5, 4: 2, 1: 1}[threads]}


def folders(pid: int) -> list[str]:
    return [*glob.glob(f"/tmp/nimue-total-{pid}-*"), *glob.glob(f"/dev/shm/nimue-total-{pid}-*")]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not folders(os.getpid())


def run_of(
    per_process: list[int], waits: list[float] | None = None, lasting: int = 8, most: int = 8
) -> Run:
    hot = PROCESSES if waits is None else 1
    return Run(1.0, per_process, hot, waits or [], 3, most, lasting)


def plan_of(runs: dict[str, Any], contenders: list[str] | None = None) -> Plan:
    def run(name: str, scenario: Any, seconds: float) -> Run:
        if isinstance(runs[name], Exception):
            raise runs[name]
        found: Run = runs[name]
        return found

    context = Context([], True, random.Random(1))
    return Plan(run, contenders or list(runs), 2, 1.0, context)


@pytest.mark.server
@needs_bouncer
def test_every_load_is_measured_for_everyone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(total_runs, "pool_settings", unlimited)
    kept = tmp_path / "run.json"
    status = bench_main(["total", *TINY, "--json", str(kept)])
    shown = capsys.readouterr().out
    found = json.loads(kept.read_text())

    assert {"Python", "nimue", "PostgreSQL", "psycopg2", "PgBouncer"} <= set(found["versions"])
    assert "not measured" not in shown
    assert "load " in shown
    figures = {(f["part"], f["who"], f["what"]): f["value"] for f in found["figures"]}
    for key in total.KEYS:
        for who in (NIMUE, BOUNCER, STATIC):
            least, middle, most = (
                figures[key, who, what]
                for what in ("requests, least round", "requests", "requests, most round")
            )
            assert 0 < least <= middle <= most
            assert 0 < figures[key, who, "requests, busy processes"] <= most
            assert figures[key, who, "reconnects"] >= 0
            lasted = figures[key, who, "sessions that lasted"]
            assert 1 <= lasted <= LIMIT
            assert figures[key, who, "sessions at once"] >= lasted
            if key == HOT.key:
                assert figures[key, who, "processes apart"] >= 0
            else:
                waits = [figures[key, who, f"quiet {what}"] for what in ("p50", "p99", "max")]
                assert 0 < waits[0] <= waits[1] <= waits[2]
    assert figures[SKEW.key, STATIC, "quiet p50"] >= 5.0
    assert len(found["targets"]) == 9
    assert all(target["measured"] is not None for target in found["targets"])
    assert status == (0 if all(target["met"] for target in found["targets"]) else 1)


@pytest.mark.server
def test_without_pgbouncer_its_ratios_are_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(total_runs, "pool_settings", unlimited)
    monkeypatch.setattr(total_servers, "program", lambda: None)
    kept = tmp_path / "run.json"
    total.main([*TINY, "--only", "skew", "--json", str(kept)])
    said = capsys.readouterr()
    found = json.loads(kept.read_text())

    assert "PgBouncer is left out" in said.err
    assert "apt-get install pgbouncer" in said.err
    assert {figure["who"] for figure in found["figures"]} == {NIMUE, STATIC, "machine"}
    assert len(found["targets"]) == 2
    assert not any(BOUNCER in target["what"] for target in found["targets"])


@pytest.mark.server
def test_a_run_that_is_stopped_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "stress", "bench", "total", "--only", "skew", "--seconds", "30"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        while "lasting" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait(10)
    assert "Stopped by SIGINT: all processes ended, all files removed." in said
    assert process.returncode == 128 + signal.SIGINT
    assert not folders(process.pid)


@pytest.mark.server
def test_a_contender_that_fails_is_told_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    def wrong(contender: str, threads: int, name: str) -> dict[str, Any]:
        if contender == NIMUE:
            return {"poolmax": -1}
        return pool_settings(contender, threads, name)

    monkeypatch.setattr(total_runs, "pool_settings", wrong)
    monkeypatch.setattr(total_servers, "program", lambda: None)
    kept = tmp_path / "run.json"
    assert total.main([*TINY, "--only", "hot", "--json", str(kept)]) == 1
    shown = capsys.readouterr().out
    found = json.loads(kept.read_text())

    assert "nimue was not measured" in shown
    assert "NimueInvalidParameterValue" in shown
    assert {figure["who"] for figure in found["figures"]} == {STATIC, "machine"}
    assert [target["met"] for target in found["targets"]] == [False, False]


@pytest.mark.server
def test_sessions_that_outlive_their_clients_fail_the_run(monkeypatch):
    monkeypatch.setattr(total_runs.PostgresWatch, "settled", lambda self, bound: 2)
    with Interrupts() as interrupts:
        stage = total_runs.Stage(interrupts)
        try:
            stage.open()
            with pytest.raises(RunFailed, match="2 sessions are left"):
                stage.run(STATIC, SKEW, 0.2)
        finally:
            stage.close()
    assert not stage.left()


def test_the_pools_differ_in_who_limits_alone():
    assert pool_settings(NIMUE, 16, "x") == {
        "name": "x",
        "totalmax": LIMIT,
        "poolmin": 0,
        "poolmax": 16,
    }
    assert pool_settings(BOUNCER, 16, "x") == {"poolmin": 0, "poolmax": 16}
    assert pool_settings(BOUNCER, 1, "x") == {"poolmin": 0, "poolmax": 1}
    assert pool_settings(STATIC, 16, "x") == {"poolmin": 0, "poolmax": LIMIT // PROCESSES}


def test_the_ratios_of_the_skew_are_those_of_the_figures():
    part = plan_of(
        {
            NIMUE: run_of([900, 10, 10, 10], [0.020] * 99 + [0.5]),
            STATIC: run_of([280, 10, 10, 10], [0.005]),
            BOUNCER: run_of([970, 10, 10, 10], [0.010]),
        }
    ).skew()
    measured = {target.what: target.measured for target in part.targets}
    assert measured["requests per second, nimue to static split"] == pytest.approx(3.0)
    assert measured["requests per second, nimue to PgBouncer"] == pytest.approx(0.93)
    assert measured["p99 of quiet workers, nimue to PgBouncer"] == pytest.approx(2.0)
    assert measured["nimue's sessions at once that lasted"] == 8
    assert verdict([part])[1]


def test_processes_that_are_apart_and_a_session_too_many_are_misses():
    part = plan_of(
        {
            NIMUE: run_of([108, 100, 104, 104], lasting=9, most=11),
            BOUNCER: run_of([104, 104, 104, 104]),
        }
    ).hot()
    missed = {target.what: target.measured for target in part.targets if not target.met}
    assert missed == {
        "nimue's sessions at once that lasted": 9,
        "nimue's processes apart": pytest.approx(8.0),
    }
    assert run_of([5, 0, 5, 5]).apart == float("inf")


def test_a_failed_pgbouncer_is_a_miss_and_no_shorter_list():
    part = plan_of({NIMUE: run_of([9, 1, 1, 1], [0.1]), BOUNCER: RunFailed("no\nroom")}).select()
    assert {"no", "room"} <= set(part.notes)
    assert not verdict([part])[1]
    assert any("PgBouncer: measured without an error" in target.what for target in part.targets)


def test_an_error_of_the_benchmark_itself_is_told_in_full():
    part = plan_of({NIMUE: ZeroDivisionError("oops"), STATIC: run_of([9, 9, 9, 9])}).hot()
    assert any("Traceback" in note for note in part.notes)
    assert "ZeroDivisionError: oops" in part.notes
    assert {figure.who for figure in part.figures} == {STATIC}


def test_what_is_closing_is_seen_and_does_not_last():
    census = Census(CLOSING)
    eight = frozenset(range(8))
    for number in range(50):
        closing = {100 + number // 5} if number % 5 else set()
        census.fold(number * 0.01, eight | closing)
    assert census.looks == 50
    assert (census.most, census.lasting) == (9, 8)

    census.fold(1.0, eight | {200})
    census.fold(1.0 + CLOSING, eight | {200})
    assert census.lasting == 9


def test_a_percentile_is_one_of_the_values():
    assert percentile([3.0], 99) == 3.0
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile(list(range(1, 101)), 50) == 50


class Broken:
    """A pool that has nothing to give."""

    opened = 0

    def poolstats(self) -> Any:
        return self

    def getconnection(self) -> Any:
        raise ValueError("nothing here")


@pytest.mark.parametrize("every", [None, 0.02])
def test_a_client_answers_with_the_error_of_its_requests(every):
    now = time.monotonic()
    order = Order({}, {}, "select 1", 2, every, 0.0, 5.0)
    answer = Client(Broken(), order, Window(now, now + 0.02, now + 0.04)).run()
    assert isinstance(answer, Answer)
    assert answer.requests == 0
    assert "nothing here" in answer.errors[0]


class Opening:
    """A pool that opens a connection for each request, and answers at once."""

    opened = 0
    conn = MagicMock()

    def poolstats(self) -> Any:
        return self

    def getconnection(self) -> Any:
        self.opened += 1
        return self.conn


def test_a_client_counts_what_is_in_its_window_alone():
    pool = Opening()
    pool.getconnection().cursor()  # all that a mock makes at its first use is made
    pool.opened = 0
    order = Order({}, {}, "select 1", 1, 0.2, 0.0, 5.0)
    now = time.monotonic()
    answer = Client(pool, order, Window(now, now + 0.9, now + 2.9)).run()
    assert not answer.errors
    assert pool.opened == 15
    assert 1 <= answer.requests < pool.opened
    assert 1 <= answer.opened < pool.opened
    assert len(answer.waits) == 10
    assert min(answer.waits) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "skew,cold"], "no load cold; there is skew, select, hot"),
        (["--seconds", "0"], "above 0, at most 60 seconds"),
        (["--seconds", "nan"], "above 0, at most 60 seconds"),
        (["--seconds", "soon"], "above 0, at most 60 seconds"),
        (["--rounds", "0"], "a whole number from 1 to 100"),
        (["--rounds", "1.5"], "a whole number from 1 to 100"),
        (["--json", "/no/such/folder/run.json"], "there is no such folder"),
        (["--compare", "/no/such/file.json"], "No such file"),
        (["--compare", __file__], "Extra data"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_started(arguments, said, capsys):
    with pytest.raises(SystemExit) as refused:
        total.main(arguments)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_what_is_missing_is_named_with_the_cure(monkeypatch, capsys):
    monkeypatch.setattr(total, "NEEDED", ("psycopg2", "no_such_module_anywhere"))
    assert total.main(["--quick"]) == 1
    said = capsys.readouterr().err
    assert "total needs no_such_module_anywhere" in said
    assert total.INSTALL in said


def test_the_other_benchmarks_tell_of_it(capsys):
    with pytest.raises(SystemExit):
        bench_main(["--help"])
    assert "\ntotal: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench_main(["total", "--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {key} " in shown for key in total.KEYS)
