"""Taking an entry back out of a handle: from a holder who releases, and from one who is gone."""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable, Collection
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, cast
from weakref import ref

from nimue import opener, upkeep
from nimue.connection import NimueConnection, reclaim
from nimue.error import inside_error
from nimue.work import Stray

if TYPE_CHECKING:
    from nimue.connection import Spare
    from nimue.entry import Entry
    from nimue.state import State
    from nimue.work import Work


#: Seconds after which a dropped connection is asked for again that a finalizer still uses.
BUSY = 0.05


def take_locked(state: State, handle: NimueConnection) -> Entry | None:
    """Empty ``handle`` and stop watching it; None if its entry is no longer in it."""
    entry = handle._lease[0]
    if entry.state is not state or not reclaim(handle, entry):
        return None
    entry.watch = None
    return entry


def is_held_locked(spare: Spare) -> bool:
    """Whether what was popped from ``idle`` is still whose thread popped it; see :func:`stray`."""
    handle, _, entry = spare
    return entry.watch is not None and entry.watch() is handle


def release(state: State, handle: NimueConnection, entry: Entry) -> None:
    """The long way of a release, in the caller's thread."""
    since = entry.since
    if state.is_inside:
        if reclaim(handle, entry):
            entry.thread = 0
            state.post(Stray(state, entry, since))
        return
    try:
        with state.lock:
            if entry.state is not state or not reclaim(handle, entry):
                return
            state.answer_for_locked(entry)
        opener.run(state, upkeep.tidy(state, entry))
        state.limit.tell(state)
    except BaseException:
        state.rescue(entry, since)
        raise


def serve(state: State) -> None:
    """Give what has come to ``idle`` to those who wait, or close it if the pool is closed."""
    if state.is_inside:
        state.post(None)  # whose sweep does the same
        return
    try:
        with state.lock:
            works = state.plan_locked(monotonic())
        opener.run(state, works)
    except BaseException:
        mend(state)
        raise


def detach(state: State, handle: NimueConnection, entry: Entry) -> bool:
    """Let the connection go, open as it is, to whoever holds ``handle``; False if that is empty.

    Raises:
        NimueError: the call comes from a finalizer or a signal handler, at a bad moment.
    """
    if state.is_inside:
        raise inside_error("detach a connection")
    try:
        with state.lock:
            if entry.state is not state or not reclaim(handle, entry):
                return False
            state.answer_for_locked(entry)
            state.death_locked(entry)
            works = state.plan_locked(monotonic())
        entry.give_back()
        opener.run(state, works)
        return True
    except BaseException:
        mend(state)
        raise


def carry_out(state: State, decide: Callable[[], list[Work]]) -> None:
    """Decide, and do what follows."""
    try:
        opener.run(state, decide())
    except BaseException:
        mend(state)
        raise


def mend(state: State, spared: Collection[Entry] = ()) -> None:
    """After an exception in the middle of a decision, as a signal handler may raise one anywhere.

    The running thread is here and nowhere else, so whatever it answers for is in nobody's hands:
    that is closed, in the background. Not what is ``spared``, which outer frames have in hand
    where a callback of the user's has forked. A second exception within this one leaves it undone.
    """
    if state.is_inside:  # what this thread answers for is in the hands of its outer frames
        return
    me = get_ident()
    with state.lock:
        state.waiters.deliver()
        mine = [each for each in state.entries if each.worker == me and each not in spared]
        works = []
        for entry in mine:
            if entry.raw is None:
                state.death_locked(entry)
            else:
                works += state.condemn_locked(entry)
        works += state.plan_locked(monotonic())
    opener.start(state, works)  # first: a permit whose files do not serve any more raises
    for entry in mine:
        if entry.state is None:
            entry.give_back()


def lost(state: State, watch: ref[NimueConnection]) -> Entry | None:
    """The entry whose handle was dropped, if it was one of this pool's; now it is ``checking``.

    A collector that finds the handle in a cycle clears the watch, and has word sent of that, before
    a finalizer in the cycle uses the handle. So the handle is emptied here; and not while such a
    finalizer is inside a call of the driver's, as far as the pool sees those: the monitor asks
    again. The finalizer says that it calls, then looks what it holds; here it is the reverse.
    """
    with state.lock:
        for entry in state.entries:
            if entry.watch is watch:
                with suppress(ValueError):  # an empty one, lost on its way to a holder
                    entry.lease.remove(entry)
                    if entry.caller:
                        entry.lease.insert(0, entry)
                        state.next_drop = monotonic() + BUSY
                        return None
                state.figures.lost += bool(entry.thread)
                state.answer_for_locked(entry)
                return entry
        return None


def stray(message: Stray) -> Entry | None:
    """The entry of an interrupted release, if it is nowhere still; now it is ``checking``.

    An acquire may have popped it and not come further yet. That one sets ``since``, then looks
    whether the handle is known elsewhere, then at its lease; here the handle becomes known, then
    its lease longer, then there is the look at ``since``. So one of the two sees the other; an
    acquire that does takes the long way, and asks there whose the entry is.
    """
    state, entry, since = message
    with state.lock:
        handle = entry.watch() if entry.watch is not None else None
        if entry.state is not state or handle is None:
            return None
        lease = cast("list[object]", handle._lease)
        lease.append(handle)
        is_idle = any(spare[2] is entry for spare in state.idle)
        if entry.since != since or is_idle or lease[0] is entry:
            lease.remove(handle)
            return None
        entry.thread = 0
        state.answer_for_locked(entry)
        return entry


def held_here(state: State) -> list[Entry]:
    """The entries that the running thread took."""
    with state.lock:
        return [entry for entry in state.entries if entry.thread and entry.was_taken_here()]
