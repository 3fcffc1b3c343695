"""``python -m stress compare``: whether its oracle sees what peers do, and clears nimue of it."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from stress.compare import command, down, entrants, older, prefork, seen, tell
from stress.compare.seen import Diaries, Question
from stress.diary import Diary
from stress.trial.desk import OK, REFUSED, UNKNOWN
from tests.children import in_script

pytestmark = pytest.mark.harness


def compare(*options: str):
    """In an interpreter of its own: its exit status, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = command.main(list(options))
    return status, said.getvalue()


@pytest.mark.server
def test_a_peer_gives_a_child_the_connection_of_its_parent(tmp_path):
    file = tmp_path / "run.json"
    options = ("--quick", "--seconds", "1", "--parts", "prefork", "--only", "nimue,psycopg_pool")
    status, said = in_script(compare, *options, "--json", str(file), timeout=100)
    assert status == 0, said
    shared = {
        figure["who"]: figure["value"]
        for figure in json.loads(file.read_text())["figures"]
        if figure["what"] == "shared"
    }
    assert shared["nimue"] == 0, said
    assert shared["psycopg_pool"] > 0, said


class TestVerdict:
    def outcome(self, **seen: object) -> prefork.Outcome:
        fine = {"done": Counter(terminate=2), "errors": Counter(cut=2), "answered": 100}
        return prefork.Outcome(**{**fine, "seconds": 1.0, **seen})  # type: ignore[arg-type]

    def missed(self, name: str, outcome: prefork.Outcome) -> list[str]:
        part = tell.prefork_part(prefork.Load(), {name: outcome})
        assert part.lines()
        return [target.what for target in part.targets if not target.met]

    def test_a_clean_row(self):
        assert self.missed("nimue", self.outcome(lasting_each=4)) == []
        assert self.missed("nimue-totalmax", self.outcome(lasting=6)) == []

    @pytest.mark.parametrize(
        "fault",
        [
            {"wrong": 1},
            {"belied": ["t is ok, and 0 times in the ledger"]},
            {"hung": 1},
            {"unanswered": 1},
            {"shared": 1},
            {"left": 1},
            {"errors": Counter(cut=3)},
            {"lasting_each": 5},
            {"answered": 0},
        ],
        ids=lambda fault: next(iter(fault)),
    )
    def test_each_fault_is_missed(self, fault):
        assert len(self.missed("nimue", self.outcome(**fault))) == 1

    def test_more_than_the_limit_of_all(self):
        assert self.missed("nimue-totalmax", self.outcome(lasting=7))

    def test_what_was_not_measured_is_missed(self):
        assert len(self.missed("nimue", self.outcome(failed="no workers"))) == 9

    def test_nothing_is_asked_of_a_peer(self):
        assert self.missed("dbutils", self.outcome(wrong=9, hung=9)) == []


class TestVerdictOnDown:
    def missed(self, name: str, way: str = "cut", scale: float = 1.0, **known: object) -> int:
        seen = {"calls": 3, "longest": 6.0, "again": 9.0, **known}
        outcome = down.Outcome(**seen)  # type: ignore[arg-type]
        part = tell.down_part(down.Pace(), {way: {name: outcome}}, scale, connect=2.0)
        assert part.lines()
        return sum(not target.met for target in part.targets)

    @pytest.mark.parametrize(
        ("way", "scale", "known", "missed"),
        [
            ("cut", 1.0, {}, 0),
            ("stalled", 1.0, {"longest": 6.1}, 1),
            ("stalled", 0.25, {"longest": 99.0}, 0),  # the driver alone can end that wait
            ("cut", 0.25, {"longest": 6.1}, 1),
            ("swallow", 1.0, {"again": None}, 1),
            ("swallow", 1.0, {"again": 9.1}, 1),
            ("cut", 1.0, {"calls": 0, "longest": 0.0}, 1),  # nobody asked while it was away
            ("cut", 1.0, {"broken": "it never answered", "calls": 0}, 2),
        ],
    )
    def test_what_is_missed(self, way, scale, known, missed):
        assert self.missed("nimue", way, scale, **known) == missed

    def test_nothing_is_asked_of_a_peer(self):
        assert self.missed("dbutils", again=None, longest=99.0) == 0


def question(token: str, **known: object) -> Question:
    return Question(token, "w1", **{"asked": 0.0, **known})  # type: ignore[arg-type]


