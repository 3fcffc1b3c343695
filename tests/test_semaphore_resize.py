"""Another limit while all goes on."""

from __future__ import annotations

import random
import signal
import time

import pytest

from nimue.semaphore import SharedSemaphore
from nimue.semaphore.layout import SLOTS
from tests.children import Child, forked
from tests.fakes import spawn, until
from tests.semaphores import (
    Board,
    give_all,
    hold_until_killed,
    take_all,
    take_and_tell,
    threads_waiting,
    waiting,
    whole,
)


@pytest.fixture
def semaphore(tmp_path):
    return SharedSemaphore("s", 3, directory=tmp_path)


def test_growing_is_at_once_and_wakes(semaphore):
    board, taken = Board(), take_all(semaphore)
    with Child(take_and_tell, semaphore, board) as child:
        waiting(semaphore, 1)
        semaphore.resize(5)
        child.result()
    more = take_all(semaphore)
    assert len(more) == 2
    give_all(taken + more)
    whole(semaphore, 5)


def test_growing_wakes_all_that_it_has_room_for(semaphore):
    board, taken = Board(), take_all(semaphore)
    children = [Child(hold_until_killed, semaphore, board, n) for n in range(3)]
    waiting(semaphore, 3)
    semaphore.resize(6)
    for n in range(3):
        board.until(n, 1)
    for child in children:
        child.signal(signal.SIGKILL)
        child.wait()
    give_all(taken)
    whole(semaphore, 6)


def test_shrinking_retires_what_is_free_and_then_what_comes_back(semaphore):
    taken = take_all(semaphore)
    taken.pop().give_back()
    semaphore.resize(1)
    assert (semaphore.limit, semaphore.excess) == (1, 1)
    assert semaphore.snapshot().excess == 1
    assert semaphore.try_acquire() is None
    taken.pop().give_back()
    assert semaphore.excess == 0 and semaphore.try_acquire() is None
    taken.pop().give_back()
    whole(semaphore, 1)


def test_a_waiting_thread_gets_no_permit_above_the_limit(semaphore):
    """Within a process permits go from hand to hand; not those to be retired."""
    taken = take_all(semaphore)
    semaphore.resize(2)
    asking = spawn(semaphore.take, 20)
    threads_waiting(semaphore, 1)
    taken.pop().give_back()
    # Where the thread is at the table just now, it carries that out.
    until(lambda: semaphore.excess == 0)
    until(lambda: semaphore.snapshot().held == 2)
    assert not asking.done
    taken.pop().give_back()
    asking.result().give_back()
    give_all(taken)
    whole(semaphore, 2)


def test_what_the_dead_held_above_the_limit_is_not_granted_again(semaphore):
    board = Board()
    child = Child(hold_until_killed, semaphore, board, 0, 3)
    board.until(0, 1)
    semaphore.resize(1)
    child.signal(signal.SIGKILL)
    child.wait()
    # The slots are still in service; each is retired when it is given back.
    first = semaphore.acquire(5)
    first.give_back()
    until(lambda: _settled(semaphore, 1))
    whole(semaphore, 1)


def _settled(semaphore, limit):
    give_all(take_all(semaphore))
    return semaphore.excess == 0 and semaphore._core.map.in_service() == limit


def test_back_and_forth_in_one_process(semaphore):
    for limit in (1, 7, 2, SLOTS, 3):
        semaphore.resize(limit)
        whole(semaphore, limit)


def test_every_process_sees_the_new_limit(semaphore, tmp_path):
    forked(lambda: semaphore.resize(9))
    assert semaphore.limit == 9
    other = SharedSemaphore("s", 4, directory=tmp_path, on_mismatch="adopt")
    assert other.limit == 9


def _load(semaphore, board, seed):
    dice = random.Random(seed)
    while not board[0]:
        permit = semaphore.take(2)
        if permit is not None:
            time.sleep(dice.random() * 0.004)
            permit.give_back()


def test_under_load_every_limit_is_reached(semaphore):
    board = Board()
    children = [
        Child(lambda seed: [each.result(30) for each in _threads(semaphore, board, seed)], n)
        for n in range(3)
    ]
    try:
        for limit in (1, 8, 2, 12, 4):
            semaphore.resize(limit)
            until(lambda: semaphore.excess == 0)
            assert semaphore._core.map.in_service() == limit
            assert semaphore.snapshot().held <= limit
    finally:
        board[0] = 1
    for child in children:
        child.result()
    whole(semaphore, 4)


def _threads(semaphore, board, seed):
    return [spawn(_load, semaphore, board, seed * 10 + n) for n in range(3)]
