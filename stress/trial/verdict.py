"""What was asked of a trial, and what was seen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from nimue.cli.demo_verdict import Check, count
from stress.trial.desk import OK, REFUSED, UNKNOWN
from stress.trial.diaries import Diaries
from stress.trial.faults import CAUSE_ERRORS
from stress.trial.record import Question

#: Seconds that an answer may come later than the pool's timeout: a busy machine, a slow commit.
SLACK = 5.0
#: Of what errors may be while there are faults: a driver's, the pool's, or a caller's that is cut.
EXPECTED = re.compile(
    r"OperationalError|InterfaceError|DatabaseError|InternalError|AdminShutdown|ProtocolViolation"
    r"|ConnectionTimeout|TooManyConnections|CannotConnectNow|NimuePoolTimeout"
    r"|NimueNoConnectionAvailable|Connection\w*Error|BrokenPipeError|TimeoutError"
    r"|NoAnswer|RemoteDisconnected|BadStatusLine|IncompleteRead|BrokenProcessPool|WorkerLostError"
    r"|TaskLost"
)
#: A fault of which so many are to be expected comes at least once: but for 45 in a million trials.
SURE = 10.0
#: Kinds of faults after which a question may have no end.
CUT = frozenset({"kill", "interrupt", "fork", "restart", "terminate", "cut", "stall", "stop"})


@dataclass(frozen=True)
class Ledger:
    """What the database has of each question, held against what was answered.

    Args:
        lost: answered ok, and not there.
        doubled: there more than once.
        ghosts: refused, and there all the same.
        strangers: there, and never asked.
        unknown, kept: nobody knows, and of these, those that are there.
    """

    lost: int
    doubled: int
    ghosts: int
    strangers: int
    unknown: int
    kept: int


def audit(questions: list[Question], tally: Mapping[str, int]) -> Ledger:
    """Hold the two against each other. Each question is to be there once, or not at all."""
    outcome = {question.token: question.outcome for question in questions}
    by_outcome = Counter(outcome.values())
    return Ledger(
        lost=sum(1 for token, was in outcome.items() if was == OK and token not in tally),
        doubled=sum(1 for times in tally.values() if times > 1),
        ghosts=sum(1 for token in tally if outcome.get(token) == REFUSED),
        strangers=sum(1 for token in tally if token not in outcome),
        unknown=by_outcome[UNKNOWN],
        kept=sum(1 for token in tally if outcome.get(token) == UNKNOWN),
    )


@dataclass
class Evidence:
    """All that the verdict rests on.

    Args:
        rates: of the faults that were asked for, per second, for so many ``seconds``.
        limit: sessions that may be there at once.
        each: of one process.
        recovered: seconds after the last fault until no question failed any more; None: never.
        good_since: when that was; whatever was asked later has to be answered.
        left: processes that outlived the end.
        permits: that could be taken at the end; None without a shared limit.
        troubles: what went wrong with the run itself.
        stood: where the threads of those stood that hung.
        close_up: of the process that had most sessions, as it had them.
    """

    diaries: Diaries
    ledger: Ledger | None
    faults: Mapping[str, int]
    rates: Mapping[str, float]
    seconds: float
    limit: int
    each: int
    timeout: float
    most: int
    lasting: int
    most_of_one: int
    recovered: float | None
    good_since: float | None
    sessions: int
    totalmax: int | None
    permits: int | None
    left: list[str]
    descriptors: int
    knows_sessions: bool = True
    troubles: list[str] = field(default_factory=list)
    stood: str = ""
    close_up: str = ""


def judge(seen: Evidence) -> tuple[list[Check], list[str]]:
    """The checks, and what a reader is to know beside them."""
    checks = [
        *_answers(seen),
        *_ledger(seen.ledger),
        *_sessions(seen),
        *_remains(seen),
    ]
    diaries = seen.diaries
    notes = [*diaries.wrong[:10], *diaries.hung[:10], *seen.left[:10], *seen.troubles[:10]]
    notes += [seen.stood] if seen.stood else []
    notes += [seen.close_up] if seen.most_of_one > seen.each else []
    if seen.ledger is not None and seen.ledger.unknown:
        kept, unknown = seen.ledger.kept, seen.ledger.unknown
        notes.append(f"Of {unknown:,} that nobody knows of, {kept:,} were committed.")
    return checks, notes


def _kind(error: str) -> str:
    return error.partition(":")[0]


def _answers(seen: Evidence) -> list[Check]:
    questions = seen.diaries.questions
    outcomes = Counter(question.outcome for question in questions)
    may_fail, may_end = bool(CAUSE_ERRORS & seen.rates.keys()), bool(CUT & seen.rates.keys())
    strange = sum(
        1 for one in questions if one.error and not EXPECTED.search(_kind(one.error))
    )
    waited = max((one.waited for one in questions), default=0.0)
    bound = seen.timeout + SLACK
    recovered = seen.recovered
    return [
        Check("questions answered", f"{outcomes[OK]:,}", "some", outcomes[OK] > 0),
        count("  wrong answers", sum(one.wrong for one in questions), 0),
        Check(
            "  refused",
            f"{outcomes[REFUSED]:,}",
            "while there are faults" if may_fail else "0",
            may_fail or not outcomes[REFUSED],
        ),
        Check(
            "  cut, nobody knows where",
            f"{outcomes[UNKNOWN]:,}",
            "by faults" if may_end else "0",
            may_end or not outcomes[UNKNOWN],
        ),
        count("  errors of no such kind", strange, 0),
        Check("  longest wait", f"{waited:.2f} s", f"at most {bound:g} s", waited <= bound),
        _longest(seen),
        Check(
            "right again after the last fault",
            "never" if recovered is None else f"{recovered:.2f} s",
            "at last",
            recovered is not None,
        ),
        count("  and failed after that", _failed_after(seen), 0),
        count("what must never be", len(seen.diaries.wrong), 0),
        count("hung workers", len(seen.diaries.hung), 0),
    ]


def _longest(seen: Evidence) -> Check:
    """From asking to the answer, which no fault here holds up for longer than it lasts.

    Or, where a thread hangs, to the last word of the others of its process.
    """
    ended = [one.ended - one.began for one in seen.diaries.questions if one.ended]
    took = max([0.0, *ended, *seen.diaries.stuck])
    bound = seen.timeout + 2 * SLACK
    return Check("  longest answer", f"{took:.2f} s", f"at most {bound:g} s", took <= bound)


def _failed_after(seen: Evidence) -> int:
    """Of those that were asked when all was right again: no fault is to blame."""
    since = float("inf") if seen.good_since is None else seen.good_since
    return sum(one.began > since and one.outcome != OK for one in seen.diaries.questions)


def _ledger(ledger: Ledger | None) -> list[Check]:
    if ledger is None:
        return []
    return [
        count("committed, and lost", ledger.lost, 0),
        count("  and doubled", ledger.doubled, 0),
        count("  and refused", ledger.ghosts, 0),
        count("  and never asked", ledger.strangers, 0),
    ]


def _sessions(seen: Evidence) -> list[Check]:
    if not seen.knows_sessions:
        return []
    most, of_one = seen.lasting, seen.most_of_one
    is_right = seen.most > 0 and most <= seen.limit
    return [
        Check("sessions at most", f"{most}", f"at most {seen.limit}", is_right),
        Check("  of one process", f"{of_one}", f"at most {seen.each}", of_one <= seen.each),
        count("  after", seen.sessions, 0),
    ]


def _remains(seen: Evidence) -> list[Check]:
    checks = []
    if seen.totalmax is not None and seen.permits is not None:
        checks += [count("permits free at the end", seen.permits, seen.totalmax)]
    checks += [
        count("processes left", len(seen.left), 0),
        count("descriptors left", seen.descriptors, 0),
        count("  more at a worker's end", max([0, *seen.diaries.grown]), 0),
        count("troubles of the run", len(seen.troubles), 0),
    ]
    for kind, rate in seen.rates.items():
        done = seen.faults.get(kind, 0)
        is_right = done > 0 or rate * seen.seconds < SURE
        checks.append(Check(f"fault: {kind}", f"{done:,}", f"{rate:g} a second", is_right))
    return checks
