"""``totalmax``: one limit for the pools of many processes."""

from __future__ import annotations

import os
import pickle
import signal
import time

import pytest

from nimue import NimueInvalidParameterValue, NimuePoolTimeout, SharedSemaphore
from tests.children import Child, forked
from tests.fakes import spawn, until
from tests.forking import ask, end, make_pool, serves
from tests.semaphores import Board


def held(name="shared"):
    return SharedSemaphore(name).snapshot().held


def shared(server, **options):
    options = {"name": "shared", "totalmax": 3, "poolmax": 5, **options}
    return make_pool(server, **options)


class TestOneProcess:
    def test_no_more_than_the_limit(self, server):
        pool = shared(server)
        handles = [pool.getconnection() for _ in range(3)]
        with pytest.raises(NimuePoolTimeout) as told:
            pool.getconnection(timeout=0.1)
        assert "'shared'" in str(told.value) and "limit 3" in str(told.value)
        assert f"3 by process {os.getpid()}" in str(told.value)
        handles.pop().close()
        again = pool.getconnection(timeout=5)
        assert server.open == 3 == held()
        for handle in (again, *handles):
            handle.close()
        end(pool)
        assert held() == 0

    def test_the_constructor_takes_what_there_is(self, server, caplog):
        caplog.set_level("INFO")
        first = shared(server, poolmin=2)
        second = shared(server, poolmin=2)
        assert (first.poolstats().poolsize, second.poolstats().poolsize) == (2, 1)
        assert "1 of 2 connections: no more permits" in caplog.text
        assert (
            "poolmax=5 in each process, totalmax=3 across processes, which is less" in caplog.text
        )
        end(first)
        end(second)
        assert server.open == held() == 0

    def test_two_pools_of_one_name(self, server):
        one, other = shared(server), shared(server)
        handles = [one.getconnection() for _ in range(3)]
        with pytest.raises(NimuePoolTimeout):
            other.getconnection(timeout=0.1)
        handles.pop().close()
        wanted = other.getconnection(timeout=5)
        (row,) = one.totalstats().processes
        assert (row.pid, row.permits, row.poolused) == (os.getpid(), 3, 3)
        for handle in (wanted, *handles):
            handle.close()
        end(one)
        end(other)

    def test_two_names_are_two_limits(self, server):
        one, other = shared(server, name="one"), shared(server, name="other")
        handles = [pool.getconnection(timeout=5) for pool in (one, other) for _ in range(3)]
        assert server.open == 6
        for handle in handles:
            handle.close()
        end(one)
        end(other)

    def test_a_failed_connect_gives_its_permit_back(self, server):
        pool = shared(server, totalmax=1)
        server.fail("connect", OSError("connect"), times=3)
        for _ in range(3):
            with pytest.raises(Exception, match="connect"):
                pool.getconnection(timeout=5)
            assert held() == 0
        assert serves(pool)
        end(pool)

    def test_detach_gives_its_permit_back(self, server):
        pool = shared(server, totalmax=1)
        raw = pool.getconnection().detach()
        until(lambda: held() == 0)
        assert serves(pool)
        raw.close()
        end(pool)

    def test_set_while_in_use(self, server):
        pool = shared(server, totalmax=2)
        handles = [pool.getconnection() for _ in range(2)]
        asking = spawn(pool.getconnection)
        until(lambda: pool.poolstats().waiting)
        pool.totalmax = 3
        handles.append(asking.result())
        pool.totalmax = 1
        assert pool.totalstats().excess == 2
        while handles:
            handles.pop().close()
        until(lambda: server.open == 1)
        until(lambda: held() == 1)
        assert pool.totalmax == 1 and pool.totalstats().excess == 0
        end(pool)

    def test_without_one(self, server):
        pool = make_pool(server)
        assert pool.totalmax is None
        for what in (pool.totalstats, lambda: pool.drain(everywhere=True)):
            with pytest.raises(NimueInvalidParameterValue, match="totalmax"):
                what()
        with pytest.raises(NimueInvalidParameterValue, match="totalmax=5"):
            pool.totalmax = 5
        end(pool)

    def test_another_limit_rules_from_now_on(self, server, caplog):
        """As in a rolling deploy: the last one is meant."""
        old = shared(server, totalmax=1)
        held = old.getconnection()
        new = shared(server, totalmax=2)
        assert "was 1; from now on it is 2 for all processes" in caplog.text
        assert old.totalmax == 2
        assert serves(new)
        held.close()
        end(old)
        end(new)

    def test_one_that_was_set_in_use_outlives_who_comes_with_the_old_one(self, server):
        """As a worker does that imports the same module after another was killed."""
        first = shared(server, totalmax=2)
        first.totalmax = 5
        second = shared(server, totalmax=2)
        assert first.totalmax == second.totalmax == 5
        third = shared(server, totalmax=4)
        assert first.totalmax == third.totalmax == 4
        for pool in (first, second, third):
            end(pool)

    def test_the_error_says_that_a_permit_is_what_lacks(self, server):
        pool = shared(server, totalmax=1, poolmax=2)
        handle = pool.getconnection()
        with pytest.raises(NimuePoolTimeout, match=r"1 of poolmax=2 connections exist.*1 permits"):
            pool.getconnection(timeout=0.2)
        handle.close()
        end(pool)

    def test_without_a_name_the_start_line_says_for_whom_it_is(self, server, caplog):
        caplog.set_level("INFO")
        end(make_pool(server, totalmax=2))
        assert "totalmax=2 across this process and its children" in caplog.text


