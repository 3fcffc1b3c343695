"""Ctrl-C and sys.exit() at any point of an acquire or a release: nothing is lost, nobody starves.

``Blow`` raises in the running thread at the n-th point where it passes through nimue; the tests
count n up until a run is not interrupted any more, and look at the whole pool after each.

Two kinds of points. ``calls`` are those where CPython itself looks for signals: at the entry of a
function, and when a function written in C has returned, whose result is then dropped with the
call. ``opcodes`` are those before each instruction; there are more of them than any signal can
hit, so by default each STRIDE-th of them is taken, in some scenes; NIMUE_THOROUGH=1 takes all.
Left out are the instructions between the end of a ``with`` block and the call of ``__exit__``: the
lock would stay locked, but no interpreter looks for signals there.

Each run is interrupted once. A second interruption, in the handler that puts right what the first
has cut short, is not tried: it leaves undone what it hits.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

import nimue
from nimue import (
    NimueConnectionPool,
    NimueNoConnectionAvailable,
    NimuePoolClosedError,
    NimuePoolTimeout,
    fork,
    lost,
)
from nimue.process import is_gone
from nimue.work import Stray
from tests.fakes import FakeDriver, FakeServer, OperationalError, spawn, until

HOME = os.path.dirname(nimue.__file__) + os.sep
BOUND = 10.0
THOROUGH = bool(os.environ.get("NIMUE_THOROUGH"))
STRIDE = 1 if THOROUGH else 7


#: What precedes the call of ``__exit__``, besides loading three times None.
LEAVING = {"POP_BLOCK", "SWAP", "ROT_TWO", "DUP_TOP", "NOP", "PRECALL"}


@functools.cache
def leaving_with(code: CodeType) -> frozenset[int]:
    """Offsets from the end of each ``with`` block to the call of ``__exit__``, that included."""
    found: list[int] = []
    run: list[dis.Instruction] = []
    for step in dis.get_instructions(code):
        if run and step.opname.startswith("CALL"):
            if sum(each.opname in ("LOAD_CONST", "DUP_TOP") for each in run) >= 3:
                found += [each.offset for each in (*run, step)]
            run = []
        elif step.opname in LEAVING or (step.opname == "LOAD_CONST" and step.argval is None):
            run.append(step)
        else:
            run = []
    return frozenset(found)


class Blow:
    """Raises ``error`` at the ``n``-th point within nimue; ``landed`` tells where, if it did."""

    def __init__(self, kind: str, n: int, error: type[BaseException]) -> None:
        self._left = n
        self._kind, self._error = kind, error
        self.landed: str | None = None

    def __enter__(self) -> Blow:
        # What a finalizer raises is not heard of; it is not what is interrupted here.
        gc.disable()
        if self._kind == "calls":
            sys.setprofile(self._call)
        else:
            sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(None)
        sys.settrace(None)
        gc.enable()

    def _count(self, frame: FrameType, event: str) -> None:
        self._left -= 1
        if self._left == 0:
            code = frame.f_code
            file = code.co_filename.removeprefix(HOME)
            self.landed = f"{file}:{frame.f_lineno} {code.co_name} +{frame.f_lasti} ({event})"
            sys.setprofile(None)
            sys.settrace(None)
            raise self._error

    def _call(self, frame: FrameType, event: str, arg: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(HOME):
            self._count(frame, event)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and frame.f_lasti not in leaving_with(frame.f_code):
            self._count(frame, event)
        return self._trace


def whole(pool: NimueConnectionPool, server: FakeServer, size: int) -> None:
    """Every connection can be had again, and pool and server agree on how many there are."""
    state = pool._state
    assert state.lock.acquire(timeout=BOUND), "the lock was left locked"
    state.lock.release()
    assert not state.waiters, "a waiter was left in the queue"

    def quiet() -> bool:
        seen = pool.poolstats()
        return seen.poolused == seen.checking == seen.connecting == seen.waiting == 0

    until(quiet, BOUND, lambda: f"something was lost: {pool.poolstats()} {places(pool)}")
    held = [pool.getconnection(timeout=BOUND) for _ in range(size)]
    assert len({id(conn.raw) for conn in held}) == size
    assert server.open == len(state.entries) == size
    for conn in held:
        conn.close()
    until(lambda: len(state.idle) == size, BOUND)
    # In another thread, for one does not wait for oneself.
    assert not spawn(a_fork_would_wait).result(2 * BOUND), "the gate was left taken"


def a_fork_would_wait() -> bool:
    """True if somebody has left the gate for ``connect()`` and ``close()`` without saying so."""
    gate, mine = fork._here.gate, fork.Fork(time.monotonic() + BOUND)
    try:
        return not gate.shut(mine)
    finally:
        gate.open(mine)
        gate.forget(mine)


def places(pool: NimueConnectionPool) -> str:
    state = pool._state
    idle = {spare[2] for spare in state.idle}
    return ", ".join(
        f"{entry!r} "
        + (
            " ".join(
                name
                for name in ("connecting", "checking", "closing")
                if entry in getattr(state, name)
            )
            or ("idle" if entry in idle else f"out (thread {entry.thread})")
        )
        for entry in state.entries
    )



Scene = tuple[NimueConnectionPool, int, Callable[[], object], Callable[[], object]]


def make(server: FakeServer, **settings: Any) -> NimueConnectionPool:
    settings = {"poolmin": 2, "poolmax": 2, "healthcheck_idle": 1000.0, **settings}
    return NimueConnectionPool(server.connect, driver=FakeDriver(), **settings)


def nothing() -> None:
    pass


def idle_and_fresh(server: FakeServer) -> Scene:
    pool = make(server)

    def action() -> None:
        conn = pool.getconnection()
        conn.close()

    return pool, 2, action, nothing


def in_a_loop(server: FakeServer) -> Scene:
    """The variable keeps the last handle until it has the next one."""
    pool = make(server, poolmin=1, poolmax=1)

    def action() -> None:
        for _ in range(4):
            conn = pool.getconnection()
            conn.close()

    return pool, 1, action, nothing


def in_a_transaction(server: FakeServer) -> Scene:
    pool = make(server)

    def action() -> None:
        conn = pool.getconnection()
        conn.cursor().execute("UPDATE")
        conn.close()

    return pool, 2, action, nothing


def with_on_return(server: FakeServer) -> Scene:
    pool = make(server, on_return=lambda raw: raw.cursor().execute("RESET"), leak_timeout=600)

    def action() -> None:
        conn = pool.getconnection()
        conn.autocommit = True
        conn.close()

    return pool, 2, action, nothing


def stale(server: FakeServer) -> Scene:
    pool = make(server, healthcheck_idle=0.0)

    def action() -> None:
        conn = pool.getconnection()
        conn.close()

    return pool, 2, action, nothing


def to_be_opened(server: FakeServer) -> Scene:
    pool = make(server, poolmin=0)

    def action() -> None:
        conn = pool.getconnection()
        conn.close()

    return pool, 2, action, nothing


def may_not_wait(server: FakeServer) -> Scene:
    pool = make(server, poolmin=0)

    def action() -> None:
        with pytest.raises(NimueNoConnectionAvailable):
            pool.getconnection(blocking=False)

    return pool, 2, action, nothing


def may_not_wait_and_stale(server: FakeServer) -> Scene:
    pool = make(server, healthcheck_idle=0.0)

    def action() -> None:
        conn = pool.getconnection(timeout=0)
        conn.close()

    return pool, 2, action, nothing


def may_not_wait_and_dead(server: FakeServer) -> Scene:
    pool = make(server, healthcheck_idle=0.0)
    for raw in server.connections:
        server.kill(raw)
        raw._gone = True

    def action() -> None:
        # By the time that both are found dead, there may be another.
        with contextlib.suppress(NimueNoConnectionAvailable):
            pool.getconnection(timeout=0).close()

    return pool, 2, action, nothing


def timed_out(server: FakeServer) -> Scene:
    pool = make(server, poolmin=1, poolmax=1)
    held = pool.getconnection()

    def action() -> None:
        with pytest.raises(NimuePoolTimeout):
            pool.getconnection(timeout=0.0001)

    return pool, 1, action, held.close


def handed_over(server: FakeServer) -> Scene:
    """The connection comes back as soon as the interrupted thread waits; another waits behind."""
    pool = make(server, poolmin=1, poolmax=1)
    held = pool.getconnection()
    over = threading.Event()

    def come_back() -> None:
        until(lambda: pool._state.waiters or over.is_set(), BOUND)
        behind = spawn(lambda: pool.getconnection(timeout=BOUND).close())
        held.close()
        behind.result()

    helper = spawn(come_back)

    def action() -> None:
        conn = pool.getconnection(timeout=BOUND)
        conn.close()

    def end() -> None:
        over.set()
        helper.result()

    return pool, 1, action, end


def release_to_a_waiter(server: FakeServer) -> Scene:
    pool = make(server, poolmin=1, poolmax=1)
    held = [pool.getconnection()]
    waiting = spawn(lambda: pool.getconnection(timeout=BOUND).close())
    until(lambda: pool._state.waiters)

    def action() -> None:
        conn = held.pop()
        conn.close()

    return pool, 1, action, waiting.result


def release_of_a_dirty_one_to_a_waiter(server: FakeServer) -> Scene:
    pool, size, action, end = release_to_a_waiter(server)
    server.sessions[0].in_transaction = True
    return pool, size, action, end


def release_of_a_dead_one(server: FakeServer) -> Scene:
    pool = make(server)

    def action() -> None:
        conn = pool.getconnection()
        raw = conn.raw
        server.kill(raw)
        raw._gone = True
        conn.close()

    return pool, 2, action, nothing


def release_of_one_too_many(server: FakeServer) -> Scene:
    pool = make(server)
    held = pool.getconnection()
    pool.poolmin = pool.poolmax = 1
    held.cursor().execute("UPDATE")

    def action() -> None:
        held.close()

    return pool, 1, action, held.close


def taken_out(server: FakeServer) -> Scene:
    pool = make(server, poolmin=0)
    given = [pool.getconnection()]
    raw = given[0].raw

    def action() -> None:
        conn = given.pop()
        conn.detach()

    def end() -> None:
        # Interrupted before it was detached, it comes back to the pool.
        until(lambda: not pool.poolstats().poolused and not pool.poolstats().checking, BOUND)
        if not any(entry.raw is raw for entry in pool._state.entries):
            raw.close()

    return pool, 2, action, end


def within_with(server: FakeServer) -> Scene:
    pool = make(server)

    def action() -> None:
        with pool.connection() as conn:
            conn.cursor().execute("UPDATE")

    return pool, 2, action, nothing


def drained(server: FakeServer) -> Scene:
    pool = make(server)
    pool.getconnection().close()  # from now on there is a monitor
    return pool, 2, pool.drain, nothing


def connect_fails(server: FakeServer) -> Scene:
    pool = make(server, poolmin=0)
    server.fail("connect", OperationalError("no", sqlstate="08001"), times=1)

    def action() -> None:
        with pytest.raises(OperationalError):
            pool.getconnection(timeout=BOUND)

    def end() -> None:
        # If no connect() was asked for, the failure is still to come.
        server.recover()

    return pool, 2, action, end


SCENES = [
    idle_and_fresh,
    in_a_loop,
    in_a_transaction,
    with_on_return,
    stale,
    to_be_opened,
    may_not_wait,
    may_not_wait_and_stale,
    may_not_wait_and_dead,
    timed_out,
    handed_over,
    release_to_a_waiter,
    release_of_a_dirty_one_to_a_waiter,
    release_of_a_dead_one,
    release_of_one_too_many,
    taken_out,
    within_with,
    drained,
    connect_fails,
]


def once(scene: Callable[[FakeServer], Scene], kind: str, n: int) -> tuple[str | None, str | None]:
    """Interrupt the scene at its n-th point: where it was, and what was wrong after it."""
    # How far a rollback or a close came that was interrupted, nobody knows: there it may be closed
    # inside a transaction, and again.
    server = FakeServer(allow=("transaction", "closed"))
    pool, size, action, end = scene(server)
    blow = Blow(kind, n, KeyboardInterrupt)
    told = False
    try:
        try:
            with blow:
                action()
        except KeyboardInterrupt:
            told = True
        assert told == (blow.landed is not None), "the interruption was swallowed"
        end()
        whole(pool, server, size)
        pool.close(timeout=BOUND)
        server.verify()
    except Exception as wrong:
        server.end()
        return blow.landed, f"{type(wrong).__name__}: {wrong}"
    return blow.landed, None


#: What the others do besides, these do too.
MANIFOLD = [idle_and_fresh, stale, handed_over, release_of_a_dead_one, release_of_one_too_many]
CASES = [(scene, "calls") for scene in SCENES]
# CPython 3.12 and 3.13 lose sight of instructions when tracing is switched on and off.
if sys.version_info < (3, 12):
    CASES += [(scene, "opcodes") for scene in (SCENES if THOROUGH else MANIFOLD)]


@pytest.mark.parametrize(("scene", "kind"), CASES, ids=[f"{s.__name__}-{k}" for s, k in CASES])
def test_nothing_is_lost_wherever_it_is_interrupted(scene: Any, kind: str) -> None:
    assert once(scene, kind, sys.maxsize) == (None, None)
    wrong, hits = [], 0
    for n in range(1, sys.maxsize, STRIDE if kind == "opcodes" else 1):
        place, fault = once(scene, kind, n)
        hits += place is not None
        if fault is not None:
            wrong.append(f"interrupted at {place}: {fault}")
        if place is None or len(wrong) == 3:
            break
    assert not wrong, f"{len(wrong)} faults\n" + "\n".join(wrong)
    assert hits > 5


@contextlib.contextmanager
def ctrl_c(when: Callable[[], object]) -> Iterator[None]:
    """One KeyboardInterrupt in the main thread, by a signal sent as soon as ``when()`` is true.

    A signal that comes just before the thread blocks does not wake it: so it is sent again.
    """
    raised = threading.Event()

    def handle(signum: int, frame: FrameType | None) -> None:
        if not raised.is_set():
            raised.set()
            raise KeyboardInterrupt

    def send() -> None:
        until(when)
        until(lambda: raised.wait(0.1) or signal.pthread_kill(main, signal.SIGINT))

    main = threading.main_thread().ident or 0
    before = signal.signal(signal.SIGINT, handle)
    sending = spawn(send)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        sending.result()
        signal.signal(signal.SIGINT, before)


def interrupted_and_whole(
    server: FakeServer, when: Callable[[NimueConnectionPool], object], timeout: float | None
) -> None:
    """Ctrl-C in the main thread's wait for the only connection; another thread waits behind it."""
    pool = make(server, poolmin=1, poolmax=1)
    held = pool.getconnection()
    behind: list[Any] = []

    def join_behind() -> None:
        until(lambda: pool._state.waiters, BOUND)
        behind.append(spawn(lambda: pool.getconnection(timeout=BOUND).close()))

    joining = spawn(join_behind)
    with ctrl_c(lambda: when(pool)):
        pool.getconnection(timeout=timeout)
    joining.result()
    until(lambda: len(pool._state.waiters) == 1)
    held.close()
    behind[0].result()
    whole(pool, server, 1)
    pool.close()


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_ctrl_c_while_waiting(server: FakeServer, timeout: float | None) -> None:
    interrupted_and_whole(server, lambda pool: len(pool._state.waiters) == 2, timeout)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_ctrl_c_while_a_connect_hangs(server: FakeServer, timeout: float | None) -> None:
    pool = make(server, poolmin=0)
    with server.hold("connect") as gate:
        with ctrl_c(lambda: gate.waiting == 1 and pool._state.waiters):
            pool.getconnection(timeout=timeout)
        assert not pool._state.waiters
        gate.release()
    until(lambda: pool.poolstats().poolfree == 1)
    whole(pool, server, 2)
    pool.close()


