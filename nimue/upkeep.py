"""All input and output on connections in a pool's care: open, check, tidy, close.

No lock is held while the driver or the user is called. What returns work has told the state what
came of it, and the state has answered with what follows.
"""

from __future__ import annotations

import logging
import os
import select
from math import inf
from time import monotonic
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from nimue import fork, goodbye, outcome, sweep
from nimue.callback import say_nothing_came, takes_logger
from nimue.connection import MISSING
from nimue.drivers import driver_for
from nimue.process import Socket, identify, open_sockets

if TYPE_CHECKING:
    from nimue.drivers.base import Driver
    from nimue.entry import Entry
    from nimue.semaphore import Demand
    from nimue.settings import Settings
    from nimue.state import State
    from nimue.work import Work

logger = logging.getLogger("nimue")


def is_verbose() -> bool:
    """Whether acquires and releases are logged."""
    return logger.isEnabledFor(logging.DEBUG)


def connect(state: State, entry: Entry) -> list[Work]:
    """Open a connection for ``entry``. The driver's exception goes to those who wait."""
    try:
        permitted = open_for(state, entry, bool(state.waiters))
    except BaseException as error:
        _clear_frames(error)
        return connect_failed(state, entry, error)
    if not permitted:
        return outcome.went_without(state, entry, monotonic())
    return outcome.arrived(state, entry, monotonic())


def connect_failed(state: State, entry: Entry, error: BaseException) -> list[Work]:
    """Bury an entry that came to nothing."""
    full = is_full(state, error)
    works = outcome.failed_to_connect(state, entry, error, monotonic(), full)
    if full and state.waiters:
        state.limit.refused(state)
    if full and state.backoff.failures == 1:
        logger.warning("pool %r: the server has no room for another connection", state.name)
    logger.info("pool %r: connect() failed: %s", state.name, type(error).__name__)
    return works


def _clear_frames(error: BaseException) -> None:
    """Have nothing live as long as the error does: a socket half open, what a password is in.

    In a background thread, where no frame of the user's is but those of ``connfunc``.
    """
    chain: list[BaseException | None] = [error]
    for each in chain:
        if each is not None:
            clear_frames(each.__traceback__)
            following = (each.__cause__, each.__context__)
            chain += [one for one in following if not any(one is known for known in chain)]


def is_full(state: State, error: BaseException) -> bool:
    """Whether the server had no room for what the limit of all processes has room for.

    Before the first connection, the error tells the driver.
    """
    if not state.limit.is_shared:
        return False
    try:
        with fork.gate():
            driver = state.known_driver or driver_for(error)
        return driver.is_full(error)
    except Exception:
        return False


def open_for(state: State, entry: Entry, patient: bool) -> bool:
    """Call ``connfunc`` and make the connection ready for its first holder.

    Returns False if there is no permit for it; if ``patient``, then only when nobody waits for a
    connection any more. Or if a fork is near, which would wait.

    Raises:
        whatever ``connfunc`` and ``on_connect`` raise; nothing is left open then.
        NimueDBModuleFailure: the connection's class belongs to no DB-API module.
        NimueSemaphoreError: the limit of all processes cannot be used.
    """
    goodbye.prepare()
    entry.busy_since = inf  # to wait for a permit is not to be stuck
    entry.permit = state.limit.take(state, patient)
    if entry.permit is None:
        return False
    try:
        turn = state.limit.turn(state, patient)
        if turn is None:
            entry.give_back()
            return False
        try:
            if state.makes_way:
                entry.give_back()
                return False
            entry.permitted = entry.busy_since = monotonic()
            _open(state, entry)
        finally:
            turn.give_back()
    except BaseException:
        entry.give_back()
        raise
    logger.info("pool %r: opened %s", state.name, label(state, entry))
    return True


def _open(state: State, entry: Entry) -> None:
    settings, driver = state.settings, state.known_driver
    raw, appeared = _call_connfunc(settings, driver is None or driver.hides_socket)
    try:
        entry.raw = raw
        is_known = driver is not None
        if driver is None:
            with fork.gate():  # a child must not inherit a module half imported
                driver = driver_for(raw)
        entry.socket = _find_socket(driver, raw, appeared)
        if not is_known:
            driver.accept(raw)
            state.adopt(driver)
        if settings.on_connect is not None:
            settings.on_connect(raw)
            if driver.in_transaction(raw) is not False:
                raw.commit()
    except BaseException:
        if hasattr(raw, "close"):  # else connfunc returned no connection at all
            with fork.gate():
                _close(state, raw)
        entry.raw = None
        raise


def _call_connfunc(settings: Settings, watch: bool) -> tuple[Any, set[Socket]]:
    """A new connection, and, if we are to ``watch``, the sockets that came with it."""
    if not watch:
        with fork.gate():
            return settings.connfunc(*settings.connargs, **settings.connkwargs), set()
    # Two at once could not be told apart. One that hangs must not hold up the others, though.
    lock = fork.one_at_a_time()
    alone = lock.acquire(timeout=fork.PATIENCE)
    try:
        before = open_sockets()
        with fork.gate():
            raw = settings.connfunc(*settings.connargs, **settings.connkwargs)
        return raw, (open_sockets() - before if alone else set())
    finally:
        if alone:
            lock.release()


def _find_socket(driver: Driver, raw: Any, appeared: set[Socket]) -> Socket | None:
    if not driver.hides_socket:
        found = identify(driver.fileno(raw))
    else:
        found = appeared.pop() if len(appeared) == 1 else None
    if found is not None:
        # mysqlclient leaves its socket open across exec, where nobody could sever it.
        os.set_inheritable(found.fd, False)
    return found


