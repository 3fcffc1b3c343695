"""What a process of a trial does at a question: take a connection, ask, write, commit, answer."""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

from stress.diary import Diary, count_files, now
from stress.trial import pools, tickets
from stress.trial.brief import Brief
from stress.trial.dialects import DIALECTS
from stress.trial.words import told

#: What became of a question. Committed for certain; certainly not; and what nobody can know who
#: was not told, since it was cut in the commit.
OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"


#: In the trial's folder: where those stood that hung.
STOOD = "stood.log"

#: It stays open for faulthandler, which keeps no more of it than the descriptor's number.
_stood: BinaryIO | None = None

#: What the names of threads begin with that ask of their own accord.
DRIVER = "driver-"


class WrongAnswer(Exception):
    """A connection answered what it was not asked."""


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Args:
        token: the question's.
        outcome: ``ok``, ``refused`` or ``unknown``.
        pid: of the process that took it.
        waited: nanoseconds for a connection, or until it was refused.
        backend: the session's number on the server; 0 if there was none.
        error: what went wrong, or "".
        wrong: it was no fault of the server's: somebody else's answer.
    """

    token: str
    outcome: str
    pid: int
    waited: int
    backend: int
    error: str = ""
    wrong: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Desk:
    """The pool of a process and of its forks, and what is done with it.

    It is made before the fork, where there is one; ``enter`` begins the work of a process.
    """

    #: That of the running process, from ``enter`` on.
    diary: Diary

    def __init__(self, brief: Brief) -> None:
        self.brief: Brief = brief
        self._dialect = DIALECTS[brief.dialect]
        self._folder = Path(brief.folder)
        self.pool: pools.Pool = pools.make(brief, self._connect)
        self._tickets = tickets.Tickets(self._folder / "tickets")
        self._entered = 0

    def _connect(self) -> Any:
        return self._dialect.connect(self.brief)

    def enter(self) -> None:
        """This process comes to work."""
        guard(self.brief)
        self.enter_child(f"w{os.getpid()}")

    def enter_child(self, name: str) -> None:
        """So does one that is forked in the middle of it. ``name``: of its diary."""
        self.pool.enter_child()
        self.diary = Diary(str(self._folder / "diaries"), name)
        self._entered = os.getpid()
        self.diary.note("up", now(), os.getpid(), *count_files())

    def leave(self) -> None:
        """Close the pool, and write down what is left."""
        self.pool.close(self.brief.timeout)
        settled = time.monotonic() + 2
        while len(threading.enumerate()) > 1 and time.monotonic() < settled:
            time.sleep(0.005)
        self.diary.note("out", now(), os.getpid(), *count_files())

    def note_did(self, kind: str, detail: str) -> None:
        """A fault that this process has done to itself."""
        self.diary.note("did", now(), os.getpid(), kind, detail)

    def note_wrong(self, what: str) -> None:
        """What must never be."""
        self.diary.note("wrong", now(), os.getpid(), what)

    @property
    def drives_itself(self) -> bool:
        """Whether the running thread asks of its own accord."""
        return threading.current_thread().name.startswith(DRIVER)

    @property
    def is_over(self) -> bool:
        return (self._folder / "over").exists()

    def answer(self, token: str, dice: Random) -> Answer:
        """Do what a question asks for. What is no Exception passes, and nothing is lost by it."""
        if self._entered != os.getpid():
            self.enter()
        asked, waited, backend, outcome = now(), 0, 0, REFUSED
        try:
            try:
                conn = self.pool.acquire()
            finally:
                waited = now() - asked
            error: BaseException | None = None
            is_lost = False
            try:
                backend = self._ask(conn, token)
                is_lost = self._tickets.serve(self, conn, dice)
                self._write(conn, token)
                time.sleep(dice.random() * self.brief.hold)
                outcome = UNKNOWN
                conn.commit()
                outcome = OK
            except BaseException as caught:
                error = caught
                raise
            finally:
                if error is not None or not is_lost:
                    self.pool.release(conn, error)
        except Exception as error:
            wrong = isinstance(error, WrongAnswer)
            return Answer(token, outcome, os.getpid(), waited, backend, told(error), wrong)
        return Answer(token, outcome, os.getpid(), waited, backend)

    def _ask(self, conn: Any, token: str) -> int:
        cursor = conn.cursor()
        cursor.execute(self._dialect.echo, (token,))
        rows = cursor.fetchall()
        cursor.close()
        if len(rows) != 1 or rows[0][0] != token:
            raise WrongAnswer(f"asked {token!r}, got {rows!r}")
        return int(rows[0][1])

    def _write(self, conn: Any, token: str) -> None:
        cursor = conn.cursor()
        cursor.execute(self._dialect.write, (token, os.getpid()))
        cursor.close()

    def drive(self) -> None:
        """Ask one question after the other, in so many threads, until it is over."""
        threads = [
            threading.Thread(target=self._drive, args=(n,), name=f"{DRIVER}{n}", daemon=True)
            for n in range(self.brief.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _drive(self, number: int) -> None:
        dice = Random(f"{self.brief.seed} {self.diary.name} {number}")
        tokens = (f"{self.diary.name}.{number}.{n}" for n in itertools.count())
        while True:
            try:
                while not self.is_over:
                    self.ask(next(tokens), dice)
                    if self.brief.pause:
                        time.sleep(dice.random() * 2 * self.brief.pause)
                return
            except KeyboardInterrupt:  # one of the faults; the question stays without an end
                continue
            except Exception as error:
                self.note_wrong(f"a thread ended: {told(error)}")
                raise

    def ask(self, token: str, dice: Random) -> Answer:
        """A question of this process's own, which its diary tells of."""
        self.diary.note("ask", token, now())
        answer = self.answer(token, dice)
        self.diary.note("end", token, now(), answer.as_dict())
        if answer.outcome != OK:
            time.sleep(0.01)  # a server that is down is not asked again at once
        return answer


def guard(brief: Brief) -> None:
    """End this process by itself when its time is up, and write down where every thread stood."""
    global _stood
    if _stood is None:
        _stood = open(os.path.join(brief.folder, STOOD), "ab")  # noqa: SIM115
    faulthandler.register(signal.SIGALRM, _stood, all_threads=True, chain=True)
    signal.alarm(int(brief.bound))
