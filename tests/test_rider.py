"""Rider on SQLite: its commands, what it refuses, and what a failure leaves."""

from __future__ import annotations

import gc
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nimue.cli import main
from nimue.database import PooledSQLiteDatabase
from nimue.error import NimueInvalidParameterValue
from nimue.rider import MigrateError, Rider, RiderError, RiderLocked, RollbackError
from nimue.rider.lock import alone
from nimue.rider.show import show
from tests.children import ROOT

INIT = """\
'''init db'''
from nimue.rider import step
steps = [step("create table orders (id int)", "drop table orders")]
"""


class Site:
    """A directory of migrations, a database of SQLite's, and a rider of both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "shop.db"
        self.db = PooledSQLiteDatabase(database=str(self.file))
        self.rider = Rider(self.db)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / "migrations" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def steps(self, name: str, *steps: str, depends: str = "set()") -> Path:
        listed = "".join(f"    {step},\n" for step in steps)
        text = f"from nimue.rider import step\n__depends__ = {depends}\nsteps = [\n{listed}]\n"
        return self.write(name, text)

    def ask(self, query: str) -> list[Any]:
        raw = sqlite3.connect(self.file)
        try:
            return raw.execute(query).fetchall()
        finally:
            raw.close()

    def tables(self) -> list[str]:
        found = self.ask("select name from sqlite_master where type = 'table' order by name")
        return [name for (name,) in found]

    def applied(self) -> list[str]:
        return [row[0] for row in self.ask("select migration from _rider_migrations order by 1")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    site = Site(tmp_path)
    yield site
    site.db.close_all()


def command(
    folder: Path, *words: str, ignored: str = "nothing"
) -> subprocess.CompletedProcess[str]:
    warnings = f"error,ignore:{ignored}"
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": warnings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def blocks(language: str) -> list[str]:
    """The README's examples of migrations."""
    (section,) = re.findall(r"\n## Migrations\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.S)
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def test_what_the_readme_shows(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks("python"):
        path = site.folder / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    (console,) = blocks("console")
    told = []
    for line in console.splitlines():
        words = line.partition("  ")[0].removeprefix("$ nimue rider ")
        options = [a or b for a, b in re.findall(r'"(.*?)"|(\S+)', words)]
        assert main(["rider", *options]) == 0, capsys.readouterr().err
        told.append(capsys.readouterr().out)
        if options[0] == "create":
            (made,) = set((site.folder / "migrations").glob("*-add-contacts.py"))
            made.write_text(made.read_text().replace('step("")', 'step("create table c (i int)")'))
    created, dry, migrated, listed, rows, back = told
    assert re.fullmatch(
        r"Created migration scaffold in migrations/\d{10}-add-contacts.py\n", created
    )
    assert "-- step 3 of 3: function first_order" in dry and "create index billed on" in dry
    assert re.fullmatch(
        r"Applied migration: 1760000000-init-db\nApplied migration: \d+-add-contacts\n", migrated
    )
    assert all(word in listed for word in ("index", "message", "applied", "init db"))
    assert "billed" in rows
    assert back.splitlines()[-1] == "Rolled back migration: 1760000000-init-db"
    assert site.tables() == ["_rider_logs", "_rider_migrations", "c"]


def test_a_script_as_documented(site: Site) -> None:
    """The script of Estoult's documentation, but for the import lines."""
    (site.folder / "rider.py").write_text(
        "from nimue.rider import Rider\n"
        "from base import db\n\n"
        'if __name__ == "__main__":\n'
        "    db.connect()  # For manual connection management\n"
        '    Rider(db, {"source": "./my_dir"}).parse_args()\n'
        "    db.close()\n"
    )
    (site.folder / "base.py").write_text(
        "from nimue.database import PooledSQLiteDatabase\n"
        "db = PooledSQLiteDatabase(database='shop.db')\n"
    )
    made = command(site.folder, "rider.py", "create", "-d", "init db")
    assert (made.returncode, made.stderr) == (0, "")
    (path,) = (site.folder / "my_dir").iterdir()
    assert made.stdout == f"Created migration scaffold in my_dir/{path.name}\n"

    # 3.13 says what the script leaves open.
    failed = command(site.folder, "rider.py", "migrate", ignored="unclosed database in")
    assert failed.returncode == 1
    told = f"rider: my_dir/{path.name}, step 1 of 1: the step is empty\n"
    assert failed.stderr == told

    path.write_text(path.read_text().replace('step("")', 'step("create table t (i int)")'))
    done = command(
        site.folder, "-m", "nimue", "rider", "--db", "base:db", "--source", "my_dir", "migrate"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Applied migration: {path.stem}\n"
    assert os.listdir(site.folder / "my_dir") == [path.name]  # no bytecode


def test_dependencies_go_first_then_the_lower_number(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.steps("9-c", 'step("select 1")')
    site.steps("10-b", 'step("select 1")', depends='{""}')
    site.steps("8-a", 'step("select 1")', depends='{"10-b"}')
    site.rider.migrate()
    done = re.findall(r"Applied migration: (\S+)", capsys.readouterr().out)
    assert done == ["9-c", "10-b", "8-a"]
    site.rider.rollback(1)
    done = re.findall(r"Rolled back migration: (\S+)", capsys.readouterr().out)
    assert done == ["8-a", "10-b"]
    assert site.applied() == ["9-c"]


@pytest.mark.parametrize(
    ("depends", "told"),
    [
        ({"2-b": '{"3-c"}', "3-c": '{"2-b"}'}, r"in a circle: .*(2-b\.py -> .*3-c|3-c.* -> .*2-b)"),
        ({"2-b": '{"7-x"}'}, r"2-b\.py depends on '7-x': there is no such file"),
        ({"1-INIT": "set()"}, r"1-INIT\.py and .*1-init\.py are of one name"),
        ({"2-b": '"1-init"'}, r"2-b\.py: __depends__ must be a set of names .*, not '1-init'"),
    ],
)
def test_what_cannot_be_put_in_order_is_told_before_anything_runs(
    site: Site, depends: dict[str, str], told: str
) -> None:
    site.write("1-init", INIT)
    for name, value in depends.items():
        site.steps(name, 'step("select 1")', depends=value)
    with pytest.raises(RiderError, match=told):
        site.rider.migrate()
    assert site.tables() == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps = [", "SyntaxError"),
        ("import sys\nsys.exit()", "SystemExit"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named"),
        ("", "steps must be a list of step"),
        ("steps = ['select 1']", "steps, number 1, must be a step"),
        ("from nimue.rider import step\nsteps = [step(1)]", "step 1: migrate must be SQL, or a"),
        (
            "from nimue.rider import step\nsteps = [step('x', None, 'no')]",
            'step 1: ignore_errors must be None, "apply", "rollback" or "all", not \'no\'',
        ),
        ("from nimue.rider import step\nsteps = [step(' ')]", "step 1 of 1: the step is empty"),
    ],
)
def test_a_file_that_is_no_migration_is_named_before_anything_runs(
    site: Site, text: str, told: str
) -> None:
    site.write("1-init", INIT)
    site.write("2-wrong", text)
    with pytest.raises(RiderError, match=rf"^migrations/2-wrong\.py.*{re.escape(told)}"):
        site.rider.migrate()
    assert site.tables() == []


def test_a_failure_leaves_nothing_of_its_migration_and_nothing_after_it(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.write("1-init", INIT)
    site.write(
        "2-fails",
        "from nimue.rider import step\n"
        "def fill(db):\n"
        "    db.sql('insert into t values (%s)', (1,))\n"
        "    db.sql('insert into missing values (1)', ())\n"
        "steps = [step('create table t (i int)'), step(fill), step('drop table orders')]\n",
    )
    site.steps("3-later", 'step("create table later (i int)")')
    with pytest.raises(SystemExit) as leaving:
        site.rider.parse_args(["migrate"])
    assert leaving.value.code == 1
    assert capsys.readouterr() == (
        "Applied migration: 1-init\n",
        "rider: migrations/2-fails.py, step 2 of 3 (function fill), line 4: OperationalError: "
        "no such table: missing\n"
        "Nothing of this migration stays.\n"
        "Not applied after that: 3-later.py\n",
    )
    assert site.tables() == ["_rider_logs", "_rider_migrations", "orders"]
    assert site.applied() == ["1-init"]
    assert site.ask("select migration, operation from _rider_logs") == [("1-init", "apply")]


def test_a_step_that_ends_the_program_is_a_failure(site: Site) -> None:
    site.steps("1-exits", 'step("create table t (i int)")', "step(lambda db: exit(0))")
    with pytest.raises(MigrateError, match=r"step 2 of 2 .*, line 5: SystemExit"):
        site.rider.migrate()
    assert site.tables() == ["_rider_logs", "_rider_migrations"]


def test_not_within_another_transaction(site: Site) -> None:
    """Whose end comes after that of the lock."""
    site.write("1-init", INIT)
    for command in (site.rider.migrate, lambda: site.rider.rollback(0)):
        with site.db, site.db.atomic(), pytest.raises(RiderError, match=r"leave atomic\(\)"):
            command()
    assert site.tables() == []


def test_errors_that_are_ignored_leave_the_rest(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.write(
        "1-some",
        "from nimue.rider import step\n"
        "def half(db):\n"
        "    db.sql('insert into t values (2)', ())\n"
        "    raise ValueError('half-way')\n"
        "steps = [step('create table t (i int)', 'drop table t'),\n"
        "         step(half, ignore_errors='apply'), step('selekt', ignore_errors='migrate'),\n"
        "         step('insert into t values (1)', 'delete nothing', 'rollback')]\n",
    )
    site.rider.migrate()
    assert site.ask("select i from t") == [(1,)]
    assert "step 2 of 4 (function half), line 4: ignored: ValueError" in capsys.readouterr().err
    site.rider.rollback(0)
    told = capsys.readouterr().err
    assert "step 4 of 4: ignored: OperationalError" in told
    assert "step 3 of 4: there is no way back" in told
    assert "t" not in site.tables()
    logged = site.ask("select operation, username, hostname from _rider_logs")
    assert [row[0] for row in logged] == ["apply", "rollback"] and all(logged[0])

    site.steps("1-some", 'step("create table t (i int)", "drop nothing", "apply")')
    site.rider.migrate()
    with pytest.raises(RollbackError, match=r"1-some\.py, step 1 of 1: OperationalError: near"):
        site.rider.rollback(0)
    assert site.applied() == ["1-some"] and "t" in site.tables()


def test_a_dry_run_changes_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.write("1-init", INIT)
    site.rider.parse_args(["migrate", "--dry-run"])
    site.rider.migrations()
    assert site.tables() == []
    assert sorted(path.name for path in site.folder.iterdir()) == ["migrations", "shop.db"]
    assert capsys.readouterr().out.startswith(
        "-- migrations/1-init.py: init db\n-- step 1 of 1\ncreate table orders (id int)\n"
    )


def test_what_was_changed_or_removed_since_brings_a_warning(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    path = site.write("1-init", INIT)
    site.steps("2-more", 'step("create table more (i int)")', depends='{"1-init"}')
    site.rider.migrate()
    path.write_bytes(INIT.replace("\n", "\r\n").encode())
    site.rider.migrate()
    assert capsys.readouterr().err == ""

    path.write_text(INIT + "# changed\n")
    site.write("../migrations/v3", "")
    site.rider.migrate()
    path.unlink()
    site.rider.migrate()
    told = capsys.readouterr().err
    assert re.search(r"warning: migrations/1-init\.py was changed after it was applied \(20", told)
    assert "warning: migrations/v3.py is no migration" in told
    assert "warning: 1-init was applied (20" in told


def test_tables_of_estoults_rider_are_taken_over(site: Site) -> None:
    site.write("1-init", INIT)
    raw = sqlite3.connect(site.file)
    raw.execute("create table old (migration varchar(256) primary key, applied_at timestamp)")
    raw.execute("insert into old values ('1-init', '2020-10-16 10:00:00')")
    raw.commit()
    raw.close()
    site.steps("2-more", 'step("create table more (i int)")', depends='["1-init"]')
    Rider(site.db, {"table_name": "old", "log_name": "old_logs"}).migrate()
    assert site.tables() == ["more", "old", "old_logs"]
    assert [row[0] for row in site.ask("select migration from old order by 1")] == [
        "1-init",
        "2-more",
    ]


def test_names_of_files_are_made_of_the_words_alone(site: Site) -> None:
    for description in ("Zebra", 'add "x""";\n  ../../etc \\', "a" * 300):
        site.rider.create(description)
    names = sorted(path.stem for path in (site.folder / "migrations").iterdir())
    numbers, words = zip(*(name.split("-", 1) for name in names), strict=True)
    assert words == ("zebra", "add-x-etc", "a" * 100)
    assert [int(number) - int(numbers[0]) for number in numbers] == [0, 1, 2]
    from nimue.rider.source import Source, ordered

    read = ordered(Source("migrations").read(), ())
    assert [one.message for one in read] == ["Zebra", 'add "x"""; ../../etc \\', "a" * 300]
    assert [one.depends for one in read] == [set(), {names[0]}, {names[1]}]
    with pytest.raises(RiderError, match=r"must have a letter or a digit, not '\.\./ !'"):
        site.rider.create("../ !")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"sauce": "x"}, "key of config must be one of source, .*, not 'sauce'"),
        ({"table_name": "a; drop table b"}, "table_name must be a name of at most 63"),
        ({"source": None}, "source must be the path of a directory, not None"),
        ({"log_name": "1x"}, "log_name must be a name"),
        ({"log_name": "_RIDER_migrations"}, "log_name must be another than table_name"),
        ({"lock_timeout": -1}, "lock_timeout must be a number of seconds, 0 or more, not -1"),
    ],
)
def test_a_bad_config_is_refused(site: Site, config: dict[str, Any], told: str) -> None:
    with pytest.raises(NimueInvalidParameterValue, match=told):
        Rider(site.db, config)


# From 3.13 on of the databases that these commands have imported, and nobody closes.
@pytest.mark.filterwarnings("ignore:unclosed database in:ResourceWarning")
def test_bad_commands_are_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> tuple[int, str]:
        return main(["rider", *words]), capsys.readouterr().err

    assert told("migrate") == (
        2,
        "nimue rider: give --db module:attribute, or a rider.py in the current directory\n",
    )
    assert told("--db", "nowhere", "migrate")[0] == 2
    assert "No module named 'nowhere'" in told("--db", "nowhere:db", "migrate")[1]
    (site.folder / "rider.py").write_text("db = 3")
    assert told("migrate") == (2, "nimue rider: rider.py:db must be a database, not a int\n")
    (site.folder / "rider.py").write_text(
        "from nimue.database import PooledSQLiteDatabase as db\n"
    )
    assert "rider.py:db must be a database, not the class Pooled" in told("migrate")[1]
    (site.folder / "rider.py").write_text(
        "from nimue.database import PooledSQLiteDatabase as P\ndb = P(database='shop.db')\n"
    )
    status, text = told("migrate")
    assert status == 1 and "No such file or directory: 'migrations'" in text
    site.write("1-init", INIT)
    assert told("rollback", "-i", "1") == (1, "nimue rider: index must be from 0 to 0, not 1\n")
    assert told("run", "-q", "selekt") == (
        1,
        'nimue rider: OperationalError: near "selekt": syntax error\n',
    )
    (site.folder / "rider.py").write_text(
        "from nimue.database import PooledSQLiteDatabase as P\ndb = P(database='no/where.db')\n"
    )
    status, text = told("migrate")
    assert (status, text.splitlines()[-1]) == (
        1,
        "nimue rider: OperationalError: unable to open database file",
    )
    gc.collect()


def test_migrations_leave_no_trace_in_the_interpreter(site: Site) -> None:
    site.write("1-init", "from __future__ import annotations\n" + INIT.partition("\n")[2])
    path, modules = list(sys.path), set(sys.modules)
    site.rider.migrate()
    assert sys.path == path
    assert not {name for name in set(sys.modules) - modules if "init" in name}
    assert os.listdir(site.folder / "migrations") == ["1-init.py"]


def test_an_interrupt_leaves_nothing_and_frees_the_lock(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.write(
        "1-stop",
        "import os, signal\nfrom nimue.rider import step\n"
        "def stop(db):\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "steps = [step('create table t (i int)'), step(stop)]\n",
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        site.rider.migrate()
    told = capsys.readouterr().err
    assert "1-stop.py, step 2 of 2 (function stop), line 4: interrupted" in told
    assert "Nothing of this migration stays." in told
    assert site.tables() == ["_rider_logs", "_rider_migrations"] and site.applied() == []
    assert site.db.is_closed()
    with site.db, alone(site.db, "_rider_migrations", 0):
        pass


def test_a_lock_held_by_another_is_waited_for_no_longer_than_told(site: Site) -> None:
    from filelock import FileLock

    site.write("1-init", INIT)
    with FileLock(f"{site.file}.rider-lock"), pytest.raises(RiderLocked, match=r"for 0\.05 s"):
        Rider(site.db, {"lock_timeout": 0.05}).migrate()
    assert site.tables() == []


@pytest.mark.parametrize("rich", [True, False])
def test_tables_are_whole_with_rich_and_without(
    rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    show(("id", "[b]name"), [(1, None), (20, "x" * 200)])
    lines = capsys.readouterr().out.splitlines()
    assert any("x" * 200 in line for line in lines)
    assert "[b]name" in "\n".join(lines)
    if not rich:
        assert lines == [
            "id | [b]name",
            f"---+-{'-' * 200}",
            "1  | null",
            f"20 | {'x' * 200}",
        ]


def test_a_migration_that_breaks_the_checks_of_the_end_is_named(site: Site) -> None:
    """Constraints that are looked at only by the commit."""
    site.steps(
        "1-deferred",
        'step("create table a (i int primary key)")',
        'step("create table b (i int references a deferrable initially deferred)")',
        'step("insert into b values (1)")',
    )
    with site.db:
        site.db.sql("pragma foreign_keys = on", ())
        with pytest.raises(MigrateError, match=r"1-deferred\.py: IntegrityError: FOREIGN KEY"):
            site.rider.migrate()
    assert site.tables() == ["_rider_logs", "_rider_migrations"]
