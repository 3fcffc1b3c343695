"""A forked child, hooks or not, neither owns nor pins nor gives back its parent's permits."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest

from nimue.error import NimueSemaphoreLost
from nimue.semaphore import SharedSemaphore, waiter
from nimue.semaphore.files import OpenFile
from tests import children, forking
from tests.children import Child, gone, in_script
from tests.fakes import spawn, until
from tests.semaphores import Board, give_all, take_all, take_and_tell, threads_waiting, whole


@pytest.fixture(params=["os.fork", "C fork"])
def child(request, monkeypatch):
    """``child(fn, *args)``: run it in a forked child, and return its result.

    Threads that wait do not look again by themselves: a C fork needs all others at rest.
    """
    monkeypatch.setattr(waiter, "LOOK_AGAIN", 100.0)
    monkeypatch.setattr(waiter, "NAP", 100.0)
    return forking.forked if request.param == "os.fork" else forking.c_forked


def test_a_child_neither_owns_nor_gives_back(tmp_path, child):
    semaphore = SharedSemaphore("s", 2, directory=tmp_path)
    held = semaphore.acquire()

    def in_child():
        assert not held.is_held
        held.give_back()
        semaphore.release(held)
        mine = semaphore.try_acquire()
        assert mine is not None and semaphore.try_acquire() is None
        assert semaphore.snapshot().held == 2
        return mine.byte

    assert child(in_child) != held.byte
    assert held.is_held
    assert semaphore.snapshot().held == 1
    held.give_back()
    whole(semaphore, 2)


def test_a_child_that_drops_or_leaves_with_the_parents_permit_frees_nothing(tmp_path, child):
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    kept = [semaphore.acquire()]
    child(kept.clear)

    def in_block():
        semaphore.__exit__(None, None, None)

    kept.pop().give_back()
    with semaphore as held:
        child(in_block)
        assert held.is_held and child(semaphore.try_acquire) is None
    whole(semaphore, 1)


def test_a_killed_parents_permits_are_not_pinned_by_its_child(tmp_path):
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()

    def parent():
        kept = take_all(semaphore)
        board[0] = os.fork()
        if board[0] == 0:
            assert semaphore.try_acquire() is None  # it has come through the door
            board[1] = os.getpid()
            time.sleep(60)
            os._exit(len(kept))
        time.sleep(60)

    first = Child(parent)
    board.until(1, 1)
    assert semaphore.try_acquire() is None
    first.signal(signal.SIGKILL)
    first.wait()
    whole(semaphore, 2)
    os.kill(board[1], signal.SIGKILL)
    until(lambda: gone(board[1]))


def test_the_child_waits_for_no_lock_of_the_parents(tmp_path, child):
    semaphore = SharedSemaphore("s", 2, directory=tmp_path)
    presence = semaphore._here()
    has, go_on = threading.Event(), threading.Event()

    def hold():
        with presence.lock, presence.entering, presence.epoch.attaching:
            has.set()
            assert go_on.wait(20)

    holding = spawn(hold)
    assert has.wait(10)
    try:
        assert child(lambda: len(take_all(semaphore))) == 2
        assert child(lambda: SharedSemaphore("t", 5, directory=tmp_path).limit) == 5
    finally:
        go_on.set()
        holding.result()
    whole(semaphore, 2)


def test_threads_of_a_child_agree_on_one_presence(tmp_path, child):
    """Two that both noticed the fork would be granted the same permits, and close twice."""
    semaphore = SharedSemaphore("s", 3, directory=tmp_path)
    held = take_all(semaphore)
    asking = spawn(semaphore.take, 20)  # so that there are descriptors to close
    threads_waiting(semaphore, 1)

    def in_child():
        barrier, presences, files = threading.Barrier(8), [], []

        def enter():
            barrier.wait(10)
            presences.append(semaphore._here())
            # Whatever is opened now must not be closed by another thread that tidies up.
            files.append(open(os.devnull))  # noqa: SIM115

        entering = [spawn(enter) for _ in range(8)]
        for each in entering:
            each.result()
        for file in files:
            os.fstat(file.fileno())
            file.close()
        return len(set(map(id, presences)))

    for _ in range(5):
        assert child(in_child) == 1
    give_all(held)
    asking.result().give_back()
    whole(semaphore, 3)


def test_one_semaphore_noticing_the_fork_does_not_hide_it_from_another(tmp_path, child):
    one = SharedSemaphore("one", 1, directory=tmp_path)
    two = SharedSemaphore("two", 1, directory=tmp_path)
    held = [one.acquire(), two.acquire()]

    def in_child():
        assert one.try_acquire() is None
        for permit in held:
            permit.give_back()
        return two.try_acquire(), one.try_acquire()

    assert child(in_child) == (None, None)
    give_all(held)
    whole(two, 1)


def test_a_fork_while_a_thread_waits(tmp_path, child):
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    held = semaphore.acquire()
    asking = spawn(semaphore.take, 20)
    threads_waiting(semaphore, 1)
    assert child(semaphore.take, 0.05) is None
    assert not child(lambda: semaphore._here().queue.alone.count(1))
    held.give_back()
    asking.result().give_back()
    whole(semaphore, 1)


def test_a_child_waits_in_its_own_right(tmp_path, child):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    with semaphore:
        other = Child(take_and_tell, semaphore, board)
        threads_waiting(semaphore, 1)
        assert child(semaphore.take, 0.05) is None
    other.result()
    assert board[0]
    whole(semaphore, 1)


def test_a_grandchild_of_a_child_that_never_asked(tmp_path, child):
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    held = semaphore.acquire()

    def in_grandchild():
        held.give_back()
        return semaphore.try_acquire()

    assert child(lambda: children.c_forked(in_grandchild)) is None
    held.give_back()
    whole(semaphore, 1)


def _become_daemon():
    os.closerange(3, 256)
    return [open(os.devnull) for _ in range(40)]


def test_nothing_of_a_child_that_has_closed_all_descriptors_is_closed_later(tmp_path):
    """The map has a descriptor as well, which Python closes with it."""
    semaphore = SharedSemaphore("s", 2, directory=tmp_path)
    semaphore.acquire().give_back()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            gc.disable()  # what other tests have left
            files = _become_daemon()
            semaphore.acquire().give_back()
            for file in files:
                os.fstat(file.fileno())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    whole(semaphore, 2)


def test_a_child_that_has_closed_all_descriptors_attaches_again(tmp_path):
    semaphore = SharedSemaphore("s", 2, directory=tmp_path)
    held = take_all(semaphore)
    asking = spawn(semaphore.take, 20)
    threads_waiting(semaphore, 1)
    board = Board()
    pid = os.fork()
    if pid == 0:
        try:
            files = _become_daemon()
            board[0] = 1 + (semaphore.try_acquire() is None)
            for file in files:
                os.fstat(file.fileno())  # none was closed as if it were ours
            board[1] = 1
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert (board[0], board[1]) == (2, 1)
    give_all(held)
    asking.result().give_back()
    whole(semaphore, 2)


def _loses_its_descriptors(directory):
    semaphore = SharedSemaphore("s", 1, directory=directory)
    kept = semaphore.acquire()
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("s.lock"):
                os.close(fd)
        except OSError:
            pass
    try:
        semaphore.acquire(0)
    except NimueSemaphoreLost as error:
        text = str(error)
    kept.give_back()
    again = semaphore.acquire(1)
    again.give_back()
    return text


def test_a_process_that_closes_the_descriptor_while_it_holds_is_told(tmp_path):
    text = in_script(_loses_its_descriptors, str(tmp_path))
    assert "descriptor was closed" in text and "held 1 permits" in text
    assert str(tmp_path) in text


def test_a_number_that_is_anothers_file_is_not_closed(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    fd = os.open(path, os.O_RDONLY)
    status = os.fstat(fd)
    stale = OpenFile(fd, status.st_dev, status.st_ino)
    with open(os.devnull) as other:
        os.dup2(other.fileno(), fd)
        stale.close()
        os.fstat(fd)
        os.close(fd)
