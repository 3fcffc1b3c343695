"""One trial from start to end: processes, questions, faults, calm, the end, and the verdict."""

from __future__ import annotations

import os
import platform
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nimue.cli.demo_process import tail
from nimue.process import command_line
from stress import orphans
from stress.diary import count_files
from stress.permits import count_permits
from stress.scenarios import scenario
from stress.scenarios.base import Scenario
from stress.trial import faults
from stress.trial.brief import Brief
from stress.trial.desk import STOOD
from stress.trial.diaries import Diaries
from stress.trial.growth import LONG, judge_growth
from stress.trial.mischief import Mischief
from stress.trial.oracle import Processes, Sessions
from stress.trial.record import Happening, Record
from stress.trial.site import Site
from stress.trial.verdict import Evidence, audit, judge

#: Seconds between two turns; in which all is to be right again, and without a failure for how long.
TICK, RECOVERY, GOOD = 0.02, 20.0, 1.5
#: What an orphan dies of that nobody sent: it hung, or went wrong.
CRASHES = (signal.SIGALRM, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
#: Lines that are shown of where those stood that hung.
SHOWN = 200
#: Seconds in which the processes have to end, beyond the pool's timeout; and the server to see it.
END, SETTLED = 15.0, 10.0


@dataclass(frozen=True)
class Plan:
    """What is to be tried.

    Args:
        rates: of the faults, per second, by kind.
        seconds: for which they come; the calm after them is on top.
    """

    scenario: str
    variant: str = ""
    contender: str = "nimue"
    dialect: str = "psycopg2"
    seconds: float = 10.0
    processes: int = 4
    threads: int = 4
    poolmax: int = 4
    totalmax: int | None = 6
    timeout: float = 10.0
    hold: float = 0.004
    pause: float = 0.0
    seed: int = 1
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        """Sessions that there may be at once; a preforking parent has a pool as well."""
        each = (self.processes + 1) * self.poolmax
        return each if self.totalmax is None else min(each, self.totalmax)


class Course:
    """One trial. ``look`` is called at every turn, with this, to be shown."""

    def __init__(self, plan: Plan, site: Site, look: Callable[[Course], None]) -> None:
        self.plan, self.site, self._look = plan, site, look
        site.database.create_ledger()
        self._files = count_files()[1]
        self.mark = f"nimue-stress-{secrets.token_hex(4)}"
        self.folder = self._make_folder(site.folder)
        self.limits = site.shared / self.mark
        self.limits.mkdir(mode=0o700)
        self.befallen: list[Happening] = []
        #: Since when no question failed any more; None: not yet.
        self._good_since: float | None = None
        #: Children that were there before, and are somebody else's.
        self._others = orphans.children()
        self.begun = time.monotonic()
        self.diaries = Diaries(self.folder / "diaries", time.monotonic_ns())
        self.sessions = Sessions(site.database, self.mark, self.begun)
        self.processes = Processes(self.begun)
        self.scenario = self._make_scenario()
        self.mischief = self._make_mischief()

    def _make_folder(self, under: Path) -> Path:
        folder = under / self.mark
        for name in ("diaries", "tickets"):
            (folder / name).mkdir(parents=True)
        return folder

    def _make_scenario(self) -> Scenario:
        plan = self.plan
        brief = Brief(
            contender=plan.contender,
            dialect=plan.dialect,
            mark=self.mark,
            connect=self.site.address(plan.dialect),
            folder=str(self.folder),
            seed=plan.seed,
            bound=plan.seconds + RECOVERY + 2 * END + plan.timeout,
            threads=plan.threads,
            poolmax=plan.poolmax,
            totalmax=plan.totalmax,
            timeout=plan.timeout,
            hold=plan.hold,
            pause=plan.pause,
            limits=str(self.limits),
            extra={"cleanup_interval": 1},  # what is swept in a minute is to be seen in seconds
        )
        return scenario(plan.scenario)(brief, plan.processes, plan.variant, self._befell)

    def _make_mischief(self) -> Mischief:
        plan, site = self.plan, self.site
        due = faults.schedule(plan.rates, plan.seconds, plan.seed)
        return Mischief(
            *(due, self.scenario, site.database, site.proxy, plan.seed, self.begun),
            spares=plan.seconds >= LONG,
        )

    def _befell(self, kind: str, detail: str) -> None:
        self.befallen.append(Happening(self.elapsed, kind, detail))

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def run(self) -> Record:
        """Raises: DemoFailed when it cannot go on."""
        try:
            try:
                with self.site.held():
                    self.sessions.start()
                    self.scenario.start()
                self._begin()
                recovered = self._last()
                with self.site.held():
                    troubles = self.scenario.finish(self.plan.timeout + END)
                    left = self._left()
            finally:
                self._end()
            return self._conclude(recovered, troubles, left)
        finally:
            self.sessions.stop()

    def _end(self) -> None:
        """End all that runs, even if some of it cannot be ended."""
        with self.site.held(), ExitStack() as stack:
            stack.callback(lambda: orphans.end(self._ours()))
            stack.callback(self.scenario.close)
            stack.callback(self.mischief.calm)

    def _begin(self) -> None:
        """The plan's seconds count from here: all are at work."""
        self.mischief.start()
        over = self.elapsed + self.plan.seconds
        while self.elapsed < over:
            self._turn()
            self.mischief.act()

    def _turn(self) -> None:
        self.site.check()
        self.scenario.tend()
        self.diaries.read()
        self.processes.look(self._living)
        self._look(self)
        orphans.reap(self._ours(), self._bury)
        time.sleep(TICK)

    def _bury(self, pid: int, status: int) -> None:
        """Of an orphan nobody else tells how it ended."""
        if -status in CRASHES:
            self.diaries.hung.append(f"orphan {pid} ended by signal {-status}")

    def _last(self) -> float | None:
        """No more faults: seconds until nothing failed any more, None if that never came."""
        self.mischief.calm()
        self.scenario.calm()
        calm = failed = answered = self.elapsed
        questions = self.diaries.questions
        seen = len(questions)
        while (now := self.elapsed) < calm + RECOVERY:
            self._turn()
            for one in questions[seen:]:
                if one.error:
                    failed = max(failed, one.ended or 0.0)
                else:
                    answered = max(answered, one.ended or 0.0)
            seen = len(questions)
            if now - failed > GOOD and answered > failed:
                self._good_since = failed
                return failed - calm
        return None

    def _living(self) -> list[int]:
        return list(dict.fromkeys([*self.scenario.children(), *self.scenario.workers()]))

    def _ours(self) -> list[int]:
        """Children of this process that somebody else here waits for."""
        return [*self.scenario.children(), *self.site.children(), *self._others]

    def _left(self) -> list[str]:
        """Processes that outlive the end, with what they are."""
        pids = orphans.left(self._ours(), SETTLED)
        return [f"process {pid} is left: {command_line(pid)}" for pid in sorted(pids)]

    def _conclude(self, recovered: float | None, troubles: list[str], left: list[str]) -> Record:
        plan = self.plan
        after = self.sessions.settled(SETTLED)
        self.sessions.stop()
        self.diaries.finish()
        permits, reclaimed = self._count_permits()
        checks, notes = judge(self._evidence(recovered, after, permits, troubles, left))
        checks += judge_growth(self.processes.samples, plan.seconds)
        return Record(
            scenario=plan.scenario,
            variant=plan.variant,
            contender=plan.contender,
            seed=plan.seed,
            seconds=plan.seconds,
            versions=versions(self.site),
            settings=settings(plan),
            limit=plan.totalmax,
            poolmax=plan.poolmax,
            questions=self.diaries.questions,
            looks=self.sessions.looks,
            happenings=self._happenings(),
            health=self.processes.samples,
            sessions=self.sessions.census.most,
            lasting=self.sessions.census.lasting,
            reclaimed=reclaimed,
            checks=checks,
            notes=notes,
        )

    def _evidence(
        self,
        recovered: float | None,
        after: int,
        permits: int | None,
        troubles: list[str],
        left: list[str],
    ) -> Evidence:
        plan = self.plan
        troubles = [*troubles, *self.mischief.wrong]
        troubles += [self.sessions.error] if self.sessions.error else []
        if plan.contender == "nimue" and troubles:
            troubles.append(tail(self.scenario.log, 30))
        return Evidence(
            diaries=self.diaries,
            ledger=audit(self.diaries.questions, self.site.database.tally()),
            faults=Counter(one.kind for one in [*self.mischief.done, *self.diaries.happenings]),
            rates=plan.rates,
            seconds=plan.seconds,
            limit=plan.limit,
            each=plan.poolmax,
            timeout=plan.timeout,
            most=self.sessions.census.most,
            lasting=self.sessions.census.lasting,
            most_of_one=self.sessions.most_of_one,
            close_up=self.sessions.close_up,
            recovered=recovered,
            good_since=self._good_since,
            sessions=after,
            totalmax=plan.totalmax,
            permits=permits,
            left=left,
            descriptors=max(0, count_files()[1] - self._files),
            knows_sessions=self.site.database.server != "sqlite",
            troubles=troubles,
            stood=tail(self.folder / STOOD, SHOWN),
        )

    def _happenings(self) -> list[Happening]:
        every = [*self.mischief.done, *self.diaries.happenings, *self.befallen]
        return sorted(every, key=lambda one: one.at)

    def _count_permits(self) -> tuple[int | None, int | None]:
        if self.plan.totalmax is None or self.plan.contender != "nimue":
            return None, None
        if not any(self.limits.iterdir()):  # one that nobody has used has all of them
            return 0, None
        return count_permits(self.mark, self.plan.totalmax, self.limits)


def versions(site: Site) -> dict[str, str]:
    """What was tried with what."""
    import nimue

    return {
        "Python": platform.python_version(),
        "on": platform.platform(terse=True),
        "nimue": nimue.__version__,
        site.database.name: site.database.version,
    }


def settings(plan: Plan) -> dict[str, Any]:
    """As the command line would say it."""
    named = ("dialect", "processes", "threads", "poolmax", "totalmax", "timeout", "hold", "pause")
    fixed = scenario(plan.scenario).fixed
    told = {name: getattr(plan, name) for name in named if name not in fixed}
    return told | {"fault": [f"{kind}={rate:g}" for kind, rate in plan.rates.items()]} | {
        "load": f"{os.getloadavg()[0]:.1f} on {os.cpu_count() or 1} processors"
    }
