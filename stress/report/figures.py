"""A trial in flat named numbers, and the file that keeps them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stress.bench.runs import percentile
from stress.report.words import errors
from stress.trial.desk import OK, REFUSED, UNKNOWN
from stress.trial.record import Record

#: The most distinct errors that a file keeps.
ERRORS = 50

Number = float | int | None


def figures(record: Record) -> dict[str, Number]:
    """All of it in numbers; seconds where a name ends in ``_s``, None where nothing was seen.

    A latency is that of an answered question, from asking to its answer; a wait ends with a
    connection, or without.
    """
    questions = record.questions
    outcomes = Counter(question.outcome for question in questions)
    answered = [one for one in questions if one.outcome == OK]
    latencies = [one.ended - one.began for one in answered if one.ended is not None]
    waits = [one.waited for one in questions if one.outcome == OK or one.waited > 0]
    asking = _asking(record)
    return {
        "seconds": record.seconds,
        "questions": len(questions),
        "answered": outcomes[OK],
        "refused": outcomes[REFUSED],
        "unknown": outcomes[UNKNOWN],
        "never_ended": sum(one.ended is None for one in questions),
        "wrong": sum(one.wrong for one in questions),
        "answered_per_second": outcomes[OK] / asking if asking > 0 else None,
        **_spread("latency", latencies),
        **_spread("wait", waits),
        "processes": len(_pids(record)),
        "looks": len(record.looks),
        "limit": record.limit,
        "sessions_most": record.sessions,
        "sessions_lasting": record.lasting,
        "reclaimed": record.reclaimed,
        "happenings": len(record.happenings),
        **_kinds(record),
        **_grown(record),
        "checks": len(record.checks),
        "checks_failed": sum(not check.right for check in record.checks),
    }


def _asking(record: Record) -> float:
    """Seconds from the first question to the last end: they go on in the calm after the faults."""
    ends = [one.ended for one in record.questions if one.ended is not None]
    return max(ends) - min(one.began for one in record.questions) if ends else 0.0


def _spread(name: str, values: Iterable[float]) -> dict[str, Number]:
    ranked = sorted(values)
    p50, p99, longest = (percentile(ranked, p) if ranked else None for p in (50, 99, 100))
    return {f"{name}_p50_s": p50, f"{name}_p99_s": p99, f"{name}_longest_s": longest}


def _pids(record: Record) -> set[int]:
    asked = {question.pid for question in record.questions}
    return asked.union(*(look.sessions for look in record.looks)) - {0}


def _kinds(record: Record) -> dict[str, Number]:
    kinds = Counter(happening.kind for happening in record.happenings)
    return {f"happenings_{kind.replace(' ', '_')}": n for kind, n in sorted(kinds.items())}


def _grown(record: Record) -> dict[str, Number]:
    """The most of any one process at one moment."""
    if not record.health:
        return {}
    return {
        "memory_most_bytes": max(one.memory for one in record.health),
        "descriptors_most": max(one.descriptors for one in record.health),
        "threads_most": max(one.threads for one in record.health),
    }


def save(records: Sequence[Record], file: Path) -> None:
    """Write down all trials: checks, seed, settings, versions, what happened, and the figures.

    Raises:
        OSError: it cannot be written.
    """
    trials = [_trial(record) for record in records]
    whole = {"good": all(record.good for record in records), "trials": trials}
    file.write_text(json.dumps(whole, indent=1, default=str) + "\n", encoding="utf-8")


def _trial(record: Record) -> dict[str, Any]:
    told = [{"error": text, "count": n} for text, n in errors(record.questions)[:ERRORS]]
    return {**record.as_json(), "figures": figures(record), "errors": told}
