"""The preforking servers that people run, with one limit for all their workers, on PostgreSQL.

There are more workers than connections: each has to give up what it has for the others.
"""

from __future__ import annotations

import contextlib
import time

import pytest

from stress.watch import PostgresWatch
from tests.fakes import spawn, until
from tests.servers import connect_psycopg2
from tests.test_servers import Site, gunicorn, uwsgi

pytestmark = pytest.mark.server

WORKERS, TOTALMAX, CLIENTS = 4, 3, 8

APP = """
import json, os
import psycopg2
from nimue import NimueConnectionPool

MASTER = os.getpid()
pool = NimueConnectionPool(
    psycopg2.connect,
    [os.environ["DSN"]],
    {"application_name": os.environ["NAME"]},
    name="site", totalmax=int(os.environ["TOTALMAX"]), poolmin=1, poolmax=2, timeout=12,
)

def app(environ, start_response):
    word = environ["QUERY_STRING"]
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute("select %s, pg_backend_pid(), pg_sleep(0.002)", (word,))
        word, session, _ = cursor.fetchone()
    total = pool.totalstats()
    answer = {
        "word": word,
        "session": session,
        "worker": os.getpid(),
        "preloaded": MASTER != os.getpid(),
        "held": total.held,
        "known": [process.pid for process in total.processes],
        "timeouts": total.timeouts,
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
"""


@contextlib.contextmanager
def watching(database):
    """The server's own count, all the time."""
    with contextlib.closing(connect_psycopg2(database.dsn, "nimue-tests-watch")) as conn:
        conn.autocommit = True
        watch = PostgresWatch(conn, database.name)
        watch.start()
        try:
            yield watch.census
        finally:
            watch.stop()
        assert watch.error is None


def load(site, seconds=2.0):
    """Clients at once: for a while, and on until every worker has answered; at most as long again
    ten times."""
    answers, began = [], time.monotonic()

    def is_enough():
        lasted = time.monotonic() - began
        everyone = len({answer["worker"] for answer in answers}) >= WORKERS
        return lasted > (seconds if everyone else 10 * seconds)

    def client(number):
        count = 0
        while not is_enough():
            count += 1
            answers.append(site.ask(f"c{number}n{count}"))

    for each in [spawn(client, number) for number in range(CLIENTS)]:
        each.result(15 * seconds)
    return answers


BUSY = """
import time
from nimue import monitor

sweep_all = monitor.Monitor._sweep_all

def busy(self):
    until = time.monotonic() + 1
    while time.monotonic() < until:
        pass
    return sweep_all(self)

monitor.Monitor._sweep_all = busy
"""


OPTIONS = ("--enable-threads", "--processes", str(WORKERS))
SITES = {
    "gunicorn": (gunicorn, ("-w", str(WORKERS)), False),
    "gunicorn, preloaded": (gunicorn, ("-w", str(WORKERS), "--preload"), True),
    "uWSGI": (uwsgi, OPTIONS, True),
    "uWSGI, lazy": (uwsgi, (*OPTIONS, "--lazy-apps"), False),
}


@pytest.mark.parametrize("kind", SITES)
def test_no_more_sessions_than_the_limit(kind, postgres, tmp_path):
    make, options, preloaded = SITES[kind]
    site = Site(postgres, tmp_path, make(*options), app=APP, TOTALMAX=str(TOTALMAX))
    try:
        with watching(postgres) as census:
            until(site.answers, 20, site.log.read_text)
            answers = load(site)
            workers = {answer["worker"] for answer in answers}
            until(lambda: workers <= set(site.ask("all")["known"]))
    finally:
        site.end()
    site.check(answers, preloaded, workers=WORKERS)
    assert len(workers) == WORKERS
    assert 0 < census.lasting <= TOTALMAX, census.most
    assert max(answer["held"] for answer in answers) == TOTALMAX
    assert {answer["timeouts"] for answer in answers} == {0}
    postgres.expect_sessions(0)


def test_the_monitor_is_not_at_work_while_uwsgi_forks(postgres, tmp_path):
    """Else its workers begin with the interpreter's lock taken, by a thread that they lack."""
    app = APP.replace("MASTER =", BUSY + "\nMASTER =") + "\nkept = pool.getconnection()\n"
    site = Site(postgres, tmp_path, uwsgi(*OPTIONS), app=app, TOTALMAX="6")
    try:
        until(site.answers, 12, site.log.read_text)
    finally:
        site.end()
    postgres.expect_sessions(0)
