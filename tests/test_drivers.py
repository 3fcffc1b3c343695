"""One contract, every driver, on real servers; and what each driver has of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sqlite3
import stat
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from nimue.drivers import Driver, driver_for, find_dbmodule
from nimue.error import NimueDBModuleFailure, NimueInvalidParameterValue
from tests import servers
from tests.children import Child, in_script
from tests.fakes import spawn, until

POSTGRES = ("psycopg2", "psycopg", "pg8000", "pg8000.legacy")
MYSQL = ("pymysql", "mysqlclient")
EVERY = (*POSTGRES, *MYSQL, "sqlite3")
WITH_SERVER = (*POSTGRES, *MYSQL)


class Boom(Exception):
    pass


class Kit:
    """One driver, a table ``t`` with the column ``i``, and the eyes of an administrator.

    ``held`` has the only references to what a test opens here, for those tests that drop them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: list[Any] = []
        self._driver: Driver | None = None

    def connect(self, **kw: Any) -> Any:
        self.held.insert(0, self.open(**kw))
        return self.held[0]

    @property
    def driver(self) -> Driver:
        if self._driver is None:
            self._driver = driver_for(self.held[0] if self.held else self.connect())
        return self._driver

    def open(self, **kw: Any) -> Any:
        raise NotImplementedError

    def admin(self, statement: str) -> list[Any]:
        raise NotImplementedError

    def autocommit(self, raw: Any) -> None:
        raw.autocommit = True

    def rows(self) -> list[int]:
        return [row[0] for row in self.admin(f"SELECT i FROM {self.table} ORDER BY i")]

    def create(self) -> None:
        self.admin(f"CREATE TABLE {self.table} (i int primary key)")

    def finish(self) -> None:
        for thing in reversed(self.held):
            with contextlib.suppress(Exception):
                thing.close()
        self.held.clear()
        self.admin(f"DROP TABLE {self.table}")

    table = "t"


class PostgresKit(Kit):
    def __init__(self, name: str, server: servers.Postgres) -> None:
        super().__init__(name)
        self.server = server
        self.table = f"t_{server.name}"

    def open(self, **kw: Any) -> Any:
        if self.name != "pg8000.legacy":
            return self.server.connect(self.name, **kw)
        import pg8000

        parts = urlsplit(self.server.dsn)
        given = {"user": parts.username, "database": "postgres", **kw}
        return pg8000.connect(
            host=parts.hostname, port=parts.port, application_name=self.server.name, **given
        )

    def admin(self, statement: str) -> list[Any]:
        return self.server.sql(statement)

    def own_id(self, raw: Any) -> int:
        return int(query(raw, "SELECT pg_backend_pid()")[0][0])

    def busy(self, session: int) -> bool:
        (state,) = (s.state for s in self.server.sessions() if s.pid == session)
        return bool(state != "idle")

    def fail(self, raw: Any, code: str) -> BaseException:
        return failure(
            query, raw, f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"
        )


class MySQLKit(Kit):
    def __init__(self, name: str, server: servers.MariaDB) -> None:
        super().__init__(name)
        self.server = server
        self.table = f"t_{server.name}"

    def open(self, **kw: Any) -> Any:
        if self.name == "pymysql":
            # It would read all the system's certificates for every connection.
            kw = {"ssl_disabled": True, **kw}
        return self.server.connect(self.name, **kw)

    def admin(self, statement: str) -> list[Any]:
        self.server.sql("USE nimue")
        return self.server.sql(statement)

    def autocommit(self, raw: Any) -> None:
        raw.autocommit(True)

    def own_id(self, raw: Any) -> int:
        return int(query(raw, "SELECT connection_id()")[0][0])

    def busy(self, session: int) -> bool:
        # The table innodb_trx would do, but is renewed only where nobody has asked for 0.1 s.
        ((_, _, status),) = self.admin("SHOW ENGINE INNODB STATUS")
        return any(
            ", ACTIVE" in transaction and f"thread id {session}," in transaction
            for transaction in status.split("---TRANSACTION")
        )

    def fail(self, raw: Any, code: int, message: str = "no") -> BaseException:
        return failure(
            query,
            raw,
            f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = '{message}'",
        )

    def unbuffered(self) -> Any:
        if self.name == "pymysql":
            from pymysql.cursors import SSCursor
        else:
            from MySQLdb.cursors import SSCursor
        return SSCursor


class SqliteKit(Kit):
    def __init__(self, file: Path) -> None:
        super().__init__("sqlite3")
        self.file = file

    def open(self, **kw: Any) -> Any:
        return sqlite3.connect(self.file, **{"check_same_thread": False, "timeout": 0, **kw})

    def admin(self, statement: str) -> list[Any]:
        with contextlib.closing(self.open()) as other, other:
            return other.execute(statement).fetchall()

    def autocommit(self, raw: Any) -> None:
        raw.isolation_level = None


def query(raw: Any, statement: str, *parameters: Any) -> list[Any]:
    with contextlib.closing(raw.cursor()) as cursor:
        cursor.execute(statement, *parameters)
        return list(cursor.fetchall()) if cursor.description else []


