"""Rider: the commands, over one database and one directory of migrations."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nimue.error import NimueError
from nimue.rider.command import add_commands, carry_out
from nimue.rider.course import Course, check_steps, described
from nimue.rider.error import RiderError, RollbackError, words
from nimue.rider.ledger import Entry, Ledger, check_dialect, check_table
from nimue.rider.lock import alone
from nimue.rider.migration import Migration
from nimue.rider.needs import Database
from nimue.rider.show import show
from nimue.rider.source import Source, ordered
from nimue.settings import refuse, seconds

DEFAULTS: Mapping[str, Any] = {
    "source": "./migrations",
    "table_name": "_rider_migrations",
    "log_name": "_rider_logs",
    "lock_timeout": 60.0,
}


class Rider:
    """Migrations of a database: files in a directory, each applied once, in order.

    Nothing is read, asked or made before a command is given. A command uses the connection that
    this thread has from ``db``, or has one for its own time.

    Args:
        db: a database of ``nimue.database``.
        config: ``source``, the directory; ``table_name`` and ``log_name``, rider's own tables;
            ``lock_timeout``, the seconds to wait while another process migrates.

    Raises:
        NimueInvalidParameterValue: names what is wrong in ``config``.
    """

    def __init__(self, db: Database, config: Mapping[str, Any] | None = None) -> None:
        config = config or {}
        for key in config:
            if key not in DEFAULTS:
                raise refuse("a key of config", key, f"one of {', '.join(DEFAULTS)}")
        self.db = db
        self.config = {**DEFAULTS, **config}
        seconds("lock_timeout", self.config["lock_timeout"], "a number of seconds, 0 or more")
        table = check_table("table_name", self.config["table_name"])
        log = check_table("log_name", self.config["log_name"])
        if table.lower() == log.lower():
            raise refuse("log_name", log, "another than table_name")
        self._ledger = Ledger(db, table, log)
        source = self.config["source"]
        if not isinstance(source, str | os.PathLike):
            raise refuse("source", source, "the path of a directory")
        self._source = Source(source)

    def parse_args(self, argv: Sequence[str] | None = None) -> None:
        """Carry out the command of the command line.

        Raises:
            SystemExit: with status 1 if it failed, 2 if it was not understood.
        """
        parser = argparse.ArgumentParser(description="Migrations of a database.")
        add_commands(parser)
        namespace = parser.parse_args(argv)
        if namespace.subcommand is None:
            parser.print_help(sys.stderr)
        elif status := carry_out(self, namespace, "rider"):
            sys.exit(status)

    def create(self, description: str) -> None:
        """Write the scaffold of a new migration. The database is not asked."""
        print(f"Created migration scaffold in {self._source.create(description)}")

    def migrations(self) -> None:
        """List all migrations, each with its index and when it was applied. Changes nothing."""
        with self._connected():
            entries = self._ledger.entries()
        never = Entry("", None)
        rows = [
            (index, migration.message or migration.name, entries.get(migration.name, never)[0])
            for index, migration in enumerate(self._read(entries))
        ]
        show(("index", "message", "applied"), rows)

    def migrate(self, dry_run: bool | None = False) -> None:
        """Apply what is not yet applied, each migration in a transaction of its own.

        Args:
            dry_run: only print what would be run.

        Raises:
            RiderError: nothing was done, or all before the migration that it names.
        """
        with self._connected():
            # What can be refused is refused before anything is made or waited for.
            order = self._read(entries := self._ledger.entries())
            pending = _pending(order, entries)
            if dry_run:
                _print_steps(pending)
                return
            with self._alone():
                self._ledger.prepare()
                pending = _pending(order, self._ledger.entries())
                self._carry_out(pending, back=False)

    def rollback(self, index: int) -> None:
        """Undo the migration of that index, and all that come after it, the last first.

        Raises:
            RiderError: nothing was done, or all after the migration that it names.
        """
        with self._connected():
            order = self._read(self._ledger.entries())
            _check_index(index, len(order))
            with self._alone():
                self._ledger.prepare()
                entries = self._ledger.entries()
                back = [migration for migration in order[index:] if migration.name in entries]
                self._carry_out(back[::-1], back=True)

    def run(self, query: str) -> None:
        """Carry out one statement, commit, and print the rows that it returns."""
        with (
            self._connected(),
            self.db.atomic(),
            contextlib.closing(self.db.conn.cursor()) as cursor,
        ):
            cursor.execute(query)
            headers = [column[0] for column in cursor.description or ()]
            rows = cursor.fetchall() if headers else []
        if headers:
            show(headers, rows)
        else:
            print("Done")

    def _carry_out(self, todo: Sequence[Migration], *, back: bool) -> None:
        if not todo:
            print(f"Nothing to {'roll back' if back else 'migrate'}")
        done = "Rolled back" if back else "Applied"
        for at, migration in enumerate(todo, 1):
            course = Course(self.db, self._ledger, migration, back=back, tell=_warn)
            if begun := course.unfinished():
                steps = ", ".join(map(str, begun))
                _warn(f"{migration.path}: an earlier attempt ended after step {steps} had begun")
            try:
                course.run()
            except RiderError as error:
                left = ", ".join(later.path.name for later in todo[at:])
                more = f"\nNot {done.lower()} after that: {left}" if left else ""
                raise type(error)(f"{error}{more}") from error.__cause__
            print(f"{done} migration: {migration.name}")

    def _read(self, entries: Mapping[str, Entry]) -> list[Migration]:
        """All migrations in order, with a word about what is not as it was left."""
        order = ordered(self._source.read(), entries)
        for text in self._changes(order, entries):
            _warn(text)
        return order

    def _changes(
        self, order: Sequence[Migration], entries: Mapping[str, Entry]
    ) -> Iterator[str]:
        for path in self._source.others():
            yield f"{path} is no migration: its name does not begin with a number and a dash"
        for migration in order:
            entry = entries.get(migration.name)
            if entry and entry.checksum and entry.checksum != migration.checksum:
                yield f"{migration.path} was changed after it was applied ({entry.applied_at})"
        for name in sorted(entries.keys() - {migration.name for migration in order}):
            yield f"{name} was applied ({entries[name].applied_at}), but there is no file of it"

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        # Else the next process has the lock before it can see what was done under it.
        if self.db.is_trans:
            raise RiderError("migrations cannot be a part of another transaction: leave atomic()")
        return alone(self.db, self._ledger.table, self.config["lock_timeout"])

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """With this thread's connection, its own or one for this block alone.

        Raises:
            RiderError: for whatever goes wrong with the database, the driver's error its cause.
        """
        connects = self.db.is_closed()
        try:
            if connects:
                self.db.connect()
            check_dialect(self.db.dialect)
            yield
        except NimueError:
            raise
        except Exception as error:
            raise RiderError(words(error)) from error
        finally:
            if connects:
                self.db.close()


def _check_index(index: object, count: int) -> None:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        allowed = f"from 0 to {count - 1}" if count else "that of a migration, and there is none"
        raise RollbackError(str(refuse("index", index, allowed)))


def _pending(order: Sequence[Migration], entries: Mapping[str, Entry]) -> list[Migration]:
    pending = [migration for migration in order if migration.name not in entries]
    for migration in pending:
        check_steps(migration)
    return pending


def _print_steps(migrations: Sequence[Migration]) -> None:
    for migration in migrations:
        print(f"-- {migration.path}: {migration.message or migration.name}")
        for at, one in enumerate(migration.steps, 1):
            print(f"-- step {at} of {len(migration.steps)}", end="")
            if callable(one.migrate):
                print(f": {described(one.migrate)}")
            else:
                print(f"\n{str(one.migrate).strip()}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
