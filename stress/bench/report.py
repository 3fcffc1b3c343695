"""What a measurement says, and how it is shown, kept and compared.

::

    Part  = one measurement: tables to read, figures to keep, targets to meet
    Sheet = all the parts of a run, with the versions they were measured with

Figures are flat and named, so that two runs can be compared without knowing what they mean.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number: who was measured, what, and in which unit."""

    part: str
    who: str
    what: str
    value: float
    unit: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.part, self.who, self.what


@dataclass(frozen=True)
class Target:
    """What was asked for, and what was measured; None where that could not be done."""

    part: str
    what: str
    limit: float
    measured: float | None
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """False too where nothing was measured: a target is met or it is not."""
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column is set left, the others right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def lines(self) -> list[str]:
        every = [list(self.head), *map(list, self.rows)]
        widths = [max(len(row[i]) for row in every) for i in range(len(self.head))]
        rule = ["-" * width for width in widths]
        shown = [self._line(row, widths) for row in [every[0], rule, *every[1:]]]
        return ([f"  {self.title}"] if self.title else []) + shown

    @staticmethod
    def _line(row: Sequence[str], widths: Sequence[int]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return ("  " + "  ".join(cells)).rstrip()


@dataclass
class Part:
    """One measurement's answer."""

    key: str
    title: str
    told: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(self, who: str, what: str, value: float, unit: str) -> None:
        self.figures.append(Figure(self.key, who, what, value, unit))

    def at_most(self, what: str, limit: float, measured: float | None, unit: str = "") -> None:
        self.targets.append(Target(self.key, what, limit, measured, unit))

    def at_least(self, what: str, limit: float, measured: float | None, unit: str = "") -> None:
        self.targets.append(Target(self.key, what, limit, measured, unit, at_least=True))

    def lines(self) -> list[str]:
        shown = ["", f"({self.key}) {self.title}", ""]
        shown += [f"    {line}".rstrip() for line in self.told.splitlines()]
        for table in self.tables:
            shown += ["", *table.lines()]
        if self.notes:
            shown += ["", *(f"  {note}" for note in self.notes)]
        return shown


@dataclass
class Sheet:
    """A whole run."""

    versions: Mapping[str, str]
    quick: bool
    seed: int
    parts: list[Part] = field(default_factory=list)
    suite: str = "pool"

    def as_json(self) -> dict[str, Any]:
        targets = [target for part in self.parts for target in part.targets]
        return {
            "suite": self.suite,
            "versions": dict(self.versions),
            "quick": self.quick,
            "seed": self.seed,
            "figures": [asdict(figure) for part in self.parts for figure in part.figures],
            "targets": [asdict(target) | {"met": target.met} for target in targets],
        }


def verdict(parts: Iterable[Part]) -> tuple[list[str], bool]:
    """The table of all targets, and whether every one of them is met."""
    rows = []
    targets = [target for part in parts for target in part.targets]
    for target in targets:
        sign = ">=" if target.at_least else "<="
        measured = "not measured" if target.measured is None else number(target.measured)
        rows.append(
            (
                f"({target.part}) {target.what}",
                f"{sign} {number(target.limit)}",
                measured,
                target.unit,
                "ok" if target.met else "MISSED",
            )
        )
    good = all(target.met for target in targets)
    missed = sum(not target.met for target in targets)
    said = f"all {len(targets)} met" if good else f"{missed} of {len(targets)} MISSED"
    table = Table(("target", "asked", "measured", "", "verdict"), rows)
    return ["", f"Verdict: {said}", "", *table.lines()], good


def compare(earlier: Mapping[str, Any], sheet: Sheet) -> list[str]:
    """What changed since an earlier run's JSON, for every figure that both have."""
    before = {
        (figure["part"], figure["who"], figure["what"]): float(figure["value"])
        for figure in earlier["figures"]
    }
    rows = []
    for figure in (figure for part in sheet.parts for figure in part.figures):
        then = before.get(figure.key)
        if then is None:
            continue
        change = f"{(figure.value / then - 1) * 100:+.1f} %" if then else "-"
        name = f"({figure.part}) {figure.who}: {figure.what}"
        rows.append((name, number(then), number(figure.value), figure.unit, change))
    shown = ["", "Against the earlier run", ""]
    shown += Table(("figure", "then", "now", "", "change"), rows).lines()
    for name, then in earlier["versions"].items():
        now = sheet.versions.get(name)
        if now != then:
            shown.append(f"  {name} was {then}, now {now or 'absent'}")
    if bool(earlier.get("quick")) != sheet.quick:
        shown.append("  One of the two runs was --quick: small differences say nothing.")
    return shown


def conclude(
    name: str,
    sheet: Sheet,
    left: Sequence[str] = (),
    *,
    earlier: Mapping[str, Any] | None = None,
    file: Path | None = None,
    is_judged: bool = True,
) -> int:
    """The end of a run: show what changed, keep the figures, print the verdict; the exit status.

    Args:
        name: of the command.
        left: what still runs of it, which is a failure.
        earlier: the JSON of another run.
        file: where the figures go.
    """
    if earlier is not None:
        print("\n".join(compare(earlier, sheet)))
    if file is not None:
        file.write_text(json.dumps(sheet.as_json(), indent=1) + "\n")
    if left:
        print(f"{name}: still running: {', '.join(left)}", file=sys.stderr)
        return 1
    if not is_judged:
        return 0
    lines, good = verdict(sheet.parts)
    print("\n".join(lines))
    return 0 if good else 1


def number(value: float) -> str:
    """Three or four digits that mean something."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def ratio(value: float, base: float | None) -> str:
    """How many times ``base`` it is."""
    return f"{value / base:.2f} x" if base else "-"
