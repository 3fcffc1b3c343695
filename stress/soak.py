"""``python -m stress soak``: one scenario for a long time with every fault, watching what grows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stress import options, run
from stress.scenarios import SCENARIOS, scenario

#: Seconds between two questions of a thread: for an hour of them the machine is not kept busy.
PAUSE = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Try for so many minutes; 0 only if nothing was lost and nothing has grown."""
    given = list(sys.argv[1:] if argv is None else argv)
    # Not argparse's to find: of the options that it does not know, it takes the values for this.
    name = given.pop(0) if given and not given[0].startswith("-") else "prefork"
    parser = argparse.ArgumentParser(
        prog="python -m stress soak [scenario]",
        description="One scenario, prefork by default, each of its variants for a long time, with"
        " every fault once a second; and all that python -m stress <scenario> can be told.",
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=options.above_zero, default=60.0, help="default 60")
    told, rest = parser.parse_known_args(given)
    if name not in SCENARIOS:
        parser.error(f"no scenario {name!r}; there is {', '.join(SCENARIOS)}")
    wanted = ["--seconds", f"{told.minutes * 60:g}", "--pause", f"{PAUSE:g}"]
    if not any(word.startswith("--fault") for word in rest):
        # Of several processes one is spared; who is alone lives long only if nobody is killed.
        alone = "processes" in scenario(name).fixed
        wanted += ["--fault", "all=1", *(["--fault", "kill=0"] if alone else [])]
    return run.run(options.order(name, [*wanted, *rest]))