def check(state: State, entry: Entry) -> list[Work]:
    """Run the user's health check."""
    fit = _is_fit(state, entry)
    if not fit:
        logger.info("pool %r: %s failed its health check", state.name, label(state, entry))
    return outcome.checked(state, entry, fit, monotonic())


def _is_fit(state: State, entry: Entry) -> bool:
    driver, raw, settings = state.driver, entry.raw, state.settings
    arguments = (raw, driver.dbmodule, logger)
    callback = settings.healthcheck_callback
    try:
        if driver.is_closed(raw):
            return False
        fit = callback(*arguments[: 3 if takes_logger(callback) else 2])
        if fit is None:
            say_nothing_came(callback, state.name)
        if fit and driver.in_transaction(raw):
            driver.reset(raw)
    except BaseException:  # in a background thread: none is meant for anybody else
        logger.exception("pool %r: a health check raised", state.name)
        return False
    return bool(fit)


def tidy(state: State, entry: Entry) -> list[Work]:
    """Make a connection that comes back fit for the next holder, or find it unfit."""
    if entry.leaked:
        entry.leaked = False
        logger.warning(
            "pool %r: the connection taken at %s came back after %.1f s",
            state.name,
            entry.place(),
            monotonic() - entry.since,
        )
    fit = _make_fit(state, entry)
    if state.verbose:
        logger.debug("process %d: released %s", state.pid, label(state, entry))
    demand = state.limit.demand(state)
    if fit and demand is not None:
        return _return_among_others(state, entry, demand)
    works = outcome.returned(state, entry, fit, monotonic())
    if not fit:
        name = label(state, entry)
        logger.info("pool %r: %s is unfit for another use, discarded", state.name, name)
        works += sweep.suspect(state)
        if entry.broken:
            state.limit.alarm()
    return works


def _return_among_others(state: State, entry: Entry, demand: Demand) -> list[Work]:
    """As a release is done, other processes wait for what may be this very connection."""
    now = monotonic()
    works = outcome.returned(state, entry, True, now, demand)
    if now in state.yielded and state.waiters:
        state.limit.stand_back()
    elif state.idle:
        state.post(None)  # the monitor gives it up if nobody takes it
    return works


def _make_fit(state: State, entry: Entry) -> bool:
    driver, raw = state.driver, entry.raw
    if entry.broken or driver.is_closed(raw):
        return False
    try:
        _close_cursors(entry)
        if driver.in_transaction(raw) is not False:
            driver.reset(raw)
        for name, value in (entry.changed or {}).items():
            if value is MISSING:
                delattr(raw, name)
            else:
                setattr(raw, name, value)
        if not _call_on_return(state, raw):
            return False
    except Exception as error:
        logger.info(
            "pool %r: %s could not be reset: %s",
            state.name,
            label(state, entry),
            type(error).__name__,
        )
        return False
    entry.changed = None
    entry.soiled = state.soil
    return not driver.is_closed(raw)


def _call_on_return(state: State, raw: Any) -> bool:
    """Let the user reset the session; False if that raised, which is a mistake of his."""
    on_return = state.settings.on_return
    if on_return is None:
        return True
    try:
        on_return(raw)
    except Exception as error:
        if state.driver.is_disconnect(error):
            raise
        logger.exception("pool %r: on_return raised", state.name)
        return False
    if state.driver.in_transaction(raw) is not False:
        state.driver.reset(raw)
    return True


def _close_cursors(entry: Entry) -> None:
    entry.kept = None
    cursors, entry.cursors = entry.cursors, None
    for reference in list(cursors or ()):
        cursor = reference()
        if cursor is not None:
            cursor.close()


def close(state: State, entry: Entry) -> list[Work]:
    """Say goodbye to the server, then let the permit and the place go."""
    name = label(state, entry)
    with fork.gate():
        _close(state, entry.raw)
        entry.raw = None
    entry.give_back()
    logger.info("pool %r: closed %s", state.name, name)
    return outcome.closed_down(state, entry, monotonic())


def _close(state: State, raw: Any) -> None:
    try:
        raw.close()
    except Exception as error:
        logger.debug("pool %r: close() raised %s", state.name, type(error).__name__)


def close_all(state: State, works: list[Work]) -> None:
    """Close what lay idle, in one go; nothing is opened in its place.

    Who calls it mends what an exception has cut short.
    """
    entries = [work.entry for work in works if work.entry is not None]
    if not entries:
        return
    with fork.gate():
        for entry in entries:
            _close(state, entry.raw)
            entry.raw = None
    for entry in entries:
        entry.give_back()
    with state.lock:
        for entry in entries:
            state.death_locked(entry)
        state.figures.closed += len(entries)
    logger.info("pool %r: closed %d idle connections before a fork", state.name, len(entries))


def bury(state: State, entry: Entry) -> None:
    """Nothing more is to be tried: its close came to nothing, or it is not to be opened."""
    with state.lock:
        if entry.state is state:
            state.death_locked(entry)
    entry.give_back()
    state.post(None)  # somebody may wait for its place


def label(state: State, entry: Entry) -> str:
    """What a connection is called in logs: our number, and the server's for the session."""
    try:
        session = state.driver.session_id(entry.raw)
    except Exception:
        session = None
    if session is None:
        return f"connection {entry.number}"
    return f"connection {entry.number} (session {session})"


def looks_well(state: State, entry: Entry) -> bool:
    """Whether a connection seems alive, without asking the server: its socket is still quiet."""
    if state.driver.is_closed(entry.raw):
        return False
    if entry.socket is None or identify(entry.socket.fd) != entry.socket:
        return entry.socket is None
    poll = select.poll()
    poll.register(entry.socket.fd, select.POLLIN)
    return not poll.poll(0)
