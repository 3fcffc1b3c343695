"""gunicorn and uWSGI as the trials run them: asked, hit by a kill, ended, and nothing left."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import threading

import pytest

from nimue import SharedSemaphore
from stress.scenarios import scenario
from stress.scenarios.served import Line, NoAnswer, Switchboard
from stress.trial.brief import Brief
from stress.trial.desk import OK, UNKNOWN, Answer
from stress.trial.dialects import CREATE
from tests.fakes import until

pytestmark = pytest.mark.harness

LIMIT = 3


class Trial:
    """One scenario with two workers, its ledger in a schema of its own."""

    def __init__(self, database, folder, name, variant):
        for room in ("diaries", "tickets", "limits"):
            (folder / room).mkdir()
        self.database, self.folder = database, folder
        self.brief = Brief(
            contender="nimue",
            dialect="psycopg2",
            mark=database.name,
            connect={"dsn": database.dsn, "options": f"-c search_path={database.name}"},
            folder=str(folder),
            seed=1,
            bound=60,
            threads=2,
            poolmax=2,
            totalmax=LIMIT,
        )
        self.events = []
        self.scenario = scenario(name)(self.brief, 2, variant, lambda *it: self.events.append(it))

    def answers(self):
        """What the callers were told, each once."""
        (diary,) = (self.folder / "diaries").glob("callers*")
        lines = map(json.loads, diary.read_text().splitlines())
        answers = [Answer(**line[3]) for line in lines if line[0] == "end"]
        assert len({answer.token for answer in answers}) == len(answers)
        return answers

    def answered_by(self, count):
        """So many workers, or more, have answered."""
        return len({answer.pid for answer in self.answers() if answer.outcome == OK}) >= count

    def kinds(self):
        self.scenario.tend()
        return {kind for kind, _ in self.events}

    def team(self, without=()):
        """The workers, when they are all there, and none of those."""
        pids = self.scenario.workers()
        return pids if len(pids) == 2 and not {*pids} & {*without} else None

    def count(self, what):
        """How many workers have noted it."""
        diaries = (self.folder / "diaries").glob("w*")
        notes = [json.loads(line) for diary in diaries for line in diary.read_text().splitlines()]
        return sum(note[0] == what for note in notes)

    def ledger(self):
        return [row[0] for row in self.database.sql("select token from " + self.table)]

    @property
    def table(self):
        return f"{self.brief.mark}.stress_ledger"

    def sessions(self):
        pattern = f"{self.brief.mark}.%"
        statement = "select pid from pg_stat_activity where application_name like %s"
        return self.database.sql(statement, pattern)

    def check(self, may_be_cut):
        """Every answer is right and was kept, and of the rest no more were cut than that."""
        answers, ledger = self.answers(), self.ledger()
        assert not [answer for answer in answers if answer.wrong]
        good = {answer.token for answer in answers if answer.outcome == OK}
        assert good <= set(ledger)
        assert len(ledger) == len(set(ledger))
        cut = [answer.error for answer in answers if answer.outcome != OK]
        assert len(cut) <= may_be_cut, cut
        until(lambda: not self.sessions(), 10, self.sessions)
        semaphore = SharedSemaphore(self.brief.mark, LIMIT, directory=self.folder / "limits")
        permits = [semaphore.take(5) for _ in range(LIMIT)]
        assert all(permits)
        for permit in permits:
            permit.give_back()
        semaphore.close()


@pytest.fixture
def trial(postgres, tmp_path):
    trials = []

    def make(name, variant):
        postgres.sql(f"create schema {postgres.name}")
        postgres.sql(CREATE.replace("stress_ledger", f"{postgres.name}.stress_ledger"))
        trials.append(Trial(postgres, tmp_path, name, variant))
        trials[-1].scenario.start()
        return trials[-1]

    try:
        yield make
    finally:
        for each in trials:
            each.scenario.close()
            each.scenario.close()
        postgres.sql(f"drop schema if exists {postgres.name} cascade")


@pytest.mark.server
@pytest.mark.parametrize(("name", "variant"), [("gunicorn", "recycle"), ("uwsgi", "fork-hooks")])
def test_a_kill_is_survived_and_the_end_is_in_order(trial, name, variant):
    pytest.importorskip({"gunicorn": "gunicorn", "uwsgi": "pyuwsgi"}[name])
    it = trial(name, variant)
    until(lambda: it.answered_by(2), 20)
    victim = until(it.team)[0]
    os.kill(victim, signal.SIGKILL)
    new = until(lambda: it.team(without=[victim]), 20)
    until(lambda: it.answered_by(3), 20)
    if variant == "recycle":
        until(lambda: it.team(without=new) and "recycle" in it.kinds(), 30)
    assert it.scenario.finish(30) == []
    assert it.scenario.workers() == []
    # As many as there are callers: each may have asked the victim, or waited in its queue.
    it.check(may_be_cut=6)
    # All but the victim have left in order.
    assert it.count("out") == it.count("up") - 1 >= 2


@pytest.mark.server
def test_uwsgi_is_reloaded_both_ways(trial):
    """By new forks of the master, and by an exec of it: nobody's question is cut."""
    pytest.importorskip("pyuwsgi")
    it = trial("uwsgi", "reload")
    it.scenario.calm()  # so that it is done here alone
    for n in range(2):
        before = until(it.team)
        it.scenario.befall()
        until(lambda gone=before: it.team(without=gone), 30)
        until(lambda count=n + 2: it.answered_by(count), 30)
    assert it.scenario.finish(30) == []
    it.check(may_be_cut=0)
    assert it.events == [("reload", "of the workers"), ("reload", "with an exec")]


class Liar(http.server.BaseHTTPRequestHandler):
    """Answers another's question, or with what is no answer."""

    def do_GET(self):
        body, kind, status = b"oops", "text/html", 500
        if self.path != "/broken":
            body = json.dumps(Answer("another's", OK, 1, 0, 0).as_dict()).encode()
            kind, status = "application/json", 200
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_wrong_answers_are_told_from_right_ones(tmp_path):
    brief = Brief("nimue", "psycopg2", "mark", {}, str(tmp_path), 1, 60)
    with http.server.HTTPServer(("127.0.0.1", 0), Liar) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        board = Switchboard(brief, server.server_port, is_kept=True)
        with contextlib.closing(board):
            crossed = board.call("mine")
            with pytest.raises(NoAnswer, match=r"500 .*oops"):
                board.call("broken")
            server.shutdown()
            thread.join(10)
    assert (crossed.token, crossed.outcome, crossed.wrong) == ("mine", UNKNOWN, True)
    with pytest.raises(ConnectionRefusedError):
        Line(server.server_port, 5, is_kept=False).ask("/anybody")


def test_a_variant_that_there_is_not(tmp_path):
    brief = Brief("nimue", "psycopg2", "mark", {}, str(tmp_path), 1, 60)
    with pytest.raises(ValueError, match="variant 'gevent' of gunicorn: must be one of sync, "):
        scenario("gunicorn")(brief, 2, "gevent", print)
