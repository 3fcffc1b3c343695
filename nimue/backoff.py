"""How long to leave a server alone that refuses connections."""

from __future__ import annotations

import os

#: After the n-th failure in a row the next attempt waits up to FIRST_DELAY * 2**n seconds, at most
#: LONGEST_DELAY, evenly spread ("full jitter", so that processes do not retry together).
FIRST_DELAY = 0.05
LONGEST_DELAY = 1.0


def chance() -> float:
    """Evenly spread from 0 to 1. Children that C code forks would share a generator's state."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


class Backoff:
    """The failures in a row, the time of the next attempt, and the last error.

    One success forgets all of it.
    """

    __slots__ = ("failures", "last_error", "retry_at")

    def __init__(self) -> None:
        self.succeeded()

    def succeeded(self) -> None:
        self.failures = 0
        self.retry_at = 0.0
        self.last_error: BaseException | None = None

    def failed(self, error: BaseException, now: float) -> None:
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.failures, 30))
        self.retry_at = now + delay * chance()
        self.failures += 1
        self.last_error = error
