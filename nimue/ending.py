"""How connections, pools and processes come to their end, in order and out of it."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from nimue import opener, report
from nimue.error import NimuePoolClosedError

if TYPE_CHECKING:
    from nimue.entry import Entry
    from nimue.state import State
    from nimue.waiters import Waiter
    from nimue.work import Work

logger = logging.getLogger("nimue")

#: Seconds after which a ``close()`` that waits tells the log for whom.
PATIENCE = 3.0

#: Seconds that the end of the process is held up by goodbyes under way in other threads.
LAST_WAIT = 1.0


def _all(entry: Entry) -> bool:
    return True


def renew(state: State, number: int | None = None) -> list[Work]:
    """Begin a new generation: what is idle is to be closed now, the rest on its return.

    A renewal of all processes has a ``number``. The monitor hears of it as well as who asks for
    it, and whoever comes second finds it done; but for two that cross, which are carried out once
    more. Numbers begin anew with the limit's files.
    """
    with state.lock:
        if number is not None and number == state.renewed:
            return []
        state.generation += 1
        state.refilling = True
        _retire_all(state)
        # A release that looked just before is not seen here; the round of checks sees it.
        state.next_cycle = 0.0
        if number is not None:
            state.renewed = number  # last: what is cut short is done again
        return state.take_idle_where_locked(_all)


def shut(state: State, leaver: Waiter | None = None, content: int = 0) -> list[Work]:
    """Refuse new requests, wake who waits, and have what is idle closed.

    ``leaver``, if one waits, is woken when no more than ``content`` connections are with holders.
    """
    with state.lock:
        state.is_shut, state.calm = True, False
        _retire_all(state)
        state.waiters.fail_all(
            lambda: NimuePoolClosedError(f"pool {state.name!r} was closed during the wait")
        )
        works = state.take_idle_where_locked(_all)
        if leaver is not None:
            if state.borrowed_locked() > content:
                state.leavers.append((content, leaver))
            else:
                leaver.ring()
    state.limit.tell(state)
    return works


def forget(state: State, leaver: Waiter) -> None:
    """Nobody waits in that ``close()`` any more."""
    with state.lock:
        state.leavers = [each for each in state.leavers if each[1] is not leaver]


def await_loans(state: State, leaver: Waiter, timeout: float | None) -> None:
    """Wait for borrowed connections; say who has them if that takes long, and if it is in vain."""
    begun = time.monotonic()
    is_short = timeout is not None and timeout <= PATIENCE
    for seconds in [timeout] if is_short else [PATIENCE, timeout and timeout - PATIENCE]:
        if leaver.wait(seconds, state.keep_awake):
            return
        now = time.monotonic()
        told = report.outstanding(state, now)
        logger.warning("pool %r: close() has waited %.1f s; %s", state.name, now - begun, told)
    forget(state, leaver)


def _retire_all(state: State) -> None:
    """With the lock, but for :func:`drop`."""
    for entry in list(state.entries):
        entry.retire_at = 0.0
        entry.soiled = True


def abandon(state: State) -> None:
    """The pool is gone: close what is idle, and the rest as it comes back."""
    opener.start(state, shut(state))
    state.limit.leave(state)


def drop(state: State) -> None:
    """The pool is gone and no monitor runs: for finalizers, so without any lock."""
    state.is_shut, state.calm = True, False
    _retire_all(state)
    while (spare := state.idle.take()) is not None:
        entry = spare[2]
        entry.watch = None
        try:
            entry.raw.close()
        except Exception:
            pass
        entry.give_back()


def say_goodbye(state: State) -> None:
    """The process ends. What is out cannot be waited for; what is being closed can, a moment."""
    if state.pid != os.getpid():
        return
    opener.run(state, shut(state))
    deadline = time.monotonic() + LAST_WAIT
    while state.closing and time.monotonic() < deadline:
        time.sleep(0.001)
