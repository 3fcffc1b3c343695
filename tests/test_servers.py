"""The preforking servers that people run, each with one pool of a module's, on PostgreSQL.

The application asks the database for the word of the request; the answer names the word, the
worker and the session, so that crossed wires and borrowed sessions show.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

from stress.servers import free_port
from tests import children
from tests.children import ROOT
from tests.fakes import spawn, until

pytestmark = pytest.mark.server

APP = """
import json, os, sys
import psycopg2
from nimue import NimueConnectionPool

MASTER = os.getpid()
pool = NimueConnectionPool(
    psycopg2.connect,
    [os.environ["DSN"]],
    {"application_name": os.environ["NAME"]},
    poolmin=1,
    poolmax=2,
    timeout=10,
)
# As applications do that look something up at the start, and those that keep what they took.
with pool.connection() as conn:
    conn.cursor().execute("select 1")
if os.environ.get("KEEP"):
    kept = pool.getconnection()

def app(environ, start_response):
    word = environ["QUERY_STRING"]
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute("select %s, pg_backend_pid()", (word,))
        word, session = cursor.fetchone()
    stats = pool.poolstats()
    answer = {
        "word": word,
        "session": session,
        "worker": os.getpid(),
        "preloaded": MASTER != os.getpid(),
        "severed": stats.severed,
        "inherited": stats.inherited,
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
"""


class Site:
    """A running server, and those who ask it."""

    def __init__(self, database, folder, command, app=APP, **env):
        self.database = database
        self.port = free_port()
        self.log = folder / "log"
        (folder / "site_app.py").write_text(app)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [part.format(port=self.port, folder=folder) for part in command],
                cwd=folder,
                env={
                    **os.environ,
                    "DSN": database.dsn,
                    "NAME": database.name,
                    "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
                    + os.pathsep
                    + str(ROOT),
                    **env,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        children.expected.add(self.process.pid)

    def ask(self, word):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        with contextlib.closing(connection):
            connection.request("GET", f"/?{word}")
            with connection.getresponse() as response:
                body = response.read()
        assert response.status == 200, (response.status, body, self.log.read_text())
        answer = json.loads(body)
        assert answer["word"] == word
        return answer

    def answers(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask("up")
        except OSError:  # not yet, or a worker that has just gone
            return None

    def crowd(self, n=40, threads=4, patient=False):
        """Several at once; ``patient`` ones ask again where a worker went away under them."""

        def some(thread):
            found = []
            for number in range(n // threads):
                word = f"t{thread}n{number}"
                found.append(until(lambda w=word: self._try(w)) if patient else self.ask(word))
            return found

        return [one for t in [spawn(some, k) for k in range(threads)] for one in t.result(30)]

    def _try(self, word):
        try:
            return self.ask(word)
        except (OSError, http.client.HTTPException):
            return None

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait(5)
                raise AssertionError(f"it does not end:\n{self.log.read_text()}") from None
        children.expected.discard(self.process.pid)

    def check(self, answers, preloaded, workers=None):
        """No session is that of two workers, and in each worker no more than its own two."""
        of_worker: dict[int, set[int]] = {}
        for answer in answers:
            assert answer["preloaded"] == preloaded
            of_worker.setdefault(answer["worker"], set()).add(answer["session"])
        sessions = [session for some in of_worker.values() for session in some]
        assert len(sessions) == len(set(sessions)), of_worker
        if workers is not None:
            assert len(of_worker) >= workers
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert "DeprecationWarning" not in log, log


@contextlib.contextmanager
def serving(postgres, make):
    """Starts what ``make`` makes, until it answers, and ends it after; no session is left then."""
    sites = []

    def start(*args, **env):
        sites.append(make(*args, **env))
        until(sites[-1].answers, 20, sites[-1].log.read_text)
        return sites[-1]

    yield start
    for site in sites:
        site.end()
    postgres.expect_sessions(0)


@pytest.fixture
def serve(postgres, tmp_path):
    with serving(postgres, functools.partial(Site, postgres, tmp_path)) as start:
        yield start


def gunicorn(*options):
    pytest.importorskip("gunicorn")
    return [
        *(sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:{port}", "-w", "2"),
        *("--worker-tmp-dir", "{folder}", "--graceful-timeout", "3", *options, "site_app:app"),
    ]


def uwsgi(*options):
    program = Path(sysconfig.get_path("scripts")) / "uwsgi"
    if not program.exists():
        pytest.skip("uWSGI is not installed")
    return [
        *(str(program), "--http-socket", "127.0.0.1:{port}", "--master", "--processes", "2"),
        *("--need-app", "--die-on-term", "--pythonpath", "{folder}", "--module", "site_app:app"),
        *("--pythonpath", str(ROOT), "--virtualenv", sys.prefix, "--worker-reload-mercy", "3"),
        *options,
    ]


PRELOADED = {
    "sync": ["--preload"],
    "gthread": ["--preload", "-k", "gthread", "--threads", "2"],
}


class TestGunicorn:
    @pytest.mark.parametrize(
        ("worker", "keep"), [("sync", True), ("gthread", False), ("gthread", True)]
    )
    def test_preloaded(self, serve, worker, keep):
        """Idle in the master: closed before the fork. In use there: severed in each worker."""
        site = serve(gunicorn(*PRELOADED[worker]), **({"KEEP": "1"} if keep else {}))
        answers = site.crowd()
        site.check(answers, True)
        for answer in answers:
            assert (answer["inherited"] > 0) == keep
            assert answer["severed"] == answer["inherited"]

    def test_not_preloaded(self, serve):
        site = serve(gunicorn("-k", "gthread", "--threads", "2"))
        site.check(site.crowd(), False)

    def test_workers_that_are_recycled(self, serve, postgres):
        """By --max-requests: their sessions end with them, the master's does not."""
        site = serve(gunicorn("--preload", "--max-requests", "10"), KEEP="1")
        (master,) = [
            session
            for session in postgres.sessions()
            if session.backend_start == min(s.backend_start for s in postgres.sessions())
        ]
        answers = site.crowd(60, patient=True)
        site.check(answers, True, workers=3)
        assert master.pid in {session.pid for session in postgres.sessions()}
        assert len(postgres.sessions()) <= 2 + 2 * 2

    def test_a_worker_that_is_killed(self, serve):
        site = serve(gunicorn("--preload"), KEEP="1")
        before = site.crowd(20)
        victim = before[0]["worker"]
        os.kill(victim, signal.SIGKILL)
        until(lambda: not _lives(victim))
        after = site.crowd(20, patient=True)
        assert victim not in {answer["worker"] for answer in after}
        site.check(before + after, True)

    def test_hup(self, serve):
        """Without preloading HUP imports the application anew, in new workers."""
        site = serve(gunicorn())
        before = {answer["worker"] for answer in site.crowd(20)}
        site.process.send_signal(signal.SIGHUP)
        until(lambda: not any(map(_lives, before)), 20)
        after = site.crowd(20, patient=True)
        assert not before & {answer["worker"] for answer in after}
        site.check(after, False)

    def test_a_killed_master_pins_nothing(self, serve, postgres):
        """Its own session ends at once; its workers notice and leave, with theirs."""
        site = serve(gunicorn("--preload", "--timeout", "2"), KEEP="1")
        site.crowd(8)
        site.end(signal.SIGKILL)
        postgres.expect_sessions(0)


MODES = {
    "default": [],
    "threads": ["--enable-threads"],
    "two threads": ["--threads", "2"],
    "hooks after": ["--enable-threads", "--py-call-osafterfork"],
    "all hooks": ["--enable-threads", "--py-call-uwsgi-fork-hooks"],
    "lazy": ["--lazy-apps", "--enable-threads"],
}


class TestUwsgi:
    @pytest.mark.parametrize(
        ("mode", "keep"), [("default", False), *((mode, True) for mode in MODES)]
    )
    def test_mode(self, serve, mode, keep):
        site = serve(uwsgi(*MODES[mode]), **({"KEEP": "1"} if keep else {}))
        answers = site.crowd()
        site.check(answers, mode != "lazy")
        for answer in answers:
            assert answer["severed"] == answer["inherited"]
            if keep:
                assert (answer["inherited"] > 0) == (mode != "lazy")

    def test_workers_that_are_recycled(self, serve):
        # Which by default happens to none that is younger than a minute.
        recycled = ("--max-requests", "10", "--min-worker-lifetime", "0")
        site = serve(uwsgi("--enable-threads", *recycled), KEEP="1")
        site.check(site.crowd(60, patient=True), True, workers=4)
        # uWSGI's master forgets to end one that it has yet to start in the place of another.
        until(lambda: (log := site.log.read_text()).count("Seeya") == log.count("Respawned"), 20)

    def test_severed_before_any_request(self, serve, postgres):
        """By uWSGI's own hook: the master's sessions are not pinned by idle workers."""
        site = serve(uwsgi(), KEEP="1")
        assert postgres.sessions()
        site.end(signal.SIGKILL)
        postgres.expect_sessions(0)


def _lives(pid):
    return os.path.exists(f"/proc/{pid}")


CELERY = """
import os
import psycopg2
from celery import Celery
from nimue import NimueConnectionPool

folder = os.environ["FOLDER"]
app = Celery(
    broker="filesystem://",
    backend="file://" + folder + "/results",
    broker_transport_options=dict(
        data_folder_in=folder + "/queue",
        data_folder_out=folder + "/queue",
        control_folder=folder + "/control",
    ),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
pool = NimueConnectionPool(
    psycopg2.connect, [os.environ["DSN"]], dict(application_name=os.environ["NAME"]),
    poolmin=1, poolmax=2, timeout=10,
)
kept = pool.getconnection() if os.environ.get("KEEP") else None

@app.task(name="word")
def word(given):
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute("select %s, pg_backend_pid()", (given,))
        return [*cursor.fetchone(), os.getpid(), pool.poolstats().inherited]
"""


def test_celery(postgres, tmp_path, monkeypatch):
    """Prefork, each child replaced after a few tasks; the parent keeps a connection."""
    pytest.importorskip("celery")
    for name in ("results", "queue", "control"):
        (tmp_path / name).mkdir()
    (tmp_path / "site_tasks.py").write_text(textwrap.dedent(CELERY))
    env = {"DSN": postgres.dsn, "NAME": postgres.name, "FOLDER": str(tmp_path)}
    command = [
        *(sys.executable, "-m", "celery", "-A", "site_tasks", "worker", "-P", "prefork"),
        *("-c", "2", "--max-tasks-per-child", "3", "--without-gossip", "--without-mingle"),
        *("--without-heartbeat", "-l", "warning"),
    ]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(ROOT)])
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **env, "PYTHONPATH": path, "KEEP": "1", "C_FORCE_ROOT": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    children.expected.add(process.pid)
    sender = [sys.executable, "-W", "ignore", "-c", SENDER]
    done = subprocess.run(
        sender,
        cwd=tmp_path,
        env={**os.environ, **env, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    process.terminate()
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait(5)
        children.expected.discard(process.pid)
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    postgres.expect_sessions(0)


SENDER = """
import site_tasks
site_tasks.pool.close()
asked = [(f"word {n}", site_tasks.word.delay(f"word {n}")) for n in range(8)]
owner = {}
for given, result in asked:
    told, session, worker, inherited = result.get(timeout=40, interval=0.05)
    assert told == given, (told, given)
    assert owner.setdefault(session, worker) == worker
    assert inherited == 1, inherited
assert len(set(owner.values())) >= 3, owner
"""