def failure(fn: Callable[..., Any], *args: Any) -> BaseException:
    """What ``fn`` raises, without the frames.

    They lead to the test's own, which has the exception in a local variable, and to the driver's:
    pg8000 leaves the file of its socket to the last reference. In such a cycle the collector may
    finalise the socket before the file, and that is a ResourceWarning.
    """
    try:
        fn(*args)
    except Exception as error:
        return _without_frames(error)
    raise AssertionError(f"{fn} raised nothing")


def _without_frames(error: BaseException) -> BaseException:
    linked: BaseException | None = error
    while linked is not None:
        linked.__traceback__ = None
        linked = linked.__cause__ or linked.__context__
    return error


def cut(driver: Driver, raw: Any) -> None:
    """Break the connection below the driver."""
    fd = driver.fileno(raw)
    assert fd is not None
    with socket.socket(fileno=os.dup(fd)) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def make(name: str, request: pytest.FixtureRequest) -> Kit:
    if name in POSTGRES:
        return PostgresKit(name, request.getfixturevalue("postgres"))
    if name in MYSQL:
        return MySQLKit(name, request.getfixturevalue("mariadb"))
    return SqliteKit(request.getfixturevalue("tmp_path") / "file")


@pytest.fixture(params=EVERY)
def kit(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = make(request.param, request)
    made.create()
    yield made
    made.finish()


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kit", names, indirect=True)


def connect() -> None:
    """A function of that name, in a module that is no driver."""


class TestChoice:
    @pytest.mark.parametrize("kit", EVERY, indirect=True)
    def test_a_connection_leads_to_its_driver(self, kit: Kit) -> None:
        raw = kit.connect()
        module = find_dbmodule(raw)
        assert module.__name__ in (kit.name, "pg8000.dbapi", "MySQLdb")
        assert issubclass(module.Error, Exception)
        assert type(kit.driver) is not Driver
        assert kit.driver.dbmodule is module
        assert module.__name__.partition(".")[0] in kit.driver.packages

    @only("psycopg", "pg8000", "pymysql", "mysqlclient", "sqlite3")
    def test_so_does_one_of_a_class_of_the_users(self, kit: Kit) -> None:
        raw = kit.connect()
        theirs = type("Theirs", (type(raw),), {"__module__": __name__})
        mine = theirs.__new__(theirs)
        assert sys.modules[__name__].connect is connect
        assert find_dbmodule(mine) is find_dbmodule(raw)
        assert type(driver_for(mine)) is type(kit.driver)

    def test_another_driver_gets_the_answers_of_any(self, monkeypatch: Any) -> None:
        module = types.ModuleType("somedb")
        module.connect = connect  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "somedb", module)
        monkeypatch.setitem(sys.modules, "somedb.inner", types.ModuleType("somedb.inner"))
        raw = type("Connection", (), {"__module__": "somedb.inner.not_loaded"})()
        driver = driver_for(raw)
        assert type(driver) is Driver
        assert driver.dbmodule is module
        assert driver.interface_error is Exception
        assert driver.fileno(raw) is driver.in_transaction(raw) is driver.session_id(raw) is None
        assert not driver.is_closed(raw)
        assert not driver.is_disconnect(OSError())
        assert not driver.is_full(OSError())

    def test_what_is_no_connection_is_named(self) -> None:
        with pytest.raises(NimueDBModuleFailure, match=r"builtins\.dict"):
            driver_for({})

    def test_only_the_file_needed_is_imported(self) -> None:
        assert in_script(_loaded_by_sqlite) == ["nimue.drivers.base", "nimue.drivers.sqlite"]


def _loaded_by_sqlite() -> list[str]:
    with contextlib.closing(sqlite3.connect(":memory:")) as raw:
        driver_for(raw)
    assert not {"psycopg", "psycopg2", "pg8000", "pymysql", "MySQLdb"} & sys.modules.keys()
    return sorted(name for name in sys.modules if name.startswith("nimue.drivers."))


