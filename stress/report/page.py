"""One HTML page of all trials of a command: nothing outside of it is needed to show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from stress.report import words
from stress.report.charts import Chart, charts
from stress.report.figures import Number
from stress.report.flow import FAILED
from stress.report.seen import Seen
from stress.report.svg import named
from stress.trial.record import Record

STYLE = Path(__file__).with_name("page.css")
#: Happenings and distinct errors that are listed one by one.
LISTED = 200
#: How a trial or a page may stand, the worst first, in a headline and in a word.
STATES = {
    "bad": ("Not right.", "wrong"),
    "unsure": ("Not checked.", "not checked"),
    "good": ("All right.", "ok"),
}


def write(records: Sequence[Record], folder: Path, command: str = "") -> Path:
    """Draw all trials, and write ``index.html``.

    Args:
        folder: is made if it is not there.
        command: that was run; each trial says how to repeat it by itself.

    Raises:
        ValueError: there is no record.
        OSError: it cannot be written.
    """
    if not records:
        raise ValueError("records is empty: at least one trial is needed for a page")
    trials = [Seen(record, f"t{n}", _title(record, records)) for n, record in enumerate(records)]
    parts = ["<main>", *_top(records, command)]
    if len(trials) > 1:
        parts += _overview(trials)
    for seen in trials:
        parts += _trial(seen)
    body, rules = named("\n".join([*parts, "</main>"]))
    text = "\n".join([_head(records, rules), body, "</body>", "</html>", ""])
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(text, encoding="utf-8", errors="backslashreplace")
    return page


def _head(records: Sequence[Record], rules: str) -> str:
    title = escape(f"{records[0].contender} under stress: {words.listed(_names(records))}")
    safe = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{safe}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}{rules}</style>\n"
        "</head>\n<body>"
    )


def _state(record: Record) -> str:
    """By its name in ``STATES``: where nothing was checked, nothing is right."""
    if not record.checks:
        return "unsure"
    return "good" if record.good else "bad"


def _title(record: Record, records: Sequence[Record]) -> str:
    """What it is called among them: with its driver, if they have several."""
    driver = record.settings.get("dialect")
    several = len({one.settings.get("dialect") for one in records}) > 1
    return f"{record.name}, {driver}" if several and driver else record.name


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.scenario for record in records))


def _top(records: Sequence[Record], command: str) -> Iterator[str]:
    """What was tried, and whether it is good."""
    first = records[0]
    name = next(one for one in STATES if one in {_state(record) for record in records})
    yield f'<header class="{name}">'
    yield f'<p class="over">{escape(first.contender)} under stress</p>'
    yield f"<h1>{STATES[name][0]}</h1>"
    yield f'<p class="lead">{escape(_lead(records))}</p>'
    if name == "bad":
        yield "<ul>" + "".join(f"<li>{one}</li>" for one in _wrong(records)) + "</ul>"
    if command:
        yield _again(command)
    told = {what: version for record in records for what, version in record.versions.items()}
    seeds = {record.seed for record in records}
    yield _pairs("facts", told | {"seed": first.seed if len(seeds) == 1 else "one for each"})
    yield "</header>"


def _again(command: str) -> str:
    return f'<p class="again">Again: <code>{escape(command)}</code></p>'


def _lead(records: Sequence[Record]) -> str:
    checks = sum(len(record.checks) for record in records)
    failed = sum(not check.right for record in records for check in record.checks)
    seconds = sum(record.seconds for record in records)
    held = f"All {checks} checks hold" if not failed else f"{failed} of {checks} checks failed"
    return (
        f"{held}: {words.several(len(records), 'trial')} of {words.listed(_names(records))},"
        f" {words.span(seconds)}, {words.several(_count(records), 'question')} and"
        f" {words.several(sum(len(one.happenings) for one in records), 'happening')}."
    )


def _count(records: Sequence[Record]) -> int:
    return sum(len(record.questions) for record in records)


def _wrong(records: Sequence[Record]) -> Iterator[str]:
    for number, record in enumerate(records):
        title = _title(record, records)
        for check in record.checks:
            if not check.right:
                text = f"{check.what.strip()}: {check.seen}, must be {check.wanted}"
                yield f'<a href="#t{number}">{escape(title)}</a> {escape(text)}'


def _pairs(name: str, pairs: Mapping[str, Any]) -> str:
    items = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(_said(value))}</dd></div>"
        for key, value in pairs.items()
    )
    return f'<dl class="{name}">{items}</dl>'


def _said(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _overview(trials: Sequence[Seen]) -> Iterator[str]:
    yield "<section><h2>All trials</h2>"
    head = ("trial", "verdict", "answered", "per second", "99 % within", "longest wait", "sessions",
            "limit", "happenings")
    rows = []
    for seen in trials:
        record, known = seen.record, seen.figures
        name = f'<a href="#{seen.name}">{escape(seen.title)}</a>'
        cells = [_count_of(known["answered"]), _count_of(known["answered_per_second"])]
        cells += [_span_of(known["latency_p99_s"]), _span_of(known["wait_longest_s"])]
        cells += [_count_of(known[key]) for key in ("sessions_lasting", "limit", "happenings")]
        rows.append([name, _mark(_state(record)), *cells])
    yield _table("overview", head, rows)
    yield "</section>"


def _count_of(value: Number) -> str:
    return "none" if value is None else f"{value:,.0f}"


def _span_of(value: Number) -> str:
    return "none" if value is None else words.span(value)


def _mark(state: str) -> str:
    return f'<b class="{state}">{STATES[state][1]}</b>'


def _table(name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """``rows``: of HTML."""
    top = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="wide"><table class="{name}"><thead><tr>{top}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _trial(seen: Seen) -> Iterator[str]:
    record = seen.record
    yield f'<section class="trial" id="{seen.name}">'
    yield f'<h2>{escape(seen.title)} <small>{_mark(_state(record))}</small></h2>'
    yield _again(words.command(record))
    yield _tiles(seen)
    rows = [
        [*map(escape, (one.what, one.seen, one.wanted)), _mark("good" if one.right else "bad")]
        for one in record.checks
    ]
    if rows:
        yield _table("checks", ("verdict", "seen", "must be", ""), rows)
    for note in record.notes:
        yield f'<p class="note">{escape(note)}</p>'
    for chart in charts(seen):
        yield from _chart(seen, chart)
    yield from _errors(record)
    yield from _happenings(record)
    yield f"<details><summary>Settings</summary>{_pairs('settings', record.settings)}</details>"
    yield "</section>"


def _tiles(seen: Seen) -> str:
    record, known = seen.record, seen.figures
    limit = "" if record.limit is None else f" of {record.limit}"
    tiles = {
        "answered": _count_of(known["answered"]),
        "per second": _count_of(known["answered_per_second"]),
        "half within": _span_of(known["latency_p50_s"]),
        "99 % within": _span_of(known["latency_p99_s"]),
        "longest wait": _span_of(known["wait_longest_s"]),
        "lasting sessions": f"{record.lasting}{limit}",
        "processes": _count_of(known["processes"]),
        "happenings": _count_of(known["happenings"]),
    }
    if record.reclaimed is not None:
        tiles["permits reclaimed"] = f"{record.reclaimed:,}"
    return _pairs("tiles", tiles)


def _chart(seen: Seen, chart: Chart) -> Iterator[str]:
    yield f'<figure class="{chart.key}"><h3>{escape(chart.title)}</h3>'
    yield _legend(seen, chart.key)
    yield chart.svg
    yield f"<figcaption>{escape(chart.told)}</figcaption></figure>"


def _legend(seen: Seen, key: str) -> str:
    """What marks and lines mean."""
    if key == "faults":
        items = [
            f'<li title="{escape(mark.told)}"><i style="color:var(--{mark.colour})">{mark.glyph}'
            f"</i> {escape(mark.kind)} <b>{len(mark.times):,}</b> <span>{escape(mark.told)}</span>"
            for mark in seen.marks
        ]
    elif key == "latency":
        lines = (("ink", "half within"), ("mid", "99 % within"), ("high", "longest"))
        items = [f'<li><i class="line" style="background:var(--{c})"></i> {t}' for c, t in lines]
        failed = {kind for kind, _ in seen.failed}
        items += [
            f'<li><i style="color:var(--{colour})">{glyph}</i> {kind}'
            for kind, _, glyph, colour in FAILED
            if kind in failed
        ]
    else:
        return ""
    return f'<ul class="legend">{"".join(items)}</ul>'


def _errors(record: Record) -> Iterator[str]:
    found = words.errors(record.questions)
    if found:
        yield f"<details><summary>{words.several(len(found), 'distinct error')}</summary>"
        rows = [[f"{count:,}", f"<code>{escape(text)}</code>"] for text, count in found[:LISTED]]
        yield _table("errors", ("times", "error"), rows)
        yield "</details>"


def _happenings(record: Record) -> Iterator[str]:
    found = sorted(record.happenings, key=lambda one: one.at)
    if found:
        shown = f", the first {LISTED}" if len(found) > LISTED else ""
        yield f"<details><summary>{words.several(len(found), 'happening')}{shown}</summary>"
        rows = [
            [f"{one.at:.2f} s", escape(one.kind), escape(one.detail)] for one in found[:LISTED]
        ]
        yield _table("happenings", ("at", "what", "to whom"), rows)
        yield "</details>"
