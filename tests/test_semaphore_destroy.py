"""The end of a semaphore: only when nobody else could notice."""

from __future__ import annotations

import os
import signal
import time

import pytest

from nimue.error import NimueSemaphoreInUse
from nimue.semaphore import SharedSemaphore, names
from tests.children import Child, forked, in_script
from tests.fakes import spawn
from tests.semaphores import Board, hold_until_killed, refusal, take_all, threads_waiting, whole


def left(directory):
    return sorted(name for name in os.listdir(directory) if not name.endswith(".init"))


def _attached(semaphore, board):
    semaphore.try_acquire().give_back()
    board[0] = 1
    time.sleep(60)


def test_it_is_refused_while_anybody_is_attached(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    child = Child(_attached, semaphore, board)
    board.until(0, 1)
    text = refusal(semaphore.destroy, NimueSemaphoreInUse)
    assert f"process {child.pid}" in text and "'s'" in text
    whole(semaphore, 1)
    child.signal(signal.SIGSTOP)
    refusal(semaphore.destroy, NimueSemaphoreInUse)
    child.signal(signal.SIGKILL)
    child.wait()
    semaphore.destroy()
    assert left(tmp_path) == [] and names(tmp_path) == []


def test_it_is_refused_while_this_process_holds_or_waits(tmp_path):
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    held = semaphore.acquire()
    assert "holds 1 permits" in refusal(semaphore.destroy, NimueSemaphoreInUse)
    asking = spawn(semaphore.take, 20)
    threads_waiting(semaphore, 1)
    assert "1 of its threads" in refusal(semaphore.destroy, NimueSemaphoreInUse)
    held.give_back()
    asking.result().give_back()
    semaphore.destroy()


def test_a_later_use_makes_it_anew(tmp_path):
    semaphore = SharedSemaphore("s", 2, directory=tmp_path)
    other = SharedSemaphore("s", 2, directory=tmp_path)
    for _ in range(3):
        semaphore.destroy()
        assert left(tmp_path) == []
        whole(other, 2)
        whole(semaphore, 2)
    # Descriptors do not pile up.
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        semaphore.destroy()
        whole(semaphore, 2)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_only_its_own_files_are_removed(tmp_path):
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    neighbour = SharedSemaphore("s.lock", 1, directory=tmp_path)
    another = SharedSemaphore("s.w0", 1, directory=tmp_path)
    (tmp_path / "s.txt").touch()
    semaphore.destroy()
    assert left(tmp_path) == ["s.lock.lock", "s.lock.map", "s.txt", "s.w0.lock", "s.w0.map"]
    whole(neighbour, 1)
    whole(another, 1)


def test_a_child_that_comes_too_late_makes_it_anew(tmp_path):
    """It was forked before the last one left, and had not attached."""
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()

    def come_late():
        board.until(0, 1)
        whole(semaphore, 2)
        board[1] = 1
        board.until(2, 1)

    def come_later():
        board.until(1, 1)
        whole(semaphore, 2)

    children = [Child(come_late), Child(come_later)]
    semaphore.destroy()
    board[0] = 1
    board.until(1, 1)
    assert names(tmp_path) == ["s"]
    with pytest.raises(NimueSemaphoreInUse):
        semaphore.destroy()
    board[2] = 1
    for child in children:
        child.result()


def test_two_late_children_meet_in_one_semaphore(tmp_path):
    semaphore, board = SharedSemaphore("s", 3, directory=tmp_path), Board()

    def come_late(number):
        board.until(0, 1)
        taken = take_all(semaphore)
        board[1 + number] = 1
        board.until(1, 1)
        board.until(2, 1)
        return len(taken)

    children = [Child(come_late, number) for number in range(2)]
    semaphore.destroy()
    board[0] = 1
    assert sum(child.result() for child in children) == 3


def test_close_leaves_and_comes_back(tmp_path):
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()
    held = semaphore.acquire()
    assert "holds 1 permits" in refusal(semaphore.close, NimueSemaphoreInUse)
    held.give_back()
    child = Child(_attached, semaphore, board)
    board.until(0, 1)
    semaphore.close()
    semaphore.close()
    assert forked(lambda: refusal(semaphore.destroy, NimueSemaphoreInUse))
    child.signal()
    child.wait()
    forked(semaphore.destroy)
    assert left(tmp_path) == []
    whole(semaphore, 2)
    semaphore.close()
    assert left(tmp_path) == ["s.lock", "s.map"]


def test_close_leaves_only_with_the_last_object(tmp_path):
    one = SharedSemaphore("s", 2, directory=tmp_path)
    two = SharedSemaphore("s", 2, directory=tmp_path)
    held = two.acquire()
    one.close()
    assert held.is_held
    held.give_back()
    two.close()
    assert not two._core.here.is_in


def test_two_threads_close_at_once(tmp_path):
    """As a pool's ``close()`` and its monitor may: neither stumbles over the other."""
    meanwhile = []

    class Interrupted(SharedSemaphore):
        def __hash__(self):
            if meanwhile:
                meanwhile.pop()()
            return id(self)

    one = Interrupted("s", 2, directory=tmp_path)
    two = SharedSemaphore("s", 2, directory=tmp_path)
    core = one._core
    meanwhile.append(two.close)
    one.close()
    assert not meanwhile
    assert not core.here.is_in


def test_a_new_limit_after_all_have_left(tmp_path):
    one = SharedSemaphore("s", 2, directory=tmp_path)
    one.close()
    whole(SharedSemaphore("s", 5, directory=tmp_path), 5)


def test_a_private_one_takes_its_files_along(tmp_path):
    semaphore = SharedSemaphore(limit=2, directory=tmp_path)
    assert semaphore.name.startswith("private-")
    assert len(left(tmp_path)) == 2
    board = Board()
    child = Child(_attached, semaphore, board)
    board.until(0, 1)
    semaphore.close()
    assert len(left(tmp_path)) == 2
    child.signal()
    child.wait()
    whole(semaphore, 2)
    semaphore.close()
    assert left(tmp_path) == []


def _use_private(directory, ends_holding):
    semaphore = SharedSemaphore(limit=2, directory=directory)
    permit = semaphore.acquire()
    if not ends_holding:
        permit.give_back()
        return
    globals()["kept"] = permit


def test_at_the_end_of_a_process_a_private_one_is_removed(tmp_path):
    in_script(_use_private, str(tmp_path), False)
    assert left(tmp_path) == []


def test_what_is_held_at_the_end_is_removed_by_the_next(tmp_path):
    in_script(_use_private, str(tmp_path), True)
    assert len(left(tmp_path)) == 2
    mine = SharedSemaphore(limit=1, directory=tmp_path)
    assert names(tmp_path) == [mine.name]
    mine.close()


def test_private_ones_in_use_are_not_swept(tmp_path):
    semaphore, board = SharedSemaphore(limit=1, directory=tmp_path), Board()
    other = Child(lambda: hold_until_killed(SharedSemaphore(limit=1, directory=tmp_path), board))
    board.until(0, 1)
    held = semaphore.acquire()
    third = SharedSemaphore(limit=1, directory=tmp_path)
    assert len(names(tmp_path)) == 3
    assert forked(semaphore.try_acquire) is None  # the sweep has not freed what is held here
    held.give_back()
    third.close()
    semaphore.close()
    other.signal()
    other.wait()
