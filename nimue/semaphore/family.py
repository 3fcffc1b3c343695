"""What the processes at one semaphore tell each other, beside taking and giving back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nimue.error import NimueInvalidParameterValue
from nimue.semaphore import change
from nimue.semaphore.demand import Demand, read_demand
from nimue.semaphore.layout import IDLE, TURNS, Figures, News
from nimue.semaphore.snapshot import Row, read_rows

if TYPE_CHECKING:
    from nimue.semaphore.core import Core
    from nimue.semaphore.presence import Presence, SharedPermit


class Family:
    """The view of one process on all, itself among them; as valid as the semaphore it is of.

    Each process that shows figures has one row, which it alone writes, and anybody reads, without a
    lock. A row is live while its process is: that is one more of the kernel's locks. The row is the
    process's, whatever objects stand for the semaphore in it: two pools of one process that share
    one semaphore add up their figures first. What a child calls goes to its own row.
    """

    __slots__ = ("_here", "_known", "_mapped")

    def __init__(
        self,
        here: Callable[[], Presence],
        mapped: Callable[[], Core],
        known: Callable[[], Core | None],
    ) -> None:
        self._here, self._mapped, self._known = here, mapped, known

    # -- figures

    def publish(self, figures: Figures) -> bool:
        """Show these as this process's row; False if all 256 rows are taken."""
        number = self._join()
        if number is None:
            return False
        self._mapped().map.write_figures(number, figures)
        return True

    def rest(self, figures: Figures) -> None:
        """Show these, and no idle connections, if this process has a row.

        For one that is about to fork: it must not attach then, nor wait for a thread that does, for
        that may be waiting for the fork.
        """
        core = self._known()
        number = None if core is None else core.here.members.number
        if core is not None and number is not None and core.here.is_in:
            core.map.bytes[IDLE + number] = 0
            core.map.write_figures(number, figures)

    def rows(self) -> list[Row]:
        """The rows of all living processes that show figures, or have waited."""
        return read_rows(self._mapped())

    def demand(self) -> Demand | None:
        """What the other processes want of this one; None if they want nothing.

        Clears what the dead have left; see ``SharedSemaphore.others_waiting``, which costs less.
        """
        self._here()
        return read_demand(self._mapped())

    # -- idle connections, and those who wish for one

    def has_idle(self, has: bool) -> None:
        """Say whether this process has idle connections, which it would close if asked to."""
        number = self._join()
        if number is not None:
            self._mapped().map.bytes[IDLE + number] = has

    def listen(self) -> int | None:
        """A descriptor that becomes readable when a process that waits asks for a connection.

        Such a process asks as many of those who ``has_idle`` as it has threads that wait, two
        milliseconds later the next ones, those that have some from then on when they have, and
        all of them anew four times a second. It becomes readable for ``call_all`` as well. Poll the
        descriptor, and call ``heard`` when it is readable; it is this process's own, so a child
        calls ``listen`` again. None if all 256 rows are taken.
        """
        presence = self._here()
        try:
            with presence.lock:
                ear = presence.members.listen()
        finally:
            presence.settle()
        return None if ear is None else ear.fd

    def heard(self) -> int:
        """How many connections have been asked for since the last call. It does not wait.

        A hint, which may count one wish twice: ``demand`` says whether any is left.
        """
        presence = self._here()
        try:
            with presence.lock:  # else another thread may leave, and the number be another file's
                ear = presence.members.ear
                return 0 if ear is None else ear.drain()
        finally:
            presence.settle()

    def ask(self, wanted: int) -> None:
        """Ask for so many connections, though no thread waits for a permit."""
        presence = self._here()
        try:
            with presence.lock:
                presence.queue.poke(wanted, set())
        finally:
            presence.settle()

    # -- what concerns all

    @property
    def news(self) -> News:
        """Numbers that all processes see, and that change when something concerns them all."""
        return self._mapped().map.news()

    def renew(self) -> int:
        """Begin a new generation, for all; returns its number."""
        self._here()
        generation = change.renew(self._mapped())
        self._call_all()
        return generation

    def alarm(self) -> None:
        """The server seems to be gone: let all check what they have."""
        self._mapped().map.count_alarm()
        self._call_all()

    def refused(self) -> None:
        """The server had no room for a connection that was permitted: ask for one to be closed."""
        self._mapped().map.count_refusal()
        self.ask(1)

    def _call_all(self) -> None:
        """Wake all who listen, so that they look at the news."""
        presence = self._here()
        try:
            with presence.lock:
                for member in presence.members.live():
                    if member != presence.members.number:
                        presence.members.pokes.send(member)
        finally:
            presence.settle()

    # -- one limit for all

    def agree(self, limit: int) -> int | None:
        """Come with a limit that differs from what the last one came with: it is for all from now.

        One that was changed while in use stays, for those who come with what was there before.
        Returns the limit that was changed; None if none was.
        """
        self._here()
        map = self._mapped().map
        known, map.asked = map.asked, limit
        before = map.limit
        if limit in (before, known):
            return None
        change.resize(self._mapped(), limit)
        return before

    # -- turns to connect

    def try_connecting(self, limit: int) -> SharedPermit | None:
        """A turn to connect, if fewer than ``limit`` are taken over all processes.

        Nobody waits for turns here. They are given back like permits, also by death. Where
        processes ask with different limits, each sees to its own.
        """
        if not 1 <= limit <= TURNS:
            raise NimueInvalidParameterValue(f"limit {limit!r} is not allowed: 1 to {TURNS}")
        return self._here().take_turn(limit)

    def _join(self) -> int | None:
        """The number of this process's row; looked at once, for another thread may leave."""
        presence = self._here()
        if presence.members.number is None:
            try:
                with presence.lock:
                    presence.members.join()
            finally:
                presence.settle()
        return presence.members.number
