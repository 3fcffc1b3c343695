"""The command line: what can be asked of rider, and how a failure is told."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from nimue.error import NimueError

if TYPE_CHECKING:
    from nimue.rider.rider import Rider


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Give a parser rider's commands; ``subcommand`` is None where none was given."""
    commands = parser.add_subparsers(title="commands", dest="subcommand", metavar="command")
    create = commands.add_parser("create", help="create a new migration")
    create.add_argument(
        "-d",
        "-m",
        "--description",
        "--message",
        dest="description",
        required=True,
        help="what it is for; becomes a part of the file's name",
    )
    commands.add_parser("migrations", help="show all migrations")
    migrate = commands.add_parser("migrate", help="apply what is not yet applied")
    migrate.add_argument(
        "--dry-run", action="store_true", help="print what would be run, and change nothing"
    )
    back = commands.add_parser("rollback", help="undo a migration and all that come after it")
    back.add_argument(
        "-i", "--index", type=int, required=True, help="its index in the list of migrations"
    )
    run = commands.add_parser("run", help="carry out one statement and show its rows")
    run.add_argument("-q", "--query", required=True, help="the statement")


def carry_out(rider: Rider, namespace: argparse.Namespace, program: str) -> int:
    """Do what the command line says; the exit status. A failure is told on stderr."""
    command = namespace.subcommand
    try:
        if command == "create":
            rider.create(namespace.description)
        elif command == "migrations":
            rider.migrations()
        elif command == "migrate":
            rider.migrate(namespace.dry_run)
        elif command == "rollback":
            rider.rollback(namespace.index)
        else:
            rider.run(namespace.query)
    except NimueError as error:
        sys.stdout.flush()
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0
