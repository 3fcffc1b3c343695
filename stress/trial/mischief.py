"""Does the faults when they are due: to the workers, to the server, on the way between them."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

from nimue.cli import extra
from stress.databases import Database, ServerAway
from stress.proxy import Proxy
from stress.scenarios.base import Scenario
from stress.trial import faults
from stress.trial.faults import Fault
from stress.trial.record import Happening
from stress.trial.tickets import Tickets

#: What is told to the proxy while a fault of the way lasts.
MODES = {"stall": "held", "slow": "slow", "refuse": "refuse"}
#: Seconds in which what was begun has to be undone.
BOUND = 60.0


class Mischief:
    """All faults of one trial.

    What the server suffers takes time: a thread does it, one fault after the other, and one that is
    due before the last of its kind is done is left out.

    Args:
        due: the faults, in order of time.
        scenario, database, proxy: whom they befall.
        seed: of whom.
        begun: when the trial began, on the monotonic clock; what is told counts from there.
        spares: one worker of several is never killed, to show what grows in a long life.
    """

    def __init__(
        self,
        due: Iterator[Fault],
        scenario: Scenario,
        database: Database,
        proxy: Proxy | None,
        seed: int,
        begun: float,
        spares: bool = False,
    ) -> None:
        self._due, self._next = due, next(due, None)
        self._scenario, self._database, self._proxy = scenario, database, proxy
        self._dice, self._begun = Random(f"{seed} victims"), begun
        self._started = begun
        self._spares, self._witness = spares, 0
        self._psutil = extra.load("psutil")
        self._tickets = Tickets(scenario.folder / "tickets")
        #: What has to be undone, and when.
        self._undo: list[tuple[float, Callable[[], object]]] = []
        self._orders: queue.SimpleQueue[Fault | None] = queue.SimpleQueue()
        self._under_way: set[str] = set()
        self._hand = threading.Thread(target=self._serve, name="mischief", daemon=True)
        self.done: list[Happening] = []
        self.wrong: list[str] = []

    def start(self) -> None:
        """The times of the faults count from here."""
        self._started = time.monotonic()
        self._hand.start()

    def act(self) -> None:
        """Do what is due, and undo what has lasted long enough."""
        now = time.monotonic()
        self._undo_those(lambda when: when <= now)
        while self._next is not None and self._next.at <= now - self._started:
            self._do(self._next)
            self._next = next(self._due, None)

    def calm(self) -> None:
        """Undo all there is, and do nothing any more."""
        self._next = None
        self._undo_those(lambda when: True)
        self._orders.put(None)
        if self._hand.ident is not None:
            self._hand.join(BOUND)
            if self._hand.is_alive():
                self.wrong.append(f"the server is not back within {BOUND:g} s")
        for file in (self._scenario.folder / "tickets").iterdir():
            file.unlink(missing_ok=True)

    def _undo_those(self, chosen: Callable[[float], bool]) -> None:
        for entry in [entry for entry in self._undo if chosen(entry[0])]:
            self._undo.remove(entry)
            entry[1]()

    def _note(self, kind: str, detail: str) -> None:
        self.done.append(Happening(time.monotonic() - self._begun, kind, detail))

    def _do(self, fault: Fault) -> None:
        if fault.kind in faults.SERVER:
            if fault.kind not in self._under_way:
                self._under_way.add(fault.kind)
                self._orders.put(fault)
        elif fault.kind in faults.WAY:
            self._hamper(fault)
        elif fault.kind in faults.OUTSIDE:
            self._signal(fault)
        else:  # whoever takes the ticket tells of it
            self._tickets.issue(fault.kind)

    def _signal(self, fault: Fault) -> None:
        workers = self._scenario.workers()
        if fault.kind == "kill" and self._spares and len(workers) > 1:
            self._witness = self._witness if self._witness in workers else workers[0]
            workers.remove(self._witness)
        if not workers:
            return
        # By identity: a number that is another's meanwhile is not signalled.
        with suppress(self._psutil.Error):
            victim = self._psutil.Process(self._dice.choice(workers))
            if victim.pid not in self._scenario.workers():
                return
            self._note(fault.kind, f"{victim.pid}")
            if fault.kind == "kill":
                victim.send_signal(signal.SIGKILL)
                return
            victim.send_signal(signal.SIGSTOP)
            self._undo.append((time.monotonic() + fault.lasts, lambda: self._go_on(victim)))

    def _go_on(self, victim: Any) -> None:
        with suppress(self._psutil.Error):
            victim.send_signal(signal.SIGCONT)

    def _hamper(self, fault: Fault) -> None:
        assert self._proxy is not None
        proxy = self._proxy
        if fault.kind == "cut":
            self._note("cut", f"{proxy.connections} connections reset")
            proxy.cut()
            return
        # The newest counts; each ends all.
        self._note(fault.kind, f"for {fault.lasts:.2f} s")
        proxy.mode = MODES[fault.kind]
        self._undo.append((time.monotonic() + fault.lasts, lambda: setattr(proxy, "mode", "pass")))

    def _serve(self) -> None:
        try:
            self._serve_all()
        finally:
            self._database.leave()

    def _serve_all(self) -> None:
        while (fault := self._orders.get()) is not None:
            try:
                self._strike(fault)
            except ServerAway:
                pass
            except Exception as error:
                self.wrong.append(f"{fault.kind}: {type(error).__name__}: {error}")
            finally:
                self._under_way.discard(fault.kind)

    def _strike(self, fault: Fault) -> None:
        if fault.kind == "restart":
            self._note("restart", f"down for {fault.lasts:.2f} s")
            self._database.restart(down=fault.lasts)
        elif fault.kind == "full":
            with self._database.take_rest() as rest:
                self._note("full", f"{len(rest)} connections, for {fault.lasts:.2f} s")
                time.sleep(fault.lasts)
        else:
            sessions = sorted(self._database.sessions(self._scenario.brief.mark))
            if sessions:
                backend = self._dice.choice(sessions)
                if self._database.terminate(backend):
                    self._note("terminate", f"session {backend}")
