"""What the processes at one semaphore tell each other."""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import pytest

from nimue.error import NimueInvalidParameterValue
from nimue.semaphore import Figures, SharedSemaphore, mailbox
from tests.children import Child, forked
from tests.fakes import spawn, until
from tests.semaphores import (
    Board,
    give_all,
    take_all,
    take_and_tell,
    threads_waiting,
    waiting,
    whole,
)


@pytest.fixture
def semaphore(tmp_path):
    return SharedSemaphore("s", 6, directory=tmp_path)


def _publish(semaphore, board, at):
    semaphore.family.publish(Figures(in_use=at, idle=2 * at, opened=2**63))
    semaphore.family.has_idle(True)
    board[at] = 1
    time.sleep(60)


def test_every_living_process_has_a_row(semaphore):
    board, family = Board(), semaphore.family
    assert family.rows() == []
    family.publish(Figures(waiting=7))
    children = [Child(_publish, semaphore, board, at) for at in (1, 2)]
    for at in (1, 2):
        board.until(at, 1)
    rows = {row.pid: row for row in family.rows()}
    assert rows.keys() == {os.getpid(), *(child.pid for child in children)}
    for at, child in enumerate(children, 1):
        row = rows[child.pid]
        assert row.figures == Figures(in_use=at, idle=2 * at, opened=2**63)
        assert row.has_idle and not row.is_elsewhere
        assert os.path.basename(sys.executable) in row.command or "pytest" in row.command
        with open(f"/proc/{child.pid}/stat") as file:
            assert row.started == int(file.read().rpartition(")")[2].split()[19])
    assert rows[os.getpid()].figures.waiting == 7 and not rows[os.getpid()].has_idle
    children[0].signal(signal.SIGSTOP)
    assert len(family.rows()) == 3
    for child in children:
        child.signal(signal.SIGKILL)
        child.wait()
    assert [row.pid for row in family.rows()] == [os.getpid()]


def test_a_row_taken_over_from_the_dead_begins_anew(semaphore):
    board = Board()
    child = Child(_publish, semaphore, board, 1)
    board.until(1, 1)
    child.signal(signal.SIGKILL)
    child.wait()
    semaphore.family.has_idle(False)
    (row,) = semaphore.family.rows()
    assert row.pid == os.getpid() and row.figures == Figures() and not row.has_idle


def test_a_child_writes_its_own_row(semaphore):
    family = semaphore.family
    family.publish(Figures(in_use=1))
    assert forked(lambda: family.publish(Figures(in_use=9)) and len(family.rows())) == 2
    (row,) = family.rows()
    assert row.figures == Figures(in_use=1)


def test_without_a_row_left_nothing_is_shown(semaphore, monkeypatch):
    monkeypatch.setattr("nimue.semaphore.members.MEMBERS", 0)
    assert semaphore.family.publish(Figures()) is False
    assert semaphore.family.listen() is None
    assert semaphore.family.heard() == 0
    semaphore.family.has_idle(True)
    whole(semaphore, 6)


