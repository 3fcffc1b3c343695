"""The three loads of ``total``: what is asked of nimue in each, and how it is told."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from stress.bench.report import Part, Table, ratio
from stress.bench.runs import Context, paired
from stress.bench.total_runs import BOUNCER, LIMIT, NIMUE, PROCESSES, STATIC, Run, Scenario
from stress.bench.total_servers import RunFailed

SLEEP = "select pg_sleep(0.005)"
ONE = "select 1"

SKEW = Scenario("skew", "one process busy, three quiet, queries of 5 ms", SLEEP, 1, 16)
SELECT = Scenario("select", "one process busy, three quiet, select 1", ONE, 1, 16)
HOT = Scenario("hot", "four processes busy, queries of 5 ms", SLEEP, PROCESSES, 4)

#: How a contender is run once in a scenario.
Runner = Callable[[str, Scenario, float], Run]
#: For each contender that could be measured, its rounds.
Runs = dict[str, list[Run]]


@dataclass(frozen=True)
class Plan:
    """Who is measured, how often and for how long each time."""

    run: Runner
    contenders: Sequence[str]
    rounds: int
    seconds: float
    context: Context

    def skew(self) -> Part:
        """Sixteen threads of the first process ask without a pause, the three others once every
        100 ms each. Wanted: the first gets what the others leave, and they need not wait for it.
        """
        part, runs = self._measured(SKEW, inspect.getdoc(self.skew))
        _rates(part, runs, [(STATIC, 3.0), (BOUNCER, 0.9)])
        _quiet(part, runs)
        return part

    def select(self) -> Part:
        """As the skew, with a query that costs next to nothing: what is between the client and
        the server counts. The first process is one Python interpreter, which is what is measured.
        """
        part, runs = self._measured(SELECT, inspect.getdoc(self.select))
        _rates(part, runs, [(BOUNCER, 1.2)])
        _quiet(part, runs, target=False)
        return part

    def hot(self) -> Part:
        """Four threads in each of four processes ask without a pause: twice as many as there may
        be sessions. Apart: by how much the process that got most is ahead of the one that got
        least, in each round; the median of the rounds, and the most.
        """
        part, runs = self._measured(HOT, inspect.getdoc(self.hot))
        _rates(part, runs, [(BOUNCER, 0.95)])
        _apart(part, runs)
        return part

    def _measured(self, scenario: Scenario, told: str | None) -> tuple[Part, Runs]:
        """The rounds; who fails in one is told, and not measured any further."""
        part = Part(scenario.key, scenario.title, told or "")
        runs: Runs = {name: [] for name in self.contenders}
        for name in self.context.interleaved(self.contenders, self.rounds):
            if name not in runs:
                continue
            try:
                runs[name].append(self.run(name, scenario, self.seconds))
            except Exception as failure:
                why = str(failure) if isinstance(failure, RunFailed) else traceback.format_exc()
                part.notes += [f"{name} was not measured:", *why.splitlines()]
                del runs[name]
        if BOUNCER not in self.contenders:
            part.notes.append(f"{BOUNCER} is not there: no ratios to it.")
        if BOUNCER in self.contenders and BOUNCER not in runs:
            part.at_most(f"{BOUNCER}: measured without an error", 0, None)
        _sessions(part, runs)
        return part, runs


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many percent of all do not exceed."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def _rates(part: Part, runs: Runs, asked: Sequence[tuple[str, float]]) -> None:
    rows = []
    base = runs.get(NIMUE)
    rates = {name: [run.throughput for run in rounds] for name, rounds in runs.items()}
    for name, rounds in sorted(runs.items(), key=lambda item: -median(rates[item[0]])):
        hot = median(run.hot_throughput for run in rounds)
        opened = median(run.opened / run.seconds for run in rounds)
        part.figure(name, "requests", median(rates[name]), "/s")
        part.figure(name, "requests, least round", min(rates[name]), "/s")
        part.figure(name, "requests, most round", max(rates[name]), "/s")
        part.figure(name, "requests, busy processes", hot, "/s")
        part.figure(name, "reconnects", opened, "/s")
        shown = [median(rates[name]), min(rates[name]), max(rates[name]), hot]
        compared = ratio(paired(rates[name], rates[NIMUE]), 1.0) if base else "-"
        most, lasting = (max(getattr(run, what) for run in rounds) for what in ("most", "lasting"))
        row = [name, *(f"{value:,.0f}/s" for value in shown), compared, f"{opened:.1f}/s"]
        rows.append([*row, f"{most}", f"{lasting}"])
    head = ("who limits", "requests", "least", "most", "busy ones", "to nimue", "reconnects")
    part.tables.append(Table((*head, "sessions", "lasting"), rows))
    for peer, limit in asked:
        if peer == BOUNCER and peer not in runs:
            continue
        known = base and peer in runs
        measured = paired(rates[NIMUE], rates[peer]) if known else None
        part.at_least(f"requests per second, nimue to {peer}", limit, measured, "x")


def _quiet(part: Part, runs: Runs, target: bool = True) -> None:
    rows = []
    late: dict[str, float] = {}
    for name, rounds in runs.items():
        every = [wait * 1e3 for run in rounds for wait in run.waits]
        if not every:
            continue
        late[name] = percentile(every, 99)
        figures = [percentile(every, 50), late[name], max(every)]
        for what, value in zip(("p50", "p99", "max"), figures, strict=True):
            part.figure(name, f"quiet {what}", value, "ms")
        each = [percentile(run.waits, 99) * 1e3 for run in rounds if run.waits]
        shown = [f"{value:.1f} ms" for value in (*figures, min(each), median(each), max(each))]
        rows.append([name, *shown, f"{len(every):,}"])
    head = ("quiet workers' wait", "p50", "p99", "max", "p99: least", "median", "most round")
    part.tables.append(Table((*head, "requests"), rows))
    if target and BOUNCER in runs:
        known = NIMUE in late and BOUNCER in late
        measured = late[NIMUE] / late[BOUNCER] if known else None
        part.at_most(f"p99 of quiet workers, nimue to {BOUNCER}", 2.0, measured, "x")


def _apart(part: Part, runs: Runs) -> None:
    rows = []
    for name, rounds in runs.items():
        apart = [run.apart for run in rounds]
        part.figure(name, "processes apart", median(apart), "%")
        part.figure(name, "processes apart, most round", max(apart), "%")
        rows.append([name, f"{median(apart):.1f} %", f"{max(apart):.1f} %"])
    part.tables.append(Table(("processes apart", "median", "most"), rows))
    ours = [run.apart for run in runs.get(NIMUE, [])]
    part.at_most("nimue's processes apart", 5.0, median(ours) if ours else None, "%")


def _sessions(part: Part, runs: Runs) -> None:
    for name, rounds in runs.items():
        part.figure(name, "sessions at once", max(run.most for run in rounds), "")
        part.figure(name, "sessions that lasted", max(run.lasting for run in rounds), "")
    ours = [run.lasting for run in runs.get(NIMUE, [])]
    part.at_most("nimue's sessions at once that lasted", LIMIT, max(ours) if ours else None)
