"""Which driver a connection belongs to. No driver is imported here: its connection brought it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from nimue.drivers.base import Driver, Raw
from nimue.error import NimueDBModuleFailure

__all__ = ["Driver", "Raw", "driver_for", "find_dbmodule"]

_HOMES = {
    "psycopg2": ("nimue.drivers.postgres", "Psycopg2"),
    "psycopg": ("nimue.drivers.postgres", "Psycopg"),
    "pg8000": ("nimue.drivers.postgres", "Pg8000"),
    "pymysql": ("nimue.drivers.mysql", "PyMySQL"),
    "MySQLdb": ("nimue.drivers.mysql", "MySQLClient"),
    "sqlite3": ("nimue.drivers.sqlite", "Sqlite"),
}


def find_dbmodule(raw: Raw) -> ModuleType:
    """The DB-API module that ``raw`` comes from.

    It is the nearest module at or above one that defines the connection's class, or a class that
    it derives from, with a callable ``connect`` and the DB-API's ``Error``; failing that, with a
    callable ``connect`` alone. So a subclass of the user's leads to the driver, even from a module
    that has a function named ``connect``.

    Raises:
        NimueDBModuleFailure: there is no such module.
    """
    candidates = [module for module in _modules(raw) if callable(getattr(module, "connect", None))]
    for module in candidates:
        if isinstance(getattr(module, "Error", None), type):
            return module
    if candidates:
        return candidates[0]
    cls = type(raw)
    raise NimueDBModuleFailure(
        f"connfunc returned an instance of {cls.__module__}.{cls.__qualname__}, and no module "
        "with a connect() function is found from that class: is it a DB-API connection?"
    )


def driver_for(raw: Raw) -> Driver:
    """The facts about the driver of ``raw``; for one that is not known, those true of any.

    Raises:
        NimueDBModuleFailure: the driver's module cannot be found.
    """
    dbmodule = find_dbmodule(raw)
    for cls in type(raw).__mro__:
        home = _HOMES.get(cls.__module__.partition(".")[0])
        if home is not None:
            found: type[Driver] = getattr(import_module(home[0]), home[1])
            return found(dbmodule)
    return Driver(dbmodule)


def _modules(raw: Raw) -> Iterator[ModuleType]:
    for cls in type(raw).__mro__:
        name = cls.__module__
        while name:
            if name in sys.modules:
                yield sys.modules[name]
            name = name.rpartition(".")[0]
