"""``totalmax``: how many connections all processes may have, and what they tell each other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from nimue import ending, fork, opener, report, sharing, sweep
from nimue.backoff import chance
from nimue.error import NimueSemaphoreError
from nimue.limit import UNLIMITED, AtRest, Unlimited
from nimue.settings import check_totalmax

if TYPE_CHECKING:
    from nimue.semaphore import Demand, News, Permit, SharedSemaphore
    from nimue.state import State
    from nimue.work import Work

logger = logging.getLogger("nimue")


#: Seconds between two looks at what the others want and tell, while this process has connections.
TICK = 0.5

#: Seconds after which a connection is opened although no turn to connect has come: the turns tame
#: a rush, and limit nothing.
TURN_PATIENCE = 1.0


class SharedLimit(Unlimited):
    """One semaphore, as the pools of this process that share it see it.

    A forked child goes on with the same object: the semaphore answers for the process that asks.
    None of this is called under a pool's lock. What goes wrong with the semaphore's files is told
    to who wants a connection, and to nobody else.
    """

    __slots__ = (
        "__weakref__",
        "_failure",
        "_family",
        "_has",
        "_known",
        "_publish_at",
        "_wishes",
        "semaphore",
    )

    def __init__(self, semaphore: SharedSemaphore) -> None:
        self.semaphore, self._family = semaphore, semaphore.family
        #: In which process it was told last whether there are connections, and what. Whether any
        #: of them is idle changes too often; who is asked for one and has none has lost little.
        self._has = (0, False)
        #: Connections that others have asked for, and that were not found yet.
        self._wishes = 0
        self._failure = ""
        self._publish_at = 0.0
        #: The pools that share it here; in a child that is not settled, its parent's.
        self._known: WeakSet[State] = WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return _shared, (self.semaphore,)

    @property
    def is_shared(self) -> bool:
        return True

    @property
    def reach(self) -> str:
        if self.semaphore.is_private:
            return "this process and its children (it has no name)"
        return "processes"

    @property
    def is_inside(self) -> bool:
        return self.semaphore.is_inside

    @property
    def totalmax(self) -> int:
        return self.semaphore.limit

    def resize(self, totalmax: int) -> None:
        check_totalmax(totalmax)
        self.semaphore.resize(totalmax)

    def take(self, state: State, patient: bool) -> Permit | None:
        permit = self.semaphore.try_acquire()
        if permit is not None or not patient:
            return permit
        self._shed_beside(state, opener.run)
        permit = self.semaphore.take(None, lambda: not _has_use(state))
        if permit is not None and not _has_use(state):
            permit.give_back()
            return None
        return permit

    def turn(self, state: State, patient: bool) -> Permit | None:
        limit = state.settings.max_connecting_total
        if limit is None:
            return UNLIMITED
        deadline = monotonic() + TURN_PATIENCE
        while (turn := self._family.try_connecting(limit)) is None:
            if state.makes_way or (patient and not _has_use(state)):
                return None
            if monotonic() >= deadline or fork.is_near():
                return UNLIMITED
            sleep(0.002 + 0.006 * chance())
        return turn

    def unless_wanted(self, state: State, at_rest: AtRest) -> AtRest:
        def ask(raw: Any) -> bool | None:
            if not fork.door[0]:  # since a fork: what comes back may be asked for
                state.wake()
            return None if self._is_wanted(state) else at_rest(raw)

        return ask

    def _is_wanted(self, state: State) -> bool:
        """Whether others seem to want this pool's connections, as far as it has not said no."""
        semaphore = self.semaphore
        waiting = semaphore.who_waits()
        if waiting is None:
            return semaphore.excess > 0 or (len(self._known) > 1 and semaphore.waits_here)
        kept_from, until = state.kept
        return waiting != kept_from or not state.waiters or monotonic() >= until

    def demand(self, state: State) -> Demand | None:
        demand = None
        try:
            waiting = self.semaphore.who_waits()
            if waiting is not None or self.semaphore.excess:
                state.kept = (waiting, 0.0)
                demand = self._family.demand()
        except (NimueSemaphoreError, OSError) as error:
            self._note(error)
        if len(self._known) > 1 and self.semaphore.waits_here:
            return self._demand_here(state, demand)
        return demand

    def _demand_here(self, state: State, demand: Demand | None) -> Demand | None:
        """With what other pools of this process want, that share the limit."""
        waiting = [other for other in self._others(state) if other.waiters and other.connecting]
        if not waiting:
            return demand
        least = min(len(other.entries) - len(other.connecting) for other in waiting)
        here = sharing.demand_of(len(waiting), self.totalmax, least)
        return here if demand is None else sharing.both(here, demand)

    def join(self, state: State) -> None:
        with fork.registry_lock():
            self._known.add(state)

    def part(self, state: State) -> None:
        with fork.registry_lock():
            self._known.discard(state)

    def tell(self, state: State) -> None:
        try:
            has = bool(state.entries)
            if len(self._known) > 1:
                # No generator: one that an interrupt cuts short is complained of.
                has = any([each.entries for each in self._pools(state)])  # noqa: C419
            if self._has != (state.pid, has) and not state.is_shut:  # else it may have left already
                self._family.has_idle(has)
                self._has = (state.pid, has)
                state.post(None)  # the monitor sleeps longer where there is nothing
            if state.connecting and not state.waiters:
                self.semaphore.nudge()
        except (NimueSemaphoreError, OSError) as error:
            self._note(error)

    def stand_back(self) -> None:
        if len(self._known) == 1:  # else it may be for another pool of this process
            self._attempt(self.semaphore.stand_back)

    def rest(self, state: State) -> None:
        pools = self._pools(state)
        if not any(each.entries for each in pools):
            self._family.rest(report.figures(pools, monotonic()))
            self._has = (state.pid, False)

    def ear(self) -> int | None:
        try:
            return self._family.listen()
        except (NimueSemaphoreError, OSError) as error:
            self._note(error)
        return None

    def look_after(self, state: State, now: float) -> tuple[list[Work], float]:
        works: list[Work] = []
        look_at = now + (TICK if state.entries or state.waiters else sweep.LEISURE)
        try:  # whatever goes wrong, the works that were decided upon are to be done
            self._wishes += self._family.heard()
            self._heed(state, works)
            if self._serve(state, works, now):
                look_at = now + sharing.LINGER
            self.tell(state)
            if now >= self._publish_at or look_at > now + TICK:
                self.publish(state, now)
        except Exception as error:
            self._note(error)
        return works, look_at

    def _serve(self, state: State, works: list[Work], now: float) -> bool:
        """Give up what others want; True if there may soon be more to give."""
        demand = self.demand(state)
        if demand is None:
            self._wishes = 0
        elif state.idle:
            # Once a tick without having been asked: the word may be lost.
            is_time = now >= state.next_tick
            state.next_tick = now + TICK / 2
            own = max(sharing.has_lingered(state, now, TICK), int(is_time))
            given = sharing.shed(state, min(max(self._wishes, own), demand.wanted))
            self._wishes = max(0, self._wishes - len(given))
            works += given
            return sharing.lingers(state, now)
        return False

    def publish(self, state: State, now: float) -> None:
        """Show what this process does.

        Raises:
            NimueSemaphoreError: the files have gone.
        """
        self._publish_at = now + TICK / 2
        self._family.publish(report.figures(self._pools(state), now))

    def _heed(self, state: State, works: list[Work]) -> None:
        """Act upon what concerns all."""
        heeded, state.heeded = state.heeded, self.news()
        if heeded is None or state.heeded is None:
            return
        if heeded.generation != state.heeded.generation:
            works += ending.renew(state, state.heeded.generation)
        if heeded.alarms != state.heeded.alarms:
            works += sweep.suspect(state)
        if heeded.refusals != state.heeded.refusals and self._wishes:
            spare = sharing.shed(state, 1)
            works += spare
            if not spare:
                self._shed_beside(state, opener.start)

    def _shed_beside(self, state: State, do: Callable[[State, list[Work]], None]) -> bool:
        """Have an idle connection of another pool of this process closed, if one has any."""
        for other in self._others(state):
            if works := sharing.shed(other, 1):
                do(other, works)
                return True
        return False

    def news(self) -> News | None:
        try:
            return self._family.news
        except (NimueSemaphoreError, OSError):  # not for who unpickles a pool: the next use says it
            return None

    def renew(self) -> int:
        return self._family.renew()

    def alarm(self) -> None:
        self._attempt(self._family.alarm)

    def refused(self, state: State) -> None:
        if not self._shed_beside(state, opener.run):
            self._attempt(self._family.refused)

    def told(self) -> str:
        try:
            return (
                f"; totalmax of all processes, {self.semaphore.name!r}: {self.semaphore.snapshot()}"
            )
        except (NimueSemaphoreError, OSError) as error:
            return f"; totalmax of all processes cannot be read: {error}"

    def leave(self, state: State) -> None:
        if state.entries or not state.is_shut:
            return
        if not all(other.is_shut and not other.entries for other in self._others(state)):
            return
        self._has = (0, False)
        self._attempt(self.semaphore.close)

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except (NimueSemaphoreError, OSError) as error:
            self._note(error)

    def _others(self, state: State) -> list[State]:
        return [each for each in self._pools(state) if each is not state]

    def _pools(self, state: State) -> list[State]:
        """The pools of this process that share the limit, ``state`` among them."""
        with fork.registry_lock():
            known = list(self._known)
        return [each for each in known if each.pid == state.pid]

    def _note(self, error: Exception) -> None:
        """Say it once, and not when the files were closed with the last pool."""
        with fork.registry_lock():
            is_over = all(state.is_shut for state in self._known)
        if str(error) != self._failure and not is_over:
            self._failure = str(error)
            logger.warning("the limit of all processes cannot be kept up with: %s", error)


