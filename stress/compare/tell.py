"""The tables, and what is asked of nimue's own rows. Nothing is asked of a peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from stress.bench.report import Part, Table
from stress.bench.runs import percentile
from stress.compare import down, prefork
from stress.compare.entrants import BY_NAME
from stress.trial.oracle import LASTING

#: How many kinds of error are told of each, in the one part and in the other.
KINDS, KINDS_DOWN = 4, 2
_PREFORK = """\
A parent makes the pool, asks one question, and forks {processes} workers of {threads} threads,
which ask without a pause: take a connection, have it echo a token, write that down, hold it for up
to 2 ms, commit, give it back. Meanwhile workers are killed ({kill:g} a second) and replaced, the
server ends sessions ({terminate:g}), and workers fork in the middle of a question ({fork:g}); the
child asks too, or not, and ends in some way, also by sys.exit() through what its parent was at.
In a process each pool has at most {poolmax} connections, {poolmin} at rest, and {timeout:g} s to
wait for one; nimue-totalmax has {totalmax} for all processes. No pool is asked for its figures.
  wrong      got another's answer            ledger   what was answered, and is not in the ledger so
  errors     questions that failed           hung     processes that had to be put down at the end
  no answer  questions without an end        shared   sessions that two processes used in turn
  sessions   the most at one look            lasting  of them, seen {lasting:g} s later too
  left       when no process was left        p50 ...  from asking to the answer, of errors too
A session that the server ends costs the question on it: so many errors are as they should be.
The fork of a pool that was used is not what all peers are made for. SQLAlchemy's documentation
names four ways to share an Engine with children, and recommends dispose(close=False) in each, which
is tried too; it excludes that they use a connection which is out, as their parent's is here in the
middle of a question. Those of psycopg and psycopg2 ask for connections that are made after the
fork, so for pools of the child's own; those of DBUtils and of nimue 0.0.3 do not speak of it."""
_DOWN = """\
One question each {period:g} s, {timeout:g} s to wait for a connection, and a connect_timeout of
{connect:g} s. The server is away for {down:g} s, and watched for {after:g} s more. A query that is
under way is bounded by the server alone.
  calls      begun while it was away         longest  that one of them took
  no answer  of them, to the end             again    from its return to the first good answer
  failed     begun after its return          {scaled}"""
#: Seconds that a call may take beyond the pool's timeout.
SLACK = 1.0


def prefork_part(load: prefork.Load, found: Mapping[str, prefork.Outcome]) -> Part:
    """One table, and the verdict on nimue."""
    told = _PREFORK.format(**vars(load), **prefork.RATES, lasting=LASTING)
    part = Part("prefork", "workers forked from a parent that has made the pool and used it", told)
    head = (
        *("pool", "wrong", "ledger", "errors", "hung", "no answer", "shared"),
        *("sessions", "lasting", "left", "per s", "p50 ms", "p99 ms", "longest s"),
    )
    rows = []
    for name, outcome in found.items():
        if outcome.failed:
            part.notes.append(f"{name}: {outcome.failed}")
        figures = _figures(outcome)
        for what, value in figures.items():
            part.figure(name, what, value, "")
        rows.append((name, *(f"{figures[what]:{_form(what)}}" for what in head[1:])))
        if BY_NAME[name].is_ours:
            _ask(part, name, load, outcome, figures)
    part.tables.append(Table(head, rows))
    kinds = list(prefork.RATES)
    done = [(name, *(str(one.done[kind]) for kind in kinds)) for name, one in found.items()]
    part.tables.append(Table(("done to", *kinds), done))
    part.notes += _kinds({name: outcome.errors for name, outcome in found.items()}, KINDS)
    return part


def _form(what: str) -> str:
    return {"p50 ms": ",.1f", "p99 ms": ",.1f", "longest s": ".2f"}.get(what, ",.0f")


