"""No wake-up is lost: processes that would not look again by themselves are served all the same."""

from __future__ import annotations

import os
import signal
import time

import pytest

from nimue.semaphore import SharedSemaphore, mailbox, waiter
from nimue.semaphore.layout import HELD, HINTS, HINTS_END
from tests.children import Child
from tests.fakes import spawn
from tests.semaphores import Board, take_all, take_and_tell, threads_waiting, waiting, whole


@pytest.fixture
def patient(monkeypatch):
    """Here and in children forked from here, nobody looks again before the tests' timeouts."""
    monkeypatch.setattr(waiter, "LOOK_AGAIN", 100.0)
    monkeypatch.setattr(waiter, "NAP", 100.0)


def _cycle(semaphore, board, at, rounds):
    for _ in range(rounds):
        permit = semaphore.acquire(15)
        if board[at] % 3 == 0:
            time.sleep(0.0003)
        permit.give_back()
        board[at] += 1


def _cycle_in_threads(semaphore, board, at, rounds):
    for each in [spawn(_cycle, semaphore, board, 3 * at + n, rounds) for n in range(3)]:
        each.result(60)


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_every_wake_up_arrives(tmp_path, patient, limit):
    semaphore, board = SharedSemaphore("s", limit, directory=tmp_path), Board()
    children = [Child(_cycle_in_threads, semaphore, board, at, 120, timeout=60) for at in range(3)]
    for child in children:
        child.result()
    assert [board[at] for at in range(9)] == [120] * 9
    # Whoever gives back says so before it unlocks: nothing of the living is taken for the dead's.
    assert semaphore.reclaimed == 0
    assert semaphore._core.map.places(HINTS, HINTS_END, HELD) == []
    whole(semaphore, limit)


def test_two_wake_ups_that_became_one_are_passed_on(tmp_path, patient):
    """Both releases wake the head, which takes but one and leaves."""
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()
    held = take_all(semaphore)
    head = Child(_take_and_stay, semaphore, board)
    waiting(semaphore, 1)
    behind = Child(take_and_tell, semaphore, board, 1)
    waiting(semaphore, 2)
    head.signal(signal.SIGSTOP)
    for permit in held:
        permit.give_back()
    head.signal(signal.SIGCONT)
    board.until(0, 1)
    behind.result()
    board[2] = 1
    head.result()
    whole(semaphore, 2)


def _take_and_stay(semaphore, board):
    permit = semaphore.acquire(15)
    board[0] = 1
    board.until(2, 1)
    permit.give_back()


def test_a_head_whose_time_is_up_passes_on_what_is_free(tmp_path, patient):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()

    def give_up():
        assert semaphore.take(None, lambda: bool(board[0])) is None
        board[1] = 1

    head = Child(give_up)
    waiting(semaphore, 1)
    behind = Child(take_and_tell, semaphore, board, 2)
    waiting(semaphore, 2)
    head.signal(signal.SIGSTOP)
    board[0] = 1
    held.give_back()  # wakes the head, which does not want it any more, but was not told before
    head.signal(signal.SIGCONT)
    behind.result()
    assert board[2]
    head.wait()
    whole(semaphore, 1)


def test_a_leader_that_leaves_hands_the_listening_on(tmp_path, patient):
    """The thread that listens for its process gets the first permit; the next must hear too."""
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()

    def two_threads():
        asking = []
        for number in range(2):
            asking.append(spawn(take_and_tell, semaphore, board, number))
            board[2] += 1
            board.until(3, number + 1)
        for each in asking:
            each.result(15)

    held = semaphore.acquire()
    child = Child(two_threads)
    for number in range(2):
        board.until(2, number + 1)
        threads_waiting(semaphore, number + 1)
        board[3] = number + 1
    held.give_back()
    board.until(1, 1)
    child.result()
    whole(semaphore, 1)


def test_all_are_reached_over_few_descriptors(tmp_path):
    base = str(tmp_path / "s")
    boxes = [mailbox.Mailbox(f"{base}.{mailbox.WAKE}{number}") for number in range(40)]
    post = mailbox.Post(base, mailbox.WAKE)
    before = len(os.listdir("/dev/fd"))
    for _ in range(2):
        for number in range(40):
            assert post.send(number)
        assert len(os.listdir("/dev/fd")) == before + mailbox.KEPT
    assert [box.drain() for box in boxes] == [2] * 40
    post.close()
    assert len(os.listdir("/dev/fd")) == before
    for box in boxes:
        box.close()
