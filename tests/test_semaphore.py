"""What a shared semaphore promises while nothing goes wrong."""

from __future__ import annotations

import gc
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from nimue.error import (
    NimueError,
    NimueInvalidParameterValue,
    NimueSemaphoreError,
    NimueSemaphoreTimeout,
)
from nimue.semaphore import SharedSemaphore
from tests.children import Child, forked
from tests.fakes import spawn
from tests.semaphores import (
    Board,
    give_all,
    hold_until_killed,
    refusal,
    take_all,
    take_and_tell,
    threads_waiting,
    waiting,
    whole,
)


@pytest.fixture
def semaphore(tmp_path):
    made = SharedSemaphore("s", 3, directory=tmp_path)
    yield made
    whole(made, made.limit)
    made.destroy()


def test_there_are_as_many_permits_as_the_limit(semaphore):
    taken = take_all(semaphore)
    assert len(taken) == 3
    assert semaphore.try_acquire() is None
    taken.pop().give_back()
    again = semaphore.try_acquire()
    assert again is not None and again.is_held
    give_all([again, *taken])
    assert not again.is_held


def test_the_limit_is_one_for_all_processes(semaphore):
    held = semaphore.acquire()
    assert forked(lambda: len(take_all(semaphore))) == 2
    held.give_back()
    assert forked(lambda: len(take_all(semaphore))) == 3


def test_two_objects_of_one_name_are_one_semaphore(semaphore, tmp_path):
    other = SharedSemaphore("s", 3, directory=tmp_path)
    held = [semaphore.acquire(), other.acquire(), semaphore.acquire()]
    assert other.try_acquire() is None
    give_all(held)
    another = SharedSemaphore("t", 1, directory=tmp_path)
    with another:
        taken = take_all(semaphore)
        assert len(taken) == 3
        give_all(taken)
    another.destroy()


def test_a_with_block_takes_and_gives_back(semaphore):
    with semaphore as permit, semaphore:
        assert permit.is_held
        inner = semaphore.acquire()
        assert semaphore.try_acquire() is None
        semaphore.release(inner)
    assert not permit.is_held


def test_the_timeout_says_who_holds_and_who_waits(semaphore):
    taken = take_all(semaphore)
    since = time.monotonic()
    with pytest.raises(NimueSemaphoreTimeout) as caught:
        semaphore.acquire(0.05)
    assert time.monotonic() - since >= 0.05
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, NimueError)
    text = str(caught.value)
    assert "'s'" in text and "0.05 s" in text and "limit 3" in text
    assert f"3 by process {semaphore._here().epoch.identity.pid}" in text
    give_all(taken)


def test_permits_go_from_thread_to_thread_in_turn(semaphore):
    taken = take_all(semaphore)
    order: list[int] = []

    def ask(number):
        permit = semaphore.acquire(10)
        order.append(number)
        permit.give_back()

    asking = []
    for number in range(8):
        asking.append(spawn(ask, number))
        threads_waiting(semaphore, number + 1)
    taken.pop().give_back()
    for each in asking:
        each.result()
    assert order == list(range(8))
    give_all(taken)