def _figures(outcome: prefork.Outcome) -> dict[str, float]:
    latencies = outcome.latencies or [0.0]
    return {
        "wrong": outcome.wrong,
        "ledger": len(outcome.belied),
        "errors": sum(outcome.errors.values()),
        "hung": outcome.hung,
        "no answer": outcome.unanswered,
        "shared": outcome.shared,
        "sessions": outcome.most,
        "lasting": outcome.lasting,
        "lasting each": outcome.lasting_each,
        "left": outcome.left,
        "per s": outcome.answered / outcome.seconds if outcome.seconds else 0.0,
        "p50 ms": percentile(latencies, 50) * 1e3,
        "p99 ms": percentile(latencies, 99) * 1e3,
        "longest s": max(latencies),
    }


def _ask(
    part: Part,
    name: str,
    load: prefork.Load,
    outcome: prefork.Outcome,
    figures: Mapping[str, float],
) -> None:
    def measured(what: str) -> float | None:
        return None if outcome.failed else figures[what]

    for what in ("wrong", "ledger", "hung", "no answer", "shared", "left"):
        part.at_most(f"{name}: {what}", 0, measured(what))
    ended = outcome.done["terminate"]
    part.at_most(f"{name}: errors, to sessions that the server ended", ended, measured("errors"))
    if BY_NAME[name].shares:
        part.at_most(f"{name}: lasting sessions", load.totalmax, measured("lasting"))
    else:
        what = f"{name}: lasting sessions of one process"
        part.at_most(what, load.poolmax, measured("lasting each"))
    part.at_least(f"{name}: answers", load.processes, None if outcome.failed else outcome.answered)


def down_part(
    pace: down.Pace, found: Mapping[str, Mapping[str, down.Outcome]], scale: float, connect: float
) -> Part:
    """A table for each way of going, and the verdict on nimue. ``connect``: connect_timeout."""
    scaled = "" if scale == 1 else f"(times are {scale:g} of HikariCP's)"
    told = _DOWN.format(**vars(pace), scaled=scaled, connect=connect)
    part = Part("down", "a server that goes away and comes back", told)
    head = ("pool", "calls", "longest s", "no answer", "again s", "failed")
    bound = pace.period + pace.timeout + connect
    for way, outcomes in found.items():
        rows = []
        for name, one in outcomes.items():
            rows.append(_row(name, one))
            _figure_down(part, f"{way}: ", name, one)
            if one.broken:
                part.notes.append(f"{way}, {name}: {one.broken}")
            if BY_NAME[name].is_ours:
                again = None if one.broken else one.again
                part.at_most(f"{name}, {way}: answers again after", bound, again, "s")
                # At a quicker pace a connection is handed out that was used a moment ago, without
                # a check: then the driver alone can end the wait.
                if way == "cut" or scale == 1:
                    longest = pace.timeout + SLACK
                    took = one.longest if one.calls else None
                    part.at_most(f"{name}, {way}: longest call", longest, took, "s")
        part.tables.append(Table(head, rows, f"{way}: {down.WAYS[way]}"))
        errors = {f"{way}, {name}": one.errors for name, one in outcomes.items()}
        part.notes += _kinds(errors, KINDS_DOWN)
    return part


def _row(name: str, one: down.Outcome) -> tuple[str, ...]:
    longest = f"{'> ' if one.unanswered else ''}{one.longest:.2f}"
    again = "never" if one.again is None else f"{one.again:.2f}"
    return name, str(one.calls), longest, str(one.unanswered), again, str(one.failed)


def _figure_down(part: Part, way: str, name: str, one: down.Outcome) -> None:
    part.figure(name, way + "calls", one.calls, "")
    part.figure(name, way + "longest", one.longest, "s")
    part.figure(name, way + "no answer", one.unanswered, "")
    part.figure(name, way + "failed", one.failed, "")
    if one.again is not None:
        part.figure(name, way + "again", one.again, "s")


def _kinds(errors: Mapping[str, Counter[str]], most: int) -> list[str]:
    told = []
    for name, kinds in errors.items():
        told += [f"{name}: {count} x {kind}" for kind, count in kinds.most_common(most)]
        if len(kinds) > most:
            told.append(f"{name}: and {len(kinds) - most} more")
    return told
