"""Acquire and release."""

from __future__ import annotations

import logging
import os
from _thread import get_ident
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from sys import _getframe, getrefcount
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import getweakrefcount

from nimue import claims, ending, monitor, opener, recipe, report
from nimue.acquire import Borrowing, acquire, patience
from nimue.callback import HealthCheck, healthcheck_callback_std
from nimue.connection import ALONE, make_spare
from nimue.drivers.base import Driver
from nimue.fork import door, settle
from nimue.limit import Unlimited, limit_for
from nimue.parameter import Parameters
from nimue.settings import DEFAULT, POOLMIN, Settings, check_timeout, poolmin_beside, refuse
from nimue.state import State
from nimue.stats import NimueConnectionPoolStats, NimueTotalStats
from nimue.waiters import Waiter

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("nimue")


_numbers = count(1)


class NimueConnectionPool(Parameters):
    """A pool of DB-API 2.0 connections that is right in every process that uses it.

    Made anywhere, it can be used anywhere: in the process that made it, in any child forked from
    that one, and, pickled, in children that were spawned. Each process has its own connections,
    at most ``poolmax``; what a child inherits is severed and never spoken on.

    Threads are served first come, first served. Connections are opened and checked in the
    background, so a ``timeout`` is kept whatever the server does.

    Args:
        connfunc: returns an open connection; called with ``connargs`` and ``connkwargs``.
        poolinit: connections opened by the constructor; None for ``poolmin``.
        poolmin: connections kept open, in each process that uses the pool; if not given, 10 or
            ``poolmax``, whichever is less.
        poolmax: connections at most, per process.
        cleanup_interval: seconds between rounds of background checks.
        idle_timeout: seconds after it was last taken, a connection beyond ``poolmin`` is closed.
        healthcheck_on_getconnection: check a connection before it is given out.
        healthcheck_callback: the check, see :mod:`nimue.callback`.
        name: what the pool is called in logs; a pickled pool is rebuilt once per name. With
            ``totalmax``, pools of one name share that, in all processes of this user.
        totalmax: connections at most, over all processes; None for no such limit. Without a
            ``name`` these are this process, its forks, and whom the pool is sent to by pickle.
        timeout: seconds that ``getconnection`` waits by default; None waits for ever.
        max_waiting: more waiting threads than this are refused at once; None for no limit.
        max_lifetime: seconds after which a connection is replaced, up to a tenth earlier.
        healthcheck_idle: a connection last taken within so many seconds is not checked again.
        leak_timeout: seconds after which a connection still out is reported, with its stack.
        max_connecting: ``connect()`` calls at once, per process.
        max_connecting_total: the same over all processes that share ``totalmax``, to tame a rush:
            after a second one more connects. None: no limit.
        on_connect: called with each new connection of the driver's, to set up its session.
        on_return: called with each that comes back, after the rollback, to reset its session.
        driver: facts about the driver, if yours are better than ours.

    Raises:
        NimueInvalidParameterValue: a parameter is not allowed; nothing was opened.
        Exception: the driver's own, if the first connections could not be opened; none is left
            open. Under ``totalmax`` a server that is full is no error: fewer are opened.
        NimueSemaphoreError: the files of ``totalmax`` cannot be used.
    """

    __slots__ = ("__weakref__", "_own_driver", "_state")

    def __init__(
        self,
        connfunc: Callable[..., Any],
        connargs: Sequence[Any] | None = None,
        connkwargs: Mapping[str, Any] | None = None,
        poolinit: int | None = None,
        poolmin: int = POOLMIN,
        poolmax: int = 20,
        cleanup_interval: float = 60,
        idle_timeout: float = 300,
        healthcheck_on_getconnection: bool = True,
        healthcheck_callback: HealthCheck = healthcheck_callback_std,
        *,
        name: str | None = None,
        totalmax: int | None = None,
        timeout: float | None = 30.0,
        max_waiting: int | None = None,
        max_lifetime: float | None = 3600.0,
        healthcheck_idle: float = 1.0,
        leak_timeout: float | None = None,
        max_connecting: int = 2,
        max_connecting_total: int | None = None,
        on_connect: Callable[[Any], object] | None = None,
        on_return: Callable[[Any], object] | None = None,
        driver: Driver | None = None,
    ) -> None:
        settings = Settings(
            connfunc=connfunc,
            connargs=[] if connargs is None else connargs,
            connkwargs={} if connkwargs is None else connkwargs,
            poolinit=poolinit,
            poolmin=poolmin_beside(poolmax, poolmin),
            poolmax=poolmax,
            cleanup_interval=cleanup_interval,
            idle_timeout=idle_timeout,
            healthcheck_on_getconnection=healthcheck_on_getconnection,
            healthcheck_callback=healthcheck_callback,
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            healthcheck_idle=healthcheck_idle,
            leak_timeout=leak_timeout,
            max_connecting=max_connecting,
            max_connecting_total=max_connecting_total,
            on_connect=on_connect,
            on_return=on_return,
        ).checked()
        settings.check_poolinit()
        if name is not None and (not isinstance(name, str) or not name):
            raise refuse("name", name, "a non-empty string or None")
        if driver is not None and not isinstance(driver, Driver):
            raise refuse("driver", driver, "an instance of nimue.drivers.Driver or None")
        settle()
        self._own_driver = driver
        limit = limit_for(name, totalmax, max_connecting_total)
        self._open(settings, name or f"nimue-{os.getpid()}-{next(_numbers)}", driver, limit)

    def _open(self, settings: Settings, name: str, driver: Driver | None, limit: Unlimited) -> None:
        self._state = state = State(name, settings, driver, self, limit)
        state.look_at_logging()
        state.next_cycle = monotonic() + settings.cleanup_interval
        wanted = settings.poolmin if settings.poolinit is None else settings.poolinit
        try:
            opener.fill(state, wanted)
        except BaseException:
            claims.mend(state)
            opener.run(state, ending.shut(state))
            limit.leave(state)
            raise
        recipe.remember(name, self)
        monitor.here.expect()
        if limit.is_shared and state.entries:
            monitor.here.ensure()  # others may ask for them before anybody here acquires
        totalmax = limit.totalmax
        logger.info(
            "pool %r: poolmax=%d in each process, totalmax=%s across %s%s",
            name,
            settings.poolmax,
            totalmax,
            limit.reach,
            ", which is less" if totalmax is not None and totalmax < settings.poolmax else "",
        )

    @classmethod
    def _from_recipe(
        cls, name: str, settings: Settings, driver: Driver | None, limit: Unlimited
    ) -> Self:
        """A pool that has opened nothing yet: what :mod:`nimue.recipe` rebuilds."""
        pool = cls.__new__(cls)
        pool._own_driver = driver
        pool._state = State(name, settings, driver, pool, limit)
        return pool

    # Acquire.

    def getconnection(self, blocking: bool = True, timeout: float | None = DEFAULT) -> Any:
        """Acquire a connection.

        Args:
            blocking: False never waits: it gives what is idle, or raises. What has been idle for
                long is then only looked at, not asked, for to ask would be to wait.
            timeout: seconds to wait; None waits for ever; by default as long as the pool says.

        Returns:
            NimueConnection: give it back by its ``close()``.

        Raises:
            NimuePoolTimeout: none came in time; says who has them. If ``connect()`` failed
                meanwhile, that is its cause.
            NimueNoConnectionAvailable: none is idle and the call may not wait, or too many do.
            NimuePoolClosedError: the pool is closed, or was closed during the wait.
            Exception: the driver's own, when ``connect()`` failed and nothing else could serve.
        """
        if timeout is not DEFAULT:
            check_timeout(timeout)
        if not door[0]:
            self._enter()
        try:
            frame = _getframe(1)
        except ValueError:  # C code has called, as in gevent.spawn(pool.getconnection)
            frame = _getframe()
        state, stale = self._state, None
        if state.calm:
            try:
                handle, lease, entry = state.idle.pop()
            except IndexError:
                pass
            else:
                try:
                    now = monotonic()
                    if now - entry.since < state.fresh_for:
                        entry.since = now  # before the handle is looked at: see claims.stray
                        known = getrefcount(handle) != ALONE or getweakrefcount(handle) != 1
                        if not known or len(lease) == 1:
                            if known:
                                # A loop's variable keeps the last one: two take turns.
                                turns, entry.other = entry.other, (handle, lease, entry.watch)
                                if turns is not None:
                                    handle, lease, entry.watch = turns
                                    entry.lease = lease
                                    del turns
                                if getrefcount(handle) != ALONE or getweakrefcount(handle) != 1:
                                    handle, lease, _ = make_spare(state, entry)
                            entry.code, entry.lasti = frame.f_code, frame.f_lasti
                            entry.thread = get_ident()
                            lease.insert(0, entry)
                            return handle
                    stale = (handle, lease, entry)
                except BaseException:  # out of a signal handler
                    state.rescue(entry, entry.since)
                    raise
        return acquire(state, stale, patience(state, stale, blocking, timeout), frame)

    def connection(self, timeout: float | None = DEFAULT) -> Borrowing:
        """A context manager: commits on success, rolls back on error, always gives back.

        What the block has closed itself was rolled back then, and is not committed.

        ::

            with pool.connection() as conn:
                conn.cursor().execute("...")

        Raises:
            what :meth:`getconnection` raises, and what the commit does.
        """
        return Borrowing(self.getconnection, timeout)

    def _enter(self) -> None:
        """The slow door: after a fork, and whenever the monitor does not run."""
        settle()
        if not self._state.is_shut:
            monitor.here.ensure()

    # Figures and settings.

    def poolstats(self) -> NimueConnectionPoolStats:
        """The figures of this pool in this process."""
        settle()
        return report.stats(self._state)

    @property
    def name(self) -> str:
        """What the pool is called."""
        return self._state.name

    @property
    def driver(self) -> Driver | None:
        """The facts about the driver; None until the first connection has told which it is."""
        return self._state.known_driver

    def totalstats(self) -> NimueTotalStats:
        """The figures of all processes that share ``totalmax``, at most half a second old.

        Raises:
            NimueInvalidParameterValue: the pool has no ``totalmax``.
            NimueSemaphoreError: the limit's files have gone.
        """
        from nimue.totals import totalstats

        settle()
        return totalstats(self._state)

    @property
    def totalmax(self) -> int | None:
        """Connections at most, over all processes; None: no such limit. Settable, for all."""
        return self._state.limit.totalmax

    @totalmax.setter
    def totalmax(self, totalmax: int) -> None:
        settle()
        self._state.limit.resize(totalmax)

    def _change(self, **parameters: Any) -> None:
        settle()
        state = self._state
        while True:
            before = state.settings
            after = before.changed(**parameters)
            with state.lock:
                if state.settings is before:  # else another thread was faster: check once more
                    state.apply(after)
                    state.next_cycle = 0.0
                    is_raised = after.poolmin > before.poolmin
                    state.refilling = state.refilling or is_raised
                    if len(state.entries) > after.poolmax:
                        # Whatever comes back is looked at: it may be one too many.
                        for entry in state.entries:
                            entry.soiled = True
                    break
        if is_raised and not state.is_shut:
            state.awaken()  # nobody may have acquired here before, and then no monitor runs
        monitor.wake()

    # The end, and other processes.

    def drain(self, everywhere: bool = False) -> None:
        """Replace every connection opened before now; one in use when it comes back.

        Args:
            everywhere: in all processes that share ``totalmax``, not in this one alone.
        """
        settle()
        state = self._state
        number = state.limit.renew() if everywhere else None
        claims.carry_out(state, lambda: ending.renew(state, number))
        monitor.wake()

    def close(self, timeout: float | None = None) -> None:
        """Refuse new requests, wait for borrowed connections, close all.

        Those who wait for a connection get a :class:`NimuePoolClosedError` at once. Connections
        that come back after the timeout are closed then. Those that the calling thread itself
        holds are not waited for. Closing twice is no error.

        Args:
            timeout: seconds to wait for borrowed connections; None waits until all are back.
        """
        check_timeout(timeout)
        settle()
        state = self._state
        if state.is_inside:
            state.post(state)  # the monitor closes it, as one that is lost
            return
        mine = claims.held_here(state)
        leaver = Waiter(monotonic())
        claims.carry_out(state, lambda: ending.shut(state, leaver, len(mine)))
        if mine:
            logger.warning(
                "pool %r is closed by a thread that holds %d of its connections (taken at %s)",
                state.name,
                len(mine),
                mine[0].place(),
            )
        if state.entries:
            state.awaken()  # it is the monitor who hears of a borrower that drops its handle
        ending.await_loans(state, leaver, timeout)
        state.limit.leave(state)
        monitor.wake()

    def __enter__(self) -> NimueConnectionPool:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is None or state.is_shut:
            return
        if state.pid != os.getpid():
            settle()
        elif monitor.here.is_alive:
            state.post(state)
            if not monitor.here.is_alive:  # it ended in between
                ending.drop(state)
        else:
            ending.drop(state)

    def __repr__(self) -> str:
        state = self._state
        return (
            f"<NimueConnectionPool {state.name!r}: {'closed, ' if state.is_shut else ''}"
            f"{len(state.entries)} connections, {len(state.idle)} idle, "
            f"poolmax={state.settings.poolmax}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return recipe.reduce(self._state, self._own_driver)
