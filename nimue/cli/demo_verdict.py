"""What the demo found, and whether it is right. Nothing here looks at a clock or a process."""

from dataclasses import dataclass, field


class DemoFailed(Exception):
    """The demo could not be played to its end; `log` is what the server wrote last."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


@dataclass
class Worker:
    """One worker as its answers told: `figures` as in demo_app.FIGURES, of the latest answer."""

    requests: int = 0
    accepted: int = 0
    figures: tuple[int, ...] = (0, 0, 0, 0, 0, 0)

    @property
    def inherited(self) -> int:
        return self.figures[4]

    @property
    def severed(self) -> int:
        return self.figures[5]


@dataclass(frozen=True)
class Failure:
    """A request without a good answer. `pid`: the worker known to be at the other end, if any.

    `dropped`: the connection ended without an answer, as it does when its worker is killed.
    """

    began: float
    failed: float
    pid: int | None
    dropped: bool
    reason: str


@dataclass(frozen=True)
class Kill:
    """A worker killed at `at`, seen dead at `dead`, and seen replaced at `replaced`."""

    pid: int
    at: float
    dead: float
    replaced: float | None = None
    replacement: int | None = None

    GRACE = 1.0

    def cut(self, failure: Failure) -> bool:
        """Whether the kill explains this failure.

        Only a connection that ended without an answer can be one. Where an earlier answer on it
        told its worker, that must be the killed one. Where nothing was answered yet, the request
        must have been under way while the worker died.
        """
        if not failure.dropped or failure.failed < self.at:
            return False
        if failure.pid is not None:
            return failure.pid == self.pid
        return failure.began <= self.dead and failure.failed <= self.dead + self.GRACE


@dataclass(frozen=True)
class Sessions:
    """This run's sessions in pg_stat_activity.

    `most`: the most at once, without those of the killed worker after its death, and under a
    limit of all processes without those that were gone a moment later; `moment`: with the latter;
    `most_each`: the most of any one process, but the master; `reaped`: seconds after its death
    that the last session of the killed worker was seen gone.
    """

    before: int
    most: int
    moment: int
    most_each: int
    after: int
    reaped: float | None
    samples: int = 0
    interval: float = 0.0
    gap: float = 0.0


@dataclass(frozen=True)
class Master:
    """The master's pool: its sessions, and its own (session, transaction) first and last."""

    pid: int
    sessions: int
    before: tuple[int, int]
    after: tuple[int, int] | None


@dataclass(frozen=True)
class Permits:
    """What was seen of the limit of all processes: the most permits held at once, and those held
    after the end. `given_up` and `timeouts` are sums over all processes, as each told last.
    """

    most: int
    after: int
    given_up: int
    timeouts: int


@dataclass(frozen=True)
class Facts:
    """`permits` is None if no process has made a limit of all processes."""

    workers: int
    clients: int
    poolmax: int
    master: Master
    seen: dict[int, Worker]
    failures: list[Failure]
    wrong: list[str]
    kill: Kill | None
    sessions: Sessions
    totalmax: int | None = None
    permits: Permits | None = None
    left: list[str] = field(default_factory=list)

    def cut(self) -> list[Failure]:
        return [one for one in self.failures if self.kill and self.kill.cut(one)]

    def errors(self) -> list[Failure]:
        return [one for one in self.failures if not (self.kill and self.kill.cut(one))]


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    what: str
    seen: str
    wanted: str
    right: bool


def count(what: str, seen: int, wanted: int) -> Check:
    return Check(what, f"{seen:,}", f"{wanted:,}", seen == wanted)


def judge(facts: Facts) -> list[Check]:
    """The verdict: all is right when every check is."""
    return [
        *judge_answers(facts),
        *judge_kill(facts),
        *judge_sessions(facts),
        *judge_permits(facts),
        *judge_fork(facts),
    ]


def judge_answers(facts: Facts) -> list[Check]:
    requests = sum(worker.requests for worker in facts.seen.values())
    cut = len(facts.cut())
    return [
        Check("requests answered", f"{requests:,}", "some", requests > 0),
        Check("  cut by the kill", f"{cut}", f"at most {facts.clients}", cut <= facts.clients),
        count("  errors", len(facts.errors()), 0),
        count("  wrong answers", len(facts.wrong), 0),
    ]


def judge_kill(facts: Facts) -> list[Check]:
    kill, reaped = facts.kill, facts.sessions.reaped
    replaced = kill is not None and kill.replaced is not None
    answered = replaced and kill is not None and kill.replacement in facts.seen
    after = f"{kill.replaced - kill.at:.2f} s" if kill and kill.replaced else "never"
    return [
        Check("worker killed, replaced after", after, "and it answers", bool(answered)),
        Check(
            "  its sessions gone after",
            "never" if reaped is None else f"{reaped:.2f} s",
            "gone",
            reaped is not None,
        ),
    ]


def judge_sessions(facts: Facts) -> list[Check]:
    sessions, own = facts.sessions, facts.master.sessions
    limit = facts.workers * facts.poolmax + own
    formula = f"at most {facts.workers} x {facts.poolmax} + {own} = {limit}"
    if facts.totalmax is not None and facts.totalmax <= limit:
        limit, formula = facts.totalmax, f"at most totalmax = {facts.totalmax}"
    each, most = facts.poolmax, sessions.most_each
    return [
        count("sessions before", sessions.before, 0),
        Check("  at most", f"{sessions.most}", formula, 0 < sessions.most <= limit),
        Check("  of one worker", f"{most}", f"at most {each}", 0 < most <= each),
        count("  after", sessions.after, 0),
    ]


def judge_permits(facts: Facts) -> list[Check]:
    permits, limit = facts.permits, facts.totalmax
    if limit is None:
        return []
    if permits is None:
        return [Check("permits of all processes", "none", "there are some", False)]
    return [
        Check("permits at most", f"{permits.most}", f"at most {limit}", 0 < permits.most <= limit),
        count("  timed out", permits.timeouts, 0),
        count("  after", permits.after, 0),
    ]


def judge_fork(facts: Facts) -> list[Check]:
    workers = facts.workers + (1 if facts.kill else 0)
    own, seen = facts.master.sessions, facts.seen.values()
    inherited = sum(worker.inherited for worker in seen)
    severed = sum(worker.severed for worker in seen)
    product = f"{workers} x {own} = {workers * own}"
    handles = sum(1 for worker in seen if worker.requests and not worker.accepted)
    same = facts.master.after is not None and facts.master.after == facts.master.before
    return [
        count("workers that answered", len(seen), workers),
        Check(
            "connections inherited",
            f"{inherited}",
            product,
            inherited == workers * own > 0 and all(one.inherited == own for one in seen),
        ),
        Check(
            "  severed",
            f"{severed}",
            product,
            severed == workers * own > 0 and all(one.severed == own for one in seen),
        ),
        count("master's handle refused", handles, workers),
        Check("master's own transaction", "undisturbed" if same else "lost", "undisturbed", same),
        count("processes left", len(facts.left), 0),
    ]
