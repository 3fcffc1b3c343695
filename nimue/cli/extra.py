"""What a command needs beyond the library itself: looked for when it runs, never before."""

import importlib
import warnings
from collections.abc import Iterable
from typing import Any


def load(name: str) -> Any:
    """The module `name`, without the warnings it may give at import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def loads(name: str) -> bool:
    try:
        load(name)
    except ImportError:
        return False
    return True


def missing(names: Iterable[str]) -> list[str]:
    """Those of `names` that cannot be imported. A broken install counts as missing."""
    return [name for name in names if not loads(name)]
