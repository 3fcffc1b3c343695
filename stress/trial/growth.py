"""What must not grow, however long it runs: memory, descriptors and threads of who lives long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from nimue.cli.demo_verdict import Check
from stress.trial.record import Health

#: A trial is long from here on, in seconds; who lives long was seen for this part of it.
LONG, PART = 120.0, 0.6
#: Not seen for so many seconds, it was another: the system gives a number again.
GAP = 20.0
#: What counts as the same: so many bytes and this part more, descriptors, threads.
BYTES, MORE, DESCRIPTORS, THREADS = 4 << 20, 0.10, 3, 2


def judge_growth(samples: Sequence[Health], seconds: float) -> list[Check]:
    """The second quarter of each long life, held against its last."""
    if seconds < LONG:
        return []
    long = [life for life in _lives(samples) if life[-1].at - life[0].at >= PART * seconds]
    checks = [Check("processes that lived long", f"{len(long)}", "some", bool(long))]
    for life in long:
        checks += _judge(life)
    return checks


def _lives(samples: Sequence[Health]) -> list[list[Health]]:
    lives: dict[int, list[list[Health]]] = defaultdict(list)
    for sample in samples:
        of_number = lives[sample.pid]
        if not of_number or sample.at - of_number[-1][-1].at > GAP:
            of_number.append([])
        of_number[-1].append(sample)
    return [life for of_number in lives.values() for life in of_number]


def _judge(life: Sequence[Health]) -> list[Check]:
    quarter = max(1, len(life) // 4)
    then, now = life[quarter : 2 * quarter] or life[:1], life[-quarter:]
    memory = [median(one.memory for one in part) for part in (then, now)]
    files = [median(one.descriptors for one in part) for part in (then, now)]
    threads = [median(one.threads for one in part) for part in (then, now)]
    allowed = memory[0] * (1 + MORE) + BYTES
    pid = life[0].pid
    return [
        Check(
            f"memory of process {pid}",
            f"{memory[0] / 2**20:.1f}, then {memory[1] / 2**20:.1f} MiB",
            f"at most {allowed / 2**20:.1f} MiB",
            memory[1] <= allowed,
        ),
        _same("  descriptors", files, DESCRIPTORS),
        _same("  threads", threads, THREADS),
    ]


def _same(what: str, values: Sequence[float], more: int) -> Check:
    then, now = values
    return Check(what, f"{then:g}, then {now:g}", f"at most {then + more:g}", now <= then + more)
