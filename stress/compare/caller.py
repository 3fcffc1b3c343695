"""A process that asks at a steady pace: ``python -m stress.compare.caller <seconds>``.

Each question has a thread of its own, as requests have: one that hangs does not keep the next.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from random import Random

from stress.trial.brief import Brief
from stress.trial.desk import Desk

#: Seconds between two looks at whether it is over.
INTERVAL = 0.05


def main(period: float) -> None:
    brief = Brief.here()
    desk = Desk(brief)
    desk.enter()
    due, number = time.monotonic(), 0
    while not desk.is_over:
        if time.monotonic() >= due:
            due, number = due + period, number + 1
            asked = (f"{desk.diary.name}.{number}", Random(number))
            threading.Thread(target=desk.ask, args=asked, daemon=True).start()
        time.sleep(min(INTERVAL, max(0.0, due - time.monotonic())))
    # Threads may hang in the driver, and some pools wait for them: nothing is asked of any.
    os._exit(0)


if __name__ == "__main__":
    main(float(sys.argv[1]))
