"""SIGKILL at any moment: no permit is lost, none is one too many, and nobody waits for the dead.

The oracle is offline and raises no false alarm: each thread writes down when an acquire has
returned and when it is about to give back; a hold that is not finished ends when its process was
killed, at the latest. More holds at one moment than the limit are a violation.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import threading
import time
from pathlib import Path

from nimue.semaphore import SharedSemaphore
from tests.children import Child, gone
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

LOG = 1 << 16


def test_a_killed_holders_permits_go_to_whoever_waits(tmp_path, monkeypatch):
    """At once, by the pidfd: nobody looks again by itself here."""
    monkeypatch.setattr("nimue.semaphore.waiter.LOOK_AGAIN", 60)
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    for _ in range(8):
        board[0] = 0
        child = Child(hold_until_killed, semaphore, board)
        board.until(0, 1)
        asking = spawn(semaphore.acquire, 10)
        threads_waiting(semaphore, 1)
        child.signal(signal.SIGKILL)
        permit = asking.result()
        child.wait()
        permit.give_back()
    assert semaphore.reclaimed == 8
    whole(semaphore, 1)


def test_without_pidfd_it_takes_a_look_more(tmp_path, monkeypatch):
    monkeypatch.setattr("nimue.semaphore.watch.open_pidfd", lambda pid: None)
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    with Child(hold_until_killed, semaphore, board) as child:
        board.until(0, 1)
        asking = spawn(semaphore.acquire, 10)
        threads_waiting(semaphore, 1)
        child.signal(signal.SIGKILL)
        asking.result(5).give_back()
        child.wait()
    whole(semaphore, 1)


def test_a_killed_head_of_the_queue_holds_up_nobody(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    head = Child(take_and_tell, semaphore, board, 0)
    waiting(semaphore, 1)
    behind = Child(take_and_tell, semaphore, board, 1)
    waiting(semaphore, 2)
    head.signal(signal.SIGKILL)
    head.wait()
    held.give_back()
    behind.result()
    assert board[0] == 0 and board[1]
    whole(semaphore, 1)


def test_a_head_that_is_killed_when_it_has_been_woken(tmp_path):
    """The wake-up dies with it; whoever comes after finds the free slot."""
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    for _ in range(5):
        held = semaphore.acquire(10)
        head = Child(take_and_tell, semaphore, board, 0)
        waiting(semaphore, 1)
        behind = Child(take_and_tell, semaphore, board, 1)
        waiting(semaphore, 2)
        head.signal(signal.SIGSTOP)
        held.give_back()
        head.signal(signal.SIGKILL)
        head.wait()
        behind.result()
    whole(semaphore, 1)


def _cycle(semaphore):
    while True:
        permit = semaphore.take(1)
        if permit is not None:
            permit.give_back()


def _two_threads(semaphore):
    threading.Thread(target=_cycle, args=(semaphore,), daemon=True).start()
    _cycle(semaphore)


def test_a_storm_of_kills_loses_no_permit_and_makes_none(tmp_path):
    """Three processes do nothing but take and give back, and die at any instruction of that."""
    semaphore, dice = SharedSemaphore("s", 2, directory=tmp_path), random.Random(3)
    for _ in range(8):
        children = [Child(_two_threads, semaphore) for _ in range(3)]
        for _ in range(9):
            time.sleep(dice.uniform(0.001, 0.006))
            victim = children.pop(dice.randrange(3))
            victim.signal(signal.SIGKILL)
            victim.wait()
            children.append(Child(_two_threads, semaphore))
        for child in children:
            child.signal(signal.SIGKILL)
        for child in children:
            child.wait()
        taken = take_all(semaphore, 0.2)
        assert len(taken) == 2, semaphore.snapshot()
        give_all(taken)
    whole(semaphore, 2)


class Log:
    """One thread's holds: asked at, from, until; a file, for its process may be killed."""

    def __init__(self, folder: Path, name: str) -> None:
        with open(folder / name, "w+b") as file:
            file.truncate(LOG)
            self._memory = mmap.mmap(file.fileno(), LOG)
        self._at = 0

    def begin(self, asked: int) -> bool:
        struct.pack_into("@qq", self._memory, self._at, asked, time.monotonic_ns())
        return self._at < LOG - 48

    def end(self) -> None:
        struct.pack_into("@q", self._memory, self._at + 16, time.monotonic_ns())
        self._at += 24