class TestIdentity:
    @only(*WITH_SERVER)
    def test_fileno_is_the_socket_until_it_is_closed(self, kit: Kit) -> None:
        raw = kit.connect()
        fd = kit.driver.fileno(raw)
        assert not kit.driver.hides_socket
        assert fd is not None
        assert stat.S_ISSOCK(os.fstat(fd).st_mode)
        with socket.socket(fileno=os.dup(fd)) as same:
            assert same.getpeername()[1] == kit.server.port  # type: ignore[attr-defined]
        raw.close()
        assert kit.driver.fileno(raw) is None

    @only(*WITH_SERVER)
    def test_fileno_of_a_broken_one_is_no_exception(self, kit: Kit) -> None:
        raw = kit.connect()
        cut(kit.driver, raw)
        failure(query, raw, "SELECT 1")
        kit.driver.fileno(raw)
        kit.driver.session_id(raw)

    @only("mysqlclient")
    def test_a_mysqlclient_that_does_not_tell_hides_its_socket(self, kit: Kit) -> None:
        raw = kit.connect()
        old = types.SimpleNamespace(_mysql=types.SimpleNamespace(connection=object))
        driver = type(kit.driver)(old)  # type: ignore[arg-type]
        assert driver.hides_socket
        assert driver.fileno(raw) is None

    @only(*WITH_SERVER)
    def test_session_id_is_the_servers(self, kit: Any) -> None:
        raw = kit.connect()
        assert kit.driver.session_id(raw) == kit.own_id(raw)
        raw.close()
        kit.driver.session_id(raw)

    def test_is_closed(self, kit: Kit) -> None:
        raw = kit.connect()
        assert kit.driver.is_closed(raw) is False
        raw.close()
        assert kit.driver.is_closed(raw) is True
        assert kit.driver.in_transaction(raw) is not False

    def test_only_sqlite_must_not_be_inherited(self, kit: Kit) -> None:
        is_sqlite = kit.name == "sqlite3"
        assert kit.driver.close_before_fork is is_sqlite
        assert kit.driver.close_cursors is is_sqlite
        assert bool(kit.driver.poisons()) is is_sqlite


KNOW = ("psycopg2", "psycopg", "sqlite3")  # outside of a transaction, that they are


