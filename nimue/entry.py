"""One connection in the pool's care."""

from __future__ import annotations

from _thread import get_ident
from sys import _getframe
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any
from weakref import ref

from nimue.fork import door
from nimue.process import is_main_thread

if TYPE_CHECKING:
    from traceback import StackSummary

    from nimue.connection import Empty, NimueConnection
    from nimue.process import Socket
    from nimue.semaphore import Permit
    from nimue.state import State


class Entry:
    """A connection with its permit, its times, and who took it last.

    An entry lives in exactly one place, and its place is its state: there is no flag that could
    disagree.

        ``state.connecting``   ``connect()`` is under way, or the wait for the permit before it
        ``state.idle``         ready, wrapped in the handle that the next holder will get
        ``state.checking``     being checked or reset by one thread
        ``state.closing``      being closed by one thread
        a waiter's mailbox, or with its holder: in none of these four

    ``state.entries`` has all of them from birth to death: it keeps the only reference that counts
    to each connection (a thread's own would be finalised in a child before any hook runs), and it
    is what a forked child reads to find what it inherited.
    """

    __slots__ = (
        "broken",
        "busy_since",
        "caller",
        "changed",
        "checked",
        "code",
        "cursors",
        "generation",
        "kept",
        "lasti",
        "leaked",
        "lease",
        "number",
        "other",
        "permit",
        "permitted",
        "raw",
        "rested",
        "retire_at",
        "since",
        "socket",
        "soiled",
        "stack",
        "state",
        "thread",
        "watch",
        "worker",
    )

    def __init__(self, state: State | None, raw: Any, number: int) -> None:
        #: The pool's state; None once the entry is dead or left behind by a fork.
        self.state = state
        #: The driver's connection, or an object that refuses every use and says why.
        self.raw = raw
        #: The right to be connected: from before ``connect()`` until after ``close()``.
        self.permit: Permit | None = None
        #: Since when, and when it last came back while other processes waited.
        self.permitted = self.rested = 0.0
        self.number = number
        self.generation = 0
        self.socket: Socket | None = None
        #: Times of the monotonic clock. ``since`` is when it was last taken, or opened: what was
        #: taken a moment ago needs no check, and what was taken long ago is idle.
        self.since = self.checked = 0.0
        #: When its ``connect()``, or its check, began.
        self.busy_since = 0.0
        self.retire_at = float("inf")
        #: Soiled: the release has more to do than to see that no transaction is open.
        self.soiled = self.broken = self.leaked = False
        #: What the holder set on the connection, with the values from before.
        self.changed: dict[str, Any] | None = None
        self.cursors: set[ref[Any]] | None = None
        #: The driver's cursors, for as long as the holder has theirs; see ``let_go``.
        self.kept: dict[ref[Any], Any] | None = None
        #: Posts itself to the monitor when the handle that holds this entry is dropped.
        self.watch: ref[NimueConnection] | None = None
        #: That handle's lease, to be emptied then; see ``claims.lost``.
        self.lease: list[Entry] = []
        #: The thread that answers for it while it is being opened, checked or closed.
        self.worker = 0
        #: An empty handle to take turns with, where the holder's variable still knows the last.
        self.other: Empty | None = None
        #: Who took it (0 when nobody has it), and where; the stack only under ``leak_timeout``.
        self.thread = 0
        #: The thread inside a call of the driver's, as far as the pool sees those; else 0.
        self.caller = 0
        self.code: CodeType | None = None
        self.lasti = -1
        self.stack: StackSummary | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.number}>"

    def give_back(self) -> None:
        """Let the permit go, if there is one. Not under the lock."""
        permit = self.permit
        if permit is not None:
            permit.give_back()  # again, if it is cut short here: to no effect
            self.permit = None

    def let_go(self, cursor: ref[Any]) -> None:
        """The holder has dropped a cursor. In a child, where the door is shut, it is kept."""
        if self.kept is not None and door[0]:
            self.kept.pop(cursor, None)

    def was_taken_here(self) -> bool:
        """Whether the running thread took it, as far as that can be known.

        The number of a thread that has ended goes to a new one. So, but for the main thread, the
        function that took it must still be running here.
        """
        if self.thread != get_ident():
            return False
        frame: FrameType | None = _getframe()
        while frame is not None and frame.f_code is not self.code:
            frame = frame.f_back
        return frame is not None or is_main_thread()

    def place(self) -> str:
        """Where the holder took it, as ``file:line``."""
        if self.code is None:
            return "a place not known"
        return f"{self.code.co_filename}:{self.line()}"

    def line(self) -> int:
        """The line of that place; computed only when somebody asks."""
        if self.code is None:
            return 0
        for start, end, line in self.code.co_lines():
            if start <= self.lasti < end and line is not None:
                return line
        return self.code.co_firstlineno
