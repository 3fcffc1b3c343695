"""What one process finds out about the server, or is told, the others hear; and their rush back."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from nimue import SharedSemaphore, ending, monitor, totalmax
from nimue.totalmax import SharedLimit
from tests.children import Child
from tests.fakes import OperationalError, spawn, until
from tests.forking import ask, end, serves
from tests.semaphores import Board
from tests.test_total import shared

GONE = "57P01"


def has_heard(pool):
    """Whether the pool has acted upon all that concerns everybody."""
    return pool._state.heeded == pool._state.limit.news()


def is_stopped(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


class TestAlarm:
    def test_one_broken_in_use_makes_the_others_check_theirs(self, socket_server):
        pool, board = shared(socket_server, totalmax=9), Board()

        def child():
            handles = [pool.getconnection() for _ in range(3)]
            raws = [handle.raw for handle in handles]
            until(lambda: pool.poolstats().cleanup_cycles)  # the next is too late to be the cause
            for handle in handles:
                handle.close()
            for raw in raws[:2]:
                socket_server.kill(raw)
            board[0] = 1
            until(lambda: pool.poolstats().connections_cleaned_dead == 2)
            until(lambda: pool.poolstats().poolsize == 1)
            until(lambda: raws[2].serial in [raw.serial for raw in socket_server.connections])
            assert serves(pool) == raws[2].serial

        child = Child(child)
        board.until(0, 1)
        handle = pool.getconnection()
        socket_server.fail("execute", OperationalError("gone", sqlstate=GONE), times=1)
        with pytest.raises(OperationalError):
            handle.cursor().execute("select 1")
        handle.close()
        child.result()
        assert pool._state.limit.news().alarms == 1
        end(pool)

    def test_an_error_that_is_no_disconnect_alarms_nobody(self, socket_server):
        pool = shared(socket_server)
        handle = pool.getconnection()
        socket_server.fail("execute", OperationalError("deadlock", sqlstate="40P01"), times=1)
        with pytest.raises(OperationalError):
            handle.cursor().execute("select 1")
        handle.close()
        assert serves(pool)
        assert pool._state.limit.news().alarms == 0
        end(pool)

    def test_one_that_was_stopped_meanwhile_checks_later(self, socket_server):
        pool, board = shared(socket_server, totalmax=9), Board()

        def child():
            handle = pool.getconnection()
            raw = handle.raw
            until(lambda: pool.poolstats().cleanup_cycles)
            handle.close()
            socket_server.kill(raw)
            board[0] = 1
            until(lambda: pool.poolstats().connections_cleaned_dead == 1)

        child = Child(child)
        board.until(0, 1)
        child.signal(signal.SIGSTOP)
        until(lambda: is_stopped(child.pid))
        pool._state.limit.alarm()
        child.signal(signal.SIGCONT)
        child.result()
        end(pool)


class TestDrainEverywhere:
    def test_idle_ones_at_once_and_those_in_use_as_they_come_back(self, socket_server):
        pool, board = shared(socket_server, totalmax=9), Board()

        def child():
            handles = [pool.getconnection() for _ in range(3)]
            handles.pop().close()
            handles.pop().close()
            board[0] = 1
            until(lambda: pool.poolstats().closed == 2)
            (kept,) = handles
            serial = kept.serial
            assert ask(kept)
            kept.close()
            until(lambda: pool.poolstats().closed == 3)
            after = serves(pool)
            until(lambda: has_heard(pool))
            assert pool.poolstats().closed == 3
            return serial, after

        children = [Child(child) for _ in range(2)]
        board.until(0, 1)
        mine = pool.getconnection()
        until(lambda: pool.totalstats().held == 7)
        until(lambda: sum(row.poolfree for row in pool.totalstats().processes) == 4)
        pool.drain(everywhere=True)
        for before, after in [child.result() for child in children]:
            assert before != after
        serial = mine.serial
        mine.close()
        assert serves(pool) != serial
        end(pool)

    def test_here_it_is_done_once(self, server):
        """What is opened after it is not of the old generation."""
        pool = shared(server)
        first = serves(pool)
        until(lambda: monitor.here.is_alive)
        pool.drain(everywhere=True)
        second = serves(pool)
        until(lambda: has_heard(pool))
        assert second != first
        assert pool._state.generation == 1
        assert serves(pool) == second
        end(pool)

    def test_here_the_monitor_may_be_faster(self, server, monkeypatch):
        pool = shared(server)
        serves(pool)
        renew = SharedLimit.renew

        def slowly(limit):
            number = renew(limit)
            until(lambda: pool._state.generation == 1)
            return number

        monkeypatch.setattr(SharedLimit, "renew", slowly)
        pool.drain(everywhere=True)
        assert pool._state.generation == 1
        end(pool)

    def test_here_the_monitor_may_come_late(self, server, monkeypatch):
        """It has read the news before, and acts upon them after."""
        pool = shared(server)
        serves(pool)
        here, is_done, carried_out = threading.get_ident(), threading.Event(), []
        renew = ending.renew

        def slowly(*args):
            assert threading.get_ident() == here or is_done.wait(10)
            works = renew(*args)
            carried_out.append(pool._state.generation)
            return works

        monkeypatch.setattr(ending, "renew", slowly)
        pool.drain(everywhere=True)
        is_done.set()
        until(lambda: len(carried_out) == 2)
        assert carried_out == [1, 1]
        end(pool)

    def test_again_when_its_numbers_have_begun_anew(self, server):
        """With the limit's files, which somebody has removed while they were not in use."""
        pool = shared(server)
        for _ in range(2):
            serves(pool)
            pool.drain(everywhere=True)
        until(lambda: not pool._state.entries)
        for file in Path(os.environ["NIMUE_DIR"]).iterdir():
            file.unlink()
        serves(pool)
        until(lambda: has_heard(pool))
        first = serves(pool)
        pool.drain(everywhere=True)
        assert serves(pool) != first
        end(pool)

    def test_the_other_pools_of_a_process_as_well(self, server):
        one, other = shared(server), shared(server)
        first = serves(other)
        one.drain(everywhere=True)
        until(lambda: other._state.generation == 1)
        assert serves(other) != first
        end(one)
        end(other)

    def test_one_that_is_stopped_does_it_when_it_goes_on(self, socket_server):
        pool, board = shared(socket_server), Board()

        def child():
            first = serves(pool)
            board[0] = 1
            until(lambda: pool.poolstats().closed == 1)
            return first, serves(pool)

        child = Child(child)
        board.until(0, 1)
        child.signal(signal.SIGSTOP)
        until(lambda: is_stopped(child.pid))
        for _ in range(3):
            pool.drain(everywhere=True)
        child.signal(signal.SIGCONT)
        first, second = child.result()
        assert first != second
        end(pool)

    def test_one_forked_afterwards_has_nothing_to_replace(self, socket_server):
        pool = shared(socket_server)
        out = pool.getconnection()
        pool.drain(everywhere=True)

        def child():
            first = serves(pool)
            until(lambda: has_heard(pool))
            assert serves(pool) == first
            return pool.poolstats()

        with Child(child, expect_threads=True) as forked:
            stats = forked.result()
            assert (stats.opened, stats.closed) == (1, 0)
        out.close()
        end(pool)

    def test_nor_has_one_that_joins_later(self, socket_server):
        pool = shared(socket_server)
        pool.drain(everywhere=True)
        pool.drain(everywhere=True)

        def child():
            own = shared(socket_server, poolmin=1)
            first = serves(own)
            until(lambda: has_heard(own))
            assert serves(own) == first
            assert own.totalstats().generation == 2
            return own.poolstats().closed

        with Child(child) as joined:
            assert joined.result() == 0
        end(pool)


