"""Ctrl-C in a managed connection's use: what ``test_interrupt`` shows of the pool holds for it."""

from __future__ import annotations

import contextlib
import gc
import threading
from types import FrameType

import pytest

from nimue import ManagedConnection, managed
from tests.fakes import FakeServer, spawn, until
from tests.test_interrupt import BOUND, THOROUGH, Blow, ctrl_c
from tests.test_managed import Boom, free, make, use, waiting


class BlowHere(Blow):
    """At a point in the manager's own code; the pool's is tested with the pool."""

    def _count(self, frame: FrameType, event: str) -> None:
        if frame.f_code.co_filename == managed.__file__:
            super()._count(frame, event)


class TestInterrupt:
    """Ctrl-C at any point loses neither the turn nor the connection."""

    def action(self, manager: ManagedConnection, scene: str) -> None:
        with contextlib.suppress(Boom), manager(close=scene == "close") as connection:
            connection.cursor().execute("update")
            if scene == "error":
                raise Boom
            connection.rollback()

    @pytest.mark.parametrize("kind", ["calls", "opcodes"] if THOROUGH else ["calls"])
    @pytest.mark.parametrize("scene", ["use", "error", "close"])
    def test_anywhere(self, scene: str, kind: str) -> None:
        hits = 0
        for n in range(1, 10_000):
            server = FakeServer(allow=("transaction", "closed"))
            manager = make(server, healthcheck_idle=1000.0)
            use(manager)
            blow = BlowHere(kind, n, KeyboardInterrupt)
            with contextlib.suppress(KeyboardInterrupt), blow:
                self.action(manager, scene)
            gc.collect()
            assert free(manager), blow.landed
            until(lambda: server.open == 1)  # noqa: B023
            manager.close()
            until(lambda: server.open == 0)  # noqa: B023
            server.verify()
            if blow.landed is None:
                break
            hits += 1
        assert hits > 5

    def test_while_waiting(self, server: FakeServer) -> None:
        manager = make(server)
        over = threading.Event()

        def holds() -> None:
            with manager():
                assert over.wait(BOUND)

        holder = spawn(holds)
        until(lambda: not manager.closed)
        with ctrl_c(lambda: waiting(manager) == 1):
            use(manager)
        over.set()
        holder.result()
        assert use(manager) == 1
        manager.close()

    def test_in_the_rollback(self, server: FakeServer) -> None:
        """What the connection is in the middle of, nobody knows: it is not kept."""
        server.allow.add("transaction")
        manager = make(server)
        with (
            server.hold("rollback") as gate,
            ctrl_c(lambda: gate.waiting == 1),
            manager() as connection,
        ):
            connection.cursor().execute("update")
            raise Boom
        until(lambda: server.open == 0)
        assert use(manager) == 2
        manager.close()
