"""How numbers, spans of time and errors are said."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence

from stress.trial.record import Question, Record


def span(seconds: float) -> str:
    """A length of time with two or three digits that tell: ``340 µs``, ``12 ms``, ``1.5 s``."""
    if seconds < 9.995e-4:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 9.95e-3:
        return f"{seconds * 1e3:.1f}".removesuffix(".0") + " ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes, in the unit that fits."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def several(count: int, what: str, plural: str = "") -> str:
    """``1 process``, ``2 processes``."""
    return f"{count:,} {what if count == 1 else plural or what + 's'}"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def errors(questions: Sequence[Question]) -> list[tuple[str, int]]:
    """The distinct errors, each as it was first told, the most frequent first.

    Those that differ only in numbers are one.
    """
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for question in questions:
        if question.error:
            shape = re.sub(r"\d+", "0", question.error)
            first.setdefault(shape, question.error)
            counts[shape] += 1
    return [(first[shape], count) for shape, count in counts.most_common()]


#: The names of settings as options: what is none of them cannot be asked for.
OPTIONS = {"dialect": "driver"} | {
    name: name
    for name in ("processes", "threads", "poolmax", "totalmax", "timeout", "hold", "pause", "fault")
}


def command(record: Record) -> str:
    """How to run a trial again."""
    words = ["python", "-m", "stress", record.scenario]
    words += ["--variant", record.variant] if record.variant else []
    words += ["--seconds", f"{record.seconds:g}", "--seed", str(record.seed)]
    for name, value in record.settings.items():
        if name in OPTIONS:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                words += [f"--{OPTIONS[name]}", "none" if one is None else str(one)]
    return shlex.join(words)
