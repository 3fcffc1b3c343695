"""More processes than permits: each gets its turn, whatever the others do with theirs.

Nothing here is timed: a process that starves is one whose count does not come within the bound.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nimue import NimuePoolTimeout, SharedSemaphore
from tests.children import Child
from tests.fakes import spawn, until
from tests.forking import ask, end, make_pool
from tests.semaphores import Board

BOUND = 40.0
OVER = 500
TURNS = 15


def shared(server, limit, **options):
    return make_pool(server, name="shared", totalmax=limit, timeout=BOUND, **options)


def permits_of(child: Child) -> int:
    holders = SharedSemaphore("shared").snapshot().holders
    return sum(holder.count for holder in holders if holder.pid == child.pid)


def waits(pid: int) -> bool:
    return any(each.pid == pid for each in SharedSemaphore("shared").snapshot().waiters)


def stop(child: Child) -> None:
    """Until the kernel says that it is stopped: the signal takes a moment."""
    child.signal(signal.SIGSTOP)

    def state() -> str:
        with open(f"/proc/{child.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    until(lambda: state() == "T")


def be_busy(pool, board, at, threads=2, pause=0.0, hold=0.001):
    """For a child: take, ask, hold and give back until it is over, and count."""

    def work(mine):
        while not board[OVER]:
            handle = pool.getconnection()
            assert ask(handle)
            time.sleep(hold)
            handle.close()
            board[mine] += 1
            time.sleep(pause)

    # A count of its own for each thread: adding is no single step.
    for worker in [spawn(work, at + n) for n in range(threads)]:
        worker.result(2 * BOUND)
    pool.close(timeout=10)


def turns(board, at, threads=2):
    return sum(board[at + n] for n in range(threads))


@contextmanager
def busy(pool, board, processes, **options) -> Iterator[list[Child]]:
    """So many busy children. Process ``n`` counts from ``board[10 * n]`` on."""
    children = [
        Child(lambda n=n: be_busy(pool, board, 10 * n, **options), timeout=3 * BOUND)
        for n in range(processes)
    ]
    try:
        yield children
    except BaseException:
        for child in children:
            child.put_down(ask=False)
        raise
    board[OVER] = 1
    for child in children:
        child.result()


def all_progress(board, processes, count=TURNS, threads=2):
    before = [turns(board, 10 * n, threads) for n in range(processes)]

    def done():
        return [turns(board, 10 * n, threads) - before[n] for n in range(processes)]

    until(lambda: min(done()) >= count, BOUND, lambda: f"turns of each process: {done()}")


def test_eight_busy_processes_and_five_permits(socket_server):
    pool, board = shared(socket_server, 5), Board()
    with busy(pool, board, 8):
        for _ in range(3):
            all_progress(board, 8)
    end(pool)


def test_a_hold_longer_than_a_quantum(socket_server):
    """Where a process never has a moment without a connection, the others still get theirs."""
    pool, board = shared(socket_server, 2), Board()
    with busy(pool, board, 4, hold=0.25, threads=3):
        all_progress(board, 4, count=2, threads=3)
    end(pool)


def test_one_busy_process_and_quiet_ones(socket_server):
    pool, board = shared(socket_server, 3), Board()
    with busy(pool, board, 5, threads=1, pause=0.03):
        hot = Child(lambda: be_busy(pool, board, 100, threads=5, hold=0), timeout=3 * BOUND)
        until(lambda: turns(board, 100, 5) > TURNS, BOUND)
        all_progress(board, 5, threads=1)
        before = turns(board, 100, 5)
        until(lambda: turns(board, 100, 5) > before + TURNS, BOUND)
    hot.result()
    end(pool)


def test_who_never_gives_back_leaves_the_rest_to_others(socket_server):
    """Four of five are held for ever by a process that wants still more."""
    pool, board = shared(socket_server, 5), Board()

    def greedy():
        kept = [pool.getconnection() for _ in range(4)]
        board[400] = 1
        be_busy(pool, board, 200, threads=2)
        return len(kept)

    greed = Child(greedy, timeout=3 * BOUND)
    board.until(400, 1)
    with busy(pool, board, 4):
        for _ in range(2):
            all_progress(board, 4)
        before = turns(board, 200)
        until(lambda: turns(board, 200) > before, BOUND)
    greed.wait()
    end(pool)


def test_who_is_stopped_at_the_head_of_the_queue_blocks_nobody(socket_server):
    pool, board = shared(socket_server, 1), Board()
    mine = pool.getconnection()

    def once(at):
        handle = pool.getconnection()
        assert ask(handle)
        handle.close()
        board[at] = 1
        pool.close(timeout=10)

    head = Child(once, 0, timeout=2 * BOUND)
    until(lambda: waits(head.pid))
    behind = Child(once, 1, timeout=2 * BOUND)
    until(lambda: waits(behind.pid))
    stop(head)
    mine.close()
    behind.result()
    assert (board[0], board[1]) == (0, 1)
    # Nor those that come later.
    for _ in range(3):
        handle = pool.getconnection()
        assert ask(handle)
        handle.close()
    head.signal(signal.SIGCONT)
    head.result()
    end(pool)


def test_who_is_stopped_with_some_keeps_those_and_no_more(socket_server):
    pool, board = shared(socket_server, 5), Board()

    def hold_two():
        kept = [pool.getconnection() for _ in range(2)]
        board[400] = 1
        board.until(401, 1, BOUND)
        assert all(map(ask, kept))
        for handle in kept:
            handle.close()
        pool.close(timeout=10)

    holder = Child(hold_two, timeout=3 * BOUND)
    board.until(400, 1)
    stop(holder)
    mine = [pool.getconnection() for _ in range(3)]
    with pytest.raises(NimuePoolTimeout, match=f"2 by process {holder.pid}"):
        pool.getconnection(timeout=0.3)
    assert permits_of(holder) == 2
    for handle in mine:
        handle.close()
    with busy(pool, board, 4):
        all_progress(board, 4)
        assert permits_of(holder) == 2
    board[401] = 1
    holder.signal(signal.SIGCONT)
    holder.result()
    end(pool)


def test_who_is_stopped_in_the_midst_of_work(socket_server):
    """Wherever it stands, it takes no more from the others than it has at that moment."""
    pool, board = shared(socket_server, 3), Board()
    with busy(pool, board, 5, threads=1) as children:
        all_progress(board, 5, count=3, threads=1)
        for child in children[:2]:
            stop(child)
            rest = [n for n in range(5) if children[n] is not child]
            before = {n: board[10 * n] for n in rest}

            def progress(before=before):
                return [board[10 * n] - before[n] for n in before]

            until(lambda progress=progress: min(progress()) >= TURNS, BOUND)
            assert permits_of(child) <= 1
            child.signal(signal.SIGCONT)
        all_progress(board, 5, threads=1)
    end(pool)
