"""``python -m stress compare``: nimue and its peers under the same load and the same faults.

::

    command.py  the command line, and what is printed   entrants.py  who takes part, and how
    prefork.py  workers forked, as a preloading server  older.py     a place for nimue 0.0.3
                does, by ``stress.trial.crew``          site.py      one server, and processes
    down.py     a server that goes away and comes back  seen.py      diaries and ledger, judged
    caller.py   a process that asks it                  tell.py      tables and verdict

What runs in the environment of nimue 0.0.3 (crew, caller) imports no nimue by itself, nor does
this module.
"""

from __future__ import annotations

import sys

NEEDED = ("psycopg2", "psutil")
INSTALL = "pip install -e '.[stress]'"


def main(argv: list[str]) -> int:
    """Measure, print, and return 0 only if nothing went wrong with nimue."""
    from nimue.cli import extra

    if lacking := extra.missing(NEEDED):
        print(f"compare needs {', '.join(lacking)}: {INSTALL}", file=sys.stderr)
        return 1
    from stress.compare import command

    return command.main(argv)
