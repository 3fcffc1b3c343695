"""The trial of workers that are forked from a parent which has made the pool and used it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import psutil

from nimue.cli.demo_process import tail, until
from stress.compare import seen
from stress.compare.entrants import Seat
from stress.compare.site import Group, Site, sleep_until
from stress.trial import crew, faults
from stress.trial.brief import Brief
from stress.trial.desk import OK
from stress.trial.oracle import Sessions
from stress.trial.tickets import Tickets

#: What befalls all alike, so many times a second on average.
RATES: Mapping[str, float] = {"kill": 1.0, "terminate": 2.0, "fork": 2.0}
#: Seconds for the workers to come to work, and for the server to have seen the last one go.
SOON, SETTLED = 30.0, 5.0
#: For all to have ended, beyond the wait for a connection: after a second less the parent puts down
#: the workers that have not.
END = crew.END + 1.0


@dataclass(frozen=True)
class Load:
    """The same for all. ``timeout``: seconds for a connection."""

    seconds: float = 8.0
    seed: int = 1
    processes: int = 4
    threads: int = 4
    poolmin: int = 2
    poolmax: int = 4
    totalmax: int = 6
    timeout: float = 3.0


@dataclass
class Outcome:
    """One row: what was seen of one entrant.

    Args:
        wrong: answers that were somebody else's.
        belied: answers that the ledger does not hold.
        errors: questions that ended in an error, by its kind, and what went wrong in a child.
        hung: processes that had to be put down, since they did not end.
        unanswered: questions that never ended, in processes that were not killed.
        shared: sessions that two processes used in turn.
        most, lasting: sessions at one look, and those that two looks 0.1 s apart have both seen;
            lasting_each: of one process.
        left: sessions that the server still listed when no process was left.
        latencies: seconds from asking to the answer, of all that were asked.
        failed: why nothing could be measured.
    """

    done: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    belied: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    hung: int = 0
    unanswered: int = 0
    shared: int = 0
    most: int = 0
    lasting: int = 0
    lasting_each: int = 0
    left: int = 0
    answered: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failed: str = ""


def run(site: Site, seat: Seat, load: Load) -> Outcome:
    """One entrant's trial."""
    brief = _brief(site, seat, load)
    site.database.create_ledger()
    outcome, killed = Outcome(), set[int]()
    sessions = Sessions(site.database, brief.mark, time.monotonic())
    group = site.begin(seat, brief, ["-m", "stress.trial.crew", "prefork", str(load.processes)])
    try:
        sessions.start()
        if not until(lambda: len(group.children()) >= load.processes, SOON):
            outcome.failed = f"its workers did not come to work: {tail(group.log, 3)}"
            return outcome
        begun = time.monotonic()
        _befall(site, group, brief.mark, load, outcome.done, killed)
        outcome.seconds = time.monotonic() - begun
        group.tell_over()
        outcome.hung = group.settle(load.timeout + END)
        ended = time.monotonic()
    finally:
        group.end()
        sessions.stop()
        site.reap()
    _count(outcome, sessions)
    _judge(outcome, seen.read(group.diaries), site.database.tally(), killed, ended)
    return outcome


def _brief(site: Site, seat: Seat, load: Load) -> Brief:
    return site.brief(
        seat,
        load.timeout,
        seed=load.seed,
        bound=load.seconds + load.timeout + END + SOON,
        threads=load.threads,
        poolmin=load.poolmin,
        poolmax=load.poolmax,
        totalmax=load.totalmax if seat.entrant.shares else None,
        hold=0.002,
    )


def _befall(
    site: Site, group: Group, mark: str, load: Load, done: Counter[str], killed: set[int]
) -> None:
    """Let the faults come, each at its time."""
    dice, begin = Random(f"{load.seed} victims"), time.monotonic()
    tickets = Tickets(group.folder / "tickets")
    for fault in faults.schedule(RATES, load.seconds, load.seed):
        sleep_until(begin + fault.at)
        if fault.kind == "kill":
            killed |= _kill(group, dice)
        elif fault.kind == "terminate":
            done["terminate"] += _terminate(site, mark, dice)
        else:
            tickets.issue(fault.kind)
    sleep_until(begin + load.seconds)
    done["kill"] = len(killed)


def _kill(group: Group, dice: Random) -> set[int]:
    """The worker that was killed, if there was one."""
    workers = group.children()
    for worker in dice.sample(workers, len(workers)):
        with suppress(psutil.NoSuchProcess):
            worker.kill()
            return {worker.pid}
    return set()


def _terminate(site: Site, mark: str, dice: Random) -> bool:
    """Whether a session was ended."""
    listed = sorted(site.database.sessions(mark))
    return bool(listed) and site.database.terminate(dice.choice(listed))


def _count(outcome: Outcome, sessions: Sessions) -> None:
    outcome.left = sessions.settled(SETTLED)
    outcome.most, outcome.lasting = sessions.census.most, sessions.census.lasting
    outcome.lasting_each = sessions.most_of_one
    if sessions.error is not None:
        outcome.failed = f"lost sight of the server: {sessions.error}"


def _judge(
    outcome: Outcome,
    diaries: seen.Diaries,
    ledger: Mapping[str, int],
    killed: set[int],
    ended: float,
) -> None:
    questions = diaries.questions
    outcome.done.update(diaries.done)
    outcome.belied = seen.belied(questions, ledger)
    outcome.shared = seen.shared(questions)
    outcome.hung += diaries.hung
    outcome.errors.update(seen.kind(note) for note in diaries.notes)
    for one in questions.values():
        if one.ended is None:
            if one.asker not in killed:
                outcome.unanswered += 1
                outcome.latencies.append(ended - one.asked)
            continue
        outcome.latencies.append(one.ended - one.asked)
        outcome.answered += one.outcome == OK
        outcome.wrong += one.wrong
        if one.error and not one.wrong:
            outcome.errors[seen.kind(one.error)] += 1
