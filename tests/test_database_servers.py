"""Thread-bound databases on PostgreSQL, MariaDB and SQLite, with each driver, as users see them."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nimue.database import (
    MaxConnectionsExceeded,
    PooledDatabase,
    PooledMySQLDatabase,
    PooledPostgreSQLDatabase,
    PooledSQLiteDatabase,
)
from nimue.error import NimueConnectionClosed, NimueInheritedConnectionError
from tests.children import Child
from tests.fakes import spawn, until
from tests.forking import c_child

pytestmark = pytest.mark.server

POSTGRES = ("psycopg2", "psycopg")
MARIADB = ("mysqlclient", "pymysql")
MODULES = {"mysqlclient": "MySQLdb", "sqlite3": "sqlite3"}


class Boom(Exception):
    pass


class Site:
    """A database of one driver with a table ``t (i, word)``, and ways to make more of them."""

    def __init__(self, driver: str, request: pytest.FixtureRequest, folder: Path) -> None:
        self.driver, self.folder, self.server = driver, folder, None
        self.made: list[PooledDatabase] = []
        if driver != "sqlite3":
            self.server = request.getfixturevalue("postgres" if driver in POSTGRES else "mariadb")
            self.server.connect(driver).close()  # skips where the driver is missing
        self.table = "t" if self.server is None else f"t_{self.server.name}"
        self.db = self.make()
        key = {"postgres": "serial primary key", "mysql": "int primary key auto_increment"}
        self.key = key.get(self.db.dialect, "integer primary key")
        with self.db:
            self.db.sql(f"create table {self.table} (i {self.key}, word varchar(40))")

    def make(self, max_connections: int = 3, timeout: Any = None, **options: Any) -> PooledDatabase:
        connect = importlib.import_module(MODULES.get(self.driver, self.driver)).connect
        options = {"connfunc": connect, **options}
        if self.server is None:
            path = str(self.folder / "db")
            made: PooledDatabase = PooledSQLiteDatabase(
                max_connections, None, timeout, database=path, **options
            )
        else:
            address = self.server._address()
            if self.driver in POSTGRES:
                name = address["application_name"]
                options = {"application_name": name, **options}
                made = PooledPostgreSQLDatabase(
                    max_connections, None, timeout, address["dsn"], **options
                )
            else:
                made = PooledMySQLDatabase(max_connections, None, timeout, **address, **options)
        self.made.append(made)
        return made

    def add(self, word: str, db: PooledDatabase | None = None) -> Any:
        returning = " returning i" if self.driver in POSTGRES else ""
        query = f"insert into {self.table} (word) values (%s){returning}"
        return (db or self.db).insert(query, (word,))

    def words(self) -> list[str]:
        """What another connection sees."""
        rows = spawn(self._rows).result()
        return [row["word"] for row in rows]

    def _rows(self) -> list[dict[str, Any]]:
        with self.db:
            return self.db.select(f"select word from {self.table} order by i")

    def finish(self) -> None:
        self.db.close()
        with self.db:
            self.db.sql(f"drop table {self.table}")
        for db in self.made:
            db.pool.close(5)


@pytest.fixture(params=(*POSTGRES, *MARIADB, "sqlite3"))
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    site = Site(request.param, request, tmp_path)
    yield site
    site.finish()


#: For what is about a server's sessions.
SERVED = pytest.mark.parametrize("site", [*POSTGRES, *MARIADB], indirect=True)


class TestStatements:
    def test_what_they_return(self, site: Site) -> None:
        db, table = site.db, site.table
        with db:
            assert [site.add("a"), site.add("b")] == [1, 2]
            query = f"select i, word from {table} where word <> %s order by i"
            assert db.select(query, ("x",)) == [{"i": 1, "word": "a"}, {"i": 2, "word": "b"}]
            assert db.get(query, ("a",)) == {"i": 2, "word": "b"}
            named = f"select word from {table} where i = %(i)s"
            assert db.get_or_none(named, {"i": 1}) == {"word": "a"}
            assert db.get_or_none(named, {"i": 9}) is None
            assert db.sql(f"update {table} set word = %s where i = %s", ("100%", 1)) is None
            assert db.cursor.rowcount == 1
            assert db.select(f"select i from {table} where word like '%0%'") == [{"i": 1}]
            assert site.words() == ["100%", "b"]
            told = db.mogrify(f"insert into {table} (word) values (%s)", ("it's",))
            assert isinstance(told, bytes)
            db.sql(told.decode())
        assert site.words() == ["100%", "b", "it's"]

    def test_after_an_error(self, site: Site) -> None:
        with site.db as db:
            site.add("a")
            with pytest.raises(db.conn.Error):
                db.sql("select nothing from nowhere")
            assert site.add("b") == 2
        assert site.words() == ["a", "b"]


class TestAtomic:
    def test_all_or_nothing(self, site: Site) -> None:
        db = site.db
        db.connect()
        with db.atomic():
            site.add("a")
            assert db.is_trans
            assert site.words() == []
        assert not db.is_trans
        for error in (Boom, KeyboardInterrupt):
            with pytest.raises(error), db.atomic():
                site.add("b")
                raise error
        with db.atomic(commit=False):
            site.add("c")
            assert db.get_or_none(f"select i from {site.table} where word = 'c'") is not None
        with pytest.raises(db.conn.Error), db.atomic():
            site.add("d")
            db.sql("select nothing from nowhere")
        site.add("e")
        db.close()
        assert site.words() == ["a", "e"]

    def test_savepoints(self, site: Site) -> None:
        db = site.db
        with db, db.atomic():
            site.add("a")
            for error in (Boom, db.conn.Error):
                with pytest.raises(error), db.atomic():
                    site.add("b")
                    with db.atomic():
                        site.add("c")
                    if error is Boom:
                        raise Boom
                    db.sql("select nothing from nowhere")
            with db.atomic(commit=False):
                site.add("d")
            with db.atomic():
                site.add("e")
            assert db.is_trans
            assert site.words() == []
        assert site.words() == ["a", "e"]

    def test_tables_too(self, site: Site) -> None:
        """But on MySQL, where each of these commits."""
        db = site.db
        with db:
            with pytest.raises(Boom), db.atomic():
                db.sql(f"create table {site.table}_2 (i int)")
                raise Boom
            db.sql(f"create table if not exists {site.table}_2 (j int)")
            found = db.select(f"select * from {site.table}_2")
            columns = [column[0] for column in db.cursor.description]
            assert (found, columns) == ([], ["i" if db.dialect == "mysql" else "j"])
            db.sql(f"drop table {site.table}_2")

    def test_where_the_driver_commits_by_itself(self, site: Site) -> None:
        if site.driver == "psycopg2":
            db = site.make()
            db.connect()
            db.conn.autocommit = True
        else:
            option = {"sqlite3": {"isolation_level": None}}.get(site.driver, {"autocommit": True})
            db = site.make(**option)
            db.connect()
        with pytest.raises(Boom), db.atomic():
            site.add("a", db)
            raise Boom
        assert site.words() == []
        with db.atomic():
            site.add("b", db)
            with pytest.raises(Boom), db.atomic():
                site.add("c", db)
                raise Boom
        assert site.words() == ["b"]
        site.add("d", db)
        assert site.words() == ["b", "d"]
        db.close()


class TestConnections:
    def test_of_each_thread(self, site: Site) -> None:
        """Many threads, each with what it wrote itself; none is turned away for long."""
        db = site.make(2 if site.driver != "sqlite3" else 1, timeout=20)
        table = site.table

        def work(number: int) -> None:
            for turn in range(5):
                with db, db.atomic():
                    i = site.add(f"{number}.{turn}", db)
                    row = db.get(f"select word from {table} where i = %s", (i,))
                    assert row == {"word": f"{number}.{turn}"}

        for thread in [spawn(work, number) for number in range(4)]:
            thread.result()
        assert len(site.words()) == 20
        assert db.pool.poolstats().opened <= 2

    @pytest.mark.parametrize("start", [Child, c_child])
    def test_a_child_has_its_own(self, site: Site, start: Any) -> None:
        db = site.make(1)
        if site.driver == "sqlite3":  # in use at a fork, it could not be opened in the child
            db.connect()
            db.close()
        else:
            db.connect()
            site.add("parent", db)
            with db.atomic():
                site.add("in the middle", db)
                self._child(site, db, start)
                assert db.select(f"select count(*) as n from {site.table}") == [{"n": 3}]
            db.close()
            return
        self._child(site, db, start)
        assert site.words() == ["child"]

    @staticmethod
    def _child(site: Site, db: PooledDatabase, start: Any) -> None:
        inherited = None if db.is_closed() else db.conn

        def child() -> bool:
            assert db.is_closed()
            if inherited is not None:
                with pytest.raises(NimueInheritedConnectionError):
                    inherited.commit()
            with db:
                site.add("child", db)
            db.close_all()
            return True

        assert start(child, leave="sys.exit").result()

    @SERVED
    def test_statements_of_other_threads_are_cut_short(self, site: Site) -> None:
        assert site.server is not None
        db = site.make(1)
        sleeps = "select pg_sleep(30)" if db.dialect == "postgres" else "select sleep(30)"
        errors: list[BaseException] = []
        proceed = threading.Event()

        def hold() -> None:
            db.connect()
            try:
                db.sql(sleeps)
            except Exception as error:
                errors.append(error)
            assert proceed.wait(10)
            with pytest.raises(NimueConnectionClosed):
                db.sql("select 1")

        thread = spawn(hold)
        until(lambda: any("sleep(" in str(session) for session in site.server.sessions()))
        with pytest.raises(MaxConnectionsExceeded):
            db.connect()
        assert db.close_stale(age=0) == 1
        until(lambda: errors)
        db.connect()
        assert db.select("select 1 as one") == [{"one": 1}]
        db.close()
        proceed.set()
        thread.result()
        for session in site.server.sessions():
            if "sleep(" in str(session):  # MariaDB looks at its client when it has slept
                site.server.terminate(session[0])

    @SERVED
    def test_a_connection_that_was_lost(self, site: Site) -> None:
        assert site.server is not None
        db = site.make(1)
        db.connect()
        db.sql("select 1")
        site.server.terminate(db.pool.driver.session_id(db.conn.raw))
        with pytest.raises(db.conn.Error):
            db.sql("select 1")
        with pytest.raises(Exception, match=r"\w"), db.atomic():
            db.sql("select 1")
        db.close()
        with db:
            assert db.select("select 1 as one") == [{"one": 1}]
