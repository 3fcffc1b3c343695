"""Containers: processes whose numbers mean nothing to each other share a directory.

``unshare`` makes a new pid namespace, as far as the kernel lets this user. Where it does not, the
tests of the namespace are not there; the one that only pretends is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from nimue.semaphore import SharedSemaphore
from tests.children import ROOT, Child
from tests.fakes import spawn, until
from tests.semaphores import (
    Board,
    hold_until_killed,
    take_and_tell,
    threads_waiting,
    waiting,
    whole,
)

UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child=SIGKILL"]

HOLD = """
import sys, os, time
from nimue.semaphore import SharedSemaphore
permit = SharedSemaphore("s", directory=sys.argv[1]).acquire(20)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def can_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def inside(code, directory):
    return subprocess.Popen(
        [*UNSHARE, sys.executable, "-c", code, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )


if can_unshare():

    def test_a_holder_in_another_pid_namespace(tmp_path):
        semaphore = SharedSemaphore("s", 1, directory=tmp_path)
        process = inside(HOLD, tmp_path)
        try:
            assert process.stdout.readline().strip() == "1"
            (holder,) = semaphore.snapshot().holders
            assert (holder.pid, holder.count) == (1, 1)
            assert holder.is_elsewhere and not holder.is_dead
            # There is a process 1 here as well; it is another, and has nothing to do with it.
            assert semaphore.take(0.2) is None
            asking = spawn(semaphore.acquire, 20)
            threads_waiting(semaphore, 1)
            process.kill()
            asking.result().give_back()
        finally:
            process.kill()
            process.communicate()
        whole(semaphore, 1)

    def test_a_waiter_in_another_pid_namespace(tmp_path):
        semaphore = SharedSemaphore("s", 1, directory=tmp_path)
        held = semaphore.acquire()
        process = inside(HOLD, tmp_path)
        try:
            waiting(semaphore, 1)
            (waiter,) = semaphore.snapshot().waiters
            assert waiter.pid == 1 and waiter.is_elsewhere
            assert semaphore.others_wait()
            assert semaphore.family.demand() == (1, 1, 0)
            held.give_back()
            assert process.stdout.readline().strip() == "1"
            (row,) = (row for row in semaphore.family.rows() if row.is_elsewhere)
            assert row.pid == 1 and row.command == ""
            assert semaphore.family.demand() is None
        finally:
            process.kill()
            process.communicate()
        until(lambda: not semaphore.snapshot().held)
        whole(semaphore, 1)


def test_pids_that_mean_nothing_here_are_not_watched(tmp_path, monkeypatch):
    """Recovery from a death is by looking again then."""
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    watched: list[int] = []
    monkeypatch.setattr("nimue.semaphore.watch.open_pidfd", watched.append)

    def elsewhere():
        presence = semaphore._here()
        presence.slots._who = presence.slots._who._replace(namespace=1)
        hold_until_killed(semaphore, board)

    child = Child(elsewhere)
    board.until(0, 1)
    asking = spawn(semaphore.acquire, 20)
    threads_waiting(semaphore, 1)
    assert semaphore.snapshot().holders[0].is_elsewhere
    time.sleep(0.1)
    child.signal()
    asking.result().give_back()
    child.wait()
    assert not watched
    with semaphore:
        other = Child(take_and_tell, semaphore, board, 1)
        waiting(semaphore, 1)
    other.result()
    whole(semaphore, 1)
