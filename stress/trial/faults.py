"""What befalls the processes and the server: which kinds, how often, and when, from a seed."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from stress.trial import tickets

#: What is done to the processes from outside, to the server, and on the way between them.
OUTSIDE: Mapping[str, str] = {
    "kill": "SIGKILL to a worker",
    "stop": "SIGSTOP to a worker, SIGCONT up to half a second later",
}
SERVER: Mapping[str, str] = {
    "terminate": "the server ends a session",
    "restart": "the server goes down, and comes up again",
    "full": "other clients take all connections that the server has, for a while",
}
WAY: Mapping[str, str] = {
    "stall": "nothing moves between processes and server, for a while",
    "cut": "all connections are reset",
    "slow": "every packet takes longer, for a while",
    "refuse": "new connections are refused, for a while",
}
#: Every kind, with what it is.
KINDS: Mapping[str, str] = {**OUTSIDE, **tickets.KINDS, **SERVER, **WAY}
#: After which a question may fail, or never be answered.
CAUSE_ERRORS = frozenset({"kill", "stop", "interrupt", *SERVER, *WAY})
#: Seconds for which one lasts that lasts a while, at least and at most.
WHILE = (0.05, 0.5)
#: The most of a kind in a second.
MOST = 50.0


class Fault(NamedTuple):
    """At so many seconds since the begin, this, for so long where it lasts."""

    at: float
    kind: str
    lasts: float


def parse(texts: Sequence[str], possible: frozenset[str] | None = None) -> dict[str, float]:
    """``kill=0.5`` means one every two seconds, ``kill`` one a second, ``all=1`` all of them.

    What comes later counts: ``kill=0`` after ``all=1`` takes one out again.

    Raises:
        argparse.ArgumentTypeError: that names no fault, or no rate.
    """
    rates: dict[str, float] = {}
    for text in texts:
        kind, _, rate = text.partition("=")
        if kind != "all" and kind not in KINDS:
            raise argparse.ArgumentTypeError(
                f"no fault {kind!r}; there is all, {', '.join(KINDS)}"
            )
        value = _rate(kind, rate or "1")
        every = sorted(KINDS if possible is None else possible)
        rates |= dict.fromkeys(every if kind == "all" else [kind], value)
    return {kind: rate for kind, rate in rates.items() if rate}


def _rate(kind: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= MOST:
        raise argparse.ArgumentTypeError(
            f"{kind}={text}: a rate is a number per second, from 0 to {MOST:g}"
        )
    return rate


def schedule(rates: Mapping[str, float], seconds: float, seed: int) -> Iterator[Fault]:
    """All faults in order of time. Each kind comes at random times, at its rate on average."""
    found: list[Fault] = []
    for kind, rate in rates.items():
        dice = random.Random(f"{seed} {kind}")
        at = dice.expovariate(rate)
        while at < seconds:
            found.append(Fault(at, kind, dice.uniform(*WHILE)))
            at += dice.expovariate(rate)
    yield from sorted(found)
