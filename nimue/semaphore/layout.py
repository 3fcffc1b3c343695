"""The two files of a semaphore, byte by byte. One version; what differs is refused.

The lock file is empty. Its bytes are only ever locked (fcntl(2)), which needs none to be there:

    ======  ==========  ==================================================================
     0      EDIT        whoever changes the limit, the number of slots, or the generation
     1      ATTACH      shared by every process attached; exclusive: nobody else is
     64+k   MEMBER      process k of those that wait, or show figures         (k < 256)
     1024+i SLOT        the permits: whoever has byte i locked holds permit i (i < 1024)
     4096+j CONNECTING  the turns of those that connect                       (j < 256)
    ======  ==========  ==================================================================

The map is shared memory, in the byte order of the machine. It holds hints and records: any of it
may be stale or wrong without one permit too many or too few.

    ======  ===========  =====================================================================
     0      8 bytes      magic, written last
     8      u32          version
     12     u32          0x01020304, as this machine writes it
     16     u32          limit
     20     u32          SLOTS
     24     u32          MEMBERS
     28     u32          excess: slots in use above the limit, to be retired as they come back
     32     u64 u64      inode and device of the lock file that this map belongs to
     48     u64          generation
     56     u64          alarms: how often a process has found its server gone
     64     u64          refusals: how often the server had no room for a connection
     72     u32          the limit that was last asked for by who came, which is the limit unless
                         it was changed since
     256    u8[256]      WAITS: 1 while threads of member k wait
     512    u8[1024]     HINTS: slot i is FREE, HELD or RETIRED
     1536   u8[256]      SUSPECT: member k did not take its turn (it may be stopped)
     1792   u8[256]      IDLE: member k has idle connections
     4096   64 B x 256   member k: u64 ticket, u32 pid, u32 threads waiting, u64 start of the
                         process, u64 pid namespace
     20480  64 B x 1024  slot i: u32 pid, u32 thread, u64 since, u64 start of the process, u64
                         pid namespace, u64 how often it was taken from a dead holder
     86016  128 B x 256  member k: its figures, see ``Figures``
    ======  ===========  =====================================================================

Times are nanoseconds of the monotonic clock, which all processes of a host share. Of a member's
bytes and rows only that member writes, but for SUSPECT and for what is left of a dead one. A
slot's row belongs to whoever has it locked.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

from nimue.process import Identity

EDIT, ATTACH, MEMBER, SLOT, CONNECTING = 0, 1, 64, 1024, 4096
MEMBERS, SLOTS, TURNS = 256, 1024, 256
LOCK_BYTES = CONNECTING + TURNS

FREE, HELD, RETIRED = 0, 1, 2

MAGIC, VERSION, BYTE_ORDER = b"NIMUESM\0", 1, 0x01020304
WAITS, HINTS, SUSPECT, IDLE = 256, 512, 1536, 1792
HINTS_END, IDLE_END = HINTS + SLOTS, IDLE + MEMBERS
MEMBER_ROWS, SLOT_ROWS, FIGURE_ROWS = 4096, 20480, 86016
SIZE = FIGURE_ROWS + MEMBERS * 128

#: ``WAITS`` when nobody does.
NOBODY = bytes(MEMBERS)

_MEMBER_ROW = struct.Struct("@QIIQQ")
_SLOT_ROW = struct.Struct("@IIQQQ")
_FIGURE_ROW = struct.Struct("@16Q")

_HEADER = {"version": 2, "byte order": 3, "slots": 5, "members": 6}
_LIMIT, _EXCESS, _ASKED = 4, 7, 18
_INODE, _DEVICE, _GENERATION, _ALARMS, _REFUSALS = 4, 5, 6, 7, 8


class Figures(NamedTuple):
    """What a process tells of its pool to all others. Whole numbers, none below 0."""

    in_use: int = 0
    idle: int = 0
    connecting: int = 0
    waiting: int = 0
    opened: int = 0
    failed: int = 0
    timeouts: int = 0
    closed: int = 0
    #: Time that threads have waited, in all.
    waited_ns: int = 0
    #: When the longest hold of those under way began, by the monotonic clock; 0 if nothing is out.
    longest_since_ns: int = 0
    poolmin: int = 0
    poolmax: int = 0
    #: Connections given up because another process waited.
    shed: int = 0
    #: Connections that the server refused because it was full.
    refused: int = 0
    #: The generation that the process has acted upon.
    generation: int = 0
    #: When it told this, by the monotonic clock.
    told_ns: int = 0


class News(NamedTuple):
    """What concerns every process. Who finds a number changed since its last look acts upon it."""

    #: Connections opened under a lower one are to be replaced.
    generation: int
    #: A process has found its server gone: the connections of the others should be checked.
    alarms: int
    #: The server had no room for a connection that was permitted.
    refusals: int


class MemberRow(NamedTuple):
    ticket: int
    pid: int
    threads: int
    started: int
    namespace: int


class SlotRow(NamedTuple):
    pid: int
    thread: int
    since: int
    started: int
    namespace: int


class Map:
    """The shared memory, with names. Knows no locks and no processes.

    ``bytes`` is for single bytes and slices; u32 and u64 are read and written whole, through views,
    so that no reader sees half of one.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self.bytes = memory
        self._words = memoryview(memory).cast("I")
        self._longs = memoryview(memory).cast("Q")

    @property
    def limit(self) -> int:
        return self._words[_LIMIT]

    @limit.setter
    def limit(self, limit: int) -> None:
        self._words[_LIMIT] = limit

    @property
    def excess(self) -> int:
        return self._words[_EXCESS]

    @excess.setter
    def excess(self, excess: int) -> None:
        self._words[_EXCESS] = excess

    @property
    def asked(self) -> int:
        return self._words[_ASKED]

    @asked.setter
    def asked(self, limit: int) -> None:
        self._words[_ASKED] = limit

    @property
    def generation(self) -> int:
        return self._longs[_GENERATION]

    @generation.setter
    def generation(self, generation: int) -> None:
        self._longs[_GENERATION] = generation

    def news(self) -> News:
        return News(*self._longs[_GENERATION : _REFUSALS + 1].tolist())

    def count_alarm(self) -> None:
        """Two processes that do it at once may count as one: either way there is a new number."""
        self._longs[_ALARMS] += 1

    def count_refusal(self) -> None:
        self._longs[_REFUSALS] += 1

    def in_service(self) -> int:
        """How many slots are not retired."""
        return SLOTS - self.bytes[HINTS:HINTS_END].count(RETIRED)

    def set_ticket(self, member: int, ticket: int) -> None:
        self._longs[(MEMBER_ROWS + member * 64) // 8] = ticket

    def ticket(self, member: int) -> int:
        return self._longs[(MEMBER_ROWS + member * 64) // 8]

    def set_threads(self, member: int, threads: int) -> None:
        self._words[(MEMBER_ROWS + member * 64) // 4 + 3] = threads

    def sign_member(self, member: int, who: Identity) -> None:
        """Enter a new member, who waits for nothing yet and has no figures."""
        for flags in (WAITS, SUSPECT, IDLE):
            self.bytes[flags + member] = 0
        _MEMBER_ROW.pack_into(self.bytes, MEMBER_ROWS + member * 64, 0, who.pid, 0, *who[1:])
        self.write_figures(member, Figures())

    def member(self, member: int) -> MemberRow:
        return MemberRow(*_MEMBER_ROW.unpack_from(self.bytes, MEMBER_ROWS + member * 64))

    def sign_slot(self, slot: int, who: Identity, thread: int, since: int) -> None:
        pid, started, space = who
        row = SLOT_ROWS + slot * 64
        _SLOT_ROW.pack_into(self.bytes, row, pid, thread, since, started, space)

    def slot(self, slot: int) -> SlotRow:
        return SlotRow(*_SLOT_ROW.unpack_from(self.bytes, SLOT_ROWS + slot * 64))

    def count_reclaimed(self, slot: int) -> None:
        self._longs[(SLOT_ROWS + slot * 64) // 8 + 4] += 1

    def reclaimed(self) -> int:
        """How many permits were taken from dead holders, in all."""
        first, last = (SLOT_ROWS // 8) + 4, (SLOT_ROWS + SLOTS * 64) // 8
        return sum(self._longs[first:last:8].tolist())

    def write_figures(self, member: int, figures: Figures) -> None:
        _FIGURE_ROW.pack_into(self.bytes, FIGURE_ROWS + member * 128, *figures)

    def figures(self, member: int) -> Figures:
        return Figures(*_FIGURE_ROW.unpack_from(self.bytes, FIGURE_ROWS + member * 128))

    def places(self, start: int, end: int, value: int) -> list[int]:
        """Where in the bytes from ``start`` to ``end`` that value is, counted from ``start``."""
        found, sought = [], bytes((value,))
        flags = self.bytes[start:end]
        at = flags.find(sought)
        while at >= 0:
            found.append(at)
            at = flags.find(sought, at + 1)
        return found

    def format(self, limit: int, inode: int, device: int) -> None:
        """Make a new semaphore of these bytes. Only while nobody else is attached."""
        self.bytes[0:8] = bytes(8)
        self.bytes[8:SIZE] = bytes(SIZE - 8)
        for number, at in zip((VERSION, BYTE_ORDER, SLOTS, MEMBERS), _HEADER.values(), strict=True):
            self._words[at] = number
        self.limit = limit
        self._longs[_INODE], self._longs[_DEVICE] = inode, device
        self.bytes[HINTS + limit : HINTS_END] = bytes((RETIRED,)) * (SLOTS - limit)
        self.bytes[0:8] = MAGIC

    def is_of(self, inode: int, device: int) -> bool:
        """Whether this map was made for that lock file."""
        return (self._longs[_INODE], self._longs[_DEVICE]) == (inode, device)

    def foreign(self) -> str | None:
        """What is another version's in this map; None if it is ours to use."""
        if self.bytes[0:8] != MAGIC:
            return f"its map begins with {self.bytes[0:8]!r}, not {MAGIC!r}"
        for (name, at), ours in zip(
            _HEADER.items(), (VERSION, BYTE_ORDER, SLOTS, MEMBERS), strict=True
        ):
            if self._words[at] != ours:
                return f"its map has {name} {self._words[at]:#x}, not {ours:#x}"
        return None
