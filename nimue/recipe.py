"""What a pickled pool is: the recipe for one, made once per name and process."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from nimue import fork, monitor
from nimue.error import NimueInvalidParameterValue
from nimue.limit import UNLIMITED, Unlimited
from nimue.settings import Settings

if TYPE_CHECKING:
    from nimue.drivers.base import Driver
    from nimue.pool import NimueConnectionPool
    from nimue.state import State

logger = logging.getLogger("nimue")

#: What decides to whom a connection speaks, and as whom. Pools of one name agree in these; the
#: rest may be set, or is each process's own affair.
ESSENCE = ("connfunc", "connargs", "connkwargs", "on_connect", "on_return")

#: The ``__eq__`` of those that have none of their own.
_IDENTITY: Any = object.__eq__

#: The pools of this process: what a pickled pool becomes here.
_by_name: WeakValueDictionary[str, NimueConnectionPool] = WeakValueDictionary()
#: Those made from a recipe live as long as their process: each task may bring its own copy.
_rebuilt: dict[str, NimueConnectionPool] = {}


def remember(name: str, pool: NimueConnectionPool) -> None:
    """Let ``pool`` be the one of that name, also where another was: a module may be reloaded."""
    with fork.registry_lock():
        other, _by_name[name] = _by_name.get(name), pool
    if other is None or other._state.is_shut:
        return
    if unlike := _differences(other._state.settings, pool._state.settings):
        logger.warning(
            "pool %r: another open pool of this process has that name, but not the same %s; give "
            "each pool a name of its own",
            name,
            unlike,
        )


def reduce(state: State, driver: Driver | None) -> tuple[Any, ...]:
    """The recipe, for ``pickle``.

    Raises:
        NimueInvalidParameterValue: a callable or argument cannot be sent to another process.
    """
    for parameter in ("connfunc", "connargs", "connkwargs", "healthcheck_callback", "on_connect"):
        _try(parameter, getattr(state.settings, parameter))
    _try("on_return", state.settings.on_return)
    _try("driver", driver)
    return rebuild, (state.name, state.settings, driver, state.limit)


def _try(parameter: str, value: Any) -> None:
    import pickle

    try:
        pickle.dumps(value)
    except Exception as error:
        raise NimueInvalidParameterValue(
            f"{parameter} must be importable by name, or picklable, for the pool to be sent to "
            f"another process; it is a {type(value).__name__} that is not ({type(error).__name__})"
        ) from error


def _find(name: str) -> NimueConnectionPool | None:
    """The pool of that name. One that was made from a recipe, and closed since, is none."""
    found = _by_name.get(name)
    if found is not None and found._state.is_shut and _rebuilt.get(name) is found:
        return None
    return found


def rebuild(
    name: str, settings: Settings, driver: Driver | None, limit: Unlimited = UNLIMITED
) -> NimueConnectionPool:
    """What unpickling gives: this process's pool of that name, made at need.

    Nothing is opened yet; the first acquire does that. It is refused where the pool of that name is
    another: an exception here would end a worker process that unpickles its task, unheard.
    """
    from nimue.pool import NimueConnectionPool

    fork.settle()
    found = _find(name)
    if found is None:
        pool = NimueConnectionPool._from_recipe(name, settings, driver, limit)
        with fork.registry_lock():
            found = _find(name)
            if found is None:
                found = _by_name[name] = _rebuilt[name] = pool
        if found is pool:
            monitor.here.expect()
            return pool
    unlike = _differences(found._state.settings, settings)
    if not unlike:
        return found
    stranger = NimueConnectionPool._from_recipe(name, settings, driver, limit)
    stranger._state.poison = NimueInvalidParameterValue(
        f"a pickled pool named {name!r} cannot be used in this process, which has a pool of that "
        f"name already, but not with the same {unlike}: give each pool a name of its own"
    )
    return stranger


def _differences(one: Settings, other: Settings) -> str:
    """The parameters in which two pools differ that should be the same. Never their values."""
    return ", ".join(name for name in ESSENCE if _differ(getattr(one, name), getattr(other, name)))


def _differ(one: Any, other: Any) -> bool:
    """Whether two values surely differ; those that cannot be compared do not."""
    try:
        return one is not other and _are_unlike(one, other)
    except Exception:  # of the values' own code
        return False


def _are_unlike(one: Any, other: Any) -> bool:
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        one, other = ((it.func, it.args, it.keywords) for it in (one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() != other.keys() or any(_differ(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) != len(other) or any(map(_differ, one, other))
    origin = _origin(one)
    if origin or _origin(other):
        return origin != _origin(other) or _differ(_owner(one), _owner(other))
    if type(one).__eq__ is _IDENTITY:  # a copy is another, and that says nothing
        return type(one) is not type(other)
    return bool(one != other)


def _origin(value: Any) -> tuple[str, str] | None:
    """The name by which a function, a method or a class is imported; None for all else."""
    name = getattr(value, "__qualname__", None)
    return None if name is None else (value.__module__, name)


def _owner(value: Any) -> Any:
    return getattr(value, "__self__", None)
