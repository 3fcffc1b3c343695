"""Thread-bound databases as the README shows them: in a script, under Flask, and under gevent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.children import ROOT
from tests.servers import MariaDB, Postgres
from tests.test_servers import Site, gunicorn, serving

pytestmark = pytest.mark.server


def readme() -> list[str]:
    """The examples of the section, as they stand: a script, then what Flask needs."""
    text = (ROOT / "README.md").read_text()
    section = re.search(r"^## Thread-bound databases\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    return re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)


def address(postgres: Postgres) -> dict[str, str]:
    """Where the README's example finds its server; the rest is libpq's."""
    parts = urlsplit(postgres.dsn)
    return {
        "POSTGRES_USER": str(parts.username),
        "POSTGRES_HOST": str(parts.hostname),
        "POSTGRES_DB": parts.path.lstrip("/"),
        "PGPORT": str(parts.port),
        "PGAPPNAME": postgres.name,
        "PGOPTIONS": f"-c search_path={postgres.name}",
    }


@pytest.fixture
def authors(postgres: Postgres) -> Iterator[str]:
    """The table of the example, in a schema of the test's own."""
    postgres.sql(f"create schema {postgres.name}")
    yield f"{postgres.name}.authors"
    postgres.sql(f"drop schema {postgres.name} cascade")


@pytest.mark.usefixtures("authors")
def test_the_example(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in address(postgres).items():
        monkeypatch.setenv(name, value)
    seen: dict[str, Any] = {}
    exec(readme()[0], seen)
    assert seen["rows"] == [{"id": seen["author"], "name": "Kurt Vonnegut"}]
    assert (seen["db"].is_closed(), seen["db"].pool.poolmax) == (True, 32)
    seen["db"].pool.close()


ROUTES = '''
import json
from flask import request

MASTER = os.getpid()
if os.environ.get("KEEP"):
    db.connect()                   # and the thread that forks the workers has it still

@app.errorhandler(ZeroDivisionError)
def wrong(error):
    return {"word": request.query_string.decode(), "worker": os.getpid(), "session": 0}

@app.route("/")
def answer():
    word = request.query_string.decode()
    db.sql("insert into authors (name) values ('not committed by itself')")
    row = db.get("select %s as word, pg_backend_pid() as session", (word,))
    if word == "wrong":
        with db.atomic():
            db.sql("delete from authors")
            1 / 0
    assert db.get("select pg_backend_pid() as session", ())["session"] == row["session"]
    stats = db.pool.poolstats()
    return {
        **row,
        "worker": os.getpid(),
        "preloaded": MASTER != os.getpid(),
        "severed": stats.severed,
        "poolsize": stats.poolsize,
    }
'''


@pytest.fixture
def flask(postgres: Postgres, authors: str, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    pytest.importorskip("flask")

    def make(command: list[str], **env: str) -> Site:
        app = "\n".join([*readme(), ROUTES])
        return Site(postgres, tmp_path, command, app=app, **address(postgres), **env)

    with serving(postgres, make) as start:
        yield start


class TestFlask:
    def test_two_threads_in_each_worker(
        self, flask: Callable[..., Site], postgres: Postgres, authors: str
    ) -> None:
        site = flask(gunicorn("-k", "gthread", "--threads", "2", "--preload"))
        answers = site.crowd()
        site.check(answers, True)
        assert max(answer["poolsize"] for answer in answers) <= 2
        before = postgres.sql(f"select count(*) from {authors}")
        assert site.ask("wrong")["session"] == 0
        # Rolled back, and given back.
        assert postgres.sql(f"select count(*) from {authors}") > before
        site.check(site.crowd(16), True)

    def test_a_thread_that_was_bound_at_the_fork(self, flask: Callable[..., Site]) -> None:
        site = flask(gunicorn("--preload"), KEEP="1")
        answers = site.crowd(16)
        site.check(answers, True)
        assert {answer["severed"] for answer in answers} == {1}


GEVENT = """
from gevent import monkey
monkey.patch_all()
import os, sys
import gevent
from nimue.database import MaxConnectionsExceeded, PooledDatabase, PooledSQLiteDatabase

def crowd(db):
    inside, most, own = [], [], {}

    def work(number):
        with db:
            inside.append(number)
            most.append(len(inside))
            own[number] = id(db.conn.raw)
            db.select("select 1 as one")
            gevent.sleep(0.01)
            assert id(db.conn.raw) == own[number]
            inside.remove(number)

    def ends_without_close():
        db.connect()
        db.select("select 1 as one")

    jobs = [gevent.spawn(work, number) for number in range(9)]
    jobs += [gevent.spawn(ends_without_close) for _ in range(5)]
    gevent.joinall(jobs, timeout=20, raise_error=True)
    assert all(job.successful() for job in jobs)
    assert max(most) == 3 == len(set(own.values())), (most, own)
    assert db.is_closed()

def denied(db):
    try:
        db.connect()
    except MaxConnectionsExceeded:
        return True

def bound_to_the_greenlet(db):
    db.connect()
    other = gevent.spawn(denied, db)
    other.join(10)
    assert other.value is True
    pid = os.fork()
    if pid == 0:
        closed = db.is_closed()
        with db:
            db.select("select 1 as one")
        os._exit(0 if closed else 1)
    assert os.waitpid(pid, 0)[1] == 0
    db.select("select 1 as one")
    db.close()

def pymysql():
    import pymysql
    return {"connfunc": pymysql.connect, "host": os.environ["HOST"], "user": os.environ["NAME"],
            "port": int(os.environ["PORT"]), "password": os.environ["PASSWORD"]}

def psycopg2():
    import psycopg2
    return {"connfunc": psycopg2.connect, "dsn": os.environ["DSN"],
            "application_name": os.environ["NAME"]}

make = globals()[sys.argv[1]]
crowd(PooledDatabase(**make(), max_connections=3, timeout=20))
bound_to_the_greenlet(PooledDatabase(**make(), max_connections=1))
print("all right")
"""


@pytest.mark.parametrize("driver", ["psycopg2", "pymysql"])
def test_gevent(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("gevent")
    database: Any = request.getfixturevalue("postgres" if driver == "psycopg2" else "mariadb")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(GEVENT))
    env = {"NAME": database.name, "HOST": database.host, "PORT": str(database.port)}
    env |= {"DSN": database.dsn} if driver == "psycopg2" else {"PASSWORD": MariaDB.password}
    done = subprocess.run(
        [sys.executable, str(script), driver],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "all right\n"), done.stderr
    told = done.stderr.splitlines()
    assert all("was dropped without close()" in line for line in told), done.stderr
    database.expect_sessions(0)
