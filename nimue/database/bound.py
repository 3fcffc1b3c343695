"""Which thread has which connection, in one process."""

from __future__ import annotations

import threading
from itertools import count
from typing import TYPE_CHECKING
from weakref import ref

from nimue.connection import NimueConnection, NimueCursor

if TYPE_CHECKING:
    from nimue.state import State


class Bound:
    """What one thread has between ``connect()`` and ``close()``.

    The thread's local has the only reference to it, and it has the only one to the handle: when
    the thread ends, the handle is dropped, and the pool takes the connection back.
    """

    __slots__ = ("__weakref__", "blocks", "cursor", "depth", "handle", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        #: None until the pool has given one.
        self.handle: NimueConnection | None = None
        self.cursor: NimueCursor | None = None
        #: How many ``atomic()`` blocks are open.
        self.depth = 0
        #: How many ``with database:`` blocks it is for; 0 if ``connect()`` was called by hand.
        self.blocks = 0

    @property
    def is_over(self) -> bool:
        """Whether the handle has been emptied: by its ``close()``, or from outside."""
        return self.handle is not None and self.handle._lease[0].state is None


class Here:
    """The threads of one process; a forked child gets a new one, whole.

    Of that of its parent the child forgets all: the thread that forked is bound there no more.
    """

    __slots__ = ("_bound", "_numbers", "_threads", "state")

    def __init__(self, state: State) -> None:
        #: The pool's, which tells the process.
        self.state = state
        self._threads = threading.local()  # looked up now: gevent may have put its own there
        self._numbers = count(1)
        #: Those that count; what is dropped is taken out by C code, which no Ctrl-C cuts short.
        self._bound: set[ref[Bound]] = set()

    @property
    def mine(self) -> Bound | None:
        """What the running thread has."""
        bound: Bound | None = getattr(self._threads, "bound", None)
        return None if bound is None or bound.is_over else bound

    def bind(self, bound: Bound) -> None:
        self._threads.bound = bound

    def unbind(self) -> None:
        self._threads.bound = None

    def candidate(self) -> Bound:
        """One more, which has no connection yet and counts from now on."""
        bound = Bound(next(self._numbers))
        self._bound.add(ref(bound, self._bound.discard))
        return bound

    def withdraw(self, bound: Bound | None) -> None:
        """It counts no longer, though a traceback may keep it; what it has goes back."""
        if bound is not None:
            self._bound.discard(ref(bound))
            if bound.handle is not None:
                bound.handle.close()

    def ahead_of(self, mine: Bound) -> int:
        """How many have a connection, or will, that came before ``mine``.

        Of two that come at once for the last place, each sees the other, and one is ahead.
        """
        found = [bound() for bound in list(self._bound)]
        return sum(
            1
            for bound in found
            if bound is not None and bound.number < mine.number and not bound.is_over
        )