def test_ctrl_c_while_a_health_check_hangs(server: FakeServer) -> None:
    pool = make(server, healthcheck_idle=0.0)
    with server.hold("execute") as gate:
        with ctrl_c(lambda: gate.waiting == 1 and pool._state.waiters):
            pool.getconnection(timeout=None)
        gate.release()
    whole(pool, server, 2)
    pool.close()


def test_ctrl_c_during_the_rollback_of_a_release(server: FakeServer) -> None:
    """What the connection is in the middle of, nobody knows: it is discarded and replaced."""
    server.allow.add("transaction")
    pool = make(server)
    conn = pool.getconnection()
    conn.cursor().execute("UPDATE")
    raw = conn.raw
    with server.hold("rollback") as gate, ctrl_c(lambda: gate.waiting == 1):
        conn.close()
    conn.close()
    until(lambda: raw.closed)
    whole(pool, server, 2)
    assert raw not in [entry.raw for entry in pool._state.entries]
    pool.close()


def test_ctrl_c_in_the_wait_of_close(server: FakeServer) -> None:
    pool = make(server)
    taken: list[Any] = []
    spawn(lambda: taken.append(pool.getconnection())).result()
    with ctrl_c(lambda: pool._state.leavers):
        pool.close()
    with pytest.raises(NimuePoolClosedError):
        pool.getconnection()
    taken[0].close()
    pool.close(timeout=BOUND)
    assert server.open == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_from_another_thread_meets_a_waiter_with_its_mail(
    server: FakeServer, error: type[BaseException]
) -> None:
    """Set while the thread is blocked, it is raised right after the hand-off woke it."""
    pool = make(server, poolmin=1, poolmax=1)
    for _ in range(8):
        held = pool.getconnection()
        waiting = spawn(pool.getconnection, timeout=BOUND)
        until(lambda: len(pool._state.waiters) == 1)
        behind = spawn(lambda: pool.getconnection(timeout=BOUND).close())
        until(lambda: len(pool._state.waiters) == 2)
        waiting.interrupt(error)
        held.close()
        with pytest.raises(error):
            waiting.result()
        del waiting
        gc.collect()
        behind.result()
    whole(pool, server, 1)
    pool.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exceptions_rain_on_threads_that_share_a_pool(
    server: FakeServer, error: type[BaseException]
) -> None:
    # The fake's own guard against use by two threads does not survive this.
    server.allow |= {"transaction", "threads", "closed"}
    pool = make(server, poolmin=2, poolmax=2)
    rounds = 0

    def some_rounds_on(count: int) -> None:
        until_then = rounds + count
        until(lambda: rounds >= until_then, BOUND)

    def work(dirty: bool) -> None:
        nonlocal rounds
        while True:
            with pool.connection(timeout=BOUND) as conn:
                if dirty:
                    conn.cursor().execute("UPDATE")
                rounds += 1

    for n in range(15):
        workers = [spawn(work, bool(k % 2)) for k in range(3)]
        some_rounds_on(1 + n % 7)
        for worker in workers:
            worker.interrupt(error)
        for worker in workers:
            with pytest.raises(error):
                worker.result()
        del workers, worker
        gc.collect()  # the exceptions hold frames that hold handles
    whole(pool, server, 2)
    pool.close()


