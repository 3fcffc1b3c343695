"""A process that is stopped keeps what it has, and keeps nobody from the rest."""

from __future__ import annotations

import signal
import time

from nimue.semaphore import SharedSemaphore
from nimue.semaphore.layout import EDIT
from tests.children import Child
from tests.semaphores import (
    Board,
    hold_until_killed,
    seconds_since,
    take_all,
    take_and_tell,
    waiting,
    whole,
)


def test_a_stopped_holder_keeps_its_own_and_no_more(tmp_path):
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()
    child = Child(hold_until_killed, semaphore, board)
    board.until(0, 1)
    child.signal(signal.SIGSTOP)
    taken = take_all(semaphore)
    assert len(taken) == 1
    assert semaphore.take(0.1) is None
    taken[0].give_back()
    child.signal(signal.SIGCONT)
    child.signal(signal.SIGKILL)
    child.wait()
    whole(semaphore, 2)


def test_a_stopped_head_of_the_queue_is_overtaken_and_comes_to_its_turn(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    frozen = Child(take_and_tell, semaphore, board, 0)
    waiting(semaphore, 1)
    behind = Child(take_and_tell, semaphore, board, 1)
    waiting(semaphore, 2)
    frozen.signal(signal.SIGSTOP)
    freed = time.monotonic_ns()
    held.give_back()
    board.until(1, 1)
    behind.result()
    # Two rounds of 60 to 80 ms, and what a busy machine adds.
    assert (board[1] - freed) / 1e9 < 5
    assert board[0] == 0
    frozen.signal(signal.SIGCONT)
    frozen.result()
    assert seconds_since(board[0]) < 5
    whole(semaphore, 1)


def test_whoever_does_not_wait_overtakes_a_suspect_only(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    frozen = Child(take_and_tell, semaphore, board, 0)
    waiting(semaphore, 1)
    frozen.signal(signal.SIGSTOP)
    held.give_back()
    assert semaphore.try_acquire() is None
    again = semaphore.acquire(10)
    again.give_back()
    direct = semaphore.try_acquire()
    assert direct is not None
    direct.give_back()
    frozen.signal(signal.SIGCONT)
    frozen.result()
    whole(semaphore, 1)


def _stop_in_an_edit(semaphore, board):
    presence = semaphore._here()
    with presence.lock:
        assert presence._locks.take(EDIT)
        board[0] = 1
        time.sleep(60)


def test_who_is_stopped_while_it_changes_the_limit_holds_up_no_release(tmp_path):
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()
    held = take_all(semaphore)
    semaphore.resize(1)
    assert semaphore.excess == 1
    frozen = Child(_stop_in_an_edit, semaphore, board)
    board.until(0, 1)
    frozen.signal(signal.SIGSTOP)
    started = time.monotonic()
    held.pop().give_back()
    assert time.monotonic() - started < 5
    # Still to be retired, by whoever gives back next.
    assert semaphore.excess == 1
    generation = semaphore.family.news.generation
    assert semaphore.family.renew() == generation + 1
    frozen.signal(signal.SIGKILL)
    frozen.wait()
    held.pop().give_back()
    assert semaphore.excess == 0
    whole(semaphore, 1)