class TestTransaction:
    def test_open_until_reset(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, f"INSERT INTO {kit.table} VALUES (1)")
        told = kit.driver.in_transaction(raw)
        assert told is (None if kit.name == "mysqlclient" else True)
        kit.driver.reset(raw)
        assert kit.driver.in_transaction(raw) is (False if kit.name in KNOW else None)
        assert kit.rows() == []
        query(raw, f"INSERT INTO {kit.table} VALUES (2)")
        raw.commit()
        assert kit.driver.in_transaction(raw) is (False if kit.name in KNOW else None)
        kit.driver.reset(raw)
        assert kit.rows() == [2]

    @only(*WITH_SERVER)
    def test_reset_ends_it_at_the_server(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, f"INSERT INTO {kit.table} VALUES (1)")
        session = kit.driver.session_id(raw)
        until(lambda: kit.busy(session))
        kit.driver.reset(raw)
        until(lambda: not kit.busy(session))

    def test_reset_ends_one_that_was_begun_by_sql(self, kit: Any) -> None:
        raw = kit.connect()
        kit.autocommit(raw)
        query(raw, "BEGIN")
        query(raw, f"INSERT INTO {kit.table} VALUES (1)")
        assert kit.driver.in_transaction(raw) is not False
        kit.driver.reset(raw)
        assert kit.driver.in_transaction(raw) is (False if kit.name in KNOW else None)
        assert kit.rows() == []
        query(raw, f"INSERT INTO {kit.table} VALUES (2)")
        assert kit.rows() == [2]

    def test_reset_after_an_error(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, f"INSERT INTO {kit.table} VALUES (1)")
        assert isinstance(failure(query, raw, "SELECT nonsense"), kit.driver.dbmodule.Error)
        kit.driver.reset(raw)
        query(raw, f"INSERT INTO {kit.table} VALUES (1)")
        raw.commit()
        assert kit.rows() == [1]

    @only("psycopg2", "psycopg", "sqlite3")
    def test_an_error_outside_a_transaction_costs_no_connection(self, kit: Any) -> None:
        raw = kit.connect()
        kit.autocommit(raw)
        failure(query, raw, "SELECT nonsense")
        kit.driver.reset(raw)
        assert kit.driver.in_transaction(raw) is False

    @only("psycopg2")
    def test_a_failed_commit_costs_none_either(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, f"CREATE TABLE {kit.table}_2 (i int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        query(raw, f"INSERT INTO {kit.table}_2 VALUES (1), (1)")
        failure(raw.commit)
        kit.driver.reset(raw)
        assert kit.driver.in_transaction(raw) is False

    @only("psycopg2")
    def test_psycopg2_needs_a_rollback_after_a_commit_by_sql(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, "SELECT 1")
        query(raw, "COMMIT")
        assert kit.driver.in_transaction(raw) is None
        kit.driver.reset(raw)
        assert kit.driver.in_transaction(raw) is False
        query(raw, f"INSERT INTO {kit.table} VALUES (1)")
        raw.rollback()
        assert kit.rows() == []

    @only("psycopg2")
    def test_psycopg2_with_a_transaction_prepared_is_not_at_rest(self, kit: Any) -> None:
        raw = kit.connect()
        raw.tpc_begin("x")
        assert kit.driver.in_transaction(raw) is not False

    @only("pymysql")
    def test_pymysql_knows_only_after_an_ok_packet(self, kit: Any) -> None:
        raw = kit.connect()
        kit.autocommit(raw)
        kit.admin(f"INSERT INTO {kit.table} VALUES (1)")
        query(raw, f"INSERT INTO {kit.table} VALUES (2)")
        assert kit.driver.in_transaction(raw) is False
        query(raw, "SELECT 1")
        assert kit.driver.in_transaction(raw) is None
        raw.autocommit(False)
        failure(query, raw, f"INSERT INTO {kit.table} VALUES (1)")
        # The row that was there is locked now.
        until(lambda: kit.busy(kit.driver.session_id(raw)))
        assert kit.driver.in_transaction(raw) is None
        kit.driver.reset(raw)
        until(lambda: not kit.busy(kit.driver.session_id(raw)))
        query(raw, f"INSERT INTO {kit.table} VALUES (3)")
        raw.rollback()
        kit.autocommit(raw)
        query(raw, f"INSERT INTO {kit.table} VALUES (3)")
        raw.close()
        assert kit.driver.in_transaction(raw) is None


GONE = ("08000", "08006", "57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "25006")


class TestDisconnect:
    @only(*WITH_SERVER)
    def test_session_terminated_while_idle(self, kit: Any) -> None:
        raw = kit.connect()
        kit.server.terminate(kit.driver.session_id(raw))
        assert kit.driver.is_disconnect(failure(query, raw, "SELECT 1"))
        assert kit.driver.in_transaction(raw) is not False

    @only(*WITH_SERVER)
    def test_session_terminated_while_executing(self, kit: Any) -> None:
        raw = kit.connect()
        sleep = "SELECT pg_sleep(60)" if kit.name in POSTGRES else "SELECT sleep(60)"
        session = kit.driver.session_id(raw)
        waiting = spawn(failure, query, raw, sleep)
        until(lambda: any(sleep in _text(row) for row in kit.server.sessions()))
        kit.server.terminate(session)
        assert kit.driver.is_disconnect(waiting.result())
        assert kit.driver.in_transaction(raw) is not False

    @only(*WITH_SERVER)
    @pytest.mark.parametrize("use", ["execute", "commit"])
    def test_link_cut(self, kit: Any, use: str) -> None:
        raw = kit.connect()
        query(raw, f"INSERT INTO {kit.table} VALUES (1)")
        cut(kit.driver, raw)
        error = failure(query, raw, "SELECT 1") if use == "execute" else failure(raw.commit)
        assert kit.driver.is_disconnect(error)
        with pytest.raises(kit.driver.dbmodule.Error):
            kit.driver.reset(raw)
        assert kit.driver.is_disconnect(failure(query, raw, "SELECT 1"))
        assert kit.driver.in_transaction(raw) is not False

    @only(*WITH_SERVER)
    def test_use_after_close(self, kit: Any) -> None:
        raw = kit.connect()
        raw.close()
        assert kit.driver.is_disconnect(failure(query, raw, "SELECT 1"))

    @only(*WITH_SERVER)
    def test_an_error_of_the_users_is_none(self, kit: Any) -> None:
        raw = kit.connect()
        insert = f"INSERT INTO {kit.table} VALUES (1)"
        query(raw, insert)
        raw.commit()
        cursor = raw.cursor()
        cursor.close()
        for error in (
            failure(query, raw, insert),
            failure(query, raw, "SELEC 1"),
            failure(cursor.execute, "SELECT 1"),
            Boom(0, ""),
        ):
            assert not kit.driver.is_disconnect(error)
            assert not kit.driver.is_full(error)
            raw.rollback()

    @only(*POSTGRES)
    def test_read_only(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, "SET default_transaction_read_only = on")
        raw.commit()
        error = failure(query, raw, f"INSERT INTO {kit.table} VALUES (1)")
        assert kit.driver.is_disconnect(error)
        assert not kit.driver.is_closed(raw)

    @only(*POSTGRES)
    def test_sqlstates(self, kit: Any) -> None:
        raw = kit.connect()
        kit.autocommit(raw)
        told = {
            code: kit.driver.is_disconnect(kit.fail(raw, code))
            for code in (*GONE, "57014", "40001", "40P01", "53300", "25P02", "P0001")
        }
        assert [code for code, gone in told.items() if gone] == list(GONE)
        assert kit.driver.is_full(kit.fail(raw, "53300"))
        assert not kit.driver.is_full(kit.fail(raw, "57P03"))

    @only(*MYSQL)
    def test_read_only_transaction(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, "SET SESSION TRANSACTION READ ONLY")
        error = failure(query, raw, f"INSERT INTO {kit.table} VALUES (1)")
        assert kit.driver.is_disconnect(error)

    @only(*MYSQL)
    def test_vendor_codes(self, kit: Any) -> None:
        raw = kit.connect()
        told = [
            code for code in range(1000, 5000) if kit.driver.is_disconnect(_with_code(kit, code))
        ]
        assert {1053, 1836, 1927, 2006, 2013, 2055, 3169, 4031} <= set(told)
        assert not {1040, 1062, 1205, 1213, 1226, 1290, 1317, 1969, 2014} & set(told)
        for code in (1053, 1836, 1205):
            assert kit.driver.is_disconnect(kit.fail(raw, code)) is (code != 1205)
        words = "The MariaDB server is running with the {} option"
        assert kit.driver.is_disconnect(kit.fail(raw, 1290, words.format("--read-only")))
        assert not kit.driver.is_disconnect(kit.fail(raw, 1290, words.format("--secure-file-priv")))

    @only(*MYSQL)
    def test_a_session_that_kills_itself(self, kit: Any) -> None:
        raw = kit.connect()
        error = failure(query, raw, f"KILL {kit.driver.session_id(raw)}")
        assert error.args[0] == 1927
        assert kit.driver.is_disconnect(error)

    def test_a_crash_of_the_server(self, private_postgres: servers.Postgres) -> None:
        # By a Unix socket psycopg2 does not see at once that the connection is lost.
        folder = str(private_postgres.server.folder)
        local = [PostgresKit(name, private_postgres) for name in ("psycopg2", "psycopg")]
        kits = [PostgresKit(name, private_postgres) for name in POSTGRES] + local
        for kit in kits:
            kit.connect(**({"host": folder} if kit in local else {}))
            kit.driver  # noqa: B018
        private_postgres.stop(crash=True)
        for kit in kits:
            raw = kit.held[0]
            assert kit.driver.is_disconnect(failure(query, raw, "SELECT 1"))
            assert kit.driver.in_transaction(raw) is not False
            assert not kit.driver.is_full(failure(kit.open))
            with pytest.raises(kit.driver.dbmodule.Error):
                kit.driver.reset(raw)
            with contextlib.suppress(kit.driver.dbmodule.Error):
                raw.close()


def _text(row: Any) -> str:
    return getattr(row, "query", None) or getattr(row, "info", None) or ""


def _with_code(kit: Any, code: int) -> BaseException:
    error: BaseException = kit.driver.dbmodule.OperationalError(code, "words of the server")
    return error


class TestFull:
    @only(*POSTGRES)
    def test_role_at_its_limit(self, kit: Any) -> None:
        kit.driver  # noqa: B018
        role = f"r_{kit.server.name}"
        kit.admin(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")
        try:
            error = failure(lambda: kit.open(user=role))
        finally:
            kit.admin(f"DROP ROLE {role}")
        assert kit.driver.is_full(error)
        assert not kit.driver.is_full(failure(lambda: kit.open(user="nobody")))

    def test_server_at_its_limit(self, private_postgres: servers.Postgres) -> None:
        private_postgres.sql("CREATE ROLE plain LOGIN")
        private_postgres.stop()
        private_postgres.start(max_connections=6, superuser_reserved_connections=2)
        kits = [PostgresKit(name, private_postgres) for name in POSTGRES]
        try:
            for kit in kits:
                kit.driver  # noqa: B018
            for kit in kits:
                error = failure(lambda kit=kit: kit.open(user="plain"))
                assert "remaining connection slots" in str(error)
                assert kit.driver.is_full(error)
            kits[0].connect()
            kits[0].connect()
            for kit in kits:
                error = failure(kit.open)
                assert "too many clients" in str(error)
                assert kit.driver.is_full(error)
        finally:
            for kit in kits:
                for raw in kit.held:
                    raw.close()

    @only(*MYSQL)
    def test_user_at_its_limit(self, kit: Any) -> None:
        # Sessions from before there was a limit are not counted.
        kit.server.sql("ALTER USER %s@'%%' WITH MAX_USER_CONNECTIONS 1", kit.server.user)
        kit.connect()
        error = failure(kit.open)
        assert error.args[0] == 1226
        assert kit.driver.is_full(error)
        for code in (1040, 1203):
            assert kit.driver.is_full(_with_code(kit, code))

    @only(*MYSQL)
    def test_wrong_password(self, kit: Any) -> None:
        kit.driver  # noqa: B018
        error = failure(lambda: kit.open(password="wrong"))
        assert not kit.driver.is_full(error)


def _psycopg_stream(kit: Any, raw: Any) -> Any:
    rows = raw.cursor().stream("SELECT generate_series(1, 100000000)")
    next(rows)
    return rows


def _psycopg_copy(kit: Any, raw: Any) -> Any:
    copy = raw.cursor().copy("COPY (SELECT generate_series(1, 100000000)) TO STDOUT")
    copy.__enter__().read()
    return copy


def _psycopg_notifies(kit: Any, raw: Any) -> Any:
    raw.autocommit = True
    raw.execute(f"LISTEN {kit.table}")
    raw.execute(f"NOTIFY {kit.table}")
    waiting = raw.notifies()
    next(waiting)
    return waiting


def _psycopg_pipeline(kit: Any, raw: Any) -> Any:
    pipeline = raw.pipeline()
    pipeline.__enter__()
    raw.execute("SELECT 1")
    return pipeline


def _psycopg_pipeline_idle(kit: Any, raw: Any) -> Any:
    pipeline = raw.pipeline()
    pipeline.__enter__()
    assert raw.info.transaction_status == 0
    return pipeline


def _psycopg_transaction(kit: Any, raw: Any) -> Any:
    transaction = raw.transaction()
    transaction.__enter__()
    return transaction


def _pg8000_parameter(kit: Any, raw: Any) -> Any:
    raw.autocommit = True
    with pytest.raises(UnicodeEncodeError):
        query(raw, "SELECT %s", ("\udc80",))
    # This is what the next borrower would get.
    assert query(raw, "SELECT 1") == []


def _pg8000_copy_out(kit: Any, raw: Any) -> Any:
    failure(query, raw, "COPY (SELECT 1) TO STDOUT")


def _pg8000_copy_in(kit: Any, raw: Any) -> Any:
    failure(query, raw, f"COPY {kit.table} FROM STDIN")


def _unbuffered(kit: Any, raw: Any) -> Any:
    cursor = raw.cursor(kit.unbuffered())
    cursor.execute("SELECT seq, repeat('x', 1000) FROM seq_1_to_20000000")
    cursor.fetchone()
    return cursor


def _second_result(kit: Any, raw: Any) -> Any:
    query(raw, "CREATE OR REPLACE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END")
    cursor = raw.cursor()
    cursor.callproc("p")
    return cursor


LEFTOVERS = [
    ("psycopg", _psycopg_stream),
    ("psycopg", _psycopg_copy),
    ("psycopg", _psycopg_notifies),
    ("psycopg", _psycopg_pipeline),
    ("psycopg", _psycopg_pipeline_idle),
    ("psycopg", _psycopg_transaction),
    ("pg8000", _pg8000_parameter),
    ("pg8000", _pg8000_copy_out),
    ("pg8000", _pg8000_copy_in),
    ("pg8000.legacy", _pg8000_parameter),
    ("pymysql", _unbuffered),
    ("pymysql", _second_result),
    ("mysqlclient", _unbuffered),
    ("mysqlclient", _second_result),
]


class TestLeftBehind:
    @pytest.mark.parametrize(
        ("kit", "leave"),
        LEFTOVERS,
        indirect=["kit"],
        ids=[f"{name}-{leave.__name__.rpartition('_')[2]}" for name, leave in LEFTOVERS],
    )
    def test_what_cannot_be_cleared_within_bounds_condemns(
        self, kit: Any, leave: Callable[[Any, Any], Any]
    ) -> None:
        raw = kit.connect()
        left = leave(kit, raw)
        kit.held.append(left)
        assert kit.driver.in_transaction(raw) is not False
        spawn(failure, kit.driver.reset, raw).result(timeout=5)
        if kit.name == "pymysql":
            # Its unread rest is forgotten, so it must not look usable.
            assert kit.driver.is_closed(raw)
        with contextlib.suppress(kit.driver.dbmodule.Error):
            raw.close()
        assert kit.driver.is_closed(raw)
        # The borrower's cursor outlives the connection, and reads no further when it goes.
        if kit.name in MYSQL:
            with contextlib.suppress(kit.driver.dbmodule.Error):
                left.close()
        else:
            _finish_generator(left)

    @only("psycopg2", "psycopg")
    def test_a_server_side_cursor_ends_with_its_transaction(self, kit: Any) -> None:
        raw = kit.connect()
        for _ in range(2):
            cursor = raw.cursor("same_name")
            cursor.execute("SELECT generate_series(1, 100000)")
            assert cursor.fetchone() == (1,)
            kit.driver.reset(raw)
            assert kit.driver.in_transaction(raw) is False
            with contextlib.suppress(kit.driver.dbmodule.ProgrammingError):
                cursor.close()
            raw.rollback()

    @only(*MYSQL)
    def test_a_procedures_closing_status_is_cleared(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, "CREATE OR REPLACE PROCEDURE one() SELECT 1")
        cursor = raw.cursor()
        cursor.callproc("one")
        assert cursor.fetchall() == ((1,),)
        assert kit.driver.in_transaction(raw) is not False
        kit.driver.reset(raw)
        assert query(raw, "SELECT 5") == [(5,)]

    @only(*MYSQL)
    def test_a_result_set_read_to_its_end_is_no_hindrance(self, kit: Any) -> None:
        raw = kit.connect()
        cursor = raw.cursor(kit.unbuffered())
        cursor.execute("SELECT 1")
        cursor.fetchall()
        kit.driver.reset(raw)
        assert query(raw, "SELECT 5") == [(5,)]


def _finish_generator(left: Any) -> None:
    with contextlib.suppress(Exception):
        left.close() if hasattr(left, "close") else left.__exit__(None, None, None)


class TestWith:
    @pytest.mark.parametrize("good", [True, False])
    def test_it_is_the_drivers_own_without_the_close(self, kit: Any, good: bool) -> None:
        raw = kit.connect()
        with contextlib.suppress(Boom), raw:
            query(raw, f"INSERT INTO {kit.table} VALUES (1)")
            if not good:
                raise Boom
        driver, own = kit.driver, kit.rows()
        closes = driver.is_closed(raw)
        assert closes is (kit.name not in ("psycopg2", "sqlite3"))
        if not closes:
            raw.close()
        kit.admin(f"DELETE FROM {kit.table}")

        raw = kit.connect()
        driver.enter(raw)
        query(raw, f"INSERT INTO {kit.table} VALUES (1)")
        exc_info = (None, None, None) if good else (Boom, Boom(), None)
        assert driver.leave(raw, *exc_info) is closes
        assert driver.is_closed(raw) is False
        if kit.name in KNOW:
            assert driver.in_transaction(raw) is False
        assert kit.rows() == own
        driver.reset(raw)
        assert kit.rows() == own

    @only("psycopg", "pymysql", "mysqlclient", "pg8000")
    def test_that_of_a_class_of_the_users_is_run(self, kit: Any) -> None:
        raw = kit.connect()
        left: list[Any] = []
        names = {"__module__": __name__, "__exit__": lambda self, *exc_info: left.append(exc_info)}
        theirs = type("Theirs", (type(raw),), names)
        mine = theirs.__new__(theirs)
        assert kit.driver.leave(mine, None, None, None) is False
        assert left == [(None, None, None)]

    @only("psycopg")
    def test_psycopg_keeps_the_users_exception_if_the_rollback_fails(self, kit: Any) -> None:
        raw = kit.connect()
        query(raw, "SELECT 1")
        cut(kit.driver, raw)
        assert kit.driver.leave(raw, Boom, Boom(), None) is True

    @only("psycopg")
    def test_psycopg_leaves_a_closed_one_alone(self, kit: Any) -> None:
        raw = kit.connect()
        raw.close()
        assert kit.driver.leave(raw, None, None, None) is True


def _nothing(kit: Any, raw: Any) -> Any:
    return None


def _insert(kit: Any, raw: Any) -> Any:
    query(raw, f"INSERT INTO {kit.table} VALUES (1)")


def _named(kit: Any, raw: Any) -> Any:
    cursor = raw.cursor("named")
    cursor.itersize = 10
    cursor.execute("SELECT generate_series(1, 1000)")
    cursor.fetchone()
    return cursor


def _lobject(kit: Any, raw: Any) -> Any:
    return raw.lobject(0, "wb")


def _short_unbuffered(kit: Any, raw: Any) -> Any:
    cursor = raw.cursor(kit.unbuffered())
    cursor.execute("SELECT seq, repeat('x', 1000) FROM seq_1_to_10000")
    cursor.fetchone()
    return cursor


def _short_stream(kit: Any, raw: Any) -> Any:
    rows = raw.cursor().stream("SELECT generate_series(1, 10000)")
    next(rows)
    return rows


def _goes_on(kit: Any, raw: Any, held: Any, prepare: Any) -> None:
    """The parent's work is as it was, and can be ended."""
    if prepare is _named:
        assert len(held.fetchall()) == 999
        held.close()
    elif prepare is _lobject:
        assert held.write(b"abc") == 3
        held.close()
    elif prepare in (_short_unbuffered, _short_stream):
        assert sum(1 for _ in held) == 9999
    elif prepare is _insert:
        raw.commit()
        assert kit.rows() == [1]
    elif prepare is _psycopg_transaction:
        raw.execute(f"INSERT INTO {kit.table} VALUES (1)")
        held.__exit__(None, None, None)
        assert kit.rows() == [1]
    elif prepare is _psycopg_pipeline:
        held.__exit__(None, None, None)
    assert query(raw, "SELECT 12345") in ([(12345,)], [[12345]], ([12345],))


INHERITED = [
    *((name, prepare) for name in WITH_SERVER for prepare in (_nothing, _insert)),
    ("psycopg2", _named),
    ("psycopg2", _lobject),
    ("psycopg", _named),
    ("psycopg", _short_stream),
    ("psycopg", _psycopg_transaction),
    ("psycopg", _psycopg_pipeline),
    ("pymysql", _short_unbuffered),
    ("mysqlclient", _short_unbuffered),
]


def _discard_all(kit: Any, drop: bool) -> tuple[bool, list[str]]:
    """In the child: sever, discard, and perhaps drop. Is it closed, and what did finalisers say?"""
    said: list[str] = []
    sys.unraisablehook = lambda unraisable: said.append(repr(unraisable.exc_value))
    raw = kit.held[0]
    fd = kit.driver.fileno(raw)
    void = os.open(os.devnull, os.O_RDONLY)
    os.dup2(void, fd)
    os.close(void)
    kit.driver.discard(raw)
    closed: bool = kit.driver.is_closed(raw)
    if drop:
        del raw
        kit.held.clear()
        gc.collect()
    return closed, said


class TestDiscard:
    @pytest.mark.parametrize(
        ("kit", "prepare"),
        INHERITED,
        indirect=["kit"],
        ids=[f"{name}-{prepare.__name__.strip('_')}" for name, prepare in INHERITED],
    )
    # A child whose SIGPIPE kills it is one that wrote.
    @pytest.mark.parametrize("leave", ["os._exit", "sys.exit"])
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_the_parent_goes_on(self, kit: Any, prepare: Any, leave: str) -> None:
        kit.connect()
        kit.held.append(prepare(kit, kit.held[0]))
        kit.driver  # noqa: B018
        handler = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            with Child(_discard_all, kit, leave == "os._exit", leave=leave) as child:
                assert child.result() == (True, [])
        finally:
            signal.signal(signal.SIGPIPE, handler)
        _goes_on(kit, kit.held[0], kit.held[-1], prepare)
        kit.held[0].rollback()

    @only(*WITH_SERVER)
    def test_one_that_was_closed_before(self, kit: Any) -> None:
        raw = kit.connect()
        kit.driver  # noqa: B018
        raw.close()
        kit.driver.discard(raw)


class TestSqlite:
    @pytest.fixture
    def kit(self, tmp_path: Path) -> Iterator[SqliteKit]:
        made = SqliteKit(tmp_path / "file")
        made.create()
        made.admin(f"INSERT INTO {made.table} VALUES {', '.join(f'({i})' for i in range(5000))}")
        yield made
        made.finish()

    def test_a_select_half_read_is_seen(self, kit: SqliteKit) -> None:
        raw = kit.connect()
        cursor = raw.execute("SELECT i FROM t")
        cursor.fetchone()
        assert raw.in_transaction is False
        assert "locked" in str(failure(kit.admin, "DELETE FROM t"))
        assert kit.driver.in_transaction(raw) is None
        with pytest.raises(sqlite3.InterfaceError, match="not read to its end"):
            kit.driver.reset(raw)
        assert "locked" in str(failure(kit.admin, "DELETE FROM t"))
        cursor.close()
        kit.driver.reset(raw)
        assert kit.driver.in_transaction(raw) is False
        kit.admin("DELETE FROM t")

    def test_in_wal_mode_it_would_show_the_past(self, kit: SqliteKit) -> None:
        kit.admin("PRAGMA journal_mode = WAL")
        raw = kit.connect()
        cursor = raw.execute("SELECT i FROM t")
        cursor.fetchone()
        kit.admin("DELETE FROM t")
        assert query(raw, "SELECT count(*) FROM t") == [(5000,)]
        assert kit.driver.in_transaction(raw) is None
        cursor.close()
        assert kit.driver.in_transaction(raw) is False
        assert query(raw, "SELECT count(*) FROM t") == [(0,)]

    @pytest.mark.parametrize("sql", ["SELECT i FROM t", "INSERT INTO t VALUES (-1) RETURNING i"])
    def test_one_read_to_its_end_is_none(self, kit: SqliteKit, sql: str) -> None:
        raw = kit.connect()
        cursor = raw.execute(sql)
        assert cursor.fetchall()
        kit.driver.reset(raw)
        assert kit.driver.in_transaction(raw) is False

    def test_asking_leaves_nothing_behind(self, kit: SqliteKit) -> None:
        raw = kit.connect()
        before = sorted(kit.file.parent.iterdir()), raw.total_changes
        assert kit.driver.in_transaction(raw) is False
        query(raw, "INSERT INTO t VALUES (-1)")
        assert kit.driver.in_transaction(raw) is True
        raw.rollback()
        assert kit.driver.in_transaction(raw) is False
        assert (sorted(kit.file.parent.iterdir()), raw.total_changes - 1) == before

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3's autocommit came in 3.12")
    def test_autocommit_false_is_a_transaction_all_the_time(self, kit: SqliteKit) -> None:
        raw = kit.connect(autocommit=False)
        query(raw, "INSERT INTO t VALUES (-1)")
        kit.driver.reset(raw)
        assert raw.autocommit is False
        assert kit.driver.in_transaction(raw) is True
        kit.admin("INSERT INTO t VALUES (-1)")
        cursor = raw.execute("SELECT i FROM t")
        cursor.fetchone()
        with pytest.raises(sqlite3.InterfaceError):
            kit.driver.reset(raw)

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3's autocommit came in 3.12")
    def test_autocommit_true_does_not_roll_back(self, kit: SqliteKit) -> None:
        raw = kit.connect(autocommit=True)
        query(raw, "BEGIN")
        query(raw, "INSERT INTO t VALUES (-1)")
        kit.driver.reset(raw)
        assert kit.driver.in_transaction(raw) is False
        assert -1 not in kit.rows()

    def test_accept_asks_for_check_same_thread_false(self, kit: SqliteKit) -> None:
        kit.driver.accept(kit.connect())
        with pytest.raises(NimueInvalidParameterValue, match="check_same_thread=False"):
            kit.driver.accept(kit.connect(check_same_thread=True))

    def test_memory_is_accepted(self, kit: SqliteKit) -> None:
        with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as raw:
            kit.driver.accept(raw)
            assert kit.driver.in_transaction(raw) is False

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 tells no codes before 3.11")
    def test_a_file_that_was_moved_away_is_a_disconnect(self, kit: SqliteKit) -> None:
        raw = kit.connect()
        query(raw, "SELECT 1 FROM t LIMIT 1")
        kit.file.rename(kit.file.with_suffix(".away"))
        error = failure(query, raw, "INSERT INTO t VALUES (-1)")
        assert kit.driver.is_disconnect(error)
        assert not kit.driver.is_disconnect(sqlite3.OperationalError("database is locked"))
        kit.create()
