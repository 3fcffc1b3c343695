"""``totalmax`` in a small storm of kills, and whether the storm's oracle sees what it is to see."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from stress.diary import Diary
from stress.storm import main, part_of, stage
from stress.storm.diary import (
    Findings,
    Hold,
    Wait,
    most_at_once,
    read,
    seconds_waited,
    shared_backends,
)
from stress.storm.faults import faults
from stress.storm.stage import Outcome, Plan
from tests.children import in_script

pytestmark = pytest.mark.harness

SMALL = ("--pace", "0.06", "--seconds", "60")


def blow(dsn: str, file: str, more: int, *options: str):
    """In an interpreter of its own: what it said, and whether each target was met.

    ``more``: the pools allow so many more than the oracle.
    """
    rightly = stage.pool_settings
    stage.pool_settings = lambda name, limit, threads: rightly(name, limit + more, threads)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["--dsn", dsn, "--json", file, *SMALL, *options])
    targets = json.loads(Path(file).read_text())["targets"]
    missed = [target["what"] for target in targets if not target["met"]]
    return status, missed, said.getvalue()


@pytest.mark.server
def test_a_small_storm(postgres, tmp_path):
    file = str(tmp_path / "run.json")
    options = ("--kills", "40")
    status, missed, said = in_script(blow, postgres.dsn, file, 0, *options, timeout=150)
    assert (status, missed) == (0, []), said
    assert "Verdict: all" in said
    figures = {
        each["what"]: each["value"] for each in json.loads(Path(file).read_text())["figures"]
    }
    assert figures["kills"] == 40 and figures["workers begun"] == 48
    assert figures["spells stopped"] and figures["holds"] > 300


@pytest.mark.server
def test_the_oracle_sees_more_than_the_limit(postgres, tmp_path):
    file = str(tmp_path / "run.json")
    options = ("--kills", "5", "--processes", "4", "--limit", "2")
    status, missed, said = in_script(blow, postgres.dsn, file, 14, *options, timeout=150)
    assert status == 1, said
    assert missed == [
        "holders at once, by their diaries",
        "connections at once, by their diaries",
        "lasting sessions at once, by the server",
    ], said


class TestDiaries:
    @pytest.fixture
    def diary(self, tmp_path):
        diary = Diary(str(tmp_path), "w1")
        yield diary
        diary.close()

    def test_a_whole_life(self, diary, tmp_path):
        diary.note("up", 1, 0, 5)
        diary.note("fork", "C, use")
        for thread, asked in ((0, 10), (1, 12)):
            diary.note("ask", thread, asked)
            diary.note("got", thread, asked + 10, 77 + thread)
            diary.note("end", thread, asked + 20)
        diary.note("out", 50, 0, 7)
        found = read(tmp_path, {})
        assert found.holds == [Hold(20, 30, 77), Hold(22, 32, 78)]
        assert found.waits == [Wait("w1", 10, 20), Wait("w1", 12, 22)]
        assert found.grown == 2 and not found.errors
        assert found.counts == {"up": 1, "C, use": 1}

    def test_a_hold_ends_when_the_kill_was_sent(self, diary, tmp_path):
        diary.note("up", 1, 0, 5)
        for thread in (0, 1, 2):
            diary.note("ask", thread, 10)
        diary.note("got", 0, 20, 77)
        diary.note("got", 1, 45, 78)  # after the kill was sent, before it came
        found = read(tmp_path, {"w1": 40})
        assert found.holds == [Hold(20, 40, 77)]
        assert Wait("w1", 10, 40) in found.waits
        assert not found.errors

    def test_a_connection_is_there_until_it_is_closed_or_its_process_ends(self, diary, tmp_path):
        for when, backend in ((1, 7), (2, 8), (3, 9)):
            diary.note("open", when, backend)
        diary.note("bye", 5, 8)
        there = [Hold(2, 5, 8), Hold(1, 40, 7), Hold(3, 40, 9)]
        assert read(tmp_path, {"w1": 40}).connections == there
        diary.note("out", 40, 0, 9)
        assert read(tmp_path, {}).connections == there

    def test_a_line_cut_short_is_not_read(self, diary, tmp_path):
        diary.note("up", 1, 0, 5)
        with open(tmp_path / "w1", "a") as file:
            file.write('["ask", 0, 1')
        assert read(tmp_path, {"w1": 40}) == Findings(counts={"up": 1})

    def test_who_vanished_is_told(self, diary, tmp_path):
        diary.note("up", 1, 0, 5)
        assert "w1 vanished" in read(tmp_path, {}).errors[0]

    def test_who_left_in_the_middle_is_told(self, diary, tmp_path):
        diary.note("ask", 0, 1)
        diary.note("out", 2, 0, 0)
        assert "still waiting" in read(tmp_path, {}).errors[0]

    def test_errors_and_sockets_are_told(self, diary, tmp_path):
        diary.note("err", 0, "WrongAnswer: asked 1, got 2")
        diary.note("out", 50, 3, 7)
        assert read(tmp_path, {}).errors == [
            "w1: WrongAnswer: asked 1, got 2",
            "w1 has closed its pool and has 3 sockets",
        ]


def test_holds_that_touch_do_not_overlap():
    assert most_at_once([]) == 0
    assert most_at_once([Hold(1, 5, 1), Hold(5, 9, 1)]) == 1
    assert most_at_once([Hold(1, 5, 1), Hold(4, 9, 2), Hold(4, 6, 3)]) == 3


def test_a_session_is_one_holders():
    assert shared_backends([Hold(1, 5, 1), Hold(5, 9, 1), Hold(2, 3, 2)]) == 0
    assert shared_backends([Hold(1, 5, 1), Hold(4, 9, 1), Hold(2, 3, 2)]) == 1


def test_who_was_stopped_waits_without_being_counted():
    second = 10**9
    waits = [Wait("a", 0, 9 * second), Wait("a", 20 * second, 21 * second), Wait("b", 0, second)]
    assert seconds_waited(waits, {"a": [(5 * second, 6 * second)]}) == [1.0, 1.0]


def test_faults_are_chosen_by_the_seed():
    drawn = list(faults(7, 8, 50, 0.1))
    assert drawn == list(faults(7, 8, 50, 0.1))
    assert drawn != list(faults(8, 8, 50, 0.1))
    assert sum(fault.spell is None for fault in drawn) == 50
    assert {fault.place for fault in drawn} == set(range(8))


HELD = Hold(0, 5, 1)
PLAN = Plan(kills=1, seconds=10, processes=2, threads=1, limit=2, seed=1, pace=0.1)
GOOD = dict(
    findings=Findings(holds=[HELD, Hold(1, 5, 2)], waits=[Wait("a", 0, 10**6)]),
    stopped={},
    seconds=1.0,
    **dict.fromkeys(("kills", "spells", "begun"), 1),
    **dict.fromkeys(("most", "lasting", "permits"), 2),
    **dict.fromkeys(("looks", "sessions", "processes", "descriptors"), 0),
)


def missed(**changes):
    part = part_of(PLAN, Outcome(**{**GOOD, **changes}))
    return [target.what for target in part.targets if not target.met]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"kills": 0}, "kills"),
        ({"lasting": 3}, "lasting sessions"),
        ({"permits": 1}, "permits"),
        ({"permits": 3}, "permits"),
        ({"sessions": 1}, "sessions left"),
        ({"processes": 1}, "processes left"),
        ({"descriptors": 1}, "descriptors left"),
        ({"errors": ["x"]}, "errors"),
        ({"findings": Findings(errors=["x"], holds=[Hold(0, 5, 1)])}, "errors"),
        ({"findings": Findings()}, "holds, to each kill"),
        ({"findings": Findings([Hold(0, 5, n) for n in range(3)])}, "holders at once"),
        ({"findings": Findings([HELD], [Hold(0, 5, n) for n in range(3)])}, "connections at once"),
        ({"findings": Findings([Hold(0, 5, 1), Hold(0, 5, 1)])}, "sessions that two had"),
        ({"findings": Findings([HELD], [], [Wait("a", 0, 10**11)])}, "longest wait"),
    ],
)
def test_whatever_is_wrong_is_a_target_missed(changes, what):
    assert missed() == []
    (found,) = missed(**changes)
    assert what in found
