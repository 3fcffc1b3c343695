"""The semaphore's benchmarks run, say what they measured, and leave nobody behind.

None asks whether anything is fast.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stress import bench
from stress.bench.report import Part
from stress.bench.runs import percentile
from stress.bench.semaphore import crew, growth, handover, idle, recovery
from stress.bench.semaphore.subjects import BOUNDED, OURS, POSIX, Posix, both, room
from stress.bench.semaphore.uncontended import WITH

ROOT = Path(__file__).parent.parent
WITHOUT = "assert not [name for name in sys.modules if name.startswith('nimue')]"

pytestmark = [
    pytest.mark.harness,
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One quick run of it all, as its users start it: what it said, and what it kept."""
    kept = tmp_path_factory.mktemp("bench") / "run.json"
    done = subprocess.run(
        [sys.executable, "-m", "stress", "bench", "semaphore", "--quick", "--json", str(kept)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done, json.loads(kept.read_text())


def figures(run, part):
    return {(f["who"], f["what"]): f["value"] for f in run[1]["figures"] if f["part"] == part}


def test_the_exit_status_is_the_verdict(run):
    done, found = run
    assert done.returncode == (0 if all(each["met"] for each in found["targets"]) else 1)
    assert "Verdict" in done.stdout
    assert "load " in done.stdout
    assert found["suite"] == "semaphore"
    assert found["quick"] is True
    assert {"Python", "nimue"} <= set(found["versions"])


def test_every_target_is_measured(run):
    targets = {(each["part"], each["limit"], each["unit"]): each for each in run[1]["targets"]}
    asked = {("a", 6.0, "us"), ("b", 200.0, "ns"), ("c", 0.3, "ms"), ("c", 2.0, "ms")}
    asked |= {("d", 60.0, "ms"), ("e", 3.0, "%")}
    if hasattr(os, "pidfd_open"):
        asked.add(("d", 5.0, "ms"))
    assert asked <= set(targets)
    assert all(each["measured"] is not None for each in targets.values())


def test_loops_are_told_in_nanoseconds(run):
    uncontended, asked = figures(run, "a"), figures(run, "b")
    names = (OURS, WITH, POSIX, BOUNDED)
    assert {who for who, _ in uncontended} == set(names)
    for name in names:
        least = uncontended[name, "acquire + give back, least"]
        assert 0 < least <= uncontended[name, "acquire + give back, median"] < 1e7
    for state in ("nobody waits", "another process waits"):
        for name in (OURS, POSIX):
            assert 0 < asked[name, f"asked while {state}, median"] < 1e6


def test_the_wake_up_is_told_by_its_spread(run):
    seen = figures(run, "c")
    for name in (OURS, POSIX):
        spread = [seen[name, f"wake-up, {which}"] for which in ("median", "p90", "p99", "most")]
        assert spread[0] > 0
        assert spread == sorted(spread)


def test_killed_holders_are_recovered_from_and_posixs_are_not(run):
    seen = figures(run, "d")
    ours = [name for name, what in seen if what == "recovered" and name != POSIX]
    assert ours
    for name in ours:
        assert seen[name, "recovered"] == 10
        assert 0 < seen[name, "recovery, median"] <= seen[name, "recovery, most"]
    assert seen[POSIX, "recovered"] == 0
    assert (POSIX, "recovery, median") not in seen
    assert "never" in run[0].stdout


def test_idle_waiters_cost_something_but_no_core_each(run):
    seen = figures(run, "e")
    for shape in ("8 x 4", "32 x 1"):
        assert 0 < seen[OURS, f"idle, {shape}"] < 100
        assert 0 <= seen[POSIX, f"idle, {shape}"] < 100


def test_growth_is_told_for_every_size(run):
    seen = figures(run, "f")
    for name in (OURS, POSIX):
        for state in growth.STATES:
            for limit in growth.LIMITS:
                assert seen[name, f"acquire + give back, {state}, limit {limit}"] > 0
                assert seen[name, f"asking, {state}, limit {limit}"] > 0
        for waiting in growth.WAITING:
            assert seen[name, f"wake-up, {waiting} waiting, median"] > 0
    assert all(f"{size} to 1" in run[0].stdout for size in growth.WAITING[1:])


# -- what is asked for


def refused(argv, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(argv)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_what_does_not_exist_is_refused_with_what_does(capsys):
    said = refused(["nothing"], capsys)
    assert "'nothing'" in said and "pool" in said and "semaphore" in said
    assert "no measurement g, z; there is a to f" in refused(
        ["semaphore", "--only", "a,z,g"], capsys
    )


def test_a_run_is_compared_with_one_of_its_own_kind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "ALL", ())
    monkeypatch.setitem(bench.PARTS, "a", lambda context: planted(1.0))
    kept = tmp_path / "pool.json"
    assert bench.main(["--only", "a", "--json", str(kept)]) == 0
    assert json.loads(kept.read_text())["suite"] == "pool"
    assert bench.main(["pool", "--only", "a", "--compare", str(kept)]) == 0
    capsys.readouterr()
    said = refused(["semaphore", "--compare", str(kept)], capsys)
    assert "that run was of 'pool', not 'semaphore'" in said


def test_the_pools_processes_without_nimue_stay_without():
    """They import the benchmarks, among them this one's name."""
    subprocess.run(
        [sys.executable, "-c", "import sys, stress.bench.child as it; " + WITHOUT],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )


def planted(measured):
    part = Part("a", "planted", "")
    part.at_most("a thing", 10.0, measured, "ms")
    return part


def test_an_error_is_a_miss_and_no_part_of_the_pools_is_run(monkeypatch, capsys):
    def broken(context):
        raise TimeoutError("nobody answers")

    def never(context):
        raise AssertionError("that is another suite's")

    monkeypatch.setitem(bench.PARTS, "a", never)
    parts = bench.SUITES["semaphore"].parts
    monkeypatch.setitem(parts, "a", broken)
    monkeypatch.setitem(parts, "b", lambda context: planted(1.0))
    assert bench.main(["semaphore", "--only", "a,b"]) == 1
    shown = capsys.readouterr().out
    assert "nobody answers" in shown and "planted" in shown and "another suite's" not in shown
    assert bench.main(["semaphore", "--only", "b"]) == 0
    monkeypatch.setitem(parts, "b", lambda context: planted(11.0))
    assert bench.main(["semaphore", "--only", "b"]) == 1


# -- what it is made of


@pytest.mark.parametrize(
    ("percent", "value"),
    [(1, 1), (50, 50), (50.5, 51), (90, 90), (99, 99), (99.1, 100), (100, 100)],
)
def test_a_percentile_is_one_of_the_values(percent, value):
    assert percentile([*range(100, 0, -1)], percent) == value


def test_a_percentile_of_few_is_the_greatest():
    assert percentile([3.0, 1.0], 99) == 3.0
    assert percentile([7.0], 1) == 7.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_no_percentile_of_nothing(values, percent):
    with pytest.raises(ValueError, match="no "):
        percentile(values, percent)


def test_a_child_that_fails_is_heard_of_and_gone(capfd):
    def fail(line):
        raise ValueError("out of order")

    with crew.crew() as made:
        child = made.fork(fail)
        with pytest.raises(EOFError, match="has ended"):
            child.hear()
    assert "out of order" in capfd.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_silent_children_are_given_up_and_gone(monkeypatch):
    monkeypatch.setattr(crew, "ANSWER", 0.05)
    with crew.crew() as made:
        children = [made.fork(lambda line: line.hear()) for _ in range(2)]
        with pytest.raises(TimeoutError):
            children[0].hear()
        with pytest.raises(TimeoutError, match="none of 2"):
            crew.first(children)
        with pytest.raises(TimeoutError, match="the moon"):
            crew.until(lambda: False, "the moon")
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)


def test_a_child_ends_by_itself_if_nobody_ends_it(monkeypatch):
    monkeypatch.setattr(crew, "LIFE", 1)
    child = crew.Child(lambda line: time.sleep(60))
    _, status = os.waitpid(child.pid, 0)
    child.sock.close()
    assert os.WTERMSIG(status) == signal.SIGALRM


def test_children_are_gone_after_an_error():
    made = []
    with pytest.raises(KeyError), crew.crew() as all_of_them:
        made.append(all_of_them.fork(lambda line: line.hear()))
        raise KeyError
    with pytest.raises(ProcessLookupError):
        os.kill(made[0].pid, 0)


class Deaf(Posix):
    """Grants one permit, and then none."""

    def give_back(self):
        """It is lost."""


def test_a_lost_wake_up_is_an_error(monkeypatch):
    monkeypatch.setattr(crew, "ANSWER", 0.2)
    with pytest.raises(TimeoutError, match="none of 2 processes"):
        handover.hand_over(lambda: Deaf(1), 2, 1, random.Random(1))


def test_a_permit_goes_round():
    with room() as folder:
        for make in both(1, folder).values():
            times = handover.hand_over(make, 3, 5, random.Random(1))
            assert len(times) == 5
            assert all(0 < taken < 1e4 for taken in times)


def test_a_semaphore_that_does_not_recover_misses_its_targets():
    part = Part("d", "", "")
    recovery._tell(part, {recovery.TOLD: [], recovery.UNTOLD: [1.0], POSIX: []}, 1)
    met = {target.what: target.met for target in part.targets}
    assert met == {
        f"{recovery.TOLD}: recovery, median": False,
        f"{recovery.TOLD}: recovered": False,
        f"{recovery.UNTOLD}: recovery, median": True,
        f"{recovery.UNTOLD}: recovered": True,
    }


def test_waiters_that_do_not_wait_are_no_idle_waiters(monkeypatch):
    monkeypatch.setattr(crew, "ANSWER", 0.05)
    with room() as folder, pytest.raises(TimeoutError, match="32 threads wait"):
        idle._all_wait(both(1, folder)[OURS]())
