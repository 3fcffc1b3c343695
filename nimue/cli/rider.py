"""`nimue rider`: migrations, over a database that a module of the user's exports."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from nimue.error import NimueError
from nimue.rider.command import add_commands, carry_out

#: Where the database is found when nothing is said: its names ``db`` and, if there, ``config``.
SCRIPT = "rider.py"

DESCRIPTION = f"""\
Migrations of a database: files of steps in a directory, each applied once and in order.
Without --db, {SCRIPT} in the current directory is run: it must have a database named db,
and may have a dictionary named config."""


class NoDatabase(NimueError):
    """The database that the command line names is not there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--db",
        metavar="MODULE:ATTRIBUTE",
        help="the database; the current directory is on the path",
    )
    parser.add_argument("--source", metavar="DIR", help="the migrations (default: ./migrations)")
    parser.add_argument("--table-name", help="default: _rider_migrations")
    parser.add_argument("--log-name", help="default: _rider_logs")
    parser.add_argument(
        "--lock-timeout",
        type=float,
        metavar="SECONDS",
        help="how long to wait while another process migrates (default: 60)",
    )
    add_commands(parser)


def run(namespace: argparse.Namespace) -> int:
    """The exit status: 1 if the command failed, 2 if it could not begin."""
    if namespace.subcommand is None:
        namespace.parser.print_help()
        return 0
    from nimue.rider import Rider

    try:
        db, config = found(namespace.db)
        given = {
            key: value
            for key in ("source", "table_name", "log_name", "lock_timeout")
            if (value := getattr(namespace, key)) is not None
        }
        rider = Rider(db, {**config, **given})
    except NimueError as error:
        print(f"nimue rider: {error}", file=sys.stderr)
        return 2
    return carry_out(rider, namespace, "nimue rider")


def found(where: str | None) -> tuple[Any, Mapping[str, Any]]:
    """The database, and what its script says of how to use it.

    Raises:
        NoDatabase: it is not there, or is no database.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    db, config = _imported(where) if where else _script()
    if isinstance(db, type) or not hasattr(db, "atomic"):
        kind = f"the class {db.__name__}" if isinstance(db, type) else f"a {type(db).__name__}"
        raise NoDatabase(f"{where or SCRIPT + ':db'} must be a database, not {kind}")
    return db, config


def _imported(where: str) -> tuple[Any, Mapping[str, Any]]:
    name, colon, attribute = where.partition(":")
    if not (name and colon and attribute):
        raise NoDatabase(f"--db must be module:attribute, not {where!r}")
    try:
        value: Any = importlib.import_module(name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except Exception as error:
        raise NoDatabase(f"--db {where}: {type(error).__name__}: {error}") from error
    return value, {}


def _script() -> tuple[Any, Mapping[str, Any]]:
    names: dict[str, Any] = {"__name__": "rider", "__file__": os.path.abspath(SCRIPT)}
    try:
        with open(SCRIPT, "rb") as file:
            exec(compile(file.read(), names["__file__"], "exec", dont_inherit=True), names)
    except FileNotFoundError:
        raise NoDatabase(
            f"give --db module:attribute, or a {SCRIPT} in the current directory"
        ) from None
    except Exception as error:
        raise NoDatabase(f"{SCRIPT}: {type(error).__name__}: {error}") from error
    if "db" not in names:
        raise NoDatabase(f"{SCRIPT} must have a database named db")
    return names["db"], names.get("config") or {}
