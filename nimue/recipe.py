"""What a pickled pool is: the recipe for one, made once per name and process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from nimue import fork, monitor
from nimue.error import NimueInvalidParameterValue
from nimue.settings import Settings

if TYPE_CHECKING:
    from nimue.drivers.base import Driver
    from nimue.pool import NimueConnectionPool
    from nimue.state import State

#: The pools of this process: what a pickled pool becomes here.
_by_name: WeakValueDictionary[str, NimueConnectionPool] = WeakValueDictionary()
#: Those made from a recipe live as long as their process: each task may bring its own copy.
_rebuilt: dict[str, NimueConnectionPool] = {}


def remember(name: str, pool: NimueConnectionPool) -> None:
    """Let ``pool`` be the one of that name."""
    with fork.registry_lock():
        _by_name[name] = pool


def reduce(state: State, driver: Driver | None) -> tuple[Any, ...]:
    """The recipe, for ``pickle``.

    Raises:
        NimueInvalidParameterValue: a callable or argument cannot be sent to another process.
    """
    for parameter in ("connfunc", "connargs", "connkwargs", "healthcheck_callback", "on_connect"):
        _try(parameter, getattr(state.settings, parameter))
    _try("on_return", state.settings.on_return)
    _try("driver", driver)
    return rebuild, (state.name, state.settings, driver)


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


def rebuild(name: str, settings: Settings, driver: Driver | None) -> NimueConnectionPool:
    """What unpickling gives: this process's pool of that name, made at need.

    Nothing is opened yet; the first acquire does that.
    """
    from nimue.pool import NimueConnectionPool

    fork.settle()
    found = _find(name)
    if found is not None:
        return found
    pool = NimueConnectionPool._from_recipe(name, settings, driver)
    with fork.registry_lock():
        kept = _find(name)
        if kept is None:
            kept = _by_name[name] = _rebuilt[name] = pool
    if kept is pool:
        monitor.here.expect()
    return kept
