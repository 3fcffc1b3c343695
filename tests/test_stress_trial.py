"""The parts of a trial that need no process: diaries, the ledger, growth, faults, options."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from stress import options, orphans
from stress.diary import Diary
from stress.processes import gone
from stress.trial import faults
from stress.trial.desk import OK, REFUSED, STOOD, UNKNOWN
from stress.trial.diaries import Diaries
from stress.trial.growth import judge_growth
from stress.trial.record import Health, Question
from stress.trial.tickets import Tickets
from stress.trial.verdict import Evidence, Ledger, audit, judge
from tests.fakes import until

pytestmark = pytest.mark.harness


def lines(*notes: list) -> str:
    return "".join(json.dumps(note) + "\n" for note in notes)


def answer(token: str, outcome: str = OK, **more) -> dict:
    given = {"pid": 7, "waited": 2_000_000, "backend": 1, "error": "", "wrong": False}
    return {"token": token, "outcome": outcome, **given, **more}


class TestDiaries:
    def test_a_question_and_its_answer(self, tmp_path) -> None:
        (tmp_path / "w7").write_text(
            lines(["ask", "a", 1_500_000_000], ["end", "a", 1_750_000_000, answer("a")])
        )
        diaries = Diaries(tmp_path, 1_000_000_000)
        assert diaries.read() == [Question("a", 0.5, 0.75, OK, 7, 0.002)]
        assert diaries.read() == []
        assert diaries.answered == {7: 1}

    def test_what_is_written_later_is_read_later_and_a_line_only_when_it_is_whole(
        self, tmp_path
    ) -> None:
        diary = tmp_path / "w7"
        end = lines(["end", "a", 9, answer("a")])
        diary.write_text(lines(["ask", "a", 5]) + end[:20])
        diaries = Diaries(tmp_path, 0)
        assert diaries.read() == []
        with open(diary, "a") as file:
            file.write(end[20:])
        assert [question.token for question in diaries.read()] == ["a"]

    def test_a_number_that_is_given_again_has_another_diary(self, tmp_path) -> None:
        with closing(Diary(str(tmp_path), "w7")) as first:
            first.note("ask", f"{first.name}.1", 5)
        with closing(Diary(str(tmp_path), "w7")) as second:
            second.note("ask", f"{second.name}.1", 6)
        diaries = Diaries(tmp_path, 0)
        diaries.read()
        assert diaries.unanswered == 2

    def test_what_never_ended_nobody_knows_of(self, tmp_path) -> None:
        (tmp_path / "w7").write_text(lines(["ask", "a", 5]) + '["end", "a"')
        diaries = Diaries(tmp_path, 0)
        diaries.finish()
        assert [(one.ended, one.outcome) for one in diaries.questions] == [(None, UNKNOWN)]

    def test_a_thread_that_hangs_while_others_go_on(self, tmp_path) -> None:
        """Not one that has asked again, after KeyboardInterrupt, nor a process that ends."""
        second = 1_000_000_000
        mine = [["ask", "w7.0.1", 1 * second], ["ask", "w7.1.1", 2 * second]]
        mine += [["ask", "w7.1.2", 5 * second], ["end", "w7.1.2", 30 * second, answer("w7.1.2")]]
        (tmp_path / "w7").write_text(lines(*mine))
        (tmp_path / "w8").write_text(lines(["ask", "w8.0.1", 3 * second]))
        diaries = Diaries(tmp_path, 0)
        diaries.finish()
        assert diaries.stuck == [29.0, 0.0]
        assert TestVerdict.wrong(seen(tmp_path, diaries=diaries)) == ["longest answer"]

    def test_what_a_process_has_more_at_its_end(self, tmp_path) -> None:
        (tmp_path / "w7").write_text(lines(["up", 1, 7, 2, 10], ["out", 9, 7, 1, 13]))
        diaries = Diaries(tmp_path, 0)
        diaries.read()
        assert (diaries.grown, diaries.sockets) == ([3], [1])


def test_the_ledger_is_held_against_the_answers() -> None:
    outcomes = {"a": OK, "b": OK, "c": OK, "d": REFUSED, "e": UNKNOWN, "f": UNKNOWN, "g": REFUSED}
    questions = [Question(token, 0, 1, outcome, 1, 0) for token, outcome in outcomes.items()]
    found = audit(questions, {"a": 1, "b": 2, "d": 1, "e": 1, "x": 1})
    assert (found.lost, found.doubled, found.ghosts, found.strangers) == (1, 1, 1, 1)
    assert (found.unknown, found.kept) == (2, 1)


def seen(folder, **more) -> Evidence:
    """What is right in every way, but for what is given."""
    good = {
        "diaries": Diaries(folder, 0),
        "ledger": Ledger(0, 0, 0, 0, 0, 0),
        "faults": {"kill": 1},
        "rates": {"kill": 1.0},
        "seconds": 10.0,
        "limit": 6,
        "each": 4,
        "timeout": 10.0,
        "most": 7,
        "lasting": 6,
        "most_of_one": 4,
        "recovered": 0.5,
        "good_since": 10.5,
        "sessions": 0,
        "totalmax": 6,
        "permits": 6,
        "left": [],
        "descriptors": 0,
    }
    return Evidence(**{**good, **more})


class TestVerdict:
    @staticmethod
    def wrong(evidence: Evidence, *questions: Question) -> list[str]:
        evidence.diaries.questions += [Question("a", 1, 2, OK, 7, 0.1), *questions]
        checks, _ = judge(evidence)
        return [check.what.strip() for check in checks if not check.right]

    def test_what_is_right(self, tmp_path) -> None:
        refused = Question("b", 1, 2, REFUSED, 7, 0.1, "OperationalError: gone")
        cut = Question("c", 1, None, UNKNOWN, 0, 0.0)
        assert self.wrong(seen(tmp_path), refused, cut) == []

    @pytest.mark.parametrize(
        ("what", "more"),
        [
            ("committed, and lost", {"ledger": Ledger(1, 0, 0, 0, 0, 0)}),
            ("and doubled", {"ledger": Ledger(0, 1, 0, 0, 0, 0)}),
            ("and refused", {"ledger": Ledger(0, 0, 1, 0, 0, 0)}),
            ("and never asked", {"ledger": Ledger(0, 0, 0, 1, 0, 0)}),
            ("fault: kill", {"faults": {}}),
            ("sessions at most", {"lasting": 7}),
            ("sessions at most", {"most": 0, "lasting": 0}),
            ("of one process", {"most_of_one": 5}),
            ("after", {"sessions": 1}),
            ("right again after the last fault", {"recovered": None, "good_since": None}),
            ("permits free at the end", {"permits": 5}),
            ("permits free at the end", {"permits": 7}),
            ("processes left", {"left": ["process 9 is left"]}),
            ("descriptors left", {"descriptors": 1}),
            ("troubles of the run", {"troubles": ["the server is not back"]}),
        ],
    )
    def test_what_is_wrong(self, tmp_path, what: str, more) -> None:
        assert self.wrong(seen(tmp_path, **more)) == [what]

    @pytest.mark.parametrize(
        ("what", "question"),
        [
            (["wrong answers"], Question("b", 1, 2, UNKNOWN, 7, 0.1, wrong=True)),
            (["errors of no such kind"], Question("b", 1, 2, REFUSED, 7, 0.1, "KeyError: 5")),
            (["longest wait"], Question("b", 1, 20, REFUSED, 7, 15.1, "NimuePoolTimeout: none")),
            (["and failed after that"], Question("b", 10.6, 20, REFUSED, 7, 9, "TimeoutError: ")),
            (["and failed after that"], Question("b", 10.6, None, UNKNOWN, 7, 0.0)),
        ],
    )
    def test_a_question_that_is_wrong(self, tmp_path, what: list[str], question) -> None:
        assert self.wrong(seen(tmp_path), question) == what

    def test_without_a_fault_none_fails(self, tmp_path) -> None:
        refused = Question("b", 1, 2, REFUSED, 7, 0.1, "OperationalError: gone")
        cut = Question("c", 1, None, UNKNOWN, 0, 0.0)
        failed = self.wrong(seen(tmp_path, rates={}), refused, cut)
        assert failed == ["refused", "cut, nobody knows where"]

    def test_what_diaries_tell_of(self, tmp_path) -> None:
        evidence = seen(tmp_path)
        (tmp_path / "w7").write_text(lines(["wrong", 5, 7, "crossed"], ["hung", 5, 7, "a worker"]))
        evidence.diaries.read()
        assert self.wrong(evidence) == ["what must never be", "hung workers"]

    def test_a_descriptor_that_a_worker_keeps(self, tmp_path) -> None:
        evidence = seen(tmp_path)
        (tmp_path / "w7").write_text(lines(["up", 1, 7, 2, 10], ["out", 9, 7, 2, 11]))
        evidence.diaries.read()
        assert self.wrong(evidence) == ["more at a worker's end"]


class TestGrowth:
    @staticmethod
    def wrong(memory, descriptors) -> list[str]:
        samples = [
            Health(float(at), 7, int(memory(at)), int(descriptors(at)), 3) for at in range(200)
        ]
        checks = judge_growth(samples, 200.0)
        return [check.what.strip() for check in checks if not check.right]

    def test_what_stays_is_right(self) -> None:
        assert self.wrong(lambda at: 50e6, lambda at: 9 + at % 3) == []

    def test_what_grows_is_found(self) -> None:
        assert self.wrong(lambda at: 50e6 + at * 1e5, lambda at: 9) == ["memory of process 7"]
        assert self.wrong(lambda at: 50e6, lambda at: 9 + at / 20) == ["descriptors"]

    def test_a_number_that_is_given_again_is_another_life(self) -> None:
        seen = [Health(at, 7, int(5e7), 9, 3) for at in (1.0, 2.0, 198.0, 199.0)]
        assert [check.right for check in judge_growth(seen, 200.0)] == [False]

    def test_somebody_has_to_have_lived_long(self) -> None:
        assert [check.right for check in judge_growth([Health(1.0, 7, 1, 1, 1)], 200.0)] == [False]
        assert judge_growth([], 10.0) == []


class TestFaults:
    def test_one_seed_gives_the_same_faults_again(self) -> None:
        rates = {"kill": 2.0, "stop": 1.0}
        first = list(faults.schedule(rates, 60, 5))
        assert first == list(faults.schedule(rates, 60, 5)) != list(faults.schedule(rates, 60, 6))
        assert first == sorted(first)
        assert 80 < sum(fault.kind == "kill" for fault in first) < 160

    def test_another_fault_does_not_change_when_one_comes(self) -> None:
        alone = list(faults.schedule({"kill": 2.0}, 60, 5))
        both = faults.schedule({"kill": 2.0, "stop": 1.0}, 60, 5)
        assert [fault for fault in both if fault.kind == "kill"] == alone

    def test_how_they_are_told(self) -> None:
        assert faults.parse(["kill=0.5", "stop"]) == {"kill": 0.5, "stop": 1.0}
        assert faults.parse(["all=2"], frozenset({"cut", "kill"})) == {"cut": 2.0, "kill": 2.0}
        assert faults.parse(["all=2", "kill=0"], frozenset({"cut", "kill"})) == {"cut": 2.0}

    @pytest.mark.parametrize("text", ["kil", "kill=x", "kill=-1", "kill=51"])
    def test_what_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(argparse.ArgumentTypeError, match="kil"):
            faults.parse([text])

    def test_a_ticket_is_taken_once(self, tmp_path) -> None:
        tickets, others = Tickets(tmp_path), Tickets(tmp_path)
        tickets.issue("fork")
        tickets.issue("leak")
        assert {others.take(), tickets.take()} == {"fork", "leak"}
        assert others.take() is None


class TestOptions:
    def test_what_is_asked_for_is_what_is_planned(self) -> None:
        told = ["--seconds", "3", "--fault", "kill=2", "--totalmax", "none", "--seed", "4"]
        (plan,) = options.order("prefork", told).plans
        assert (plan.seconds, plan.rates, plan.totalmax, plan.seed) == (3.0, {"kill": 2.0}, None, 4)

    @pytest.mark.parametrize(
        ("told", "says"),
        [
            (["--seconds", "0"], "--seconds: '0': a number above 0"),
            (["--json", "/no/such/file"], "--json: '/no/such/file': there is no such folder"),
            (["--report", __file__], "is no folder"),
            (["--fault", "quake"], "no fault 'quake'; there is all, kill, stop"),
            (["--fault", "restart", "--dsn", "dbname=x"], "restart makes no sense here"),
            (["--fault", "cut", "--driver", "sqlite3"], "cut makes no sense here"),
            (["--dsn", "dbname=x", "--driver", "pymysql"], "is for PostgreSQL, not for pymysql"),
            (["--threads", "0"], "--threads: '0': a whole number from 1 to 500"),
            (["--threads", "1", "--fault", "interrupt"], "interrupt makes no sense here"),
            (["--json", "/nowhere/x"], "--json: '/nowhere/x': there is no such folder"),
            (["--report", "/dev/null/x"], "/dev/null is no folder"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_starts(self, told, says, capsys) -> None:
        self.refused("prefork", told, says, capsys)

    @pytest.mark.parametrize(
        ("name", "option"), [("forks", "--processes"), ("pool", "--threads")]
    )
    def test_an_option_that_would_do_nothing_is_none(self, name, option, capsys) -> None:
        self.refused(name, [option, "3"], f"unrecognized arguments: {option} 3", capsys)

    @staticmethod
    def refused(name: str, told, says: str, capsys) -> None:
        with pytest.raises(SystemExit) as caught:
            options.order(name, told)
        assert caught.value.code == 2
        assert says in capsys.readouterr().err


def test_the_children_of_an_orphan_are_ended_with_it() -> None:
    known = orphans.children()
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        orphans.end(known)
    assert gone(child)
    assert orphans.children() <= known


def test_an_orphan_tells_how_it_ended() -> None:
    known, ends = orphans.children(), []
    with subprocess.Popen(["sh", "-c", "kill -ALRM $$"]) as child:
        until(lambda: not orphans.reap(known, lambda *end: ends.append(end)))
    assert ends == [(child.pid, -signal.SIGALRM)]


def test_a_worker_of_a_peer_imports_no_nimue() -> None:
    """A peer is tried in an environment of its own, where our nimue is not."""
    names = "brief desk pools dialects tickets deeds words"
    imported = "; ".join(f"import stress.trial.{name}" for name in names.split())
    code = f"import sys; import stress.trial.crew; {imported}; print('nimue' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_after_an_interrupted_fork_others_can_fork() -> None:
    """The interrupt lands in the hook that frees logging's lock."""
    code = """
import logging, os, sys, threading, types
from stress.trial import deeds

class Desk:
    diary = types.SimpleNamespace(name="w")
    def note_did(self, kind, detail): pass
    def enter_child(self, name): pass

desk = Desk()
sys.unraisablehook = lambda what: None
hook = getattr(logging, "_afterFork", None) or logging._releaseLock  # since 3.13, and before

def interrupted(frame, event, arg):
    if frame.f_code is hook.__code__:
        sys.settrace(None)
        raise KeyboardInterrupt

sys.settrace(interrupted)
deeds._in_child(desk, "fork", lambda: None)
assert sys.gettrace() is None
other = threading.Thread(target=deeds._in_child, args=(desk, "fork", lambda: None), daemon=True)
other.start()
other.join(10)
print(other.is_alive())
os._exit(0)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_who_is_put_down_has_shown_where_it_stood(tmp_path) -> None:
    code = """
import sys, time
from stress.trial.brief import Brief
from stress.trial.desk import guard

def lingers():
    time.sleep(60)

guard(Brief("nimue", "sqlite3", "mark", {}, sys.argv[1], seed=1, bound=1.0))
lingers()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGALRM
    assert "in lingers" in (tmp_path / STOOD).read_text()


def test_where_the_hung_stood_is_told(tmp_path) -> None:
    _, notes = judge(seen(tmp_path, stood="in lingers"))
    assert "in lingers" in notes
