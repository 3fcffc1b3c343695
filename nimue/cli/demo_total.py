"""The pool's own view of all processes: who holds the permits, and what their pools tell."""

from pathlib import Path

from nimue.cli.demo_verdict import DemoFailed, Permits
from nimue.error import NimueError
from nimue.semaphore import observe
from nimue.stats import NimueProcessStats, NimueTotalStats
from nimue.totals import gather


class Totals:
    """The figures of all processes, folded look by look, as `pool.totalstats()` gives them.

    The demo takes no part in the limit: it observes it from beside, and so can change nothing.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory
        self._told: dict[int, NimueProcessStats] = {}
        self.now: NimueTotalStats | None = None
        self.most = 0

    def look(self) -> NimueTotalStats | None:
        """None if no pool has made such a limit.

        Raises: DemoFailed when its files cannot be read.
        """
        try:
            seen = observe(self._name, self._directory)
        except (NimueError, OSError) as error:
            raise DemoFailed(f"lost sight of the limit: {error}") from error
        self.now = None if seen is None else gather(seen.snapshot, seen.rows)
        if self.now is not None:
            self.most = max(self.most, self.now.held)
            self._told.update((one.pid, one) for one in self.now.processes)
        return self.now

    def result(self) -> Permits | None:
        last = self.look()
        if last is None:
            return None
        told = self._told.values()
        return Permits(
            most=self.most,
            after=last.held,
            given_up=sum(one.shed for one in told),
            timeouts=sum(one.timeouts for one in told),
        )
