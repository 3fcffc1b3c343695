"""An environment of its own for nimue 0.0.3, which has the same name as this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from stress.trial.peers import Nimue003

#: What is installed there.
PACKAGES = (f"nimue=={Nimue003.VERSION}", "psycopg2-binary")
#: Seconds to make it in, for each of two steps, and to see whether it is good.
BOUND, LOOK = 180.0, 30.0
_TEST = "import psycopg2; from importlib.metadata import version; print(version('nimue'))"


class Unavailable(Exception):
    """It is not there and cannot be made; says why."""


def default_folder() -> Path:
    """Where it is kept from one run to the next."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return Path(cache) / "nimue-stress" / f"nimue-{Nimue003.VERSION}-{python}"


def interpreter(folder: Path | None = None) -> str:
    """The interpreter of the environment, which is made if it is not there.

    Raises:
        Unavailable: it cannot be made here, or another was named that has no nimue 0.0.3.
    """
    place = folder if folder is not None else default_folder()
    if _is_good(place):
        return str(_python(place))
    if folder is not None and place.exists():
        raise Unavailable(f"{place} is there, without {' and '.join(PACKAGES)}")
    draft = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _make(draft)
        if not _is_good(place):  # nobody else was faster
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
    except OSError as error:
        raise Unavailable(str(error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return str(_python(place))


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _is_good(folder: Path) -> bool:
    try:
        said = _run([str(_python(folder)), "-I", "-c", _TEST], LOOK)
    except (OSError, Unavailable):
        return False
    return said.strip() == Nimue003.VERSION


def _make(folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)], BOUND)
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", *PACKAGES]
    _run([str(_python(folder)), *pip], BOUND)


def _run(argv: list[str], bound: float) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            argv, env=variables, capture_output=True, text=True, timeout=bound, check=True
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(argv[1:4])} took more than {bound:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or ["it said nothing"]
        raise Unavailable(f"{' '.join(argv[1:4])}: {lines[-1]}") from None
    return done.stdout
