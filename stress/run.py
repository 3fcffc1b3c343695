"""``python -m stress <scenario>``: its trials, one after the other, on one server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nimue.cli.demo_verdict import DemoFailed
from nimue.cli.interrupt import Interrupts
from stress.databases import ServerAway
from stress.ground import perform
from stress.options import Order, order
from stress.trial.course import Course, Plan
from stress.trial.record import Record
from stress.trial.site import Site


def main(name: str, argv: Sequence[str]) -> int:
    """Try, print, and return 0 only if the oracle agrees."""
    return run(order(name, argv))


def run(wanted: Order) -> int:
    """Do all that is asked for."""

    def make(interrupts: Interrupts) -> Site:
        return Site(interrupts)

    def measure(site: Site) -> list[Record]:
        site.prepare(wanted.server, wanted.dsn, wanted.needs_proxy)
        records: list[Record] = []
        try:
            for plan in wanted.plans:
                records.append(attempt(plan, site))  # noqa: PERF401 - what is done is kept
        finally:
            if records:
                write(wanted, records)
        return records

    return perform(make, measure, conclude)


def attempt(plan: Plan, site: Site) -> Record:
    """One trial, shown while it runs, and its verdict. Raises: DemoFailed if it cannot go on."""
    from stress.report.live import Live

    try:
        with Live(plan) as live:
            record = Course(plan, site, live.show).run()
    except ServerAway as error:
        raise DemoFailed(f"the server is away, and does not come back: {error}") from error
    live.verdict(record)
    return record


def write(wanted: Order, records: Sequence[Record]) -> None:
    """Write what is to be written of them."""
    from stress.report import figures, page

    if wanted.json is not None:
        figures.save(records, wanted.json)
    if wanted.report is not None:
        print(f"the report: {page.write(records, wanted.report)}")


def conclude(records: Sequence[Record], left: Sequence[str]) -> int:
    """The exit status."""
    for name in left:
        print(f"left behind: {name}", file=sys.stderr)
    return 0 if not left and all(record.good for record in records) else 1
