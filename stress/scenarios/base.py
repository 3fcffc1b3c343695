"""What a scenario is to the trial that runs it."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from nimue.cli.demo_verdict import DemoFailed
from stress.bench.runs import environment
from stress.diary import Diary, now
from stress.trial.brief import VARIABLE, Brief
from stress.trial.desk import REFUSED, UNKNOWN, Answer
from stress.trial.words import told

#: Seconds at most between two questions of a caller, beyond the pause that is asked for.
REST = 0.002


class Scenario(ABC):
    """The processes of one trial. The trial calls, in this order and from one thread::

        start  tend tend ...  calm  finish  close

    ``close`` comes whatever happens, and leaves nothing that runs.

    Args:
        brief: what the processes are told.
        processes: how many workers.
        variant: which of ``variants``.
        happened: to be told of what befalls the processes (kind, detail), but for the faults.
    """

    name = ""
    summary = ""
    #: The ways it can be set up, each with a line that says what it is. All are tried by default.
    variants: Mapping[str, str] = {"": ""}
    #: What must be importable.
    needs: tuple[str, ...] = ()
    #: Options that make no sense here, with what the trial has instead.
    fixed: Mapping[str, int] = {}
    #: Faults that make no sense here.
    without: frozenset[str] = frozenset()

    def __init__(
        self,
        brief: Brief,
        processes: int,
        variant: str,
        happened: Callable[[str, str], None],
    ) -> None:
        self.brief = brief
        self.processes = processes
        self.variant = variant
        self.happened = happened
        self.folder = Path(brief.folder)
        self.log = self.folder / "processes.log"

    @abstractmethod
    def start(self) -> None:
        """Start the processes and what asks them; return when all are at work.

        Raises:
            DemoFailed: they do not come to work in time.
        """

    @abstractmethod
    def workers(self) -> list[int]:
        """The process ids of the workers that live now: they may be killed, stopped, and counted.

        Each is a process that this run has started, or a child of one.
        """

    def children(self) -> list[int]:
        """Children of the running process that are waited for here, and by nobody else."""
        return []

    def tend(self) -> None:  # noqa: B027
        """Begin others for those that have ended, and do what belongs to the variant."""

    def calm(self) -> None:  # noqa: B027
        """No more faults come, and nothing else is to befall the processes."""

    @abstractmethod
    def finish(self, bound: float) -> list[str]:
        """Have the questions and the processes end in order; what went wrong with that."""

    @abstractmethod
    def close(self) -> None:
        """End whatever is still there. May be called at any time, and twice."""

    def environment(self) -> dict[str, str]:
        """For the processes."""
        return environment(everything=True) | {
            VARIABLE: self.brief.as_json(),
            "NIMUE_DIR": self.brief.limits or str(self.folder / "limits"),
            "PYTHONWARNINGS": "ignore::DeprecationWarning",
        }


class Callers:
    """Threads that ask from outside, over HTTP or a queue, and write down what came of it.

    Args:
        brief: of the trial.
        count: how many.
        call: puts one question (a token) and returns the answer. What it raises is told as the
            answer's error, ``unknown`` for all but ConnectionRefusedError, where nobody was asked.
    """

    def __init__(self, brief: Brief, count: int, call: Callable[[str], Answer]) -> None:
        self._call, self._pause = call, REST + 2 * brief.pause
        self._over = threading.Event()
        self._diary = Diary(os.path.join(brief.folder, "diaries"), "callers")
        self._files = ExitStack()
        self._files.callback(self._diary.close)
        self._threads = [
            threading.Thread(target=self._ask, args=(n, brief.seed), daemon=True)
            for n in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self, bound: float) -> list[str]:
        """Ask no more; what did not come back in time."""
        self._over.set()
        deadline = time.monotonic() + bound
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if not self._threads:  # else one may write yet
            self._files.close()
        stuck = len(self._threads)
        return [f"{stuck} callers are not answered within {bound:g} s"] if stuck else []

    def _ask(self, number: int, seed: int) -> None:
        dice = Random(f"{seed} caller {number}")
        count = 0
        while not self._over.is_set():
            count += 1
            token = f"{self._diary.name}.{number}.{count}"
            self._diary.note("ask", token, now())
            try:
                answer: dict[str, Any] = self._call(token).as_dict()
            except ConnectionRefusedError as error:
                answer = Answer(token, REFUSED, 0, 0, 0, told(error)).as_dict()
            except Exception as error:
                answer = Answer(token, UNKNOWN, 0, 0, 0, told(error)).as_dict()
            self._diary.note("end", token, now(), answer)
            if answer["error"]:
                self._over.wait(0.02)
            self._over.wait(dice.random() * self._pause)


def wait_until(fact: Callable[[], bool], bound: float, what: str, log: Path) -> None:
    """Raises DemoFailed, with the end of the log, if it does not come true in time."""
    deadline = time.monotonic() + bound
    while not fact():
        if time.monotonic() > deadline:
            lines = log.read_text(errors="replace").splitlines()[-40:] if log.exists() else []
            raise DemoFailed(f"{what} within {bound:g} s", "\n".join(lines))
        time.sleep(0.02)
