"""The permits that one process holds: which slots it has locked, and for whom."""

from __future__ import annotations

from _thread import get_native_id
from threading import local
from time import monotonic_ns, sleep
from typing import Protocol

from nimue.process import Identity
from nimue.semaphore.layout import (
    CONNECTING,
    EDIT,
    FREE,
    HELD,
    HINTS,
    HINTS_END,
    RETIRED,
    SLOT,
    Map,
)
from nimue.semaphore.locks import RecordLocks

#: How often a process that gives back tries to retire the slot, a millisecond apart. Who changes
#: the limit needs less; one that has been stopped in the middle of it is not waited for.
_TRIES = 20


_FREE, _HELD = bytes((FREE,)), bytes((HELD,))


class _Running(local):
    """The running thread's number in the kernel, which is asked once for each thread.

    Not in a child that was forked meanwhile: there, the number of the one thread is another.
    """

    def __init__(self) -> None:
        self.thread = get_native_id() & 0xFFFFFFFF


class Claim(Protocol):
    """What a byte is taken for. It exists before, and gives the byte back when it is dropped."""

    byte: int
    serial: int


class Slots:
    """``held``: the lock bytes that this process has for somebody, each with the claim's serial.

    The kernel's locks decide; ``held`` is there because the kernel takes all threads of a process
    for one owner. The presence's lock guards it. From the moment that ``held`` has its serial, a
    claim that is dropped gives its byte back: so an interrupt anywhere in here loses nothing.
    """

    def __init__(self, locks: RecordLocks, map: Map, who: Identity) -> None:
        self._locks, self._map, self._who = locks, map, who
        self._running = _Running()
        self.held: dict[int, int] = {}
        #: The byte whose give_back has begun, in case that it is cut short.
        self._leaving = 0

    def count(self) -> int:
        """How many permits this process holds."""
        return sum(byte < CONNECTING for byte in list(self.held))

    def take_any(self, claim: Claim) -> bool:
        """Take a slot that nobody has locked: one that looks free, or one whose owner is dead."""
        find = self._map.bytes.find
        at = find(_FREE, HINTS, HINTS_END)
        while at >= 0:
            if self._take(claim, at - HINTS):
                return True
            at = find(_FREE, at + 1, HINTS_END)
        at = find(_HELD, HINTS, HINTS_END)
        while at >= 0:
            if self._locks.looks_free(at + SLOT - HINTS) and self._take(claim, at - HINTS):
                return True
            at = find(_HELD, at + 1, HINTS_END)
        return False

    def _take(self, claim: Claim, slot: int) -> bool:
        byte = SLOT + slot
        if byte in self.held:
            return False
        try:
            if not self._locks.take(byte):
                return False
            hint = self._map.bytes[HINTS + slot]
            if hint == RETIRED:
                self._locks.give_back(byte)
                return False
            claim.byte = byte
            self.held[byte] = claim.serial
        except BaseException:
            if byte not in self.held:
                self._locks.give_back(byte)
            raise
        if hint == HELD:  # whoever gives back says FREE before it unlocks
            self._map.count_reclaimed(slot)
        self._map.bytes[HINTS + slot] = HELD
        self._map.sign_slot(slot, self._who, self._running.thread, monotonic_ns())
        return True

    def sign(self, byte: int) -> None:
        """Enter the running thread as the holder, since now."""
        self._map.sign_slot(byte - SLOT, self._who, self._running.thread, monotonic_ns())

    def take_turn(self, claim: Claim, limit: int) -> bool:
        """Take one of the first ``limit`` turns to connect."""
        for byte in range(CONNECTING, CONNECTING + limit):
            if byte not in self.held:
                try:
                    if self._locks.take(byte):
                        claim.byte = byte
                        self.held[byte] = claim.serial
                        return True
                except BaseException:
                    if byte not in self.held:
                        self._locks.give_back(byte)
                    raise
        return False

    def drop(self, byte: int) -> None:
        """Give a byte back to everybody. May be called again after an interrupt."""
        if self._leaving == byte and not self._locks.take(byte):
            # Cut short after the unlock, and another process has taken it since.
            self.held.pop(byte, None)
            return
        self._leaving = byte
        if byte < CONNECTING:
            at = HINTS + byte - SLOT
            if not (self._map.excess and self._retire(at)):
                self._map.bytes[at] = FREE
        self._locks.give_back(byte)
        self.held.pop(byte, None)
        self._leaving = 0

    def _retire(self, at: int) -> bool:
        """Take a slot out of service, if there are still too many; see resize."""
        for _ in range(_TRIES):
            if self._locks.take(EDIT):
                break
            sleep(0.001)
        else:
            return False
        try:
            surplus = self._map.in_service() - self._map.limit
            if surplus > 0:
                self._map.bytes[at] = RETIRED
                surplus -= 1
            self._map.excess = max(0, surplus)
            return self._map.bytes[at] == RETIRED
        finally:
            self._locks.give_back(EDIT)
