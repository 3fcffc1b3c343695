"""(f) What there is to pay before the first query: import, memory, threads."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from statistics import median

from stress.bench.contenders import Contender
from stress.bench.report import Part, Table, ratio
from stress.bench.runs import Context, environment

CONNECTIONS = 10
TITLE = f"import time, memory of a pool of {CONNECTIONS}, threads before first use"


def measure(ctx: Context) -> Part:
    """Import: what `python -X importtime` says of the module a user imports, with all that it
    imports, standard library included, in a fresh interpreter without .pth files and with compiled
    files at hand; the least of several, the median beside it. Drivers that a peer imports count,
    and peewee imports those that are installed.
    Memory: what tracemalloc sees more after a pool of 10 was made, and after its first use. That is
    the second pool of a fresh process; the first one is shown with the time that it took (traced,
    so slower than without) and what it imported. The connections themselves are not counted, nor
    are the stacks of threads. Threads: as the kernel counts them, after the first pool was made and
    again after its first use.
    """
    part = Part("f", TITLE, inspect.getdoc(measure) or "")
    imports: dict[str, list[float]] = {c.name: [] for c in ctx.contenders}
    for contender in ctx.interleaved(ctx.contenders, ctx.pick(9, 3)):
        imports[contender.name].append(_import_time(contender))
    prints = {c.name: _footprint(c) for c in ctx.contenders}
    _tell(part, imports, prints)
    return part


def _import_time(contender: type[Contender]) -> float:
    """Milliseconds, one sample."""
    module = contender.modules[-1] if contender.name != "nimue" else "nimue"
    done = subprocess.run(
        # Without site's own start-up, which imports whatever the .pth files of the day ask for.
        [sys.executable, "-S", "-X", "importtime", "-c", f"import site; import {module}"],
        check=True,
        capture_output=True,
        text=True,
        env=environment(everything=True),
        timeout=60,
    )
    packages = _packages(module)
    total = 0
    for line in done.stderr.splitlines():
        _, _, told = line.partition("import time:")
        cells = told.split("|")
        # Deeper indents are imports by imports, whose time the outer line includes.
        if len(cells) == 3 and cells[2] in packages:
            total += int(cells[1])
    return total / 1e3


def _packages(module: str) -> set[str]:
    """``a.b.c`` is imported as a, then a.b, then a.b.c: three lines, told with no indent."""
    parts = module.split(".")
    return {" " + ".".join(parts[: count + 1]) for count in range(len(parts))}


def _footprint(contender: type[Contender]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "stress.bench.child", "footprint", contender.name, str(CONNECTIONS)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        timeout=60,
    )
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _tell(part: Part, imports: dict[str, list[float]], prints: dict[str, dict[str, float]]) -> None:
    rows = []
    ours = min(imports["nimue"]) if "nimue" in imports else None
    for name in sorted(imports, key=lambda name: min(imports[name])):
        seen = prints[name]
        least, middle = min(imports[name]), median(imports[name])
        part.figure(name, "import", least, "ms")
        part.figure(name, "memory, made", seen["made"] / 1024, "KB")
        part.figure(name, "memory, used", seen["used"] / 1024, "KB")
        part.figure(name, "memory, first pool", seen["first"] / 1024, "KB")
        part.figure(name, "threads before first use", seen["threads"], "")
        times = [f"{least:,.1f} ms", f"{middle:,.1f} ms", ratio(least, ours)]
        memory = [f"{seen[when] / 1024:,.1f} KB" for when in ("made", "used", "first")]
        threads = [f"{seen[when]:.0f}" for when in ("threads", "threads_used")]
        rows.append([name, *times, *memory, f"{seen['ms']:,.1f} ms", *threads])
    head = ("pool", "import", "median", "to nimue", "made", "used", "first", "first took")
    part.tables.append(Table((*head, "threads before", "after"), rows))
    seen_ours = prints.get("nimue")
    most = max(seen_ours["made"], seen_ours["used"]) / 1024 if seen_ours else None
    part.at_most("import of nimue", 30.0, ours, "ms")
    part.at_most("memory of a pool of nimue's", 30.0, most, "KB")
    part.at_most("threads before first use", 0, seen_ours["threads"] if seen_ours else None, "")
