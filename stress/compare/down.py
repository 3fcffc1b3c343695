"""The trial of a server that goes away and comes back, after HikariCP's "handling database down".

Each entrant has processes of its own, one for each way of going, behind a proxy of its own: all
are tried at the same time, and one that hangs holds no other up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from nimue.cli.demo_process import tail, until
from stress.compare import seen
from stress.compare.entrants import Seat
from stress.compare.site import Group, Site, sleep_until
from stress.proxy import Proxy
from stress.trial.desk import OK

#: How the server goes: a mode of the proxy, and what that is.
WAYS: Mapping[str, str] = {
    "cut": "connections are reset, and new ones too",
    "stalled": "nothing moves; what waits goes on once it is back, as after a sleep of the host",
    "swallow": "what is sent is lost, and connections that lost some stay silent for ever",
}
#: Seconds for all to have asked once.
SOON = 60.0


@dataclass(frozen=True)
class Pace:
    """Seconds: one question a ``period``, with so long a ``timeout`` for a connection."""

    period: float = 2.0
    timeout: float = 5.0
    up: float = 4.0
    down: float = 14.0
    after: float = 18.0

    def scaled(self, by: float) -> Pace:
        return Pace(*(value * by for value in vars(self).values()))


@dataclass
class Outcome:
    """One row: what became of one entrant's questions. Seconds.

    Args:
        calls: that were begun while the server was away.
        longest: that one of them took; ``unanswered`` of them never ended.
        again: from the server's return to the first answer to a question begun after it; None
            without any.
        failed: questions begun after the return that failed, or had no end in twice the timeout.
        errors: of questions begun while it was away or later, by kind.
    """

    calls: int = 0
    longest: float = 0.0
    unanswered: int = 0
    again: float | None = None
    failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    broken: str = ""


@dataclass(frozen=True)
class Lane:
    """One entrant and one way."""

    seat: Seat
    way: str
    proxy: Proxy
    group: Group

    def answered(self) -> int:
        """How many questions were answered so far."""
        questions = seen.read(self.group.diaries).questions.values()
        return sum(one.outcome == OK for one in questions)


def run(site: Site, seats: Sequence[Seat], pace: Pace, seed: int) -> dict[str, dict[str, Outcome]]:
    """By way and entrant, what became of it."""
    with ExitStack() as stack:
        stack.callback(site.reap)
        site.database.create_ledger()
        lanes = [_lane(site, stack, seat, way, pace, seed) for way in WAYS for seat in seats]
        until(lambda: all(lane.answered() for lane in lanes), SOON, 0.2)
        started = {(lane.way, lane.seat.name) for lane in lanes if lane.answered()}
        sleep_until(time.monotonic() + pace.up)
        gone = time.monotonic()
        for lane in lanes:
            lane.proxy.mode = lane.way
        sleep_until(gone + pace.down)
        for lane in lanes:
            lane.proxy.mode = "pass"
        back = time.monotonic()
        sleep_until(back + pace.after)
        over = time.monotonic()
        found: dict[str, dict[str, Outcome]] = {way: {} for way in WAYS}
        for lane in lanes:
            outcome = judge(seen.read(lane.group.diaries), gone, back, over, pace.timeout)
            if (lane.way, lane.seat.name) not in started:
                outcome.broken = "it never answered: " + tail(lane.group.log, 3)
            found[lane.way][lane.seat.name] = outcome
    return found


def _lane(site: Site, stack: ExitStack, seat: Seat, way: str, pace: Pace, seed: int) -> Lane:
    assert site.database.port is not None
    proxy = stack.enter_context(Proxy(site.database.port))
    brief = site.brief(
        seat,
        pace.timeout,
        proxy.port,
        seed=seed,
        bound=SOON + pace.up + pace.down + pace.after + SOON,
        poolmin=2,
        poolmax=4,
        totalmax=6 if seat.entrant.shares else None,
    )
    group = site.begin(seat, brief, ["-m", "stress.compare.caller", str(pace.period)])
    stack.callback(group.end)
    return Lane(seat, way, proxy, group)


def judge(
    diaries: seen.Diaries, gone: float, back: float, over: float, timeout: float
) -> Outcome:
    """What became of the questions of one lane, whose server was away in between."""
    outcome = Outcome()
    for one in diaries.questions.values():
        if one.asked < gone:
            continue
        if one.error:
            outcome.errors[seen.kind(one.error)] += 1
        if one.asked < back:
            outcome.calls += 1
            outcome.unanswered += one.ended is None
            outcome.longest = max(outcome.longest, (one.ended or over) - one.asked)
        elif one.outcome == OK and one.ended is not None:
            took = one.ended - back
            outcome.again = took if outcome.again is None else min(outcome.again, took)
        elif one.ended is not None or over - one.asked > 2 * timeout:
            outcome.failed += 1
    return outcome
