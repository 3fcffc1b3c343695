"""The oracle of a trial finds what is planted, and only that."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator

import psycopg2
import pytest

from nimue.cli.interrupt import Interrupts
from stress.databases.admin import ServerAway
from stress.trial import course
from stress.trial.course import Course, Plan
from stress.trial.oracle import Sessions
from stress.trial.record import Record
from stress.trial.site import Site
from tests import children
from tests.fakes import until

pytestmark = [pytest.mark.harness, pytest.mark.server]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Interrupts() as interrupts:
        site = Site(interrupts)
        try:
            site.prepare("postgres", None, with_proxy=False)
            children.expected.update(site.children())
            yield site
        finally:
            site.close()
            children.expected.difference_update(site.known)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not recover, or does not go, is not waited for so long."""
    monkeypatch.setattr(course, "RECOVERY", 1.5)
    monkeypatch.setattr(course, "GOOD", 0.5)
    monkeypatch.setattr(course, "SETTLED", 2.0)


def attempt(site: Site, contender: str, **more) -> tuple[Record, list[str]]:
    """The record, and which checks failed."""
    given = {"scenario": "prefork", "seconds": 1.0, "processes": 2, "threads": 2, "totalmax": 3}
    plan = Plan(**{**given, "timeout": 1.0, "contender": contender, **more})
    record = Course(plan, site, lambda shown: None).run()
    return record, [check.what.strip() for check in record.checks if not check.right]


def test_nimue_passes(site: Site) -> None:
    record, failed = attempt(site, "nimue", rates={"kill": 2.0, "fork": 4.0, "leak": 2.0})
    assert failed == [], record.notes
    assert Counter(one.kind for one in record.happenings)["kill"] > 0


def test_the_process_with_most_sessions_is_looked_at_closer(site: Site) -> None:
    mark, here = "closer", os.getpid()
    keywords = {**site.address("psycopg2"), "application_name": f"{mark}.{here}"}
    sessions = Sessions(site.database, mark, time.monotonic())
    with contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(contextlib.closing(psycopg2.connect(**keywords)))
        sessions.start()
        try:
            until(lambda: sessions.most_of_one == 3)
        finally:
            sessions.stop()
    told = re.fullmatch(
        rf"process {here} is connected to .*port {keywords['port']} \((\d+) times\).*"
        " by the system's list, and has 3 sessions by the server's: (.*)",
        sessions.close_up,
    )
    assert told is not None, sessions.close_up
    assert int(told[1]) >= 3
    assert told[2].count("idle, waits for ClientRead, for 0:00:0") == 3


def test_and_known_though_the_server_is_away() -> None:
    class Away:
        def doing(self, backends: Collection[int]) -> list[str]:
            raise ServerAway("it is not there")

    sessions = Sessions(Away(), "closer", 0.0)
    for when in (0.0, 1.0):
        sessions._fold(when, {1: os.getpid(), 2: os.getpid()})
    assert sessions.most_of_one == 2
    assert f"process {os.getpid()} is connected to " in sessions.close_up
    assert sessions.close_up.endswith("it does not say more (it is not there)")
    assert len(sessions.looks) == 1


@pytest.mark.parametrize(
    ("contender", "found", "more"),
    [
        ("planted: shares", "what must never be", {"rates": {"crossed": 10.0}}),
        ("planted: exceeds", "sessions at most", {"threads": 4}),
        ("planted: leaks", "refused", {}),
        ("planted: crosses", "wrong answers", {}),
        ("planted: loses", "committed, and lost", {}),
        ("planted: doubles", "and doubled", {}),
        ("planted: remains", "processes left", {}),
    ],
)
def test_what_is_planted_is_found(site: Site, contender: str, found: str, more) -> None:
    _, failed = attempt(site, contender, **more)
    assert found in failed
