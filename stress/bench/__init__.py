"""``python -m stress bench [suite]``: nimue against its peers, in one run, with a verdict.

A suite is a set of measurements. The first of ``SUITES``, the pool's, is the one that runs if none
is named::

    fake.py         a driver that costs nothing      contenders.py   the pools over it
    runs.py         interleaving, crowds             report.py       tables, targets, JSON
    uncontended (a)  contended (b)  spike (c)  scale (d)  forking (e)  footprint (f)

``python -m stress bench total`` is another suite, on a real server: total.py.

Each measurement's docstring says what is counted and what is not, and is printed with it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stress import places
from stress.bench import contended, footprint, forking, scale, spike, uncontended
from stress.bench.contenders import ALL, Contender, Nimue
from stress.bench.report import Part, Sheet, conclude
from stress.bench.runs import Context

PARTS: dict[str, Callable[[Context], Part]] = {
    "a": uncontended.measure,
    "b": contended.measure,
    "c": spike.measure,
    "d": scale.measure,
    "e": forking.measure,
    "f": footprint.measure,
}
TITLES = {
    "a": uncontended.TITLE,
    "b": contended.TITLE,
    "c": spike.TITLE,
    "d": scale.TITLE,
    "e": forking.TITLE,
    "f": footprint.TITLE,
}
#: A suite with a command line of its own.
TOTAL = "one limit for four processes, on a real PostgreSQL"


@dataclass(frozen=True)
class Suite:
    """Measurements that are run and judged together.

    They are imported when they are asked for: the pool's has processes without nimue.

    Args:
        says: what it is, in a line.
        where: the module that has ``PARTS`` and ``TITLES``, each by the letter that stands for it.
        contenders: whether the pools that can be had are measured.
    """

    says: str
    where: str
    contenders: bool = False

    @property
    def parts(self) -> dict[str, Callable[[Context], Part]]:
        parts: dict[str, Callable[[Context], Part]] = importlib.import_module(self.where).PARTS
        return parts

    @property
    def titles(self) -> dict[str, str]:
        titles: dict[str, str] = importlib.import_module(self.where).TITLES
        return titles


SUITES = {
    "pool": Suite(
        "nimue against its peers over one fake driver, as ratios, with a verdict",
        __name__,
        contenders=True,
    ),
    "semaphore": Suite(
        "nimue.SharedSemaphore beside multiprocessing's, with a verdict",
        "stress.bench.semaphore",
    ),
}
INSTALL = "pip install -e '.[bench]'"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return 0 only if every target was met."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["total"]:
        return int(importlib.import_module("stress.bench.total").main(given[1:]))
    options = _options(argv)
    suite = SUITES[options.suite]
    present = _present() if suite.contenders else []
    context = Context(present, options.quick, random.Random(options.seed))
    sheet = Sheet(_versions(suite, present), options.quick, options.seed, suite=options.suite)
    print(", ".join(f"{name} {version}" for name, version in sheet.versions.items()))
    print(_busy())
    for key in options.only:
        start = time.monotonic()
        part = _measure(suite, key, context)
        sheet.parts.append(part)
        print("\n".join(part.lines()))
        print(f"\n  ({time.monotonic() - start:.1f} s)", flush=True)
    is_judged = not options.no_verdict
    return conclude(
        "bench", sheet, earlier=options.compare, file=options.json, is_judged=is_judged
    )


def _busy() -> str:
    """How much else this machine does: on a busy one waits and forks take longer for everybody."""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    told = f"load {load:.1f} on {processors} processors at the start"
    return told + (
        ": busy, expect worse figures than on a quiet one" if load > processors / 2 else ""
    )


def _measure(suite: Suite, key: str, context: Context) -> Part:
    """One part; an error in it is a miss, and the others go on."""
    try:
        return suite.parts[key](context)
    except Exception:
        part = Part(key, suite.titles[key], traceback.format_exc())
        part.at_most("measured without an error", 0, None)
        return part


def _options(argv: list[str] | None) -> argparse.Namespace:
    """What is asked for; what cannot be is refused with a word on what can."""
    parser = _parser()
    options = parser.parse_args(argv)
    parts = SUITES[options.suite].parts
    only = options.only if options.only is not None else list(parts)
    unknown = sorted(set(only) - set(parts))
    if unknown:
        there = f"there is {min(parts)} to {max(parts)}"
        parser.error(f"argument --only: no measurement {', '.join(unknown)}; {there}")
    options.only = sorted(set(only))
    if options.compare:
        options.compare = json.loads(options.compare.read_text())
        earlier = options.compare.get("suite", "pool")
        if earlier != options.suite:
            parser.error(f"argument --compare: that run was of {earlier!r}, not {options.suite!r}")
    return options


class _Parser(argparse.ArgumentParser):
    """Its help lists what there is; only then is it all imported."""

    def format_help(self) -> str:
        listed = ""
        for name, suite in SUITES.items():
            listed += f"\n{name}: {suite.says}\n"
            listed += "".join(f"  {key}  {title}\n" for key, title in suite.titles.items())
        listed += f"\ntotal: {TOTAL}\n  see python -m stress bench total --help\n"
        self.epilog = f"suites, and their measurements:\n{listed}"
        return super().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m stress bench",
        description="Figures beside those of peers, from one run, with a verdict.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "suite", nargs="?", choices=SUITES, default="pool", help="what is measured; default: pool"
    )
    parser.add_argument("--only", type=_keys, metavar="a,b,...", help="these measurements")
    parser.add_argument("--quick", action="store_true", help="under 40 seconds, less exact")
    parser.add_argument("--json", type=places.file, metavar="FILE", help="write every figure there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier run's JSON")
    parser.add_argument("--seed", type=int, default=1, help="for the order of the rounds")
    parser.add_argument("--no-verdict", action="store_true", help="only print; exit status 0")
    return parser


def _keys(text: str) -> list[str]:
    return [key.strip() for key in text.split(",")]


def _present() -> list[type[Contender]]:
    """Those who can take part; the others are named, with the cure."""
    missing = {contender.name: contender.missing() for contender in ALL}
    for name, reason in missing.items():
        if reason is not None:
            print(f"{name} is left out ({reason}); the peers come with: {INSTALL}", file=sys.stderr)
    return [contender for contender in ALL if missing[contender.name] is None]


def _versions(suite: Suite, present: list[type[Contender]]) -> dict[str, str]:
    versions = {"Python": platform.python_version(), "on": platform.platform(terse=True)}
    if not suite.contenders:
        versions["nimue"] = Nimue.version()
    return versions | {contender.name: contender.version() for contender in present}
