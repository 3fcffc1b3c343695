"""The directory of migrations: what is in it, in which order, and a new file in it."""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Collection, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from nimue.rider.error import RiderError
from nimue.rider.migration import Migration, is_migration, number, read

SCAFFOLD = '''"""
{message}
"""

from nimue.rider import step

__depends__ = {depends}

steps = [
    step("")
]
'''

#: The most letters of a description that go into the name of a file.
LETTERS = 100


class Source:
    """Migrations lie in one directory, a file for each."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def paths(self) -> list[Path]:
        """The files of migrations, by number and name.

        Raises:
            RiderError: there is no such directory, or it cannot be read.
        """
        try:
            found = [path for path in self.directory.iterdir() if is_migration(path)]
        except OSError as error:
            is_new = isinstance(error, FileNotFoundError)
            hint = ": rider's create makes the first" if is_new else ""
            raise RiderError(f"no migrations can be read: {error}{hint}") from error
        return sorted(found, key=lambda path: (number(path.stem), path.stem))

    def others(self) -> list[Path]:
        """Files of Python that might be meant as migrations, but are not named so."""
        found = self.directory.glob("[!_.]*.py")
        return sorted(path for path in found if not is_migration(path))

    def read(self) -> list[Migration]:
        """All migrations, read but not yet in order.

        Raises:
            RiderError: of what cannot be read, or of two with one name.
        """
        paths = self.paths()
        seen: dict[str, Path] = {}
        for path in paths:
            # A server that takes "A" for "a" could not tell them apart.
            other = seen.setdefault(path.stem.casefold(), path)
            if other is not path:
                raise RiderError(f"{other} and {path} are of one name: rename one")
        return [read(path) for path in paths]

    def create(self, description: str) -> Path:
        """Write the scaffold of a new migration, which depends on the last one there is.

        Raises:
            RiderError: the description has no word to make a name of, or the file cannot be made.
        """
        message = " ".join(description.split())
        words = "-".join(re.findall(r"\w+", message.lower()))[:LETTERS].rstrip("-")
        if not words or not message.isprintable():
            raise RiderError(f"the description must have a letter or a digit, not {description!r}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            names = [path.stem for path in self.paths()]
            # Beyond the last, so that two made in one second keep the order they were made in.
            first = max([int(time.time()), *(number(name) + 1 for name in names)])
            path = self.directory / f"{first}-{words}.py"
            with open(path, "x", encoding="utf-8") as file:
                file.write(_scaffold(message, names[-1:]))
        except OSError as error:
            raise RiderError(f"no migration can be made: {error}") from error
        return path


def _scaffold(message: str, depends: list[str]) -> str:
    quoted = message.replace("\\", "\\\\").replace('"""', r"\"\"\"")
    names = "{" + ", ".join(f'"{name}"' for name in depends) + "}" if depends else "set()"
    return SCAFFOLD.format(message=quoted, depends=names)


def ordered(migrations: Iterable[Migration], applied: Collection[str]) -> list[Migration]:
    """The order in which they are applied: first what others depend on, then by number.

    Args:
        migrations: all there are.
        applied: the names of those that were applied already; their files may be gone.

    Raises:
        RiderError: some depend on one that is neither there nor applied, or on each other.
    """
    named = {migration.name: migration for migration in migrations}
    for migration in named.values():
        for name in sorted(migration.depends - named.keys() - set(applied)):
            raise RiderError(
                f"{migration.path} depends on {name!r}: there is no such file beside it, and it "
                "was not applied before"
            )
    sorter = TopologicalSorter(
        {name: migration.depends & named.keys() for name, migration in named.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(str(named[name].path) for name in reversed(error.args[1]))
        raise RiderError(f"migrations depend on each other in a circle: {circle}") from error
    return _drained(sorter, named)


def _drained(sorter: TopologicalSorter[str], named: dict[str, Migration]) -> list[Migration]:
    order: list[Migration] = []
    ready: list[tuple[int, str]] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heapq.heappush(ready, named[name].order)
        _, name = heapq.heappop(ready)
        order.append(named[name])
        sorter.done(name)
    return order
