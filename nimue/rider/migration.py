"""A migration: a file of steps, as it is written and as it is read."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nimue.rider.error import RiderError, words
from nimue.settings import refuse

#: SQL as the server takes it, or a function that is called with the database.
Deed = str | Callable[[Any], object]

#: When a failure of the step itself is passed over. ``"migrate"`` is the old word for ``"apply"``.
IGNORE = (None, "apply", "migrate", "rollback", "all")

_FILE = re.compile(r"(\d+)-.+\.py", re.DOTALL)


class step(NamedTuple):
    """One step of a migration, and the way back.

    Args:
        migrate: SQL, or a function of the database.
        rollback: likewise; None if there is nothing to undo.
        ignore_errors: None, or where the step's own errors do not matter: ``"apply"``,
            ``"rollback"`` or ``"all"``.
    """

    migrate: Deed | None = None
    rollback: Deed | None = None
    ignore_errors: str | None = None

    def ignores(self, back: bool) -> bool:
        """Whether a failure on the way there, or back, is passed over."""
        return self.ignore_errors in (("rollback", "all") if back else ("apply", "migrate", "all"))


class Migration(NamedTuple):
    """What one file says."""

    name: str
    path: Path
    message: str
    depends: frozenset[str]
    steps: tuple[step, ...]
    checksum: str

    @property
    def order(self) -> tuple[int, str]:
        return number(self.name), self.name


def number(name: str) -> int:
    """The number that a migration's name begins with, most often the time of its making."""
    return int(name.partition("-")[0])


def is_migration(path: Path) -> bool:
    return _FILE.fullmatch(path.name) is not None


def read(path: Path) -> Migration:
    """Run the file, not as a module that others could import, and see what it says.

    Raises:
        RiderError: it cannot be read or run, or does not say what a migration must.
    """
    try:
        source = path.read_bytes()
        tree = ast.parse(source, str(path))
        module = ModuleType(path.stem)
        module.__file__ = str(path)
        exec(compile(tree, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise RiderError(f"{path}: {words(error)}") from error
    return Migration(
        name=path.stem,
        path=path,
        message=" ".join((ast.get_docstring(tree) or "").split()),
        depends=_depends(path, getattr(module, "__depends__", ())),
        steps=_steps(path, getattr(module, "steps", None)),
        # Git may change the ends of lines from one checkout to the next.
        checksum=hashlib.sha256(source.replace(b"\r\n", b"\n")).hexdigest(),
    )


def _depends(path: Path, value: Any) -> frozenset[str]:
    # {} was meant to be an empty set, and {""} is how scaffolds of old say "none".
    if not isinstance(value, set | frozenset | list | tuple) and value != {}:
        raise RiderError(f"{path}: {refuse('__depends__', value, 'a set of names of migrations')}")
    for name in value:
        if not isinstance(name, str):
            raise RiderError(f"{path}: {refuse('__depends__', name, 'a set of strings')}")
    return frozenset(value) - {""}


def _steps(path: Path, value: Any) -> tuple[step, ...]:
    if not isinstance(value, list | tuple):
        raise RiderError(f"{path}: {refuse('steps', value, 'a list of step(...)')}")
    for at, one in enumerate(value, 1):
        if not isinstance(one, step):
            raise RiderError(f"{path}: {refuse(f'steps, number {at},', one, 'a step(...)')}")
        for parameter in ("migrate", "rollback"):
            deed = getattr(one, parameter)
            if deed is not None and not isinstance(deed, str) and not callable(deed):
                wrong = refuse(parameter, deed, "SQL, or a function of the database")
                raise RiderError(f"{path}, step {at}: {wrong}")
        if one.ignore_errors not in IGNORE:
            allowed = 'None, "apply", "rollback" or "all"'
            wrong = refuse("ignore_errors", one.ignore_errors, allowed)
            raise RiderError(f"{path}, step {at}: {wrong}")
    return tuple(value)
