"""The load: clients that ask for something unique and check that this is what they get."""

import http.client
import json
import secrets
import threading
import time
from typing import Any

from nimue.cli.demo_verdict import Failure, Worker

PATIENCE = 10.0
DROPPED = (ConnectionError, http.client.RemoteDisconnected, http.client.IncompleteRead)


def wrong(answer: dict[str, Any], token: str, run: str) -> str | None:
    """What is wrong with an answer, if anything.

    The database itself says which token it was asked for and which process opened the session:
    an answer meant for another request, or got on another process's connection, shows.
    """
    if answer["token"] != token:
        return f"worker {answer['pid']} asked for {token}, got {answer['token']}"
    if answer["owner"] != f"{run} {answer['pid']}":
        return f"worker {answer['pid']} spoke on a session of {answer['owner']!r}"
    return None


class Tally:
    """What the clients have seen so far. One lock guards all of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workers: dict[int, Worker] = {}
        self.failures: list[Failure] = []
        self.wrong: list[str] = []

    def add(self, answer: dict[str, Any], reason: str | None) -> None:
        with self.lock:
            worker = self.workers.setdefault(answer["pid"], Worker())
            worker.requests += 1
            worker.accepted += not answer["refused"]
            worker.figures = tuple(answer["figures"])
            if reason is not None:
                self.wrong.append(reason)

    def fail(self, failure: Failure) -> None:
        with self.lock:
            self.failures.append(failure)

    def requests(self) -> int:
        with self.lock:
            return sum(worker.requests for worker in self.workers.values())

    def answered(self, pid: int) -> bool:
        with self.lock:
            return pid in self.workers


class Client:
    """One client: every other one keeps its connection, the rest open one for each request."""

    def __init__(self, number: int, port: int, run: str, tally: Tally) -> None:
        self.number = number
        self.port = port
        self.run = run
        self.tally = tally
        self.keeps = number % 2 == 0
        self.pid: int | None = None
        self.wire = self._wire()

    def _wire(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def _hang_up(self) -> None:
        self.wire.close()
        self.wire = self._wire()
        self.pid = None

    def ask(self) -> bool:
        """One request; whether it was answered."""
        token = f"{self.number}-{secrets.token_hex(8)}"
        began = time.monotonic()
        try:
            self.wire.request("GET", f"/{token}")
            with self.wire.getresponse() as response:
                answer = json.loads(response.read())
            if response.status != http.client.OK:
                raise RuntimeError(answer["error"])
            self.tally.add(answer, wrong(answer, token, self.run))
        except Exception as error:
            dropped = isinstance(error, DROPPED)
            reason = f"{type(error).__name__}: {error}"
            self.tally.fail(Failure(began, time.monotonic(), self.pid, dropped, reason))
            self._hang_up()
            return False
        if self.keeps:
            self.pid = answer["pid"]
        else:
            self._hang_up()
        return True


class Load:
    """A bounded load: `clients` threads, each with one request under way at a time."""

    def __init__(self, clients: int, port: int, run: str) -> None:
        self.tally = Tally()
        self.clients = clients
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._play,
                args=(Client(number, port, run, self.tally),),
                name=f"nimue-demo-client-{number}",
                daemon=True,
            )
            for number in range(clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def halt(self) -> None:
        """No further requests."""
        self._stop.set()

    def stop(self) -> bool:
        """Let every client finish its request; whether all did."""
        self.halt()
        deadline = time.monotonic() + PATIENCE + 5
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _play(self, client: Client) -> None:
        while not self._stop.is_set():
            if not client.ask():
                self._stop.wait(0.02)
        client.wire.close()
