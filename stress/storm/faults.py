"""What befalls the workers of a storm, drawn from a seed alone: whom, what, and after how long."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

#: How often a worker is stopped rather than killed, and the longest that it is.
SPELLS = 0.15
SPELL = 0.5


class Fault(NamedTuple):
    """After ``pause`` seconds, kill the worker in ``place``; or stop it, for ``spell`` seconds."""

    pause: float
    place: int
    spell: float | None


def faults(seed: int, places: int, kills: int, pace: float) -> Iterator[Fault]:
    """Faults until there were so many kills; ``pace``: seconds between two, on average."""
    dice = random.Random(f"faults {seed}")
    while kills:
        is_spell = dice.random() < SPELLS
        spell = dice.uniform(0.01, SPELL) if is_spell else None
        yield Fault(dice.uniform(0, 2 * pace), dice.randrange(places), spell)
        kills -= not is_spell
