"""One migration on its way, there or back: its steps in a transaction of their own.

PostgreSQL and SQLite undo whatever the steps did if one of them fails, or the process dies. MySQL
commits before and after each statement that creates, alters or drops, and with it all that came
before in the transaction; and a step's own function may commit or roll back anywhere. So a line in
the log tells of each step that has begun. What of these lines outlives a rollback says how far a
commit has reached; and where the line is gone before the step's end, a rollback came in between.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable

from nimue.rider.error import MigrateError, RollbackError, words
from nimue.rider.ledger import Ledger
from nimue.rider.migration import Deed, Migration, step
from nimue.rider.needs import Database

_LONE_PERCENT = re.compile(r"(?<!%)(?:%%)*%(?!%)")

Tell = Callable[[str], object]


def described(deed: object) -> str:
    """How a step that is a function is called in messages."""
    return f"function {getattr(deed, '__qualname__', repr(deed))}"


def check_steps(migration: Migration) -> None:
    """Refuse a migration of which a step is still to be written.

    Raises:
        MigrateError: names the file and the step.
    """
    for at, one in enumerate(migration.steps, 1):
        if one.migrate is None or (isinstance(one.migrate, str) and not one.migrate.strip()):
            total = len(migration.steps)
            raise MigrateError(f"{migration.path}, step {at} of {total}: the step is empty")


class Course:
    """Carries one migration out, once.

    Args:
        back: roll it back, its steps in reverse order.
        tell: is called with each failure that was passed over, and each step without a way back.
    """

    def __init__(
        self, db: Database, ledger: Ledger, migration: Migration, *, back: bool, tell: Tell
    ) -> None:
        self._db, self._ledger, self._migration = db, ledger, migration
        self._back, self._tell = back, tell
        self._commits_by_itself = db.dialect == "mysql"
        numbered = list(enumerate(migration.steps, 1))
        self._steps = numbered[::-1] if back else numbered
        #: The step under way; None before the first and after the last.
        self._at: int | None = None
        self._begun: list[int] = []

    def run(self) -> None:
        """
        Raises:
            MigrateError, RollbackError: names the file and the step, and tells what stays.
        """
        try:
            self._clear()
            with self._db.atomic():
                for at, one in self._steps:
                    self._at = at
                    self._mark(at)
                    self._take(at, one)
                    self._check_mark(at)
                self._at = None
                self._record()
        except KeyboardInterrupt as stop:
            self._tell(f"{self._place(stop)}: interrupted{self._aftermath()}")
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and self._db.is_closed():
                raise  # a child that a step has forked
            kind = RollbackError if self._back else MigrateError
            told = f"{self._place(error)}: {words(error)}{self._hint()}"
            raise kind(f"{told}{self._aftermath()}") from error

    def unfinished(self) -> list[int]:
        """The steps that an earlier attempt has begun and that a commit has kept."""
        return [at for at, _ in self._steps if self._marked(at)]

    def _take(self, at: int, one: step) -> None:
        deed = self._deed(at)
        if deed is None:
            self._tell(f"{self._place()}: there is no way back; what it did stays")
        elif not one.ignores(self._back):
            self._do(deed)
        else:
            try:
                self._apart(deed)
            except Exception as error:
                if not self._marked(at):
                    raise  # as at a deadlock of MySQL's: the steps before are undone as well
                self._tell(f"{self._place(error)}: ignored: {words(error)}")

    def _apart(self, deed: Deed) -> None:
        if self._commits_by_itself:  # and forgets its savepoints, but a failure spoils nothing
            self._do(deed)
            return
        with self._db.atomic():
            self._do(deed)

    def _do(self, deed: Deed) -> None:
        if callable(deed):
            deed(self._db)
        else:
            # With parameters, though there are none: what Estoult's files mean by "%%" is "%".
            self._db.sql(deed, ())

    def _record(self) -> None:
        name = self._migration.name
        if self._back:
            self._ledger.remove(name)
        else:
            self._ledger.add(self._migration)
        self._ledger.note(name, self._operation)
        self._clear()

    def _clear(self) -> None:
        """Forget which steps have begun: what is said of that shall be of one attempt."""
        self._ledger.strike(self._migration.name, self._line("%"))

    @property
    def _operation(self) -> str:
        return "rollback" if self._back else "apply"

    def _line(self, at: int | str) -> str:
        return f"{self._operation}: step {at} begun"

    def _marked(self, at: int) -> bool:
        return self._ledger.noted(self._migration.name, self._line(at))

    def _mark(self, at: int) -> None:
        self._ledger.note(self._migration.name, self._line(at))
        self._begun.append(at)

    def _check_mark(self, at: int) -> None:
        """What a step has undone must not be recorded as done."""
        if not self._marked(at):
            raise RuntimeError("the step has rolled back all that came before it")

    def _place(self, error: BaseException | None = None) -> str:
        place = f"{self._migration.path}"
        if self._at is not None:
            place += f", step {self._at} of {len(self._steps)}"
            if callable(deed := self._deed(self._at)):
                place += f" ({described(deed)})"
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__ if error else None)
            if frame.filename == str(self._migration.path)
        ]
        return f"{place}, line {lines[-1]}" if lines else place

    def _aftermath(self) -> str:
        """What a failure has left in the database, in words; the rollback is over."""
        # A commit that fails may have been done, if it is the answer that was lost.
        nothing = "" if self._at is None else "\nNothing of this migration stays."
        try:
            kept = [at for at in self._begun if self._marked(at)]
        except Exception as error:
            if not self._commits_by_itself:
                return nothing and f"{nothing[:-1]}, unless a step of it has committed."
            return f"\nWhat stays of this migration cannot be told: {words(error)}"
        if not kept:
            return nothing
        # The last line that was kept belongs to the step in which a commit came: all before it
        # stay. Of itself a function may have done more since; a failed statement has done nothing.
        last = kept.pop()
        partly = callable(self._deed(last))
        if not partly and last != self._at:
            kept.append(last)
        stays = [f"step {at}" for at in kept] + [f"step {last} in part"] * partly
        why = "A step has committed"
        if self._commits_by_itself:
            why = "MySQL commits by itself at each statement that creates, alters or drops"
        return (
            f"\n{why}, so this stays: {', '.join(stays) or 'nothing'}. Undo it by hand, or take it "
            "out of the steps, before the next attempt."
        )

    def _deed(self, at: int | None) -> Deed | None:
        """What a step does, this way."""
        if at is None:
            return None
        one = self._migration.steps[at - 1]
        return (one.rollback or None) if self._back else one.migrate

    def _hint(self) -> str:
        deed = self._deed(self._at)
        lone = isinstance(deed, str) and _LONE_PERCENT.search(deed)
        return " (SQL has %% for %)" if lone and self._db.dialect != "sqlite" else ""
