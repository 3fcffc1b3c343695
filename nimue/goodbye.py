"""Closing in an orderly way when a process ends, wherever that process came from.

Registered at a process's first connection: what is registered before a fork, or in a fork hook,
multiprocessing wipes in its children. What a child inherits does nothing in it, for the number of
the process is part of it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any
from weakref import WeakSet

from nimue.fork import registry_lock, settle
from nimue.process import be_ready_to_fork

#: Whoever has something to close.
_guests: WeakSet[Any] = WeakSet()
_prepared_in = 0


def remember(guest: Any) -> None:
    """Call ``guest.say_goodbye()`` when this process ends, if it lives till then."""
    with registry_lock():
        _guests.add(guest)


def forget(guest: Any) -> None:
    """It has nothing left to close. The collector may leave it lying for long."""
    with registry_lock():
        _guests.discard(guest)


def guests() -> list[Any]:
    """Whoever has something to close in this process; what is inherited is not ours to touch."""
    pid = os.getpid()
    with registry_lock():
        return [guest for guest in _guests if guest.pid == pid]


def prepare() -> None:
    """Have goodbye said in this process, however it ends short of ``os._exit`` and signals."""
    global _prepared_in
    pid = os.getpid()
    if _prepared_in == pid:
        return
    _prepared_in = pid
    be_ready_to_fork()
    atexit.register(_say, pid)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        # Children of multiprocessing leave by os._exit, after these and without atexit.
        util.Finalize(None, _say_after_threads, args=(pid,), exitpriority=100)


def _say_after_threads(pid: int) -> None:
    """They are waited for in any case, but by multiprocessing only after its finalizers."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    _say(pid)


def _say(pid: int) -> None:
    if pid != os.getpid():
        # Inherited, in a child that may never have come through a door: it is left as its
        # parent's connections need it.
        settle()
        return
    for guest in guests():
        guest.say_goodbye()
