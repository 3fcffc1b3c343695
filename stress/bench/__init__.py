"""``python -m stress bench``: nimue against its peers, in one run, as ratios, with a verdict.

::

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
from pathlib import Path

from stress.bench import contended, footprint, forking, scale, spike, uncontended
from stress.bench.contenders import ALL, Contender
from stress.bench.report import Part, Sheet, compare, verdict
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
TOTAL = "one limit for four processes, on a real PostgreSQL"
INSTALL = "pip install -e '.[bench]'"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return 0 only if every target was met."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["total"]:
        return int(importlib.import_module("stress.bench.total").main(given[1:]))
    options = _parser().parse_args(argv)
    earlier = json.loads(options.compare.read_text()) if options.compare else None
    present = _present()
    context = Context(present, options.quick, random.Random(options.seed))
    sheet = Sheet(_versions(present), options.quick, options.seed)
    print(", ".join(f"{name} {version}" for name, version in sheet.versions.items()))
    print(_busy())
    for key in options.only:
        start = time.monotonic()
        part = _measure(key, context)
        sheet.parts.append(part)
        print("\n".join(part.lines()))
        print(f"\n  ({time.monotonic() - start:.1f} s)", flush=True)
    if earlier is not None:
        print("\n".join(compare(earlier, sheet)))
    if options.json:
        options.json.write_text(json.dumps(sheet.as_json(), indent=1) + "\n")
    if options.no_verdict:
        return 0
    lines, good = verdict(sheet.parts)
    print("\n".join(lines))
    return 0 if good else 1


def _busy() -> str:
    """How much else this machine does: on a busy one waits and forks take longer for everybody."""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    told = f"load {load:.1f} on {processors} processors at the start"
    return told + (
        ": busy, expect worse figures than on a quiet one" if load > processors / 2 else ""
    )


def _measure(key: str, context: Context) -> Part:
    """One part; an error in it is a miss, and the others go on."""
    try:
        return PARTS[key](context)
    except Exception:
        part = Part(key, TITLES[key], traceback.format_exc())
        part.at_most("measured without an error", 0, None)
        return part


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {key}  {title}" for key, title in TITLES.items())
    parser = argparse.ArgumentParser(
        prog="python -m stress bench",
        description="nimue against its peers over one fake driver, as ratios, with a verdict.",
        epilog=f"measurements:\n{listed}\n\nanother suite:\n  total  {TOTAL}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_keys, default=list(PARTS), metavar="a,b,...")
    parser.add_argument("--quick", action="store_true", help="under 40 seconds, less exact")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier run's JSON")
    parser.add_argument("--seed", type=int, default=1, help="for the order of the rounds")
    parser.add_argument("--no-verdict", action="store_true", help="only print; exit status 0")
    return parser


def _keys(text: str) -> list[str]:
    keys = [key.strip() for key in text.split(",")]
    unknown = sorted(set(keys) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no measurement {', '.join(unknown)}; there is a to f")
    return sorted(set(keys))


def _present() -> list[type[Contender]]:
    """Those who can take part; the others are named, with the cure."""
    missing = {contender.name: contender.missing() for contender in ALL}
    for name, reason in missing.items():
        if reason is not None:
            print(f"{name} is left out ({reason}); the peers come with: {INSTALL}", file=sys.stderr)
    return [contender for contender in ALL if missing[contender.name] is None]


def _versions(present: list[type[Contender]]) -> dict[str, str]:
    versions = {"Python": platform.python_version(), "on": platform.platform(terse=True)}
    return versions | {contender.name: contender.version() for contender in present}
