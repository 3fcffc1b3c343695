"""What is said to which server, over which driver."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stress.trial.brief import Brief


@dataclass(frozen=True)
class Dialect:
    """One driver.

    Args:
        name: of the driver, as ``--driver`` takes it.
        module: that has ``connect``.
        server: ``postgres``, ``mariadb`` or ``sqlite``.
        echo: a query of one parameter, that answers it and the number of the session.
        write: a statement with a token and a process id.
    """

    name: str
    module: str
    server: str
    echo: str
    write: str

    def connect(self, brief: Brief) -> Any:
        """Open a connection, whose session bears the mark of the trial and this process's id."""
        keywords = dict(brief.connect)
        if self.server == "postgres":
            keywords["application_name"] = f"{brief.mark}.{os.getpid()}"
        return importlib.import_module(self.module).connect(**keywords)


CREATE = "create table stress_ledger (token varchar(100) not null, pid integer not null)"
_WRITE = "insert into stress_ledger (token, pid) values (%s, %s)"
_POSTGRES = ("postgres", "select cast(%s as text), pg_backend_pid()", _WRITE)
_MARIADB = ("mariadb", "select %s, connection_id()", _WRITE)

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect("psycopg2", "psycopg2", *_POSTGRES),
        Dialect("psycopg", "psycopg", *_POSTGRES),
        Dialect("pg8000", "pg8000.dbapi", *_POSTGRES),
        Dialect("pymysql", "pymysql", *_MARIADB),
        Dialect("mysqlclient", "MySQLdb", *_MARIADB),
        Dialect("sqlite3", "sqlite3", "sqlite", "select ?, 0", _WRITE.replace("%s", "?")),
    )
}