class TestSeen:
    def test_diaries(self, tmp_path):
        diary = Diary(str(tmp_path), "w7.8")
        answer = {"outcome": OK, "pid": 8, "backend": 5, "error": "", "wrong": False}
        for note in (
            ("up", 1, 8, 0, 0),
            ("ask", "a", 10**9),
            ("end", "a", 2 * 10**9, answer),
            ("ask", "b", 3 * 10**9),
            ("did", 4, 8, "fork", "fork, os._exit"),
            ("wrong", 5, 8, "a child hung: fork"),
            ("hung", 6, 9, "put down"),
        ):
            diary.note(*note)
        diary.close()
        with open(tmp_path / "w7.8", "a") as file:
            file.write('["ask", "c"')  # cut off by a death
        found = seen.read(tmp_path)
        assert list(found.questions) == ["a", "b"]
        first, second = found.questions.values()
        assert (first.ended, first.outcome, first.asker) == (2.0, OK, 8)
        assert (second.ended, second.outcome) == (None, UNKNOWN)
        assert (found.notes, found.hung, found.done) == (
            ["a child hung: fork"],
            1,
            Counter(fork=1),
        )

    @pytest.mark.parametrize(
        ("outcome", "right"), [(OK, {1}), (REFUSED, {0}), (UNKNOWN, {0, 1})], ids=str
    )
    def test_the_ledger(self, outcome, right):
        asked = {"a": question("a", outcome=outcome)}
        for count in range(3):
            assert bool(seen.belied(asked, {"a": count})) == (count not in right)
        assert seen.belied(asked, {"a": min(right), "z": 1}) == ["z was never asked"]

    def test_a_session_of_two_processes(self):
        def used(*uses: tuple[int, float, float]) -> int:
            found = [
                question(str(n), pid=pid, asked=asked, ended=ended, backend=5)
                for n, (pid, asked, ended) in enumerate(uses)
            ]
            return seen.shared({one.token: one for one in found})

        assert used((1, 0.0, 1.0), (1, 2.0, 3.0)) == 0
        assert used((1, 0.0, 1.0), (2, 0.5, 3.0)) == 1
        assert used((1, 0.0, 1.0), (2, 2.0, 3.0), (1, 4.0, 5.0)) == 1
        assert used((1, 0.0, 1.0), (2, 2.0, 3.0)) == 0  # the number may be another session's

    def test_a_server_that_was_away(self):
        def judged(*questions: Question) -> down.Outcome:
            diaries = Diaries({one.token: one for one in questions})
            return down.judge(diaries, gone=10.0, back=20.0, over=40.0, timeout=5.0)

        outcome = judged(
            question("before", asked=9.0, ended=9.1, outcome=OK),
            question("failed", asked=11.0, ended=14.0, outcome=REFUSED, error="E: away (a.py:1)"),
            question("silent", asked=12.0),
            question("late", asked=21.0, ended=23.0, outcome=REFUSED, error="E: away (a.py:1)"),
            question("good", asked=24.0, ended=25.0, outcome=OK),
            question("stuck", asked=26.0),
            question("last", asked=39.0),
        )
        assert (outcome.calls, outcome.unanswered, outcome.longest) == (2, 1, 28.0)
        assert (outcome.again, outcome.failed) == (5.0, 2)
        assert outcome.errors == Counter({"E: away": 2})
        assert judged(question("stuck", asked=26.0)).again is None


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--only", "nimue,hikari"), "no pool 'hikari'; there is nimue, "),
            (("--parts", "up"), "no part 'up'; there is prefork, down, spike"),
            (("--seconds", "0"), "'0': a number from 1 to 3600"),
            (("--seconds", "soon"), "'soon': a number from 1 to 3600"),
            (("--json", "/no/such/run.json"), "there is no such folder"),
        ],
        ids=lambda value: value[0] if isinstance(value, tuple) else "",
    )
    def test_what_cannot_be(self, capsys, options, told):
        with pytest.raises(SystemExit) as left:
            command.main(list(options))
        assert left.value.code == 2
        assert told in capsys.readouterr().err

    def test_in_the_order_of_the_table(self):
        options = command._options(["--only", "dbutils, nimue"])
        assert options.only == ["nimue", "dbutils"]

    def test_another_environment_is_not_overwritten(self, tmp_path):
        with pytest.raises(older.Unavailable, match=r"is there, without nimue==0\.0\.3"):
            older.interpreter(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_who_cannot_take_part_is_named(self, tmp_path):
        lacking = entrants.Entrant("x", "dbutils", "DBUtils", "no_such_module")
        assert entrants.seats([lacking], Path(tmp_path), None) == (
            [],
            ["x is left out: No module named 'no_such_module'"],
        )
