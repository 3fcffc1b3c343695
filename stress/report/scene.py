"""One moment of a trial, as it is shown while it runs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stress.report.words import several
from stress.trial.desk import OK

if TYPE_CHECKING:
    from stress.trial.course import Course

#: Happenings that are shown; and seconds over which a rate is taken.
LAST, RECENT = 4, 2.0


@dataclass(frozen=True)
class Worker:
    """One process at one moment.

    Args:
        answered, errors: questions, since its begin.
        waited: seconds for a connection, last; None if it never did.
        lives: it is a worker now.
    """

    pid: int
    sessions: int
    answered: int
    errors: int
    waited: float | None = None
    lives: bool = True


@dataclass(frozen=True)
class Scene:
    """One moment of a trial.

    Args:
        elapsed, seconds: since the begin, and of the whole.
        name: of scenario and variant.
        sessions, most: now, and the most of them that lasted until now.
        per_second: questions answered, lately.
        faults: how many were done, by kind.
        happened: all that befell the processes until now, the last at the end.
    """

    elapsed: float
    seconds: float
    name: str
    workers: tuple[Worker, ...]
    sessions: int
    most: int
    limit: int | None
    per_second: float
    faults: Mapping[str, int] = field(default_factory=dict)
    happened: tuple[str, ...] = ()

    def summary(self) -> str:
        limit = "" if self.limit is None else f" of {self.limit}"
        failed = sum(worker.errors for worker in self.workers)
        return (
            f"{self.name}   {self.elapsed:5.1f} s of {self.seconds:g}   {self.per_second:,.0f} /s"
            f"   {self.sessions}{limit} sessions, at most {self.most} lasting"
            f"   {several(failed, 'error')}   {several(sum(self.faults.values()), 'fault')}"
        )


class Scenes:
    """Scenes of one course, each from what is new since the one before."""

    def __init__(self) -> None:
        self._read = 0
        self._answered: Counter[int] = Counter()
        self._errors: Counter[int] = Counter()
        self._waited: dict[int, float] = {}
        self._rates = deque([(0.0, 0)])

    def of(self, course: Course) -> Scene:
        """As it is now."""
        self._take_in(course)
        plan, elapsed = course.plan, course.elapsed
        happened = sorted(
            [*course.mischief.done, *course.diaries.happenings, *course.befallen],
            key=lambda one: one.at,
        )
        return Scene(
            elapsed=elapsed,
            seconds=plan.seconds,
            name=f"{plan.scenario} {plan.variant}".strip(),
            workers=self._workers(course),
            sessions=sum(course.sessions.now.values()),
            most=course.sessions.census.lasting,
            limit=plan.totalmax,
            per_second=self._rate(elapsed),
            faults=Counter(one.kind for one in happened),
            happened=tuple(f"{one.at:6.1f} s  {one.kind} {one.detail}" for one in happened[-LAST:]),
        )

    def _take_in(self, course: Course) -> None:
        questions = course.diaries.questions
        for n in range(self._read, len(questions)):
            one = questions[n]
            (self._answered if one.outcome == OK else self._errors)[one.pid] += 1
            if one.outcome == OK or one.waited > 0:
                self._waited[one.pid] = one.waited
        self._read = len(questions)

    def _workers(self, course: Course) -> tuple[Worker, ...]:
        lives, sessions = set(course.scenario.workers()), course.sessions.now
        every = lives | {pid for pid, count in sessions.items() if count}
        every |= self._answered.keys() | self._errors.keys()
        return tuple(
            Worker(
                pid,
                sessions.get(pid, 0),
                self._answered[pid],
                self._errors[pid],
                self._waited.get(pid),
                pid in lives,
            )
            for pid in sorted(every - {0})
        )

    def _rate(self, elapsed: float) -> float:
        """Answered per second, lately."""
        self._rates.append((elapsed, self._answered.total()))
        while len(self._rates) > 2 and elapsed - self._rates[1][0] >= RECENT:
            self._rates.popleft()
        (begin, before), (end, now) = self._rates[0], self._rates[-1]
        return (now - before) / (end - begin) if end > begin else 0.0