def _has_use(state: State) -> bool:
    """Whether a connection would still serve somebody."""
    return bool(state.waiters) and not state.is_shut


#: By the path of the semaphore: pools of one name share it, and have one row of figures.
_limits: WeakValueDictionary[tuple[str, str], SharedLimit] = WeakValueDictionary()


def join(name: str | None, totalmax: int) -> SharedLimit:
    """The limit of that name, or one without a name for this process and its children.

    If others came with another limit, this one is for all from now on: in a rolling deploy the last
    one is meant.

    Raises:
        NimueInvalidParameterValue: name or number cannot be a semaphore's.
        NimueSemaphoreError: one of its children says what is wrong with the files.
    """
    check_totalmax(totalmax)
    from nimue.semaphore import SharedSemaphore

    semaphore = SharedSemaphore(name, totalmax, on_mismatch="adopt")
    before = semaphore.family.agree(totalmax)
    if before is not None:
        told = "totalmax of %r was %d; from now on it is %d for all processes"
        logger.warning(told, semaphore.name, before, totalmax)
    return _shared(semaphore)


def _shared(semaphore: SharedSemaphore) -> SharedLimit:
    with fork.registry_lock():
        return _limits.setdefault((semaphore.directory, semaphore.name), SharedLimit(semaphore))
