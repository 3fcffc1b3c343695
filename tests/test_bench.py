"""The benchmarks run, say what they measured, and tell a miss. None asks whether nimue is fast."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from stress import bench
from stress.__main__ import COMMANDS
from stress.__main__ import main as stress_main
from stress.bench.contenders import ALL, Nimue, SQLAlchemy
from stress.bench.report import Part, Sheet, Table, compare, verdict
from stress.bench.runs import Context, crowd, paired

pytestmark = pytest.mark.harness

ROOT = Path(__file__).parent.parent


def planted(measured: float | None) -> Part:
    part = Part("z", "planted", "")
    part.at_most("a thing", 10.0, measured, "ms")
    return part


def test_the_footprint_is_measured_and_kept_as_json(tmp_path, capsys, monkeypatch):
    kept = tmp_path / "run.json"
    monkeypatch.setattr(bench, "ALL", (Nimue,))
    status = bench.main(["--quick", "--only", "f", "--json", str(kept)])
    shown = capsys.readouterr().out
    found = json.loads(kept.read_text())

    assert status in {0, 1}
    assert "Verdict" in shown
    assert found["quick"] is True
    assert {"Python", "nimue"} <= set(found["versions"])
    figures = {(f["part"], f["who"], f["what"]): f for f in found["figures"]}
    assert figures["f", "nimue", "import"]["value"] > 0
    assert figures["f", "nimue", "import"]["unit"] == "ms"
    assert figures["f", "nimue", "memory, made"]["value"] > 0
    assert [t["part"] for t in found["targets"]] == ["f"] * 3
    assert all(t["measured"] is not None for t in found["targets"])
    assert status == (0 if all(t["met"] for t in found["targets"]) else 1)

    bench.main(["--quick", "--only", "f", "--compare", str(kept), "--no-verdict"])
    shown = capsys.readouterr().out
    assert "Against the earlier run" in shown
    assert "(f) nimue: import" in shown
    assert "Verdict" not in shown


@pytest.mark.parametrize("key", ["a", "b", "c", "d", "e"])
def test_each_measurement_answers_every_target_it_can_without_peers(key):
    part = bench.PARTS[key](Context([Nimue], True, random.Random(1)))

    assert part.figures
    assert part.tables
    assert part.told
    assert not part.notes
    unknown = [target.what for target in part.targets if target.measured is None]
    peers = ("psycopg2.pool", "SQLAlchemy", "psycopg_pool")
    assert all(any(peer in what for peer in peers) for what in unknown)


@pytest.mark.parametrize("contender", ALL, ids=lambda contender: contender.name)
def test_every_contender_does_the_same_work(contender):
    if contender.missing():
        pytest.skip(f"{contender.name} is not installed")
    server = bench.contended.fake.Server()
    pool = contender(server, 2, 4)
    try:
        assert server.opened == 2
        pool.loop(5)
        assert server.opened == 2
        pool.release(pool.acquire())
        kept = pool.keep_out(1)
        pool.loop(5)
        pool.put_back(kept.pop())
        assert server.opened == 2
    finally:
        pool.close()


def test_a_planted_miss_fails_the_verdict():
    lines, good = verdict([planted(9.0), planted(11.0)])
    assert not good
    assert any("MISSED" in line and "11" in line for line in lines)
    assert verdict([planted(10.0)])[1]


def test_what_was_not_measured_is_not_met():
    lines, good = verdict([planted(None)])
    assert not good
    assert any("not measured" in line for line in lines)


def test_a_planted_miss_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setitem(bench.PARTS, "a", lambda context: planted(11.0))
    assert bench.main(["--quick", "--only", "a"]) == 1
    assert bench.main(["--quick", "--only", "a", "--no-verdict"]) == 0
    monkeypatch.setitem(bench.PARTS, "a", lambda context: planted(1.0))
    assert bench.main(["--quick", "--only", "a"]) == 0
    capsys.readouterr()


def test_an_error_in_one_measurement_is_a_miss_and_the_rest_goes_on(monkeypatch, capsys):
    def broken(context):
        raise ValueError("out of order")

    monkeypatch.setitem(bench.PARTS, "a", broken)
    monkeypatch.setitem(bench.PARTS, "b", lambda context: planted(1.0))
    assert bench.main(["--only", "a,b"]) == 1
    shown = capsys.readouterr().out
    assert "out of order" in shown
    assert "planted" in shown


def test_a_missing_peer_is_named_with_the_cure(monkeypatch, capsys):
    monkeypatch.setattr(SQLAlchemy, "modules", ("no_such_module_anywhere",))
    monkeypatch.setitem(bench.PARTS, "a", lambda context: planted(len(context.contenders)))
    bench.main(["--only", "a"])
    said = capsys.readouterr().err
    assert "SQLAlchemy is left out" in said
    assert bench.INSTALL in said


def test_a_comparison_tells_the_change_and_other_versions():
    sheet = Sheet({"Python": "3.13"}, quick=False, seed=1, parts=[planted(1.0)])
    sheet.parts[0].figure("nimue", "median", 150.0, "ns")
    earlier = Sheet({"Python": "3.12"}, quick=True, seed=1, parts=[planted(1.0)])
    earlier.parts[0].figure("nimue", "median", 100.0, "ns")
    shown = "\n".join(compare(earlier.as_json(), sheet))
    assert "+50.0 %" in shown
    assert "Python was 3.12, now 3.13" in shown
    assert "--quick" in shown


def test_an_unknown_measurement_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "a,z"])
    assert "no measurement z" in capsys.readouterr().err


def test_rounds_are_interleaved_and_seeded():
    def rounds():
        return list(Context([], True, random.Random(7)).interleaved("abc", 4))

    assert rounds() == rounds()
    assert all(sorted(rounds()[i : i + 3]) == list("abc") for i in range(0, 12, 3))
    assert paired([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0


def test_a_crowd_sees_a_thread_that_gets_nothing():
    import threading

    turn = threading.Lock()
    seen = crowd(turn.acquire, lambda _: turn.release(), threads=3, seconds=0.05, hold=0.02)
    assert len(seen.per_thread) == 3
    assert seen.longest_wait >= 0.02
    assert seen.mean_hold >= 0.02
    assert not seen.stuck
    assert not seen.errors


def test_a_table_is_aligned():
    lines = Table(("pool", "time"), [("a", "1 ns"), ("longer", "1,000 ns")]).lines()
    assert len({len(line) for line in lines}) == 1


def test_stress_lists_its_commands(capsys):
    assert stress_main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert stress_main(["nothing"]) == 2


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "stress", "bench", "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert all(f"\n  {key}  " in done.stdout for key in "abcdef")
