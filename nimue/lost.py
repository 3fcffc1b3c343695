"""What finalizers and interrupted threads leave behind, dealt with by the monitor."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING
from weakref import ref

from nimue import claims, ending, goodbye, opener
from nimue.work import Stray, Task, Work

if TYPE_CHECKING:
    from nimue.connection import NimueConnection
    from nimue.entry import Entry
    from nimue.state import State

logger = logging.getLogger("nimue")


def receive(message: State | Stray | ref[NimueConnection]) -> None:
    """Deal with one message: the state of a lost pool, a stray entry, or a dropped handle."""
    if isinstance(message, Stray):
        stray = claims.stray(message)
        if stray is not None:
            opener.start(message.state, [Work(Task.TIDY, stray)])
    elif isinstance(message, ref):
        for state in goodbye.guests():
            entry = claims.lost(state, message)
            if entry is not None:
                _recover(state, entry)
                return
    else:
        ending.abandon(message)


def _recover(state: State, entry: Entry) -> None:
    """A handle was dropped without ``close()``: its connection is reset and goes back."""
    holder, code, place, line = entry.thread, entry.code, entry.place(), entry.line()
    opener.start(state, [Work(Task.TIDY, entry)])
    if not holder:  # it was on its way to one, who was interrupted
        return
    message = (
        f"a connection of pool {state.name!r} was dropped without close(); it was taken at {place}"
    )
    try:
        warnings.warn_explicit(
            message, ResourceWarning, "nimue" if code is None else code.co_filename, line
        )
    except ResourceWarning:
        # The filter makes errors of warnings, and here nobody could catch them.
        logger.warning(message)
