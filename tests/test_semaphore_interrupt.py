"""Ctrl-C at any point of taking, waiting and giving back loses no permit and no place.

``Blow`` (see test_interrupt) raises at the n-th point of each scene, for all n. Each run is
interrupted once.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from nimue.semaphore import SharedSemaphore
from tests.children import Child
from tests.fakes import ctrl_c_when, spawn
from tests.semaphores import Board, give_all, take_all, threads_waiting, waiting, whole
from tests.test_interrupt import STRIDE, THOROUGH, Blow

#: A permit that an interrupt drops comes back with a warning, which is right.
pytestmark = pytest.mark.filterwarnings("ignore:a permit was dropped:ResourceWarning")


class Stroke(Blow):
    """Not in finalizers, of permits that were never granted: what they raise is swallowed."""

    def _count(self, frame: FrameType, event: str) -> None:
        if frame.f_code.co_name != "__del__":
            super()._count(frame, event)


Scene = tuple[Callable[[], Any], Callable[[], Any]]


def free(semaphore: SharedSemaphore) -> Scene:
    kept: list[Any] = []

    def action() -> None:
        kept.append(semaphore.acquire())
        kept[0].give_back()

    return action, lambda: give_all(kept)


def several(semaphore: SharedSemaphore) -> Scene:
    kept: list[Any] = []

    def action() -> None:
        kept.append(semaphore.acquire())
        kept.append(semaphore.acquire())
        kept[0].give_back()
        kept.append(semaphore.try_acquire())
        kept[1].give_back()
        kept[2].give_back()

    return action, lambda: give_all(kept)


def in_vain(semaphore: SharedSemaphore) -> Scene:
    taken = take_all(semaphore)
    return lambda: semaphore.take(0.001), lambda: give_all(taken)


def served_by_a_thread(semaphore: SharedSemaphore) -> Scene:
    """The waiter is interrupted anywhere; a thread that waits behind it is served all the same."""
    taken = take_all(semaphore)
    behind: list[Any] = []

    def serve() -> None:
        end = time.monotonic() + 1
        while not semaphore._here().waiters and time.monotonic() < end and not behind:
            time.sleep(0.0005)
        taken.pop().give_back()

    serving = spawn(serve)

    kept: list[Any] = []

    def action() -> None:
        kept.append(semaphore.acquire(5))
        kept[0].give_back()

    def end() -> None:
        behind.append(1)
        serving.result()
        give_all(kept)
        semaphore.acquire(5).give_back()
        give_all(taken)

    return action, end


def handing_over(semaphore: SharedSemaphore) -> Scene:
    """The giver is interrupted anywhere; the thread that waits is served all the same."""
    taken = take_all(semaphore)
    asking = spawn(semaphore.acquire, 20)
    threads_waiting(semaphore, 1)
    first = taken[0]

    def end() -> None:
        first.give_back()
        asking.result().give_back()
        give_all(taken)

    return first.give_back, end


def retiring(semaphore: SharedSemaphore) -> Scene:
    taken = take_all(semaphore)
    semaphore.resize(1)
    first = taken[0]

    def end() -> None:
        give_all(taken)
        assert semaphore.excess == 0
        semaphore.resize(2)

    return first.give_back, end


SCENES = [free, several, in_vain, served_by_a_thread, handing_over, retiring]
CASES = [(scene, "calls") for scene in SCENES]
# CPython 3.12 and 3.13 lose sight of instructions when tracing is switched on and off.
if sys.version_info < (3, 12):
    CASES += [(s, "opcodes") for s in (SCENES if THOROUGH else [free, handing_over, retiring])]


def once(semaphore: SharedSemaphore, scene: Any, kind: str, n: int) -> str | None:
    """Where the ``n``-th point was, None if there are fewer."""
    action, end = scene(semaphore)
    blow, told = Stroke(kind, n, KeyboardInterrupt), False
    try:
        with blow:
            action()
    except KeyboardInterrupt:
        told = True
    assert told == (blow.landed is not None), f"swallowed at {blow.landed}"
    try:
        end()
        whole(semaphore, 2)
    except Exception as wrong:
        raise AssertionError(f"interrupted at {blow.landed}: {wrong!r}") from wrong
    return blow.landed


@pytest.mark.parametrize(("scene", "kind"), CASES, ids=[f"{s.__name__}-{k}" for s, k in CASES])
def test_nothing_is_lost_wherever_it_is_interrupted(tmp_path, scene, kind):
    semaphore = SharedSemaphore("s", 2, directory=tmp_path)
    hits = 0
    for n in range(1, sys.maxsize, STRIDE if kind == "opcodes" else 1):
        if once(semaphore, scene, kind, n) is None:
            break
        hits += 1
    assert hits > 5


@pytest.mark.parametrize("timeout", [None, 20])
def test_ctrl_c_while_waiting(tmp_path, timeout):
    """In the main thread, as the leader; the thread behind takes over."""
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    held, behind = semaphore.acquire(), []

    def queue_behind():
        threads_waiting(semaphore, 1)
        behind.append(spawn(semaphore.acquire, 20))

    queueing = spawn(queue_behind)
    interrupting = ctrl_c_when(lambda: behind and len(semaphore._here().waiters) == 2)
    with pytest.raises(KeyboardInterrupt):
        semaphore.acquire(timeout)
    interrupting.result()
    queueing.result()
    threads_waiting(semaphore, 1)
    held.give_back()
    behind[0].result().give_back()
    whole(semaphore, 1)


def test_an_exception_from_another_thread_while_following(tmp_path):
    semaphore = SharedSemaphore("s", 1, directory=tmp_path)
    held = semaphore.acquire()
    leading = spawn(semaphore.acquire, 20)
    threads_waiting(semaphore, 1)
    following = spawn(semaphore.take, None, lambda: False)
    threads_waiting(semaphore, 2)
    last = spawn(semaphore.acquire, 20)
    threads_waiting(semaphore, 3)
    following.interrupt(KeyboardInterrupt)
    following.wait()
    assert isinstance(following.error, KeyboardInterrupt)
    threads_waiting(semaphore, 2)
    held.give_back()
    leading.result().give_back()
    last.result().give_back()
    whole(semaphore, 1)


def _cycle(semaphore, board):
    while not board[0]:
        permit = semaphore.take(1)
        if permit is not None:
            board[1] += 1
            permit.give_back()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_rain_on_a_thread_that_takes_and_gives_back(tmp_path):
    """With another process in the queue, so that every way is gone."""
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()
    children = [Child(_cycle, semaphore, board) for _ in range(2)]
    board.until(1, 5)
    stop, armed, caught = threading.Event(), [False], 0

    def handle(signum, frame):
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    def rain():
        while not stop.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(0.0007)

    before = signal.signal(signal.SIGUSR1, handle)
    raining = spawn(rain)
    try:
        while caught < 200:
            try:
                armed[0] = True
                for _ in range(50):
                    permit = semaphore.take(1)
                    if permit is not None:
                        permit.give_back()
                armed[0] = False
            except KeyboardInterrupt:
                caught += 1
    finally:
        armed[0] = False
        stop.set()
        raining.result()
        signal.signal(signal.SIGUSR1, before)
    permit = None
    board[0] = 1
    for child in children:
        child.result()
    whole(semaphore, 2)


def test_an_interrupted_waiter_passes_its_turn_on_to_another_process(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    held = semaphore.acquire()
    asking = spawn(semaphore.take, None, lambda: False)
    threads_waiting(semaphore, 1)
    with Child(_one, semaphore, board, expect_threads=True) as child:
        waiting(semaphore, 2)
        asking.interrupt(KeyboardInterrupt)
        asking.wait()
        waiting(semaphore, 1)
        held.give_back()
        child.result()
    whole(semaphore, 1)


def _one(semaphore, board):
    semaphore.acquire(15).give_back()
