"""Closing connections, also those that other threads have."""

from __future__ import annotations

import os
import socket
import time
from time import monotonic
from typing import TYPE_CHECKING

from nimue import claims, opener
from nimue.process import identify

if TYPE_CHECKING:
    from nimue.connection import NimueConnection
    from nimue.entry import Entry
    from nimue.state import State
    from nimue.work import Work

#: Seconds that statements under way have, together, to notice that they are cut off.
PATIENCE = 1.0


def close_mine(handle: NimueConnection) -> None:
    """Close the running thread's connection instead of giving it back."""
    entry = handle._lease[0]
    _condemn(entry)
    handle.close()


def close_idle(state: State) -> None:
    """Close what no thread has."""

    def decide() -> list[Work]:
        with state.lock:
            return state.take_idle_where_locked(lambda entry: True)

    claims.carry_out(state, decide)


def close_held(state: State, age: float) -> int:
    """Close what was taken more than ``age`` seconds ago, whichever thread has it.

    A driver is never called for a connection that another thread is inside of: first the socket
    is shut down, so that the call fails, and then it has a second to come back. The rest is done
    in the background.
    """
    moment = monotonic() - age
    entries = _taken_before(state, moment)
    for entry in entries:
        _condemn(entry)
        if entry.caller and entry.since < moment:  # else it went to another thread in between
            _cut(entry)
    deadline = monotonic() + PATIENCE
    while any(entry.caller for entry in entries) and monotonic() < deadline:
        time.sleep(0.001)
    works: list[Work] = []
    try:
        with state.lock:
            for entry in entries:
                handle = None if entry.watch is None else entry.watch()
                if handle is None or entry.caller or entry.state is not state:
                    continue
                if entry.since >= moment:
                    continue
                if handle._lease[0] is entry and claims.take_locked(state, handle) is entry:
                    works += state.condemn_locked(entry)
        opener.start(state, works)
    except BaseException:
        claims.mend(state)
        raise
    return len(entries)


def _taken_before(state: State, moment: float) -> list[Entry]:
    with state.lock:
        return [entry for entry in state.entries if _is_held(entry) and entry.since < moment]


def _is_held(entry: Entry) -> bool:
    handle = None if entry.watch is None else entry.watch()
    return handle is not None and handle._lease[0] is entry


def _condemn(entry: Entry) -> None:
    """Have it closed when it comes back."""
    entry.retire_at = 0.0
    entry.soiled = True


def _cut(entry: Entry) -> None:
    """Shut the socket down, if it is still the one that the connection was opened with."""
    if entry.socket is None:
        return
    try:
        fd = os.dup(entry.socket.fd)  # before the look: its number may go to another file
    except OSError:
        return
    try:
        if identify(fd) == entry.socket._replace(fd=fd):
            with socket.socket(fileno=os.dup(fd)) as mine:
                mine.shutdown(socket.SHUT_RDWR)
    except OSError:  # the server was faster
        pass
    finally:
        os.close(fd)