def test_permits_go_from_process_to_process_in_turn(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    children = []
    for number in range(5):
        children.append(Child(take_and_tell, semaphore, board, number))
        waiting(semaphore, number + 1)
    held.give_back()
    for child in children:
        child.result()
    came = [board[number] for number in range(5)]
    assert came == sorted(came)
    whole(semaphore, 1)


def test_a_process_with_many_threads_has_no_better_claim(tmp_path):
    """The ticket is the oldest thread's: a newcomer's thread does not come first by its process."""
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    first = spawn(semaphore.acquire, 10)
    threads_waiting(semaphore, 1)
    with Child(take_and_tell, semaphore, board, expect_threads=True) as child:
        waiting(semaphore, 2)
        second = spawn(semaphore.acquire, 10)
        threads_waiting(semaphore, 3)
        held.give_back()
        mine = first.result()
        assert board[0] == 0 and not second.done
        mine.give_back()
        second.result().give_back()
        assert board[0] != 0
        child.result()
    whole(semaphore, 1)


def test_nobody_overtakes_the_queue(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    with Child(hold_until_killed, semaphore, board) as child:
        waiting(semaphore, 1)
        child.signal(signal.SIGSTOP)
        held.give_back()
        # The permit is free, and it is the stopped one's turn.
        assert semaphore.try_acquire() is None
        child.signal(signal.SIGCONT)
        board.until(0, 1)
        assert semaphore.try_acquire() is None
        child.signal(signal.SIGKILL)
        child.wait()
    whole(semaphore, 1)


def test_giving_back_twice_does_not_take_from_the_next(tmp_path):
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    first = semaphore.acquire()
    first.give_back()
    second = semaphore.acquire()
    first.give_back()
    assert second.is_held and semaphore.try_acquire() is None
    del first
    gc.collect()
    assert second.is_held and semaphore.try_acquire() is None
    second.give_back()


@contextmanager
def another_thread_at_the_table(presence):
    """Inside its lock until the block is over; then it carries out what was put on the list."""
    inside, go_on = threading.Event(), threading.Event()

    def edit():
        with presence.lock:
            inside.set()
            assert go_on.wait(10)
        presence.settle()

    editing = spawn(edit)
    assert inside.wait(10)
    yield
    go_on.set()
    editing.result()


def test_a_permit_is_given_back_while_another_thread_is_at_the_table(semaphore):
    """It is on a list then, and no less given back; nobody is told that it was dropped."""
    permit = semaphore.acquire()
    with another_thread_at_the_table(permit._presence):
        permit.give_back()
        assert not permit.is_held and semaphore.snapshot().held == 1
        del permit
    assert semaphore.snapshot().held == 0


def test_a_permit_that_is_dropped_comes_back(semaphore):
    permit = semaphore.acquire()
    with pytest.warns(ResourceWarning, match="dropped"):
        del permit
        gc.collect()
    whole(semaphore, 3)


def test_give_up_ends_a_wait(semaphore):
    taken, stop = take_all(semaphore), threading.Event()
    leading = spawn(semaphore.take, None, stop.is_set)
    threads_waiting(semaphore, 1)
    following = spawn(semaphore.take, None, stop.is_set)
    threads_waiting(semaphore, 2)
    stop.set()
    assert leading.result() is None and following.result() is None
    give_all(taken)


def test_what_is_given_back_inside_an_edit_is_carried_out_after_it(semaphore):
    """As by a finalizer that runs in the middle, or a signal handler."""
    presence, permit = semaphore._here(), semaphore.acquire()
    with presence.lock:
        permit.give_back()
        assert semaphore.try_acquire() is None
        with pytest.raises(NimueSemaphoreError, match="signal handler"):
            semaphore.acquire(1)
        assert presence.slots.count() == 1
    semaphore.acquire().give_back()
    assert presence.slots.count() == 0


def test_what_is_given_back_while_another_thread_edits_is_carried_out_by_that(semaphore):
    presence, permit = semaphore._here(), semaphore.acquire()
    with another_thread_at_the_table(presence):
        permit.give_back()  # does not wait for the lock
        assert presence.slots.count() == 1
    assert presence.slots.count() == 0


def test_a_signal_handler_may_give_back_at_any_moment(semaphore):
    """A handler that runs in the middle of takes and gives back, ten thousand times."""
    kept: list = []

    def handle(signum, frame):
        permit = semaphore.try_acquire()
        if permit is not None:
            kept.append(permit)
        if len(kept) > 1:
            kept.pop(0).give_back()

    before = signal.signal(signal.SIGUSR1, handle)
    me, stop = threading.main_thread().ident, threading.Event()

    def rain():
        while not stop.is_set():
            signal.pthread_kill(me, signal.SIGUSR1)
            time.sleep(0.0001)

    raining = spawn(rain)
    try:
        for _ in range(3000):
            semaphore.acquire(5).give_back()
    finally:
        stop.set()
        raining.result()
        signal.signal(signal.SIGUSR1, before)
    give_all(kept)


def test_others_waiting_is_about_others(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    mine = spawn(semaphore.take, 10)
    threads_waiting(semaphore, 1)
    assert not semaphore.others_waiting() and not semaphore.others_wait()
    with Child(take_and_tell, semaphore, board, expect_threads=True) as child:
        waiting(semaphore, 2)
        assert semaphore.others_waiting() and semaphore.others_wait()
        held.give_back()
        mine.result().give_back()
        child.result()
    assert not semaphore.others_waiting() and not semaphore.others_wait()


def test_what_a_killed_waiter_leaves_behind_is_seen_through(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    child = Child(take_and_tell, semaphore, board)
    waiting(semaphore, 1)
    child.signal(signal.SIGKILL)
    child.wait()
    assert semaphore.others_waiting()
    assert semaphore.snapshot().waiters == ()
    assert not semaphore.others_wait()
    assert not semaphore.others_waiting()
    held.give_back()
    whole(semaphore, 1)


def test_more_processes_than_places_still_share(tmp_path, monkeypatch):
    monkeypatch.setattr("nimue.semaphore.members.MEMBERS", 2)
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()
    held = take_all(semaphore)
    children = [Child(take_and_tell, semaphore, board, n) for n in range(5)]
    waiting(semaphore, 2)
    give_all(held)
    for child in children:
        child.result()
    whole(semaphore, 2)


def test_a_snapshot_tells_all(tmp_path):
    semaphore, board = SharedSemaphore("s", 3, directory=tmp_path), Board()
    with Child(hold_until_killed, semaphore, board, 0, 2) as child:
        board.until(0, 1)
        mine = semaphore.acquire()
        asking = spawn(semaphore.take, 10)
        threads_waiting(semaphore, 1)
        seen = semaphore.snapshot()
        assert (seen.name, seen.limit, seen.excess, seen.held) == ("s", 3, 0, 3)
        assert seen.directory == str(tmp_path)
        holders = {holder.pid: holder for holder in seen.holders}
        assert holders[child.pid].count == 2
        assert 0 <= holders[child.pid].since < 30
        assert not any(holder.is_dead or holder.is_elsewhere for holder in seen.holders)
        (waiter,) = seen.waiters
        assert waiter.threads == 1 and 0 <= waiter.since < 30
        child.signal(signal.SIGKILL)
        child.wait()
        asking.result().give_back()
        dead = semaphore.snapshot()
        counts = sorted((holder.is_dead, holder.count) for holder in dead.holders)
        assert counts == [(False, 1), (True, 1)]
        mine.give_back()
    whole(semaphore, 3)
    assert semaphore.reclaimed == 2


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "ä", "x" * 65, "a\n", 5])
def test_a_name_that_cannot_be_one_is_refused(name, tmp_path):
    text = refusal(lambda: SharedSemaphore(name, 1, directory=tmp_path), NimueInvalidParameterValue)
    assert repr(name) in text and "A-Z a-z 0-9" in text


@pytest.mark.parametrize("limit", [0, -1, 1025, 1.5, "2", True])
def test_a_limit_that_cannot_be_one_is_refused(limit, tmp_path):
    text = refusal(
        lambda: SharedSemaphore("s", limit, directory=tmp_path), NimueInvalidParameterValue
    )
    assert repr(limit) in text and "1 to 1024" in text
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    with pytest.raises(NimueInvalidParameterValue):
        semaphore.resize(limit)


def test_without_a_limit_there_must_be_one_already(tmp_path):
    with pytest.raises(NimueInvalidParameterValue, match="give a limit"):
        SharedSemaphore("s", directory=tmp_path)
    with pytest.raises(NimueInvalidParameterValue, match="needs a limit"):
        SharedSemaphore(directory=tmp_path)
    with pytest.raises(NimueInvalidParameterValue, match="on_mismatch"):
        SharedSemaphore("s", 1, directory=tmp_path, on_mismatch="shout")
    made = SharedSemaphore("s", 7, directory=tmp_path)
    assert forked(lambda: SharedSemaphore("s", directory=tmp_path).limit) == 7
    made.destroy()


def test_the_largest_limit(tmp_path):
    semaphore = SharedSemaphore("s", 1024, directory=tmp_path)
    whole(semaphore, 1024)
