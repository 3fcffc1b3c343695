"""One process at one semaphore."""

from __future__ import annotations

import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING
from weakref import ref

from nimue.error import NimueSemaphoreLost
from nimue.semaphore import epoch
from nimue.semaphore.layout import ATTACH, CONNECTING, HINTS, NOBODY, WAITS
from nimue.semaphore.members import Members
from nimue.semaphore.queue import Queue
from nimue.semaphore.slots import Slots
from nimue.semaphore.waiter import Waiter
from nimue.semaphore.watch import Watch

if TYPE_CHECKING:
    from nimue.semaphore.core import Core
    from nimue.semaphore.epoch import Epoch


class SharedPermit:
    """The right to one of what the semaphore limits, or one turn to connect.

    It belongs to the process that took it, and any thread of that may give it back, once; again,
    or in a forked child, giving back does nothing. A finalizer or a signal handler may do it too. A
    permit that is dropped comes back by itself, with a ResourceWarning.
    """

    __slots__ = ("_is_returned", "_presence", "byte", "serial")

    def __init__(self, presence: Presence, serial: int) -> None:
        self._presence = presence
        self.serial = serial
        self.byte = 0
        self._is_returned = False

    def give_back(self) -> None:
        self._presence.give_back(self.byte, self.serial)
        # It may be on the list still, that another thread is about to carry out.
        self._is_returned = True

    @property
    def is_held(self) -> bool:
        """Whether it is still this process's."""
        return not self._is_returned and self._presence.has(self.byte, self.serial)

    def __repr__(self) -> str:
        return f"<permit {self.byte} {'held' if self.is_held else 'given back'}>"

    def __del__(self) -> None:
        try:
            presence = self._presence
            if self._is_returned or presence.slots.held.get(self.byte) != self.serial:
                return  # never granted, or given back
        except AttributeError:
            return  # cut short while it was made
        if not sys.is_finalizing() and presence.has(self.byte, self.serial):
            self.give_back()
            warnings.warn("a permit was dropped, not given back", ResourceWarning, stacklevel=2)


