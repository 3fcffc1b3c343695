"""``python -m stress all``: every scenario and every driver with its faults, and one verdict."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

from nimue.cli import extra
from nimue.cli.demo_verdict import DemoFailed
from stress import options, places, run
from stress.ground import perform
from stress.options import Order
from stress.report import figures, page
from stress.scenarios import SCENARIOS
from stress.servers import program
from stress.trial.record import Record
from stress.trial.site import Site

#: An exit status from here on tells of a signal.
STOPPED = 128
#: Per second, of what befalls processes that drive themselves; and those that a server looks after.
OWN = [
    *("kill", "stop=0.5", "fork", "crossed", "leak", "interrupt", "clock=0.5"),
    *("terminate", "full=0.2", "restart=0.2"),
]
WAY = ["stall=0.4", "cut=0.4", "slow=0.4", "refuse=0.4"]
SERVED = ["kill=0.7", "terminate=0.7", "leak=0.5", "crossed=0.5", "cut=0.3", "stall=0.3"]
#: What is tried: a scenario, its faults, and what else it is told.
TRIALS: Sequence[tuple[str, Sequence[str], Sequence[str]]] = (
    ("prefork", (*OWN, *WAY), ()),
    ("threads", (*OWN, *WAY), ("--driver", "psycopg")),
    ("forks", ("kill=0.3", "terminate", "leak", "cut=0.3"), ("--driver", "pg8000")),
    ("spawn", (*OWN, *WAY), ()),
    ("pool", ("kill=0.5", "terminate", "leak", "cut=0.3"), ()),
    ("celery", ("kill=0.3", "terminate=0.5", "cut=0.2"), ()),
    ("gunicorn", SERVED, ()),
    ("uwsgi", SERVED, ()),
    ("prefork", ("kill", "fork", "crossed", "leak"), ("--driver", "sqlite3", "--totalmax", "3")),
    ("prefork", ("kill", "terminate", "fork", "leak", "cut=0.4"), ("--driver", "pymysql")),
    ("threads", ("terminate", "crossed", "leak", "cut=0.4"), ("--driver", "mysqlclient")),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Try all, print, and return 0 only if every oracle agrees."""
    told = _parser().parse_args(argv)
    began = time.monotonic()
    orders = _orders(told)
    records: list[Record] = []
    left: list[str] = []
    failed = 0
    for server in dict.fromkeys(order.server for order in orders):
        status = _try([order for order in orders if order.server == server], records, left)
        failed = failed or status
        if status >= STOPPED:
            break
    if told.json is not None:
        figures.save(records, told.json)
    if told.report is not None and records:
        print(f"the report: {page.write(records, told.report)}")
    _conclude(records, left, time.monotonic() - began)
    return failed or int(bool(left) or not records or not all(one.good for one in records))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m stress all", description=__doc__)
    add = made.add_argument
    add("--quick", action="store_true", help="a few seconds each: under ten minutes in all")
    add("--seconds", type=options.above_zero, help="of each trial; default 20, --quick: 3")
    add("--only", action="append", choices=SCENARIOS, help="this one; may be repeated")
    add("--seed", type=int, help="of all chance; printed, random by default")
    add("--report", type=places.folder, metavar="DIR", help="write a page with plots there")
    add("--json", type=places.file, metavar="FILE", help="write the figures there")
    return made


def _orders(told: argparse.Namespace) -> list[Order]:
    """Those that can be done; the others are named, with the cure."""
    seconds = told.seconds or (3.0 if told.quick else 20.0)
    number = random.SystemRandom().randrange(1_000_000) if told.seed is None else told.seed
    seed = ["--seed", str(number)]
    found = []
    for name, faults, more in TRIALS:
        if told.only and name not in told.only:
            continue
        words = [word for fault in faults for word in ("--fault", fault)]
        if why := _lacking(more):
            print(f"left out: {name} {' '.join(more)}: {why}", file=sys.stderr)
            continue
        found.append(options.order(name, ["--seconds", f"{seconds:g}", *words, *more, *seed]))
    return found


def _lacking(more: Sequence[str]) -> str:
    """Why a server or a driver cannot be had that need not be there."""
    for driver, module in (("pymysql", "pymysql"), ("mysqlclient", "MySQLdb")):
        if driver in more:
            if extra.missing([module]):
                return f"{module} is not installed"
            if not program("mariadbd"):
                return "mariadbd is not installed"
    return ""


def _try(orders: Sequence[Order], records: list[Record], left: list[str]) -> int:
    """All trials on one server. One that cannot go on is told of, and the next one comes."""

    def measure(site: Site) -> int:
        failed = 0
        site.prepare(orders[0].server, None, any(order.needs_proxy for order in orders))
        for plan in (plan for order in orders for plan in order.plans):
            try:
                records.append(run.attempt(plan, site))
            except DemoFailed as failure:
                print(f"{plan.scenario} {plan.variant}: {failure}\n{failure.log}", file=sys.stderr)
                failed = 1
        return failed

    def conclude(failed: int, names: list[str]) -> int:
        left.extend(names)
        return failed

    return perform(Site, measure, conclude)


def _conclude(records: Sequence[Record], left: Sequence[str], seconds: float) -> None:
    good = sum(record.good for record in records)
    print(f"\n{good} of {len(records)} trials right, in {seconds:.0f} s")
    for record in records:
        wrong = ", ".join(check.what.strip() for check in record.checks if not check.right)
        told = f"WRONG: {wrong}" if wrong else "right"
        driver = record.settings["dialect"]
        print(f"  {record.name:<28} {driver:<12} seed {record.seed:<7} {told}")
    for name in left:
        print(f"  left behind: {name}")
