"""How each kind of fault is marked: a shape and a colour of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from stress.trial.faults import KINDS
from stress.trial.record import Happening

#: matplotlib's name of a shape, and the same shape as a character.
SHAPES = (
    *(("v", "▼"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("o", "●"), ("P", "✚"), ("X", "✖")),
    *(("*", "★"), ("<", "◀"), (">", "▶"), ("p", "⬟"), ("h", "⬢"), ("d", "♦"), ("H", "⬣")),
)
#: How many colours of marks the page's style has, ``--k0`` and so on.
COLOURS = 7
#: Kinds that are rarer than this are drawn across every plot.
RARE = 20
#: And so are all of them while there are no more than this in all.
FEW = 60


@dataclass(frozen=True)
class Mark:
    """How the happenings of one kind are drawn.

    Args:
        told: what the kind is.
        rare: a line through every plot does no harm.
    """

    kind: str
    shape: str
    glyph: str
    colour: str
    told: str
    times: tuple[float, ...]
    rare: bool


def marks(happenings: Iterable[Happening]) -> list[Mark]:
    """A mark for every kind that occurs, in the order in which the harness lists them."""
    known = list(happenings)
    counts = Counter(one.kind for one in known)
    kinds = [kind for kind in KINDS if kind in counts]
    kinds += sorted(set(counts) - set(kinds))
    return [_mark(n, kind, known, counts) for n, kind in enumerate(kinds)]


def _mark(number: int, kind: str, known: list[Happening], counts: Counter[str]) -> Mark:
    shape, glyph = SHAPES[number % len(SHAPES)]
    times = tuple(sorted(one.at for one in known if one.kind == kind))
    told = KINDS.get(kind) or next(one.detail for one in known if one.kind == kind)
    rare = counts.total() <= FEW or counts[kind] < RARE
    return Mark(kind, shape, glyph, f"k{number % COLOURS}", told, times, rare)
