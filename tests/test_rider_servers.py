"""Rider on real servers: what the documentation shows, failures, two at once, kill -9."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nimue.cli import main
from nimue.database import PooledDatabase
from nimue.rider import MigrateError, Rider, RiderLocked, rider
from nimue.rider.lock import alone
from tests.children import Child
from tests.fakes import until

WAITS = """\
'''one that waits in its second step until it is told to go on'''
import os, time
from nimue.rider import step
def wait(db):
    db.sql("insert into steps (i) values (2)", ())
    open(f"in.{os.getpid()}", "w").close()
    deadline = time.monotonic() + 20
    while not os.path.exists("go"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
steps = [step("create table one (i int)"), step(wait), step("insert into steps (i) values (3)")]
"""

HOLDER = r"(PostgreSQL's process|MySQL's session) \d+ has been migrating .*for 0 s|another process"

#: From Estoult's documentation, but for the line of the import.
DOCUMENTED = '''\
"""
create table
"""

from nimue.rider import step

__depends__ = {"1602721237-add-pg-extensions"}

def migrate_step(db):
    db.sql("insert into contacts (id, name) values (%s, %s)", (1, "a"))

def rollback_step(db):
    db.sql("delete from contacts", ())

steps = [
    # Steps with sql queries
    step(
        migrate="create table contacts (id int not null);",
        rollback="drop table contacts;",
        ignore_errors="all",
    ),

    # Arguments don't need to be kwargs
    step("alter table contacts add column name varchar(256) not null"),
    step(migrate_step, rollback_step),
]
'''


class Site:
    """A server, a name space of the test's own on it, and a directory of migrations."""

    def __init__(self, kind: str, folder: Path, connfunc: Callable[[], Any]) -> None:
        self.kind, self.folder, self.connfunc = kind, folder, connfunc

    def write(self, name: str, text: str) -> None:
        path = self.folder / "migrations" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def steps(self, name: str, *steps: str) -> None:
        listed = "".join(f"    {step},\n" for step in steps)
        self.write(name, f"from nimue.rider import step\nsteps = [\n{listed}]\n")

    @contextlib.contextmanager
    def database(self) -> Iterator[PooledDatabase]:
        db = PooledDatabase(self.connfunc, dialect=self.kind)
        try:
            with db:
                yield db
        finally:
            db.close_all()

    def ask(self, query: str) -> list[Any]:
        raw = self.connfunc()
        try:
            cursor = raw.cursor()
            cursor.execute(query)
            return [row[0] for row in cursor.fetchall()]
        finally:
            raw.close()

    def has(self, table: str) -> bool:
        try:
            self.ask(f"select 1 from {table} where 1 = 0")
        except Exception:
            return False
        return True

    def migrate(self, timeout: float = 15.0) -> str:
        """What it prints. In the parent and in children."""
        with contextlib.redirect_stdout(io.StringIO()) as out, self.database() as db:
            Rider(db, {"lock_timeout": timeout}).migrate()
        return out.getvalue()

    def waiting(self) -> bool:
        """Whether some process is in the step that waits."""
        return any(self.folder.glob("in.*"))

    def go(self) -> None:
        (self.folder / "go").touch()


def _sqlite(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "shop.db", check_same_thread=False)


POSTGRES = pytest.param("postgres", marks=pytest.mark.server)
MYSQL = pytest.param("mysql", marks=pytest.mark.server)


@pytest.fixture(params=[POSTGRES, MYSQL, "sqlite"])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        yield Site("sqlite", tmp_path, lambda: _sqlite(tmp_path))
        return
    postgres = request.param == "postgres"
    server = request.getfixturevalue("postgres" if postgres else "mariadb")
    space = f"rider_{server.name}"
    if postgres:
        server.sql(f"create schema {space}")
        connfunc = server.connector("psycopg2", options=f"-c search_path={space}")
    else:
        server.sql(f"create database {space}")
        server.sql(f"grant all on {space}.* to '{server.user}'@'%'")
        connfunc = server.connector("pymysql", database=space)
    try:
        yield Site(request.param, tmp_path, connfunc)
    finally:
        server.sql("set lock_timeout = '10s'" if postgres else "set lock_wait_timeout = 10")
        server.sql(f"drop schema {space} {'cascade' if postgres else ''}")


@pytest.fixture
def ready(site: Site) -> Site:
    """With a first migration, which makes a table to count steps in."""
    site.steps("1-steps", 'step("create table steps (i int)", "drop table steps")')
    return site


def commits_by_itself(site: Site) -> bool:
    return site.kind == "mysql"


@pytest.mark.parametrize("site", [POSTGRES, MYSQL], indirect=True)
def test_documented_migrations_run_unchanged(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for SQLite, which adds no column that is not null and has no default."""
    site.steps("1602721237-add-pg-extensions", 'step("select 1")')
    site.write("1602750937-create-table", DOCUMENTED)
    with site.database() as db:
        mine = Rider(db)
        mine.parse_args(["migrate"])
        mine.parse_args(["run", "-q", "select id, name, '%' as sign from contacts"])
        mine.parse_args(["migrations"])
        told = capsys.readouterr().out
        assert "create table" in told and "sign" in told and f"{time.localtime()[0]}-" in told
        mine.parse_args(["rollback", "-i", "1"])
    assert not site.has("contacts")
    assert site.ask("select migration from _rider_migrations") == ["1602721237-add-pg-extensions"]


@pytest.mark.server
def test_the_command_finds_the_script_in_the_directory(
    postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rider.py").write_text(
        "from nimue.database import PooledPostgreSQLDatabase\n"
        f"db = PooledPostgreSQLDatabase(dsn={postgres.dsn!r}, "
        f"application_name={postgres.application_name!r})\n"
        "config = {'source': './elsewhere', 'table_name': 't_of_this', 'log_name': 'l_of_this'}\n"
    )
    assert main(["rider", "create", "-m", "add contacts table"]) == 0
    (path,) = (tmp_path / "elsewhere").iterdir()
    path.write_text(path.read_text().replace('step("")', "step(\"select 'a' like '%%'\")"))
    try:
        assert main(["rider", "migrate"]) == 0
        assert main(["rider", "rollback", "-i", "0"]) == 0
        assert "Rolled back migration: " in capsys.readouterr().out
    finally:
        postgres.sql("drop table t_of_this, l_of_this")


@pytest.mark.parametrize("site", [POSTGRES], indirect=True)
def test_a_failure_leaves_nothing_of_its_migration(ready: Site) -> None:
    steps = (
        'step("insert into missing values (1)", ignore_errors="apply")',
        'step("create table kept (i int)")',
        'step("insert into steps (i) values (1)")',
    )
    ready.steps("2-fails", *steps, 'step("insert into steps (i) values (missing)")')
    told = r'2-fails\.py, step 4 of 4: UndefinedColumn: column "missing" does not exist'
    with pytest.raises(MigrateError, match=told):
        ready.migrate()
    ready.steps("2-fails", *steps, "step(\"insert into steps (i) values ('5%')\")")
    with pytest.raises(MigrateError, match=r"step 4 of 4: .* \(SQL has %% for %\)\nNothing of"):
        ready.migrate()
    assert ready.ask("select migration from _rider_migrations") == ["1-steps"]
    assert not ready.has("kept") and ready.ask("select i from steps") == []


@pytest.mark.parametrize("site", [POSTGRES, MYSQL], indirect=True)
def test_a_session_that_ends_half_way_is_no_ones_afterwards(ready: Site) -> None:
    function = "pg_terminate_backend(pg_backend_pid())"
    ends = "kill connection_id()" if commits_by_itself(ready) else f"select {function}"
    ready.steps("2-ends", 'step("insert into steps (i) values (1)")', f'step("{ends}")')
    with ready.database() as db:
        with pytest.raises(MigrateError, match=r"2-ends\.py, step 2 of 2: "):
            Rider(db).migrate()
        assert db.is_closed()
        ready.steps("2-ends", 'step("insert into steps (i) values (2)")')
        Rider(db, {"lock_timeout": 5}).migrate()
    assert ready.ask("select i from steps") == [2]


@pytest.mark.parametrize("site", [MYSQL], indirect=True)
def test_what_mysql_commits_by_itself_is_told(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.steps("1-steps", 'step("create table steps (i int)", "drop table steps")')
    site.steps(
        "2-fails",
        'step("insert into steps (i) values (1)")',
        'step("create table kept (i int)")',
        'step("insert into steps (i) values (2)")',
        'step("insert into missing values (1)")',
    )
    stays = "this stays: step 1, step 2. Undo"
    with pytest.raises(MigrateError, match=rf"2-fails\.py, step 4 of 4: .*missing(.|\n)*{stays}"):
        site.migrate()
    assert site.ask("select i from steps") == [1]

    # What a failed statement commits before it fails, and a function half-way.
    site.write(
        "2-fails",
        "from nimue.rider import step\n"
        "def half(db):\n"
        "    db.sql('create table half (i int)', ())\n"
        "    db.sql('insert into missing values (1)', ())\n"
        "steps = [step('insert into steps (i) values (7)'), step(half)]\n",
    )
    with pytest.raises(MigrateError, match=r"stays: step 1, step 2 in part\. Undo"):
        site.migrate()
    assert "earlier attempt ended after step 1, 2 had begun" in capsys.readouterr().err
    site.steps(
        "2-fails", "step('insert into steps (i) values (8)')", "step('create table steps (i int)')"
    )
    with pytest.raises(MigrateError, match=r"stays: step 1\. Undo"):
        site.migrate()
    # What the server undoes as a whole, as at a deadlock, cannot be ignored.
    site.write(
        "2-fails",
        "from nimue.rider import step\n"
        "def undone(db):\n    db.conn.rollback()\n    raise ValueError('deadlock')\n"
        "steps = [step('insert into steps (i) values (6)'), step(undone, None, 'all')]\n",
    )
    with pytest.raises(MigrateError, match=r"step 2 of 2 \(function undone\), line 4: ValueError"):
        site.migrate()
    site.steps("2-fails", "step('insert into missing values (8)')")
    with pytest.raises(MigrateError, match="Nothing of this migration stays"):
        site.migrate()
    assert site.ask("select i from steps order by i") == [1, 7, 8]
    site.steps("2-fails", "step('insert into steps (i) values (9)')")
    site.migrate()
    assert site.ask("select operation from _rider_logs") == ["apply", "apply"]


def told_when_it_asks(site: Site) -> str:
    """Migrate in a child; a file tells when all has been read and only the lock is awaited."""

    def asking(*arguments: Any) -> Any:
        (site.folder / f"asks.{os.getpid()}").touch()
        return alone(*arguments)

    rider.alone = asking
    return site.migrate()


def test_two_at_once_apply_each_step_once(ready: Site) -> None:
    ready.write("2-waits", WAITS)
    ready.steps("3-last", 'step("insert into steps (i) values (4)")')
    with Child(ready.migrate) as first:
        until(ready.waiting)
        with pytest.raises(RiderLocked, match=HOLDER):
            ready.migrate(timeout=0)
        with Child(told_when_it_asks, ready) as second, Child(told_when_it_asks, ready) as third:
            until(lambda: len(list(ready.folder.glob("asks.*"))) == 2)
            ready.go()
            told = [first.result(), second.result(), third.result()]
    assert told[0].count("Applied migration") == 3
    assert told[1:] == ["Nothing to migrate\n"] * 2
    assert sorted(ready.ask("select i from steps")) == [2, 3, 4]
    assert ready.ask("select operation from _rider_logs") == ["apply"] * 3
    assert len(list(ready.folder.glob("in.*"))) == 1


def test_many_that_begin_together_apply_each_step_once(ready: Site) -> None:
    for i in range(2, 8):
        ready.steps(f"{i}-more", f'step("insert into steps (i) values ({i})")')
    children = [Child(ready.migrate) for _ in range(4)]
    told = "".join(child.result() for child in children)
    assert told.count("Applied migration") == 7
    assert sorted(ready.ask("select i from steps")) == list(range(2, 8))


def test_kill_9_leaves_nothing_half_done_and_nothing_locked(
    ready: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    ready.write("2-waits", WAITS)
    child = Child(ready.migrate)
    until(ready.waiting)
    child.signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    ready.go()
    if commits_by_itself(ready):
        with pytest.raises(MigrateError, match=r"2-waits\.py, step 1 of 3: .*already exists"):
            ready.migrate()
        assert "an earlier attempt ended after step 1 had begun" in capsys.readouterr().err
        return
    assert ready.ask("select migration from _rider_migrations") == ["1-steps"]
    assert not ready.has("one") and ready.ask("select i from steps") == []
    assert ready.migrate() == "Applied migration: 2-waits\n"
    assert ready.ask("select i from steps order by i") == [2, 3]


def test_an_interrupt_frees_the_lock(ready: Site) -> None:
    ready.write("2-waits", WAITS)

    def interrupted() -> str:
        with ready.database() as db:  # whose session goes on
            try:
                Rider(db).migrate()
            except KeyboardInterrupt:
                assert not db.is_closed()
                with ready.database() as other, alone(other, "_rider_migrations", 0):
                    return "interrupted"
        return "not interrupted"

    with Child(interrupted) as child:
        until(ready.waiting)
        child.signal(signal.SIGINT)
        assert child.result() == "interrupted"
    assert ready.ask("select migration from _rider_migrations") == ["1-steps"]


@pytest.mark.parametrize("site", [POSTGRES, MYSQL], indirect=True)
@pytest.mark.parametrize("moment", ["done", "begun"])
@pytest.mark.parametrize("deed", ["get_lock|try_advisory", "release_lock|advisory_unlock"])
def test_an_interrupt_in_the_lock_itself(
    ready: Site, deed: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the server has heard of it, the lock stays with nobody."""
    with ready.database() as db, ready.database() as other:
        select = db.select

        def interrupted(query: str, *params: Any) -> Any:
            if not re.search(deed, query):
                return select(query, *params)
            if moment == "done":
                select(query, *params)
            raise KeyboardInterrupt

        monkeypatch.setattr(db, "select", interrupted)
        with pytest.raises(KeyboardInterrupt), alone(db, "t", 0):
            pass
        with alone(other, "t", 5):
            pass


FORKS = """
    pid = os.fork()
    if pid == 0:
        raise SystemExit  # through all that is under way in the parent
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("deed", ["\n    db.conn.commit()\n", FORKS], ids=["commit", "fork"])
def test_what_a_step_does_does_not_give_up_the_lock(ready: Site, deed: str) -> None:
    ready.write("2-waits", WAITS.replace("\n    open(", f"{deed}    open(", 1))
    with Child(ready.migrate) as child:
        until(ready.waiting)
        with pytest.raises(RiderLocked):
            ready.migrate(timeout=0)
        ready.go()
        assert child.result().count("Applied") == 2
    assert sorted(ready.ask("select i from steps")) == [2, 3]


@pytest.mark.parametrize("ignore", [None, "all"])
def test_what_a_step_has_rolled_back_is_not_taken_for_applied(
    ready: Site, ignore: str | None
) -> None:
    ready.write(
        "2-undoes",
        "from nimue.rider import step\n"
        "def undoes(db):\n    db.conn.rollback()\n    db.sql('insert into steps values (2)', ())\n"
        f"steps = [step('insert into steps values (1)'), step(undoes, None, {ignore!r})]\n",
    )
    with pytest.raises(MigrateError, match=r"2-undoes\.py, step 2 of 2 \(function undoes\)"):
        ready.migrate()
    assert ready.ask("select i from steps") == []
    assert ready.ask("select migration from _rider_migrations") == ["1-steps"]


def test_what_a_step_has_committed_is_told(ready: Site) -> None:
    ready.write(
        "2-commits",
        "from nimue.rider import step\n"
        "def commits(db):\n    db.conn.commit()\n"
        "steps = [step('insert into steps values (1)'), step(commits), step('selekt')]\n",
    )
    with pytest.raises(MigrateError, match=r"step 3 of 3: (.|\n)* stays: step 1, step 2 in part\."):
        ready.migrate()
    assert ready.ask("select i from steps") == [1]


@pytest.mark.server
@pytest.mark.parametrize("driver", ["psycopg", "pg8000", "mysqlclient"])
def test_other_drivers(
    driver: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = request.getfixturevalue("mariadb" if driver == "mysqlclient" else "postgres")
    kind = "mysql" if driver == "mysqlclient" else "postgres"
    site = Site(kind, tmp_path, server.connector(driver))
    names = {"table_name": f"m_{server.name}", "log_name": f"l_{server.name}"}
    table = f"t_{server.name}"
    site.steps("1-t", f'step("create table {table} (i int)", "drop table {table}")')
    try:
        with site.database() as db:
            mine = Rider(db, names)
            mine.migrate()
            mine.migrate()
            mine.migrations()
            assert db.select(f"select * from {table}") == []
            mine.rollback(0)
            assert len(db.select(f"select * from {names['log_name']}")) == 2
    finally:
        home = "nimue." if driver == "mysqlclient" else ""
        for name in names.values():
            server.sql(f"drop table if exists {home}{name}")