def read_logs(folder: Path, killed: dict[int, int]) -> tuple[list[tuple[int, int]], list[int]]:
    """All changes of the number of holders, and all waits."""
    changes, waits = [], []
    for path in folder.glob("log.*"):
        pid = int(path.name.split(".")[1])
        for asked, since, ended in struct.iter_unpack("@qqq", path.read_bytes()[: LOG // 24 * 24]):
            if since:
                waits.append(since - asked)
                end = ended or killed.get(pid, 0)
                if end > since:
                    changes += [(since, 1), (end, -1)]
    return sorted(changes), waits


def most_at_once(changes: list[tuple[int, int]]) -> int:
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def _work(semaphore, folder, board, seed):
    dice = random.Random(seed)
    log = Log(folder, f"log.{os.getpid()}.{threading.get_ident()}")
    while not board[0]:
        asked = time.monotonic_ns()
        permit = semaphore.acquire(10)
        if not log.begin(asked):
            return
        time.sleep(min(dice.expovariate(1 / 0.002), 0.02))
        if dice.random() < 0.02 and os.fork() == 0:
            _be_forked(semaphore, permit, folder, dice)
        log.end()
        permit.give_back()


def _be_forked(semaphore, permit, folder, dice):
    """Try to give the parent's permit back, hold one of its own, and stay for a while."""
    try:
        signal.alarm(5)
        permit.give_back()
        log, asked = Log(folder, f"log.{os.getpid()}.0"), time.monotonic_ns()
        mine = semaphore.take(0.3)
        if mine is not None:
            log.begin(asked)
            time.sleep(dice.random() * 0.003)
            log.end()
            mine.give_back()
        time.sleep(dice.uniform(0.05, 0.3))
    finally:
        os._exit(0)


def _worker(semaphore, folder, board, seed):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threads = [spawn(_work, semaphore, folder, board, seed * 10 + n) for n in range(3)]
    for thread in threads:
        thread.result(60)


def test_never_more_holders_than_the_limit_whatever_dies_forks_or_stops(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    semaphore, board = SharedSemaphore("s", 4, directory=tmp_path / "sem"), Board()
    dice, killed = random.Random(7), dict[int, int]()
    workers = [Child(_worker, semaphore, folder, board, n, timeout=60) for n in range(5)]
    for serial in range(60):
        time.sleep(dice.uniform(0.01, 0.05))
        victim = workers.pop(dice.randrange(5))
        if serial % 10 == 0:
            victim.signal(signal.SIGSTOP)
            time.sleep(0.05)
        killed[victim.pid] = time.monotonic_ns()
        victim.signal(signal.SIGKILL)
        victim.wait()
        workers.append(Child(_worker, semaphore, folder, board, 100 + serial, timeout=60))
    board[0] = 1
    for worker in workers:
        worker.result()
    until(lambda: not semaphore.snapshot().held, 15)
    whole(semaphore, 4)
    changes, waits = read_logs(folder, killed)
    assert len(waits) > 300
    assert most_at_once(changes) == 4
    assert max(waits) < 5e9, f"somebody waited {max(waits) / 1e9:.1f} s"


def test_the_oracle_sees_one_too_many(tmp_path):
    """With its slots mixed up, the semaphore grants more, and the logs show it."""
    one = SharedSemaphore("one", 1, directory=tmp_path)
    two = SharedSemaphore("two", 1, directory=tmp_path)
    with one, two:
        for name, start in (("log.1.0", 0), ("log.2.0", 5)):
            log = Log(tmp_path, name)
            struct.pack_into("@qqq", log._memory, 0, 1, 10 + start, 20 + start)
    assert most_at_once(read_logs(tmp_path, {})[0]) == 2


def test_a_child_left_behind_by_a_killed_parent_pins_nothing(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()

    def parent():
        kept = [semaphore.acquire()]
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        board[0] = pid
        time.sleep(60)
        give_all(kept)

    child = Child(parent)
    board.until(0, 1)
    asking = spawn(semaphore.acquire, 10)
    threads_waiting(semaphore, 1)
    child.signal(signal.SIGKILL)
    asking.result().give_back()
    child.wait()
    os.kill(board[0], signal.SIGKILL)
    until(lambda: gone(board[0]))
