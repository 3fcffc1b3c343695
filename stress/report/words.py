"""How numbers, spans of time and errors are said."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

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


def command(record: Record) -> str:
    """How to run it again, as far as its settings tell: ``settings["command"]`` says it best."""
    told = record.settings.get("command")
    if told is not None:
        return told if isinstance(told, str) else shlex.join(map(str, told))
    return shlex.join(
        ["python", "-m", "stress", *filter(None, [record.scenario]), *_options(record.settings)]
        + ([] if "seed" in record.settings else ["--seed", str(record.seed)])
    )


def _options(settings: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        values = _values(value)
        if name != "scenario" and value is not False and (values or value is True):
            words += [option, *values]
    return words


def _values(value: Any) -> list[str]:
    if value is None or isinstance(value, bool):
        return []
    if isinstance(value, Mapping):
        return [f"{key}={one}" for key, one in value.items()]
    return list(map(str, value)) if isinstance(value, (list, tuple)) else [str(value)]