class Presence:
    """What one process has at one semaphore: its permits, its place in the queue, its threads.

    ``lock`` guards all of it, and is held for one edit of a table and some system calls that do not
    wait. No other lock is taken under it. What is given back while it is held, by another thread,
    or by a finalizer or a signal handler of the same, is put on a list; hence whoever frees the
    lock calls ``settle``, which carries that out.

        a slot is locked in the kernel by this process  <=>  it is in ``slots.held``, but inside
            ``lock``, and after an interrupt in the middle of giving back

    A forked child gets a new Presence, by one assignment, and never touches this one's lock.
    """

    def __init__(self, core: Core, of: Epoch) -> None:
        self._locks, self._map = core.locks, core.map
        self.epoch = of
        self.lock, self.entering = threading.RLock(), threading.RLock()
        #: Whether the running thread is in the middle of an edit, further down its stack.
        self.is_inside: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined, unused-ignore]
        self.is_in = False
        self.slots = Slots(core.locks, core.map, of.identity)
        self.members = Members(core.base, core.locks, core.map, of.identity)
        self.queue = Queue(core.locks, core.map, self.members)
        self.watch = Watch(core.map, of.identity)
        #: Weakly: one whose wait an exception has cut short blocks nobody.
        self.waiters: deque[ref[Waiter]] = deque()
        self._leader: ref[Waiter] | None = None
        self._returned: deque[tuple[int, int]] = deque()
        self._serial = 0

    def enter(self) -> None:
        """Be attached, as far as others can see."""
        if not self._locks.share(ATTACH):
            raise NimueSemaphoreLost("the semaphore is being destroyed")
        self.is_in = True

    def forsake(self) -> None:
        """In a child, of the parent's presence: let go of what it would read from."""
        self.members.close()
        self.watch.close()

    def is_idle_locked(self) -> bool:
        """Whether this process could leave: it neither holds nor waits."""
        return not self.slots.held and self.first_waiter_locked() is None

    def leave_locked(self) -> None:
        self.is_in = False
        self.watch.close()
        self.members.leave()
        self._locks.give_back(ATTACH)

    # -- permits

    def has(self, byte: int, serial: int) -> bool:
        return self.slots.held.get(byte) == serial and self.epoch is epoch.here()

    def new_permit(self) -> SharedPermit:
        self._serial += 1
        return SharedPermit(self, self._serial)

    def try_take(self) -> SharedPermit | None:
        """A permit, if one is free and nobody waits for it."""
        if self.is_inside():
            return None  # a finalizer or a signal handler
        try:
            with self.lock:
                if self.waiters and self.first_waiter_locked() is not None:
                    return None
                if self._map.bytes[WAITS:HINTS] == NOBODY or self.queue.is_clear():
                    return self.take_locked()
                return None
        finally:
            if self._returned:
                self.settle()

    def take_locked(self) -> SharedPermit | None:
        self._serial += 1
        permit = SharedPermit(self, self._serial)
        return permit if self.slots.take_any(permit) else None

    def take_turn(self, limit: int) -> SharedPermit | None:
        if self.is_inside():
            return None
        try:
            with self.lock:
                permit = self.new_permit()
                return permit if self.slots.take_turn(permit, limit) else None
        finally:
            if self._returned:
                self.settle()

    def give_back(self, byte: int, serial: int) -> None:
        if self.slots.held.get(byte) != serial or self.epoch is not epoch.here():
            return
        self._returned.append((byte, serial))
        try:
            self.settle()
        except BaseException:
            self.settle()
            raise

    def settle(self) -> None:
        """Carry out what was given back, unless a thread is at it: that one looks again after."""
        while self._returned and not self.is_inside():
            try:
                if not self._settle_now():
                    return
            except BaseException:
                # It may be Ctrl-C at any point, when the lock was just taken, or not yet freed. On
                # entry this thread did not have it.
                if self.is_inside():
                    self.lock.release()
                self._settle_now()
                raise

    def _settle_now(self) -> bool:
        if not self.lock.acquire(False):
            return False
        try:
            while self._returned:
                try:
                    self._release_locked(*self._returned[0])
                except Exception:
                    self._returned.popleft()
                    raise
                self._returned.popleft()
        finally:
            self.lock.release()
        return True

    def _release_locked(self, byte: int, serial: int) -> None:
        if self.slots.held.get(byte) != serial:
            return
        try:
            if self.waiters and byte < CONNECTING and not self._map.excess:
                waiter = self.first_waiter_locked()
                if waiter is not None and self.queue.head() is None:
                    self._hand_over_locked(byte, waiter)
                    return
            self.slots.drop(byte)
            if byte < CONNECTING and self._map.bytes[WAITS:HINTS] != NOBODY:
                self.queue.wake()
        except NimueSemaphoreLost:  # nothing is ours any more; the next acquire says why
            self.slots.held.pop(byte, None)

    def _hand_over_locked(self, byte: int, waiter: Waiter) -> None:
        """From thread to thread; for the kernel, the slot stays with this process."""
        permit = self.new_permit()
        permit.byte = byte
        self.slots.held[byte] = permit.serial
        self.slots.sign(byte)
        self.deliver_locked(waiter, permit)
        if self.leads(waiter) and self.members.number is not None:
            self.members.wakes.send(self.members.number)  # it does not sleep on its bell

    def deliver_locked(self, waiter: Waiter, permit: SharedPermit) -> None:
        waiter.permit = permit
        waiter.ring()
        self.announce_locked()

    # -- waiting threads

    def first_waiter_locked(self) -> Waiter | None:
        """The thread that has waited longest and has nothing yet."""
        while self.waiters:
            waiter = self.waiters[0]()
            if waiter is not None and waiter.permit is None:
                return waiter
            if waiter is not None:
                waiter.ring()
            self.waiters.popleft()
        return None

    def announce_locked(self) -> None:
        waiter = self.first_waiter_locked()
        self.queue.announce(0 if waiter is None else waiter.since, len(self.waiters))

    def join(self, waiter: Waiter) -> bool:
        """Queue a thread; False if the semaphore has no place for one more process."""
        try:
            with self.lock:
                if not self.members.join():
                    return False
                self.waiters.append(ref(waiter))
                self.announce_locked()
                return True
        finally:
            self.settle()

    def nudge(self) -> None:
        """Have the threads that wait ask at once whether they still should."""
        try:
            with self.lock:
                for mark in list(self.waiters):
                    waiter = mark()
                    if waiter is not None:
                        waiter.ring()
                if self._leader is not None and self.members.number is not None:
                    self.members.wakes.send(self.members.number)
        finally:
            self.settle()

    def stand_back(self) -> None:
        """Let this process's waiting threads queue again, behind all that wait now."""
        try:
            with self.lock:
                for mark in list(self.waiters):
                    waiter = mark()
                    if waiter is not None:
                        waiter.since = monotonic_ns()
                self.announce_locked()
        finally:
            self.settle()

    def leave_queue(self, waiter: Waiter) -> None:
        """The thread does not wait any longer, whatever has come of it."""
        try:
            with self.lock:
                mark = ref(waiter)
                if mark in self.waiters:
                    self.waiters.remove(mark)
                self.announce_locked()
                if self.leads(waiter):
                    following = self.first_waiter_locked()
                    if following is None:
                        self._leader = None
                        self.watch.close()
                    else:
                        # At once: it may be handed a permit before it wakes, and leave as well.
                        self._leader = ref(following)
                        following.ring()
        finally:
            if self._returned:
                self.settle()

    def leads(self, waiter: Waiter) -> bool:
        return self._leader is not None and self._leader() is waiter

    def claims_lead(self, waiter: Waiter) -> bool:
        """One thread listens for the whole process. Whether it is this one."""
        try:
            with self.lock:
                if self._leader is None or self._leader() is None:
                    self._leader = ref(waiter)
                return self.leads(waiter)
        finally:
            self.settle()

    def serve_locked(self, may_overtake: bool) -> int | None:
        """Take what is free, for the threads that wait, while it is this process's turn.

        Returns the member before it, if it is not. ``may_overtake``: that one has had time enough.
        """
        self.queue.stand_up()
        while (waiter := self.first_waiter_locked()) is not None:
            head = self.queue.head()
            if head is not None and not may_overtake:
                return head
            permit = self.take_locked()
            if permit is None:
                return head
            if head is not None:
                self.queue.suspect(head)
                may_overtake = False
            self.deliver_locked(waiter, permit)
        return None

    def others_wait(self) -> bool:
        """As ``others_waiting``, by the kernel's word, and what the dead have left is cleared."""
        try:
            with self.lock:
                others = [k for k in self.queue.order() if k != self.members.number]
                for member in others:
                    if self.members.is_live(member):
                        return True
                    self.members.reap(member)
                return False
        finally:
            self.settle()
