"""How what went wrong is told."""

from __future__ import annotations

import os
import traceback


def told(error: BaseException) -> str:
    """What it is, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]} ({' > '.join(places)})"
