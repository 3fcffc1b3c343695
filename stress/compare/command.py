"""The command line of the comparison, and the order of things."""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nimue.cli.demo_verdict import DemoFailed
from stress import places
from stress.bench import spike
from stress.bench.contenders import ALL as FAKED
from stress.bench.report import Part, Sheet, conclude
from stress.bench.runs import Context
from stress.compare import down, entrants, prefork, tell
from stress.compare.entrants import BY_NAME, Seat
from stress.compare.site import Site
from stress.ground import perform

PARTS = {
    "prefork": "workers are forked, killed, and fork themselves; the server ends sessions",
    "down": "the server goes away and comes back, after HikariCP's trial of that",
    "spike": "50 threads at once on 5 connections, after HikariCP's, over a fake driver",
}
#: What --quick makes of times.
QUICK, QUICK_PACE = prefork.Load(seconds=3.0, timeout=2.0), 0.25
#: Seconds for each pool, at most.
LONGEST = 3600.0


def main(argv: list[str]) -> int:
    options = _options(argv)
    return perform(
        Site,
        lambda site: _measure(site, options),
        lambda sheet, left: _conclude(sheet, options, left),
    )


def _measure(site: Site, options: argparse.Namespace) -> Sheet:
    site.open(options.dsn)
    if "down" in options.parts and site.database.port is None:
        raise DemoFailed(f"--dsn {options.dsn}: the part down is for a TCP port of this host")
    wanted = [BY_NAME[name] for name in options.only]
    seats, out = entrants.seats(wanted, site.folder, options.venv)
    for reason in out:
        print(f"compare: {reason}", file=sys.stderr)
    versions = {"Python": platform.python_version(), "on": platform.platform(terse=True)}
    versions |= {"PostgreSQL": site.database.version}
    versions |= {seat.name: seat.version for seat in seats}
    sheet = Sheet(versions, options.quick, options.seed, suite="compare")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    load = os.getloadavg()[0]
    print(f"load {load:.1f} on {os.cpu_count() or 1} processors, seed {options.seed}\n")
    for seat in seats:
        print(f"{seat.name}: {seat.entrant.told}", flush=True)
    for name in options.parts:
        part = _RUN[name](site, seats, options)
        sheet.parts.append(part)
        print("\n".join(part.lines()), flush=True)
    return sheet


def _prefork(site: Site, seats: Sequence[Seat], options: argparse.Namespace) -> Part:
    load = replace(QUICK if options.quick else prefork.Load(), seed=options.seed)
    if options.seconds is not None:
        load = replace(load, seconds=options.seconds)
    order = random.Random(options.seed).sample(seats, len(seats))
    found = {seat.name: prefork.run(site, seat, load) for seat in order}
    return tell.prefork_part(load, {seat.name: found[seat.name] for seat in seats})


def _down(site: Site, seats: Sequence[Seat], options: argparse.Namespace) -> Part:
    scale = QUICK_PACE if options.quick else 1.0
    pace = down.Pace().scaled(scale)
    found = down.run(site, seats, pace, options.seed)
    return tell.down_part(pace, found, scale, site.connect_timeout(pace.timeout))


def _spike(site: Site, seats: Sequence[Seat], options: argparse.Namespace) -> Part:
    """Whoever the benchmark has of them; how long it takes is judged there, and not here."""
    wanted = {seat.entrant.contender for seat in seats}
    present = [one for one in FAKED if one.name.lower() in wanted and one.missing() is None]
    part = spike.measure(Context(present, options.quick, random.Random(options.seed)))
    part.key = "spike"
    part.targets.clear()
    return part


_RUN: dict[str, Callable[[Site, Sequence[Seat], argparse.Namespace], Part]] = {
    "prefork": _prefork,
    "down": _down,
    "spike": _spike,
}


def _conclude(sheet: Sheet, options: argparse.Namespace, left: list[str]) -> int:
    is_judged = not options.no_verdict
    return conclude("compare", sheet, left, file=options.json, is_judged=is_judged)


def _options(argv: list[str]) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<9} {says}" for name, says in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m stress compare",
        description="nimue and its peers under one load on a real PostgreSQL. The verdict, and the"
        " exit status, are about nimue alone.",
        epilog=f"parts:\n{listed}\n\npools: {', '.join(BY_NAME)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    pools, parts = _names("pool", list(BY_NAME)), _names("part", list(PARTS))
    add("--quick", action="store_true", help="about a minute; times are shorter")
    add("--seconds", type=_seconds, help="of prefork, for each pool; 8")
    add("--seed", type=int, default=1, help="of all that is chosen; 1")
    add("--only", type=pools, default=list(BY_NAME), metavar="POOL,...", help="these pools")
    add("--parts", type=parts, default=list(PARTS), metavar="PART,...", help="these parts")
    add("--dsn", help="of a PostgreSQL that is there, instead of one of its own")
    add("--venv", type=Path, help="where nimue 0.0.3 is, or is to be; default: a cache")
    add("--json", type=places.file, metavar="FILE", help="write every figure there")
    add("--no-verdict", action="store_true", help="only print; exit status 0")
    return parser.parse_args(argv)


def _names(what: str, there: Sequence[str]) -> Callable[[str], list[str]]:
    """An argument of some of them, in the order of all."""

    def names(text: str) -> list[str]:
        given = {name.strip() for name in text.split(",")}
        if unknown := sorted(given - set(there)):
            raise argparse.ArgumentTypeError(
                f"no {what} {', '.join(map(repr, unknown))}; there is {', '.join(there)}"
            )
        return [name for name in there if name in given]

    return names


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 1 to {LONGEST:g}")
    return value
