"""Everything of one pool that changes, in one process, and the decisions about it."""

from __future__ import annotations

import os
import threading
from _thread import get_ident
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from nimue import claims, ending, fork, goodbye, growth, inherit, monitor, sweep, upkeep
from nimue.backoff import Backoff
from nimue.claims import is_held_locked, take_locked
from nimue.connection import NimueConnection, Refusal, Spare, lend, make_spare
from nimue.entry import Entry
from nimue.error import NimueError, NimuePoolClosedError, closed_error
from nimue.idle import Idle
from nimue.stats import Figures
from nimue.waiters import Waiter, Waiters
from nimue.work import Stray, Task, Work

if TYPE_CHECKING:
    from nimue.drivers.base import Driver
    from nimue.fork import Fork
    from nimue.inherit import Bequest
    from nimue.limit import Unlimited
    from nimue.pool import NimueConnectionPool
    from nimue.settings import Settings


class State:
    """One pool in one process: who has which connection, who waits, what is to be done.

    ``lock`` guards all of it, but for the short ways of acquire and release, which pop from
    ``idle`` and append to it without; see there. A release looks whether all is ``calm`` after it
    has appended; a waiter joins, ends the calm, and then looks at ``idle``: one of the two sees the
    other. Under the lock there is no input or output, no logging, no code of the user's or the
    driver's, and no other lock: methods decide, change the tables and return the work to do.

        entries == connecting + checking + closing + idle + in mailboxes + with holders
        len(entries) <= poolmax, but for those above it when poolmax was lowered
        waiters and idle are not both non-empty once the lock is free, but for idle entries that
            are due for a check while enough of them are being checked

    A forked child gets a new State, by one assignment, and never touches this one's lock.
    """

    # Slots are for speed: CPython 3.11 looks more than 30 attributes up more slowly.
    __slots__ = (
        *("__weakref__", "name", "pid", "pool", "lock", "entries", "idle", "waiters", "leavers"),
        *("connecting", "checking", "closing", "calm", "is_shut", "verbose", "figures", "backoff"),
        *("bequest", "severed_in", "poison", "generation", "next_cycle", "next_look", "next_drop"),
        *("post", "news", "crew", "closed", "driver", "in_transaction", "settings", "soil"),
        *("unchecked_for", "fresh_for", "limit", "heeded", "renewed"),
        *("yielded", "kept", "next_tick", "refilling"),
    )

    def __init__(
        self,
        name: str,
        settings: Settings,
        driver: Driver | None,
        pool: NimueConnectionPool,
        limit: Unlimited,
    ) -> None:
        self.name, self.pid, self.pool, self.limit = name, os.getpid(), ref(pool), limit
        # Reentrant only to tell: see `is_inside`.
        self.lock = threading.RLock()
        self.entries: set[Entry] = set()
        self.connecting, self.checking, self.closing = set[Entry](), set[Entry](), set[Entry]()
        self.idle, self.waiters = Idle(), Waiters()
        #: Those in ``close()``, each content when so many or fewer are still with holders.
        self.leavers: list[tuple[int, Waiter]] = []
        self.figures, self.backoff = Figures(), Backoff()
        self.is_shut = self.verbose = False
        #: Nobody waits, and the pool is not closed; or False, when that may not be so.
        self.calm = True
        #: What a child inherits, and the child process that has been cut off from it.
        self.bequest: Bequest | None = None
        self.severed_in = 0
        #: Why no connection can be had in this process at all.
        self.poison: NimueError | None = None
        #: Connections that were asked for before the last drain() are of an older generation.
        self.generation = 0
        #: When the next round of checks is due, and when the monitor looks again in any case.
        self.next_cycle = self.next_look = 0.0
        #: Whether to open what is missing to ``poolmin``.
        self.refilling = False
        #: What watches call, lock-free, with themselves: the inbox of this process's monitor.
        self.post: Callable[[Any], None] = monitor.here.inbox.put
        #: For the monitor to log: in a child that C code forked, the log's lock may be held.
        self.news: list[str] = []
        self.crew: set[threading.Thread] = set()
        self.driver: Driver
        self.in_transaction: Callable[[Any], bool | None]
        self._begin(settings, driver)

    def _begin(self, settings: Settings, driver: Driver | None) -> None:
        #: What a handle holds after its ``close()``: no connection, and no state.
        self.closed = Entry(None, Refusal(self._closed_error), 0)
        #: What concerns all processes, as far as this one has acted upon it.
        self.heeded = self.limit.news()
        #: The last renewal of all processes that this one has carried out.
        self.renewed = 0
        #: When connections were last given up for others.
        self.yielded: list[float] = []
        #: From whom, and how long, what comes back is kept without another look at their wants.
        self.kept: tuple[bytes | None, float] = (None, 0.0)
        #: When to ask again for what was dropped while a finalizer used it.
        self.next_drop = float("inf")
        #: When an idle one is given up to who waits, though nobody has asked for it.
        self.next_tick = 0.0
        if driver is not None:
            self.adopt(driver)
        self.apply(settings)
        fork.join(self)
        goodbye.remember(self)
        self.limit.join(self)

    @property
    def is_inside(self) -> bool:
        """Whether the running thread is in the middle of a decision, in an outer frame.

        A finalizer, as of an abandoned generator with a connection, runs wherever the collector
        does. What it does must not go on with tables half changed: the monitor does it later.
        """
        return bool(self.lock._is_owned())  # type: ignore[attr-defined]

    @property
    def makes_way(self) -> bool:
        """Whether a fork waits for the running background thread, and nobody for its connection."""
        is_near = fork.is_near() and not self.waiters
        return is_near and threading.current_thread() in self.crew

    def look_at_logging(self) -> None:
        """Not in a child before it is itself: logging has locks of its own."""
        self.verbose = upkeep.is_verbose()
        with self.lock:
            self.apply(self.settings)

    def apply(self, settings: Settings) -> None:
        """Let these settings rule from now on.

        Who wants to know more of each acquire or release makes it take the long way.
        """
        self.settings = settings
        self.soil = self.verbose or settings.on_return is not None
        curious = self.verbose or settings.leak_timeout is not None
        self.unchecked_for = settings.unchecked_for()
        self.fresh_for = -1.0 if curious else self.unchecked_for

    def adopt(self, driver: Driver) -> None:
        """Let ``driver`` answer for this pool's connections."""
        self.in_transaction = self.limit.unless_wanted(self, driver.in_transaction)
        self.driver = driver

    @property
    def known_driver(self) -> Driver | None:
        """The driver, once the first connection has told which it is."""
        return getattr(self, "driver", None)

    def _closed_error(self) -> Exception:
        driver = self.known_driver
        return closed_error(Exception if driver is None else driver.interface_error)

    def ask(
        self, waiter: Waiter, stale: Spare | None, now: float, wait: bool, if_free: bool = False
    ) -> list[Work]:
        """Queue ``waiter``; if it may not ``wait``, or too many do, only make its wish known.

        ``stale`` is what the caller has popped from ``idle`` and found due for a check. With
        ``if_free``, too many are those who would leave the waiter none without giving one back.

        Raises:
            NimueError: the pool is closed, or cannot be used in this process.
        """
        with self.lock:
            if stale is not None and is_held_locked(stale):
                self.idle.append(stale)
            if self.is_shut:
                raise NimuePoolClosedError(f"pool {self.name!r} is closed")
            if self.poison is not None:
                raise type(self.poison)(*self.poison.args)
            limit, crowd = self.settings.max_waiting, len(self.waiters)
            if if_free:
                limit, crowd = self.settings.poolmax, crowd + self.borrowed_locked()
            waiter.queued = wait and (limit is None or crowd < limit)
            if waiter.queued:
                self.waiters.join(waiter)
                self.calm = False
            works = self.plan_locked(now, wish=0 if waiter.queued else 1)
            waiter.wakes = sweep.look_again_at_locked(self, now) < self.next_look
            return works

    def withdraw(self, waiter: Waiter, now: float) -> list[Work]:
        """Take ``waiter`` out, wherever it is by now; what it was handed goes on to the next."""
        with self.lock:
            self.waiters.leave(waiter)
            handle, waiter.handle = waiter.handle, None
            if handle is None or (entry := take_locked(self, handle)) is None:
                return self.plan_locked(now)
            entry.thread = 0
            return self.settle_locked(entry, now)

    def place_locked(self, entry: Entry, now: float) -> None:
        """Lend ``entry`` to whoever has waited longest, or keep it idle.

        From the moment that somebody else can have it, this thread no longer answers for it; a
        moment before that it is watched.
        """
        self.checking.discard(entry)
        self.closing.discard(entry)
        waiter = self.waiters.oldest()
        if waiter is None:
            spare = make_spare(self, entry)
            entry.worker = 0
            self.idle.shelve(spare)
        else:
            self.figures.waited(now - waiter.since)
            handle = lend(self, entry)
            entry.worker = 0
            self.waiters.hand(waiter, handle)

    def plan_locked(self, now: float, wish: int = 0) -> list[Work]:
        """Serve waiters with what is idle, and return the work that would serve the rest.

        ``wish`` counts those who want a connection but do not wait for it. In a pool that was
        closed, what is idle is to be closed too.
        """
        if self.is_shut:
            return self.take_idle_where_locked(lambda entry: True)
        works: list[Work] = []
        if self.poison is not None:
            return works
        while self.idle and (self.waiters or wish):
            spare = self.idle.take()
            if spare is None:
                break
            entry = spare[2]
            is_fresh = now - entry.since < self.unchecked_for
            if entry.retire_at <= now:
                works += self.condemn_locked(entry)
            elif is_fresh and self.waiters:
                self.place_locked(entry, now)
            elif is_fresh or growth.lack_locked(self, now, wish) <= 0:
                self.idle.append(spare)
                break
            else:
                works.append(self.inspect_locked(entry))
        if len(self.entries) < self.settings.poolmax:
            works += growth.grow_locked(self, now, wish)
        self.calm = not self.waiters
        return works

    def inspect_locked(self, entry: Entry) -> Work:
        """Have ``entry``, which is in nobody's hands, checked."""
        self.answer_for_locked(entry)
        return Work(Task.CHECK, entry)

    def answer_for_locked(self, entry: Entry) -> None:
        """``entry`` is in the hands of the running thread, and in no handle."""
        entry.worker = get_ident()
        entry.busy_since = monotonic()
        self.checking.add(entry)
        entry.watch = None

    def take_over(self, entry: Entry, planner: int) -> bool:
        """A background thread answers for ``entry`` from now on; False if another was faster.

        The other is the planner, who was interrupted and has mended what it left behind.
        """
        with self.lock:
            if entry.state is not self or entry.worker != planner:
                return False
            entry.worker = get_ident()
            return True

    def birth_locked(self, now: float) -> Entry:
        """A new entry, about to connect. The only way into ``entries``."""
        self.figures.births += 1
        entry = Entry(self, None, self.figures.births)
        entry.busy_since = now
        entry.generation = self.generation
        entry.worker = get_ident()
        self.entries.add(entry)
        self.connecting.add(entry)
        return entry

    def death_locked(self, entry: Entry) -> None:
        """The only way out of ``entries``. The permit goes back first, without the lock."""
        for place in (self.connecting, self.checking, self.closing, self.entries):
            place.discard(entry)
        entry.state = None
        for content, leaver in list(self.leavers):
            if self.borrowed_locked() <= content:
                self.leavers.remove((content, leaver))
                leaver.ring()

    def borrowed_locked(self) -> int:
        """How many are with holders; a ``connect()`` that hangs is nobody's loan."""
        busy = len(self.connecting) + len(self.checking) + len(self.closing)
        return len(self.entries) - busy - len(self.idle)

    def condemn_locked(self, entry: Entry) -> list[Work]:
        """Have ``entry``, which is in nobody's hands, closed."""
        entry.worker = get_ident()
        self.closing.add(entry)
        self.checking.discard(entry)
        entry.watch = None
        self.refilling = True
        return [Work(Task.CLOSE, entry)]

    def settle_locked(self, entry: Entry, now: float) -> list[Work]:
        """Find the place of a fit entry that is in nobody's hands."""
        if self.is_shut or entry.retire_at <= now or self._surplus_locked() > 0:
            return self.condemn_locked(entry)
        self.place_locked(entry, now)
        return self.plan_locked(now)

    def _surplus_locked(self) -> int:
        return len(self.entries) - len(self.closing) - self.settings.poolmax

    def take_idle_where_locked(self, chosen: Callable[[Entry], bool]) -> list[Work]:
        """Take the chosen idle entries out, to be closed; the longest unused come first."""
        works = []
        for spare in list(self.idle):
            if chosen(spare[2]) and self.idle.unshelve(spare):
                works += self.condemn_locked(spare[2])
        return works

    def pass_on(self, entry: Entry) -> bool:
        """A release without the lock hands over directly; False if nobody waits any more."""
        if self.is_inside:
            return False
        with self.lock:
            waiter = self.waiters.oldest()
            if waiter is not None:
                self.figures.waited(monotonic() - waiter.since)
                self.waiters.hand(waiter, lend(self, entry))
            self.calm = not self.waiters and not self.is_shut
        if self.connecting and not self.waiters:
            self.limit.tell(self)
        return waiter is not None

    def serve(self) -> None:
        """A release without the lock has met waiters, or a pool that was being closed."""
        claims.serve(self)

    def tidy(self, handle: NimueConnection, entry: Entry) -> None:
        """The long way of a release."""
        claims.release(self, handle, entry)

    def rescue(self, entry: Entry, since: float) -> None:
        """An acquire or a release was cut short: the monitor sees whether the entry is lost."""
        self.post(Stray(self, entry, since))
        claims.mend(self)

    def detach(self, handle: NimueConnection, entry: Entry) -> bool:
        return claims.detach(self, handle, entry)

    def say_goodbye(self) -> None:
        ending.say_goodbye(self)

    def before_fork(self, fork: Fork) -> bool:
        return inherit.before_fork(self, fork)

    def sever(self, forker: int | None) -> None:
        inherit.sever_in_child(self, forker)

    def settle_in_child(self, forker: int | None) -> None:
        inherit.settle_in_child(self, forker)

    def fork_is_over(self, fork: Fork, cut_short: bool) -> None:
        inherit.fork_is_over(self, fork, cut_short)

    def keep_awake(self) -> None:
        """Have a monitor run, on behalf of who waits, and asks for it again and again.

        For a fork may hang for ever in the hooks of others, and makes no call that was put off;
        after some seconds it counts as over. Nothing is done for who waited in the parent, and
        finds itself in a child that is not settled yet.
        """
        if not fork.door[0] and self.pid == os.getpid():
            self.awaken()

    def awaken(self) -> None:
        """Have a monitor run, or put that off until the fork is over that keeps it from running."""
        if not fork.put_off(self.wake):
            self.wake()

    def wake(self) -> None:
        """After a fork, on behalf of those who wait: have a monitor run again, and look."""
        monitor.here.ensure()
        monitor.wake()