class Door:
    """A ``connfunc`` that writes down, for all processes, how many are inside at once."""

    def __init__(self, server):
        self.server, self.board, self.lock = server, Board(), threading.Lock()
        self.place = 0

    def inside(self):
        return sum(self.board[n] for n in range(16))

    def _come(self, step):
        with self.lock:
            self.board[self.place] += step

    def connect(self):
        """Whoever comes second sees both, so no lock is needed between processes."""
        self._come(1)
        try:
            seen = self.inside()
            self.board[32 + self.place] = max(seen, self.board[32 + self.place])
            deadline = time.monotonic() + 0.02
            while self.inside() < 2 and time.monotonic() < deadline:
                time.sleep(0.001)
            return self.server.connect()
        finally:
            self._come(-1)

    def most(self):
        return max(self.board[32 + n] for n in range(16))


def doored(door, **options):
    options = {"totalmax": 20, "max_connecting_total": 2, **options}
    pool = shared(door.server, **options)
    end(pool)
    return type(pool)(
        door.connect, name="shared", poolmin=0, poolmax=5, driver=pool._own_driver, **options
    )


class TestTurns:
    def test_no_more_connect_at_once(self, socket_server, monkeypatch):
        monkeypatch.setattr(totalmax, "TURN_PATIENCE", 60.0)
        door, board = Door(socket_server), Board()
        pool = doored(door)

        def child(place):
            door.place = place
            board[place] = 1
            board.until(9, 1)
            asking = [spawn(pool.getconnection, timeout=30) for _ in range(5)]
            for handle in [each.result(30) for each in asking]:
                handle.close()
            return pool.poolstats().opened

        children = [Child(child, place, timeout=40) for place in range(4)]
        until(lambda: all(board[place] for place in range(4)))
        board[9] = 1
        opened = [child.result() for child in children]
        assert sum(opened) >= 4
        assert door.most() == 2 and door.inside() == 0
        assert SharedSemaphore("shared").snapshot().connecting == 0
        end(pool)

    def test_one_that_is_killed_in_its_turn_frees_it(self, socket_server, monkeypatch):
        monkeypatch.setattr(totalmax, "TURN_PATIENCE", 60.0)
        pool, board = shared(socket_server, max_connecting_total=1), Board()

        def child():
            with socket_server.hold("connect") as gate:
                asking = spawn(pool.getconnection)
                gate.arrived(1)
                board[0] = 1
                time.sleep(60)
            asking.result()

        child = Child(child)
        board.until(0, 1)
        asking = spawn(pool.getconnection)
        semaphore = SharedSemaphore("shared")
        until(lambda: semaphore.snapshot().held == 2)
        assert semaphore.snapshot().connecting == 1
        assert socket_server.count("connect") == 0
        child.signal(signal.SIGKILL)
        child.wait()
        asking.result().close()
        until(lambda: semaphore.snapshot().connecting == 0)
        end(pool)

    def test_one_that_never_comes_costs_no_more_than_patience(self, socket_server, monkeypatch):
        assert totalmax.TURN_PATIENCE <= 1.0
        monkeypatch.setattr(totalmax, "TURN_PATIENCE", 0.1)
        pool, board = shared(socket_server, max_connecting_total=1), Board()

        def child():
            with socket_server.hold("connect") as gate:
                asking = spawn(pool.getconnection)
                gate.arrived(1)
                board[0] = 1
                board.until(1, 1)
            asking.result().close()

        child = Child(child)
        board.until(0, 1)
        begun = time.monotonic()
        handle = pool.getconnection(timeout=20)
        assert 0.1 <= time.monotonic() - begun < 10
        assert ask(handle)
        board[1] = 1
        child.result()
        handle.close()
        end(pool)

    def test_a_failed_connect_gives_its_turn_back(self, server):
        pool = shared(server, max_connecting_total=1)
        server.fail("connect", OperationalError("no such user"), times=3)
        for _ in range(3):
            with pytest.raises(OperationalError):
                pool.getconnection(timeout=10)
        assert serves(pool)
        # Another opener may be about to see that it is not needed.
        until(lambda: SharedSemaphore("shared").snapshot().connecting == 0)
        end(pool)

    def test_close_is_not_held_up_for_long_by_a_turn_that_does_not_come(self, server, monkeypatch):
        """Nobody wants the connection any more, so none is opened."""
        monkeypatch.setattr(totalmax, "TURN_PATIENCE", 60.0)
        pool = shared(server, max_connecting_total=1)
        semaphore = SharedSemaphore("shared")
        turn = semaphore.family.try_connecting(1)
        asking = spawn(pool.getconnection)
        until(lambda: semaphore.snapshot().held == 1)
        pool.close()
        with pytest.raises(Exception, match="closed during the wait"):
            asking.result()
        until(lambda: semaphore.snapshot().held == 0)
        assert server.count("connect") == 0
        turn.give_back()
        end(pool)
