"""One storm: a server, the workers, what befalls them, and what is seen of it from outside."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from nimue.cli.demo_process import tail
from nimue.cli.interrupt import Interrupts
from stress import orphans
from stress.diary import count_files
from stress.ground import Ground
from stress.permits import count_permits
from stress.storm.diary import Findings, read
from stress.storm.faults import faults
from stress.storm.fleet import Fleet, StormFailed
from stress.storm.order import PATIENCE, Order
from stress.watch import PostgresWatch

#: Seconds in which all have to be gone at the end.
END = 60.0
#: In which the server has to have seen it.
SETTLED = 10.0


@dataclass(frozen=True)
class Plan:
    """How long and how hard it blows."""

    kills: int
    seconds: float
    processes: int
    threads: int
    limit: int
    seed: int
    pace: float


@dataclass
class Outcome:
    """What was seen, from outside and in the diaries."""

    findings: Findings
    stopped: dict[str, list[tuple[int, int]]]
    seconds: float
    kills: int
    spells: int
    begun: int
    most: int
    lasting: int
    looks: int
    #: Permits that could be taken at the end, sessions, processes and descriptors that were left.
    permits: int
    sessions: int
    processes: int
    descriptors: int
    errors: list[str] = field(default_factory=list)


def pool_settings(name: str, limit: int, threads: int) -> dict[str, Any]:
    """The pool of each process."""
    return {"name": name, "totalmax": limit, "poolmin": 1, "poolmax": threads}


class Stage(Ground):
    """The ground of a storm."""

    name = "storm"

    def __init__(self, interrupts: Interrupts) -> None:
        super().__init__(interrupts)
        self._mark = f"nimue-storm-{secrets.token_hex(4)}"

    def open(self, dsn: str | None = None) -> None:
        orphans.adopt()
        super().open(dsn)

    def run(self, plan: Plan) -> Outcome:
        """Let it blow. Raises: StormFailed when it cannot go on."""
        diaries, log = self._shared / "diaries", self._folder / "errors.log"
        diaries.mkdir()
        (self._shared / "over").write_bytes(b"\0")
        order = Order(
            connect={**self._address, "application_name": self._mark},
            pool=pool_settings(self._mark, plan.limit, plan.threads),
            threads=plan.threads,
            folder=str(diaries),
            seed=plan.seed,
            bound=plan.seconds + END + 3 * PATIENCE,
        )
        files = count_files()[1]
        fleet = Fleet(order, plan.processes, log, {"NIMUE_DIR": str(self._shared)})
        watch = PostgresWatch(self._conn, self._mark)
        begun = time.monotonic()
        try:
            with self._interrupts.held():
                fleet.begin()
            watch.start()
            spells, errors = self._blow(plan, fleet)
            errors += self._calm_down(fleet)
        except StormFailed as failure:
            raise StormFailed(f"{failure}\n{tail(log, 40)}") from None
        finally:
            with self._interrupts.held():
                watch.stop()
                fleet.close()
        seconds = time.monotonic() - begun
        descriptors = count_files()[1] - files
        outcome = self._judge(plan, fleet, watch, seconds, spells)
        outcome.descriptors = descriptors
        outcome.errors += errors
        if told := tail(log, 40):
            outcome.errors.append(f"the workers said:\n{told}")
        return outcome

    def _blow(self, plan: Plan, fleet: Fleet) -> tuple[int, list[str]]:
        deadline = time.monotonic() + plan.seconds
        spells, servers = 0, self._servers()
        for fault in faults(plan.seed, plan.processes, plan.kills, plan.pace):
            due = time.monotonic() + fault.pause
            while (now := time.monotonic()) < due:
                time.sleep(max(0.0, min(due, fleet.next_waking()) - now))
                fleet.wake()
            if now > deadline:
                return spells, [f"{len(fleet.killed)} kills of {plan.kills} in {plan.seconds:g} s"]
            with self._interrupts.held():
                if fault.spell is None:
                    fleet.kill(fault.place)
                else:
                    fleet.stop(fault.place, fault.spell)
                    spells += 1
            orphans.reap({*fleet.pids, *servers})
        return spells, []

    def _calm_down(self, fleet: Fleet) -> list[str]:
        """After a little more work of the last ones, have all of them leave."""
        time.sleep(1.0)
        fleet.wake(all_of_them=True)
        with open(self._shared / "over", "r+b") as file:  # in place: it is mapped
            file.write(b"\1")
        return fleet.leave(END)

    def _judge(
        self, plan: Plan, fleet: Fleet, watch: PostgresWatch, seconds: float, spells: int
    ) -> Outcome:
        processes = len(orphans.left(self._servers(), SETTLED))
        sessions = watch.settled(SETTLED)
        return Outcome(
            findings=read(self._shared / "diaries", fleet.killed),
            stopped=fleet.stopped,
            seconds=seconds,
            kills=len(fleet.killed),
            spells=spells,
            begun=fleet.begun,
            most=watch.census.most,
            lasting=watch.census.lasting,
            looks=watch.census.looks,
            permits=count_permits(self._mark, plan.limit, self._shared)[0],
            sessions=sessions,
            processes=processes,
            descriptors=0,
            errors=[f"lost sight of the server: {watch.error}"] if watch.error else [],
        )

    def _servers(self) -> list[int]:
        return self._postgres.family.living() if self._postgres is not None else []
