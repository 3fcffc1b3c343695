"""One run of ``total``: a contender, four client processes, and the server's eyes on them."""

from __future__ import annotations

import json
import secrets
import select
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nimue.cli.demo_process import tail
from nimue.cli.interrupt import Interrupts
from stress.bench.runs import environment
from stress.bench.total_client import LATE, Answer, Order
from stress.bench.total_servers import PgBouncer, RunFailed
from stress.ground import Ground, put_down
from stress.watch import PostgresWatch

LIMIT = 8
PROCESSES = 4
EVERY = 0.1
WARM_UP = 0.5
STARTUP = 30.0

NIMUE, BOUNCER, STATIC = "nimue", "PgBouncer", "static split"


@dataclass(frozen=True)
class Scenario:
    """``hot`` processes ask without a pause in ``threads`` threads each; the rest are quiet."""

    key: str
    title: str
    statement: str
    hot: int
    threads: int


@dataclass(frozen=True)
class Run:
    """What one contender did in one window. ``waits`` are those of the quiet processes."""

    seconds: float
    per_process: list[int]
    hot: int
    waits: list[float]
    opened: int
    most: int
    lasting: int

    @property
    def throughput(self) -> float:
        """Requests per second of all processes."""
        return sum(self.per_process) / self.seconds

    @property
    def hot_throughput(self) -> float:
        return sum(self.per_process[: self.hot]) / self.seconds

    @property
    def apart(self) -> float:
        """Percent by which the hot process that did most is ahead of the one that did least."""
        each = self.per_process[: self.hot]
        return (max(each) / min(each) - 1) * 100 if min(each) else float("inf")


def pool_settings(contender: str, threads: int, name: str) -> dict[str, Any]:
    """The pool of a process with that many threads: only who limits is another."""
    if contender == NIMUE:
        return {"name": name, "totalmax": LIMIT, "poolmin": 0, "poolmax": 16}
    poolmax = threads if contender == BOUNCER else LIMIT // PROCESSES
    return {"poolmin": 0, "poolmax": poolmax}


class ClientProcess:
    """A client, which is asked for lines, and killed if it is still there at the end."""

    def __init__(self, order: Order, log: Path, variables: dict[str, str]) -> None:
        self._log = log
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stress.bench.total_client", json.dumps(asdict(order))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(everything=True) | variables,
                start_new_session=True,  # a Ctrl-C at the terminal reaches the benchmark alone
            )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def line(self, deadline: float) -> str:
        """Its next line. Lines come one by one, so that none is waiting in the buffer."""
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
        answer = stdout.readline() if ready else ""
        if not answer:
            state = "has left" if ready else "does not answer"
            raise RunFailed(f"a client {state}:\n{tail(self._log)}")
        return answer

    def leave(self, bound: float) -> None:
        """Wait until it has closed its pool and gone."""
        try:
            status = self._process.wait(bound)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"a client does not end:\n{tail(self._log)}") from None
        if status:
            raise RunFailed(f"a client left with {status}:\n{tail(self._log)}")

    def stop(self) -> None:
        put_down(self._process)


class Stage(Ground):
    """The ground, and what a run starts on it."""

    name = "total"

    def __init__(self, interrupts: Interrupts) -> None:
        super().__init__(interrupts)
        self._current = ExitStack()
        self._token = secrets.token_hex(4)
        self._runs = 0

    def close(self) -> None:
        self._interrupts.hold()
        self._current.close()
        super().close()

    def run(self, contender: str, scenario: Scenario, seconds: float) -> Run:
        """Measure once. Raises: RunFailed."""
        self._runs += 1
        mark = f"nimue-total-{self._token}-{self._runs}"
        self._current = ExitStack()
        watch = PostgresWatch(self._conn, mark)
        try:
            address = self._limited(contender)
            self._current.callback(watch.stop)
            connect = {**address, "application_name": mark}
            clients = self._clients(contender, scenario, connect, seconds)
            answers = self._measured(clients, watch, seconds)
        finally:
            with self._interrupts.held():
                self._current.close()
        return self._result(scenario, seconds, answers, watch)

    def _limited(self, contender: str) -> dict[str, Any]:
        """Where the clients connect to: a PgBouncer of this run's own, or the server itself."""
        if contender != BOUNCER:
            return self._address
        place = self._folder / f"bouncer-{self._runs}"
        assert self._postgres is not None
        bouncer = PgBouncer(place, self._address, self._postgres.folder, LIMIT)
        with self._interrupts.held():
            self._current.callback(bouncer.stop)
            bouncer.start()
        bouncer.wait()
        return bouncer.address

    def _clients(
        self, contender: str, scenario: Scenario, connect: dict[str, Any], seconds: float
    ) -> list[ClientProcess]:
        clients = []
        for number in range(PROCESSES):
            hot = number < scenario.hot
            threads = scenario.threads if hot else 1
            order = Order(
                connect=connect,
                pool=pool_settings(contender, threads, connect["application_name"]),
                statement=scenario.statement,
                threads=threads,
                every=None if hot else EVERY,
                offset=EVERY * number / PROCESSES,
                bound=STARTUP + WARM_UP + seconds + 3 * LATE,
            )
            log = self._folder / f"client-{self._runs}-{number}.log"
            with self._interrupts.held():
                client = ClientProcess(order, log, {"NIMUE_DIR": str(self._shared)})
                self._current.callback(client.stop)
            clients.append(client)
        return clients

    def _measured(
        self, clients: list[ClientProcess], watch: PostgresWatch, seconds: float
    ) -> list[Answer]:
        deadline = time.monotonic() + STARTUP
        for client in clients:
            client.line(deadline)
        watch.start()
        begin = time.monotonic() + 0.05
        counted = begin + WARM_UP
        end = counted + seconds
        for client in clients:
            client.tell(f"{begin} {counted} {end}")
        lines = [client.line(end + 2 * LATE) for client in clients]
        watch.stop()
        for client in clients:
            client.leave(2 * LATE)
        return [Answer(**json.loads(line)) for line in lines]

    def _result(
        self, scenario: Scenario, seconds: float, answers: list[Answer], watch: PostgresWatch
    ) -> Run:
        errors = [error for answer in answers for error in answer.errors]
        if watch.error is not None:
            errors.append(f"lost sight of the server: {watch.error}")
        elif left := watch.settled(5.0):
            errors.append(f"{left} sessions are left after the end of their clients")
        if errors:
            raise RunFailed("\n".join(list(dict.fromkeys(errors))[:3]))
        return Run(
            seconds=seconds,
            per_process=[answer.requests for answer in answers],
            hot=scenario.hot,
            waits=[wait for answer in answers for wait in answer.waits],
            opened=sum(answer.opened for answer in answers),
            most=watch.census.most,
            lasting=watch.census.lasting,
        )
