"""The right to connect, as a pool asks for it; and the answer where there is no ``totalmax``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nimue import sweep
from nimue.error import NimueInvalidParameterValue
from nimue.settings import check_totalmax, refuse

if TYPE_CHECKING:
    from nimue.semaphore import Demand, News, Permit
    from nimue.state import State
    from nimue.work import Work

#: Whether a connection is in a transaction; see ``Driver.in_transaction``.
AtRest = Callable[[Any], bool | None]


class Unlimited:
    """No ``totalmax``: every permit is granted, and there is nobody else."""

    __slots__ = ()

    @property
    def is_shared(self) -> bool:
        """Whether there are others; asks no file, and cannot fail."""
        return False

    @property
    def reach(self) -> str:
        """Over which processes it is, in words."""
        return "processes"

    @property
    def is_inside(self) -> bool:
        """Whether the running thread is in the middle of a permit's coming or going."""
        return False

    @property
    def totalmax(self) -> int | None:
        """Permits at most, over all processes."""
        return None

    def resize(self, totalmax: int) -> None:
        """Let this be the limit, for all."""
        check_totalmax(totalmax)
        raise NimueInvalidParameterValue(
            f"totalmax={totalmax!r} cannot be set: the pool was made without one, and other "
            "processes know nothing of it"
        )

    def __reduce__(self) -> str | tuple[Any, ...]:
        return "UNLIMITED"

    def take(self, state: State, patient: bool) -> Permit | None:
        """A permit for one connection. None if there is none, or when nobody waits any more."""
        return self

    def turn(self, state: State, patient: bool) -> Permit | None:
        """A turn to connect; to be given back when connected. None as for ``take``."""
        return self

    def give_back(self) -> None:
        """As a permit: there is nothing to give back."""

    def demand(self, state: State) -> Demand | None:
        """What others want of that pool; None if nothing."""
        return None

    def join(self, state: State) -> None:
        """There is a pool under this limit."""

    def part(self, state: State) -> None:
        """A child has no more to do with that pool of its parent's."""

    def unless_wanted(self, state: State, at_rest: AtRest) -> AtRest:
        """What a release asks before it takes the short way; None if others want what comes."""
        return at_rest

    def tell(self, state: State) -> None:
        """A pool has changed: let the others see at once whether there is something to be had."""

    def stand_back(self) -> None:
        """What this process gives up now is for others, though its own threads wait."""

    def rest(self, state: State) -> None:
        """That pool has gone dormant, before a fork: it has nothing, and hears nothing."""

    def ear(self) -> int | None:
        """The descriptor by which others wake the monitor, if they can."""
        return None

    def look_after(self, state: State, now: float) -> tuple[list[Work], float]:
        """What others want and tell; returns what is to be done, and when to look again."""
        return [], now + sweep.LEISURE

    def news(self) -> News | None:
        """The numbers that change when something concerns all."""
        return None

    def renew(self) -> int:
        """Have all pools of all processes replace their connections; the renewal's number."""
        raise refuse("everywhere", True, "False: without totalmax, this process knows no other")

    def alarm(self) -> None:
        """A connection was found broken: have all processes check theirs."""

    def refused(self, state: State) -> None:
        """The server had no room: ask another pool or process for a connection."""

    def told(self) -> str:
        """For an error: who has the permits."""
        return ""

    def leave(self, state: State) -> None:
        """If that pool is closed and empty, this process may have no more to do with the limit."""


#: All that a pool without ``totalmax`` ever needs, in any process.
UNLIMITED = Unlimited()


def limit_for(name: str | None, totalmax: int | None, turns: int | None) -> Unlimited:
    """What a new pool asks; see ``totalmax.join`` for what it raises."""
    if totalmax is not None:
        from nimue import totalmax as shared

        return shared.join(name, totalmax)
    if turns is not None:
        raise refuse("max_connecting_total", turns, "None without totalmax")
    return UNLIMITED
