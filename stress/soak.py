"""``python -m stress soak``: one scenario for a long time with every fault, watching what grows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stress import options, run
from stress.scenarios import SCENARIOS

#: Seconds between two questions of a thread: for an hour of them the machine is not kept busy.
PAUSE = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Try for so many minutes; 0 only if nothing was lost and nothing has grown."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m stress soak",
        description="One scenario for a long time; and all that python -m stress <it> can be told.",
    )
    add = parser.add_argument
    add("scenario", nargs="?", choices=SCENARIOS, default="prefork", help="default: prefork")
    add("--minutes", type=options.above_zero, default=60.0, help="default 60")
    told, rest = parser.parse_known_args(given)
    wanted = ["--seconds", f"{told.minutes * 60:g}", "--pause", f"{PAUSE:g}"]
    if not any(word.startswith("--fault") for word in rest):
        wanted += ["--fault", "all=1"]
    return run.run(options.order(told.scenario, [*wanted, *rest]))