def test_who_waits_asks_those_with_idle_connections(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    family, held = semaphore.family, semaphore.acquire()
    ear = family.listen()
    assert ear is not None and family.listen() == ear
    poll = select.poll()
    poll.register(ear, select.POLLIN)
    with Child(take_and_tell, semaphore, board) as child:
        waiting(semaphore, 1)
        assert not poll.poll(150) and family.heard() == 0  # nothing was offered
        family.has_idle(True)
        assert poll.poll(10000)
        assert family.heard() >= 1
        family.has_idle(False)
        held.give_back()
        child.result()
    family.heard()
    assert not poll.poll(0)


def test_it_asks_as_many_as_its_threads_want_who_has_most_first(tmp_path, monkeypatch):
    monkeypatch.setattr("nimue.semaphore.waiter.ASK_NEXT", 0.5)
    semaphore, board = SharedSemaphore("s", 3, directory=tmp_path), Board()

    def offer(number, idle):
        family, held = semaphore.family, semaphore.acquire()
        ear = family.listen()
        family.publish(Figures(idle=idle))
        family.has_idle(True)
        board[number] = 1
        assert select.select([ear], [], [], 15)[0]
        board[10 + number] = 1
        board.until(20, 1)
        held.give_back()

    children = [Child(offer, number, idle) for number, idle in enumerate((1, 9, 5))]
    for number in range(3):
        board.until(number, 1)
    asking = [spawn(semaphore.acquire, 20)]
    board.until(11, 1)
    assert not board[10] and not board[12]
    asking += [spawn(semaphore.acquire, 20), spawn(semaphore.acquire, 20)]
    board.until(12, 1)
    board.until(10, 1)
    board[20] = 1
    for each in asking:
        each.result().give_back()
    for child in children:
        child.result()
    whole(semaphore, 3)


def test_a_wish_does_not_wake_its_own_process(tmp_path):
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    held, family = semaphore.acquire(), semaphore.family
    ear = family.listen()
    family.has_idle(True)
    assert semaphore.take(0.1) is None
    assert not select.select([ear], [], [], 0)[0]
    held.give_back()


def test_pokes_do_not_swallow_wake_ups(tmp_path):
    """A process that listens may wait as well: each has a mailbox of its own."""
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held, family = semaphore.acquire(), semaphore.family
    family.listen()
    family.has_idle(True)
    first = spawn(semaphore.acquire, 10)
    threads_waiting(semaphore, 1)
    with Child(take_and_tell, semaphore, board, expect_threads=True) as child:
        until(family.heard)
        held.give_back()
        first.result().give_back()
        child.result()


def test_the_demand(tmp_path):
    """Of those who wait, by the kernel's word; the share is of those who hold or wait."""
    semaphore, board = SharedSemaphore("s", 6, directory=tmp_path), Board()
    family = semaphore.family
    held = take_all(semaphore)
    assert family.demand() is None
    children = []
    for number, share in enumerate((3, 2, 2, 2, 1, 1, 1)):
        children.append(Child(take_and_tell, semaphore, board, number))
        waiting(semaphore, number + 1)
        assert family.demand() == (number + 1, share, 0)
    for child in children:
        child.signal(signal.SIGKILL)
        child.wait()
    assert semaphore.others_waiting()
    assert family.demand() is None
    assert not semaphore.others_waiting()
    give_all(held)


def test_the_demand_of_one_that_holds_some_already(tmp_path):
    semaphore, board = SharedSemaphore("s", 5, directory=tmp_path), Board()

    def hold_two_want_more():
        held = [semaphore.acquire(), semaphore.acquire()]
        board[0] = 1
        board.until(1, 1)
        waits = [spawn(semaphore.take, 20) for _ in range(3)]
        held += [each.result() for each in waits]
        give_all(held)

    with Child(hold_two_want_more) as child:
        board.until(0, 1)
        held = take_all(semaphore)
        assert len(held) == 3 and semaphore.family.demand() is None
        board[1] = 1
        threads_waiting(semaphore, 3)
        assert semaphore.family.demand() == (3, 3, 2)
        give_all(held)
        child.result()


def test_a_limit_that_was_lowered_is_a_demand(tmp_path):
    semaphore = SharedSemaphore("s", 5, directory=tmp_path)
    held = take_all(semaphore)
    semaphore.resize(3)
    assert semaphore.family.demand() == (2, 3, 0)
    held.pop().give_back()
    assert semaphore.family.demand() == (1, 3, 0)
    held.pop().give_back()
    assert semaphore.family.demand() is None
    give_all(held)


def test_who_has_none_after_all_is_followed_by_the_next(tmp_path):
    """The word that there is an idle connection may be old: the others are asked soon after."""
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()

    def offer(number, idle, has_none):
        family, held = semaphore.family, semaphore.acquire()
        ear = family.listen()
        family.publish(Figures(idle=idle))
        family.has_idle(True)
        board[number] = 1
        assert select.select([ear], [], [], 15)[0]
        board[10 + number] = 1
        if has_none:
            board.until(20, 1)
        held.give_back()

    children = [Child(offer, 0, 9, True), Child(offer, 1, 1, False)]
    for number in range(2):
        board.until(number, 1)
    permit = semaphore.acquire(20)
    assert board[10] and board[11]
    board[20] = 1
    for child in children:
        child.result()
    permit.give_back()


def test_news_wake_all_who_listen(semaphore):
    board = Board()

    def listen(number):
        family = semaphore.family
        poll = select.poll()
        poll.register(family.listen(), select.POLLIN)
        told = []
        for what in range(2):
            board[number] = what + 1
            assert poll.poll(15000)
            family.heard()
            told.append(tuple(family.news))
        return told

    children = [Child(listen, number) for number in range(3)]
    for what, tell in enumerate((semaphore.family.alarm, semaphore.family.renew)):
        for number in range(3):
            board.until(number, what + 1)
        tell()
    assert [child.result() for child in children] == [[(0, 1, 0), (1, 1, 0)]] * 3


def test_a_refusal_asks_one_with_an_idle_connection(semaphore):
    family = semaphore.family
    with Child(_offer_one, semaphore) as child:
        until(lambda: any(row.has_idle for row in family.rows()))
        family.refused()
        assert child.result() == 1


def _offer_one(semaphore):
    family = semaphore.family
    ear = family.listen()
    family.has_idle(True)
    assert select.select([ear], [], [], 15)[0]
    return family.news.refusals


def test_generations_are_one_for_all(semaphore):
    family = semaphore.family
    assert family.news.generation == 0
    assert family.renew() == 1

    def renew():
        return [semaphore.family.renew() for _ in range(50)]

    children = [Child(renew) for _ in range(3)]
    seen = [number for child in children for number in child.result()]
    assert sorted(seen) == list(range(2, 152))
    assert family.news.generation == 151


def test_turns_to_connect(semaphore):
    family = semaphore.family
    mine = family.try_connecting(2)
    assert mine is not None

    def others():
        turn = family.try_connecting(2)
        assert turn is not None and family.try_connecting(2) is None
        assert semaphore.snapshot().connecting == 2
        mine.give_back()  # the parent's
        third = family.try_connecting(3)
        return third is not None and family.try_connecting(3) is None

    assert forked(others)
    second = family.try_connecting(2)
    assert second is not None and family.try_connecting(2) is None
    second.give_back()
    second.give_back()
    mine.give_back()
    assert semaphore.snapshot().connecting == 0
    taken = take_all(semaphore)
    assert len(taken) == 6
    third = family.try_connecting(1)
    assert third is not None
    for permit in (*taken, third):
        permit.give_back()
    with pytest.raises(NimueInvalidParameterValue):
        family.try_connecting(0)


def test_a_turn_comes_back_from_the_dead(semaphore):
    board = Board()

    def connect():
        kept = semaphore.family.try_connecting(1)
        board[0] = 1
        time.sleep(60)
        kept.give_back()

    child = Child(connect)
    board.until(0, 1)
    assert semaphore.family.try_connecting(1) is None
    child.signal(signal.SIGKILL)
    child.wait()
    turn = semaphore.family.try_connecting(1)
    assert turn is not None
    turn.give_back()


def test_another_thread_leaves_in_the_middle(semaphore):
    """As the monitor does for a pool that was closed, while another of that name is made."""
    family, mapped = semaphore.family, semaphore._mapped

    def leave_first():
        semaphore.close()
        return mapped()

    family._mapped = leave_first
    family.has_idle(True)
    assert family.publish(Figures())


def test_nobody_leaves_while_another_thread_hears(semaphore, monkeypatch):
    """What it reads from would be closed under it, and opened anew for nobody."""
    semaphore.family.listen()
    real, leaving = mailbox.Mailbox.drain, []
    before = len(os.listdir("/proc/self/fd"))

    def drain(self):
        if not leaving:
            leaving.append(spawn(semaphore.close))
            leaving[0].thread.join(0.2)
        return real(self)

    monkeypatch.setattr(mailbox.Mailbox, "drain", drain)
    assert semaphore.family.heard() == 0
    leaving[0].result()
    assert len(os.listdir("/proc/self/fd")) < before
    assert semaphore._core.here.members.ear is None
