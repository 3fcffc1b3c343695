"""Who takes part: which pool, over which driver, run by which interpreter."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import stress
from stress.bench.runs import environment
from stress.compare import older
from stress.trial import pools
from stress.trial.peers import Nimue003


@dataclass(frozen=True)
class Entrant:
    """One row of each table.

    Args:
        name: as ``--only`` takes it.
        contender: its name in ``stress.trial.pools``.
        package: whose version is told.
        module: that must be importable.
        dialect: the driver's name in ``stress.trial.dialects``.
        shares: it has one limit for all processes.
    """

    name: str
    contender: str
    package: str
    module: str
    dialect: str = "psycopg2"
    shares: bool = False

    @property
    def is_ours(self) -> bool:
        """The verdict is about this one."""
        return self.contender == "nimue"

    @property
    def told(self) -> str:
        """How it is set up, in one line."""
        module, name = pools.WHERE[self.contender]
        text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
        text = " ".join(text.partition("\nRaises:")[0].split())
        return f"{text} With ``totalmax``, one for all processes." if self.shares else text


ALL: tuple[Entrant, ...] = (
    Entrant("nimue", "nimue", "nimue", "nimue"),
    Entrant("nimue-totalmax", "nimue", "nimue", "nimue", shares=True),
    Entrant("sqlalchemy", "sqlalchemy", "SQLAlchemy", "sqlalchemy"),
    Entrant("sqlalchemy-disposed", "sqlalchemy-disposed", "SQLAlchemy", "sqlalchemy"),
    Entrant("psycopg_pool", "psycopg_pool", "psycopg-pool", "psycopg_pool", "psycopg"),
    Entrant("psycopg_pool-anew", "psycopg_pool-anew", "psycopg-pool", "psycopg_pool", "psycopg"),
    Entrant("dbutils", "dbutils", "DBUtils", "dbutils.pooled_db"),
    Entrant("dbutils-anew", "dbutils-anew", "DBUtils", "dbutils.pooled_db"),
    Entrant("psycopg2.pool", "psycopg2.pool", "psycopg2-binary", "psycopg2.pool"),
    Entrant("psycopg2.pool-anew", "psycopg2.pool-anew", "psycopg2-binary", "psycopg2.pool"),
    Entrant("nimue-0.0.3", "nimue-0.0.3", "nimue", "psycopg2"),
)
BY_NAME: Mapping[str, Entrant] = {entrant.name: entrant for entrant in ALL}


@dataclass(frozen=True)
class Seat:
    """An entrant that can take part, its version, and how its processes are started."""

    entrant: Entrant
    version: str
    python: str
    variables: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.entrant.name


def seats(
    entrants: Sequence[Entrant], folder: Path, venv: Path | None
) -> tuple[list[Seat], list[str]]:
    """Those who can take part, and why the others cannot. ``folder``: for a file or two."""
    found, out = [], []
    for entrant in entrants:
        try:
            found.append(_seat(entrant, folder, venv))
        except (ImportError, PackageNotFoundError, older.Unavailable) as error:
            out.append(f"{entrant.name} is left out: {error}")
    return found, out


def _seat(entrant: Entrant, folder: Path, venv: Path | None) -> Seat:
    if entrant.contender == "nimue-0.0.3":
        # Its processes are to find this package, and no nimue beside it.
        alone = folder / "alone"
        if not alone.exists():
            alone.mkdir()
            (alone / "stress").symlink_to(Path(stress.__file__).resolve().parent)
        variables = environment() | {"PYTHONPATH": str(alone)}
        return Seat(entrant, Nimue003.VERSION, older.interpreter(venv), variables)
    importlib.import_module(entrant.module)
    importlib.import_module(entrant.dialect)
    return Seat(entrant, version(entrant.package), sys.executable, environment(everything=True))