class Meanwhile(Blow):
    """Does something at the n-th point from now, if no lock is held there; see ``Blow``."""

    def __init__(self, deed: Callable[[], None], state: Any) -> None:
        super().__init__("opcodes", 0, AssertionError)
        self._deed, self._state = deed, state

    def come_at(self, n: int) -> None:
        self._left = n

    def _count(self, frame: FrameType, event: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.landed = frame.f_code.co_name
            sys.settrace(None)
            if not self._state.is_inside:
                self._deed()


@pytest.mark.parametrize("last", ["dropped", "still known", "watched"])
def test_what_is_taken_for_lost_while_it_is_acquired_is_in_one_hand(
    server: FakeServer, last: str
) -> None:
    """The monitor looks for the entry of an interrupted release; an acquire was faster."""
    pool = make(server, poolmin=1, poolmax=1)
    state = pool._state
    (entry,) = state.entries
    hits = 0
    for n in range(1, 10_000):
        with Meanwhile(lambda: lost.receive(message), state) as meanwhile:  # noqa: B023
            # From Python 3.12 on, a function is traced by opcodes from its second call on.
            known: Any = pool.getconnection()
            known.close()
            if last == "dropped":
                known = None
            elif last == "watched":
                known = weakref.ref(known)
            message = Stray(state, entry, entry.since)
            meanwhile.come_at(n)
            conn = pool.getconnection(timeout=BOUND)
        until(lambda: not state.crew or all(map(is_gone, state.crew)), BOUND)
        assert conn._lease[0] is entry
        assert entry not in state.checking, f"in two hands after {meanwhile.landed}"
        assert not state.idle, f"in two hands after {meanwhile.landed}"
        conn.close()
        del conn
        hits += meanwhile.landed is not None
        if meanwhile.landed is None and n > 20:
            break
    assert hits > 10
    whole(pool, server, 1)
    pool.close()


def test_an_interrupted_constructor_leaves_nothing_open(server: FakeServer) -> None:
    second = server.hold("connect", when=lambda call: server.opened == 1)
    with second as gate, ctrl_c(lambda: gate.waiting == 1):
        make(server)
    assert server.opened == 1
    until(lambda: server.open == 0)
