"""The long way of an acquire, when there is nothing fresh to take; the short one is the pool's."""

from __future__ import annotations

import copy
import logging
import traceback
from _thread import get_ident
from collections.abc import Callable
from sys import _getframe
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from nimue import monitor, opener, report, upkeep
from nimue.claims import is_held_locked, mend
from nimue.connection import NimueConnection, Spare, lend
from nimue.error import (
    NimueError,
    NimueNoConnectionAvailable,
    NimuePoolTimeout,
    inside_error,
)
from nimue.settings import DEFAULT, refuse
from nimue.waiters import Waiter
from nimue.work import Stray

if TYPE_CHECKING:
    from nimue.state import State

logger = logging.getLogger("nimue")


def patience(
    state: State, stale: Spare | None, blocking: object, timeout: float | None
) -> float | None:
    """For how long a call may wait.

    Here, where it matters, a ``blocking`` is refused that is neither yes nor no: it is a timeout,
    most likely.
    """
    if not isinstance(blocking, int) or blocking not in (0, 1):
        if stale is not None:
            state.post(Stray(state, stale[2], stale[2].since))
        raise refuse("blocking", blocking, "True or False (seconds go to timeout)")
    if not blocking:
        return 0.0
    return state.settings.timeout if timeout is DEFAULT else timeout


def caller() -> FrameType:
    """The frame that called the caller, or that one's own where C code did."""
    try:
        return _getframe(2)
    except ValueError:
        return _getframe(1)


def acquire(
    state: State,
    stale: Spare | None,
    seconds: float | None,
    frame: FrameType,
    if_free: bool = False,
) -> NimueConnection:
    """Acquire by waiting so many seconds, None without end, or, at 0, by not waiting at all.

    ``stale`` is what was popped from ``idle`` and is due for a check. ``if_free`` waits for a
    connection to be opened or checked, but for no other holder to give one back.
    """
    waiter = Waiter(monotonic())
    try:
        if state.is_inside or state.limit.is_inside:
            raise inside_error("acquire a connection")
        handle = None
        if seconds == 0 or state.settings.max_waiting == 0:
            stale = stale or state.idle.take()
            handle, stale = _look_for(state, stale), None
        if handle is None:
            works, stale = state.ask(waiter, stale, waiter.since, seconds != 0, if_free), None
            opener.start(state, works)
            if waiter.wakes:
                monitor.wake()
            state.keep_awake()
            handle = _await(state, waiter, 0.0 if if_free and not waiter.queued else seconds)
        _sign(state, handle, frame)
    except BaseException as error:
        if stale is not None:
            state.post(Stray(state, stale[2], stale[2].since))
        if state.is_inside:
            raise
        # Whatever interrupts the wait, at whatever point: what the waiter was handed goes on to
        # the next in the queue.
        opener.start(state, state.withdraw(waiter, monotonic()))
        state.limit.tell(state)
        if not isinstance(error, NimueError):
            mend(state)
        raise
    return handle


def _look_for(state: State, spare: Spare | None) -> NimueConnection | None:
    """An idle connection that looks well; what does not is sent to be checked."""
    while spare is not None:
        entry = spare[2]
        looks_well = entry.retire_at > monotonic() and upkeep.looks_well(state, entry)
        works = []
        with state.lock:
            if is_held_locked(spare):
                if looks_well:
                    return lend(state, entry)
                works.append(state.inspect_locked(entry))
            spare = state.idle.take()
        opener.start(state, works)
    return None


def _await(state: State, waiter: Waiter, seconds: float | None) -> NimueConnection:
    """The only wait.

    Raises:
        NimueNoConnectionAvailable, NimuePoolTimeout: see the pool's ``getconnection``.
        BaseException: what the waiter was handed instead of a connection.
    """
    if not waiter.queued:
        raise NimueNoConnectionAvailable(
            f"pool {state.name!r}: no connection is idle, and "
            + ("this call may not wait: " if seconds == 0 else _crowd(state))
            + report.shortage(state, waiter.since)
        )
    waiter.wait(seconds, state.keep_awake)
    if waiter.handle is None:
        with state.lock:
            state.waiters.leave(waiter)
            late = waiter.handle is None and waiter.error is None
            state.figures.timeouts += late
        if late:
            raise _timeout(state, waiter)
        if waiter.error is not None:
            raise _clone(waiter.error)
    assert waiter.handle is not None
    return waiter.handle


def _crowd(state: State) -> str:
    return f"max_waiting={state.settings.max_waiting} threads wait already: "


def _timeout(state: State, waiter: Waiter) -> NimuePoolTimeout:
    now = monotonic()
    error = NimuePoolTimeout(
        f"pool {state.name!r}: no connection came within {now - waiter.since:.1f} s: "
        + report.shortage(state, now)
    )
    error.__cause__ = state.backoff.last_error
    return error


def _clone(error: BaseException) -> BaseException:
    """An exception of one's own for each thread that raises it."""
    try:
        twin = copy.copy(error)
    except Exception:
        return error
    twin.__cause__ = error.__cause__
    return twin.with_traceback(error.__traceback__)


def _sign(state: State, handle: NimueConnection, frame: FrameType) -> None:
    """Note who takes the connection, when and where."""
    entry = handle._lease[0]
    entry.thread = get_ident()
    entry.since = monotonic()
    entry.code = frame.f_code
    entry.lasti = frame.f_lasti
    if state.settings.leak_timeout is not None:
        walk = traceback.walk_stack(frame)
        entry.stack = traceback.StackSummary.extract(walk, lookup_lines=False)
        entry.stack.reverse()
    if state.verbose:
        logger.debug("process %d: acquired %s", state.pid, upkeep.label(state, entry))


class Borrowing:
    """``with pool.connection() as conn:`` commits, or leaves it to the release to roll back."""

    __slots__ = ("_getconnection", "_handle", "_timeout")

    def __init__(self, getconnection: Callable[..., NimueConnection], timeout: Any) -> None:
        self._getconnection = getconnection
        self._timeout = timeout

    def __enter__(self) -> NimueConnection:
        self._handle = self._getconnection(timeout=self._timeout)
        entry, frame = self._handle._lease[0], _getframe(1)
        entry.code, entry.lasti = frame.f_code, frame.f_lasti
        return self._handle

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        handle = self._handle
        try:
            if exc is None:
                handle._conclude()
        finally:
            handle.close()
            del self._handle