class TestProcesses:
    def test_a_child_counts(self, socket_server):
        pool = shared(socket_server, totalmax=2)
        mine = pool.getconnection()

        def child():
            handle = pool.getconnection(timeout=10)
            assert ask(handle)
            with pytest.raises(NimuePoolTimeout) as told:
                pool.getconnection(timeout=0.1)
            handle.close()
            stats = pool.totalstats()
            pool.close()
            return str(told.value), stats

        told, stats = forked(child)
        assert f"1 by process {os.getpid()}" in told
        assert stats.totalmax == stats.held == 2
        assert {row.permits for row in stats.processes} == {1}
        assert os.getpid() in {row.pid for row in stats.processes}
        assert held() == 1 and ask(mine)
        mine.close()
        end(pool)

    def test_killed_with_all_of_them(self, socket_server):
        pool, board = shared(socket_server), Board()

        def child():
            kept = [pool.getconnection() for _ in range(3)]
            board[0] = 1
            time.sleep(60)
            return kept

        child = Child(child)
        board.until(0, 1)
        asking = spawn(pool.getconnection)
        until(lambda: SharedSemaphore("shared").snapshot().waiters)
        child.signal(signal.SIGKILL)
        child.wait()
        asking.result().close()
        assert pool.totalstats().reclaimed >= 1
        end(pool)

    def test_an_idle_one_flows_to_who_waits(self, socket_server):
        """Though the holder neither acquires nor releases any more."""
        pool, board = shared(socket_server), Board()

        def child():
            handles = [pool.getconnection() for _ in range(3)]
            for handle in handles:
                handle.close()
            board[0] = 1
            board.until(1, 1)
            until(lambda: pool.poolstats().poolsize <= 2)
            return pool.poolstats()

        child = Child(child)
        board.until(0, 1)
        handle = pool.getconnection(timeout=10)
        assert ask(handle)
        board[1] = 1
        stats = child.result()
        assert stats.shed >= 1
        handle.close()
        end(pool)

    def test_one_that_comes_back_flows_to_who_waits(self, socket_server):
        pool, board = shared(socket_server, totalmax=1), Board()

        def child():
            handle = pool.getconnection()
            board[0] = 1
            board.until(1, 1)
            handle.close()
            until(lambda: pool.poolstats().shed)
            return pool.poolstats().shed

        child = Child(child)
        board.until(0, 1)
        asking = spawn(pool.getconnection)
        until(lambda: SharedSemaphore("shared").others_waiting() or pool._state.waiters)
        until(lambda: SharedSemaphore("shared").snapshot().waiters)
        board[1] = 1
        handle = asking.result()
        assert child.result() == 1
        handle.close()
        end(pool)

    def test_nothing_is_shed_where_there_is_enough(self, socket_server):
        pool = shared(socket_server, totalmax=8, poolmax=2)

        def child():
            handles = []
            for _ in range(200):
                handles.append(pool.getconnection(timeout=10))
                if len(handles) == 2:
                    for handle in handles:
                        handle.close()
                    handles.clear()
            return pool.poolstats()

        children = [Child(child) for _ in range(4)]
        for stats in [child.result() for child in children]:
            assert (stats.shed, stats.opened, stats.closed) == (0, 2, 0)
        end(pool)

    def test_unnamed_it_is_shared_with_children_and_copies(self, socket_server):
        pool = make_pool(socket_server, totalmax=1)
        mine = pool.getconnection()

        def child():
            with pytest.raises(NimuePoolTimeout):
                pool.getconnection(timeout=0.1)

        forked(child)
        mine.close()
        end(pool)
        other = make_pool(socket_server, totalmax=1)
        assert serves(other)
        end(other)

    def test_a_pickled_pool_keeps_its_limit(self, server):
        pool = make_pool(server, totalmax=2)
        limit = pool._state.limit
        assert pickle.loads(pickle.dumps(limit)) is limit
        end(pool)

    def test_drained_everywhere(self, socket_server):
        pool, board = shared(socket_server, totalmax=4), Board()

        def child():
            first = serves(pool)
            board[0] = 1
            board.until(1, 1)
            until(lambda: pool.poolstats().poolsize == 0)
            return first, serves(pool)

        child = Child(child)
        board.until(0, 1)
        pool.drain(everywhere=True)
        board[1] = 1
        before, after = child.result()
        assert before != after
        end(pool)
