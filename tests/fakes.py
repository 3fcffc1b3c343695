"""A strict fake database: a DB-API 2.0 module, the server behind it, and ways to wait for facts.

The server holds all behaviour; ``server.connect`` is the pool's ``connfunc``::

    server = FakeServer()                     # fixture: server (or socket_server)
    pool = NimueConnectionPool(server.connect, driver=FakeDriver())

    with server.hold("connect") as gate:      # steps: connect cursor execute commit rollback close
        asking = spawn(pool.getconnection)    # a thread; asking.result() raises what it raised
        gate.arrived(1)                       # waits until one caller stands at the gate
        gate.release(1)                       # lets one pass; release() opens the gate for good
    server.fail("execute", OperationalError("gone", sqlstate="57P01"), times=1)
    server.delay("execute", 0.001)
    server.recover("execute")                 # no failures and delays more; recover(): all steps
    server.kill(raw)                          # its next use raises 57P01; kill_all() stop() start()
    until(lambda: server.open == 2)           # polls a fact each millisecond, at most 10 s

``hold``, ``fail`` and ``delay`` take ``on=raw`` (one connection only) and ``when=`` (a predicate on
the ``Call``: step, serial, thread, pid, sql); ``fail`` takes ``times`` and ``after``, and an
exception, its class or a callable.

To see: ``opened closed open open_here connecting max_open max_connecting`` (numbers),
``connections`` (open raw ones of this process), ``sessions`` (the server's side of every
connection ever: ``serial pid thread args kwargs is_open killed in_transaction goodbye``),
``calls``, ``count(step)``, ``violations``.

Refused, that is recorded as a violation and raised as ``Misuse``, by kind: ``threads`` (two at
once), ``closed`` (use or second close after close), ``process`` (use, or end of life, in a process
that did not open it, its socket not severed), ``transaction`` (polite close inside a transaction),
``dropped`` (garbage-collected while open), ``cancel`` (from another process), ``gate`` (nobody
released it). ``server.allow.add(kind)`` permits one. Violations of forked children count too.
``server.verify()``, which the fixture calls, fails if there are any, or if a connection is left
open and not ``server.may_leave_open``.

``FakeServer(sockets=True)``: each connection owns one end of a socketpair and its session the
other: ``session.received()`` (bytes so far; a polite close says ``X``) and ``session.eof()``.

Across a fork the server goes on in the child with what it knew, but gates bind only the process
that made them, and child and parent do not see each other's counts.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import inspect
import json
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nimue.drivers.base import Driver

apilevel = "2.0"
threadsafety = 1
paramstyle = "qmark"

STEPS = ("connect", "cursor", "execute", "commit", "rollback", "close")
PATIENCE = 10.0
GATE_LIMIT = 30.0


# DB-API 2.0 wants these names, Warning among them.
class Warning(Exception):
    pass


class Error(Exception):
    def __init__(self, *args: Any, sqlstate: str | None = None) -> None:
        super().__init__(*args)
        self.sqlstate = sqlstate


class InterfaceError(Error):
    pass


class DatabaseError(Error):
    pass


class DataError(DatabaseError):
    pass


class OperationalError(DatabaseError):
    pass


class IntegrityError(DatabaseError):
    pass


class InternalError(DatabaseError):
    pass


class ProgrammingError(DatabaseError):
    pass


class NotSupportedError(DatabaseError):
    pass


class Misuse(AssertionError):
    """The pool did to a connection what no driver allows."""


def until(
    predicate: Callable[[], Any],
    timeout: float = PATIENCE,
    message: str | Callable[[], str] | None = None,
) -> Any:
    """Wait until ``predicate()`` is true; return its value, or fail saying what was waited for."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            told = message() if callable(message) else message
            what = told or _source(predicate)
            raise AssertionError(f"not within {timeout:g} s: {what} (last: {value!r})")
        time.sleep(0.001)


def _source(predicate: Callable[[], Any]) -> str:
    try:
        text = " ".join(inspect.getsource(predicate).split())
        seen = inspect.getclosurevars(predicate).nonlocals
    except (OSError, TypeError):
        return repr(predicate)
    return text + "".join(f"; {name} = {repr(value)[:300]}" for name, value in seen.items())


class Clock:
    """A clock that goes when told: ``clock()`` reads it, ``clock.advance(60)`` moves it."""

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return self.now


class Spawned:
    """A thread whose result or exception is asked for with ``result()``; never joined unbounded."""

    #: Those of this process whose result nobody has asked for yet; the ``_tidy`` fixture does.
    unasked: list[Spawned] = []  # noqa: RUF012

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._fn, self._args, self._kwargs = fn, args, kwargs
        self._value: Any = None
        self.error: BaseException | None = None
        self.pid = os.getpid()
        name = getattr(fn, "__name__", type(fn).__name__)
        self.thread = threading.Thread(target=self._run, name=f"test-{name}", daemon=True)
        Spawned.unasked.append(self)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._fn(*self._args, **self._kwargs)
        except BaseException as error:
            self.error = error
        finally:
            del self._fn, self._args, self._kwargs
            # Its frame is in the traceback of what it keeps: that would be a cycle.
            del self

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def wait(self, timeout: float = PATIENCE) -> None:
        """Wait for the end, whatever it was; fails if the thread is alive after ``timeout``."""
        self.thread.join(timeout)
        if self in Spawned.unasked:
            Spawned.unasked.remove(self)
        if self.thread.is_alive():
            frame = sys._current_frames().get(self.thread.ident or 0)
            where = "".join(traceback.format_stack(frame)) if frame else ""
            raise AssertionError(f"{self.thread.name} still runs after {timeout:g} s, in\n{where}")

    def result(self, timeout: float = PATIENCE) -> Any:
        self.wait(timeout)
        if self.error is None:
            return self._value
        try:
            raise self.error
        finally:
            del self  # as in _run

    def interrupt(self, exception: type[BaseException]) -> None:
        """Raise ``exception`` in the thread, as soon as it next runs Python code."""
        ident = ctypes.c_ulong(self.thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(exception))


def spawn(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Spawned:
    """Run ``fn`` in a thread of its own."""
    return Spawned(fn, args, kwargs)


def is_locked(state: Any) -> bool:
    """Whether any thread holds the pool's lock."""
    if state.is_inside:
        return True
    if state.lock.acquire(False):
        state.lock.release()
        return False
    return True


def ctrl_c_when(predicate: Callable[[], Any]) -> Spawned:
    """Send SIGINT to the main thread as soon as ``predicate()`` is true.

    The caller is the main thread, about to wait within ``pytest.raises(KeyboardInterrupt)``.
    """

    def send() -> None:
        until(predicate)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    return spawn(send)


@dataclass(frozen=True)
class Call:
    step: str
    serial: int | None
    thread: str
    pid: int
    sql: str = ""


@dataclass(frozen=True)
class Violation:
    kind: str
    message: str
    thread: str
    pid: int
    stack: str

    def __str__(self) -> str:
        return f"[{self.kind}] {self.message} (thread {self.thread}, pid {self.pid})\n{self.stack}"


class _Rule:
    """What is to happen to the calls it matches; a context manager that ends it."""

    def __init__(self, server: FakeServer, step: str, on: Any, when: Any) -> None:
        if step not in STEPS:
            raise ValueError(f"no such step: {step!r}; there are {', '.join(STEPS)}")
        self._server = server
        self.step = step
        self._serial = None if on is None else on.serial
        self._when = when

    def matches(self, call: Call) -> bool:
        return (
            call.step == self.step
            and self._serial in (None, call.serial)
            and (self._when is None or bool(self._when(call)))
        )

    def stop(self) -> None:
        if self in self._server._rules:
            self._server._rules.remove(self)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class Gate(_Rule):
    """Callers wait before the step until they are released; ``with`` opens it at the end."""

    def __init__(self, server: FakeServer, step: str, on: Any, when: Any) -> None:
        super().__init__(server, step, on, when)
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._passes = 0
        self._open = False
        #: How many callers have come, and how many of them stand here now.
        self.came = 0
        self.waiting = 0

    def matches(self, call: Call) -> bool:
        return self._pid == call.pid and super().matches(call)

    def wait(self, call: Call) -> None:
        deadline = time.monotonic() + GATE_LIMIT
        with self._changed:
            self.came += 1
            self.waiting += 1
            self._changed.notify_all()
            try:
                while not self._open and self._passes == 0:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        self._server._refuse("gate", f"nobody let {call} pass")
                        break
                    self._changed.wait(left)
                else:
                    self._passes -= not self._open
            finally:
                self.waiting -= 1
                self._changed.notify_all()

    def arrived(self, n: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until ``n`` callers in all have come to this gate."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.came >= n, timeout):
                raise AssertionError(
                    f"{self.came} of {n} came to the {self.step} gate within {timeout:g} s"
                )

    def release(self, n: int | None = None) -> None:
        """Let ``n`` callers pass, or everyone from now on."""
        with self._changed:
            if n is None:
                self._open = True
            else:
                self._passes += n
            self._changed.notify_all()
        if n is None:
            super().stop()

    def stop(self) -> None:
        self.release()


class Failure(_Rule):
    """Matching calls raise, ``times`` times, once ``after`` of them have passed."""

    def __init__(
        self, server: FakeServer, step: str, on: Any, when: Any, exc: Any, times: Any, after: int
    ) -> None:
        super().__init__(server, step, on, when)
        self._exc, self._times, self._after = exc, times, after
        self.count = 0

    def due(self) -> bool:
        if self._after > 0:
            self._after -= 1
            return False
        if self._times is not None and self.count >= self._times:
            return False
        self.count += 1
        return True

    def error(self) -> BaseException:
        if isinstance(self._exc, BaseException):
            return self._exc.with_traceback(None)
        error: BaseException = self._exc()
        return error


class Delay(_Rule):
    def __init__(self, server: FakeServer, step: str, on: Any, when: Any, seconds: float) -> None:
        super().__init__(server, step, on, when)
        self.seconds = seconds


class Session:
    """One connection as the server knows it. Outlives the client's object."""

    def __init__(self, serial: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.serial = serial
        self.args, self.kwargs = args, kwargs
        self.pid = os.getpid()
        self.thread = threading.current_thread().name
        self.is_open = True
        self.killed = False
        self.in_transaction = False
        #: True if the client took its leave politely.
        self.goodbye = False
        self.peer: socket.socket | None = None
        self._received = bytearray()
        self._eof = False

    def __repr__(self) -> str:
        state = "killed" if self.killed else "open" if self.is_open else "closed"
        return f"<Session {self.serial} {state}{' in transaction' * self.in_transaction}>"

    def received(self) -> bytes:
        """What has come over the socket so far, from whatever process."""
        while self.peer is not None and not self._eof:
            try:
                data = self.peer.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                self._eof = True
                break
            self._received += data
            self._eof = not data
        return bytes(self._received)

    def eof(self) -> bool:
        """True if no process holds the client's end of the socket any more."""
        self.received()
        return self._eof


class FakeServer:
    """The database. See the module's docstring."""

    def __init__(self, *, sockets: bool = False, allow: tuple[str, ...] = ()) -> None:
        self.allow: set[str] = set(allow)
        self.may_leave_open = False
        self.sessions: list[Session] = []
        self.calls: collections.deque[Call] = collections.deque(maxlen=100_000)
        self.connecting = 0
        self.max_connecting = 0
        self.max_open = 0
        self.running = True
        self._sockets = sockets
        self._rules: list[_Rule] = []
        self._counts: collections.Counter[str] = collections.Counter()
        self._open: dict[int, Session] = {}
        self._raws: weakref.WeakValueDictionary[int, Connection] = weakref.WeakValueDictionary()
        # Forked children inherit the descriptor, so what they do wrong is read here as well.
        self._record = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._pid = os.getpid()
        self._mutex = threading.Lock()

    def __repr__(self) -> str:
        return f"<FakeServer opened={self.opened} open={self.open} closed={self.closed}>"

    def _lock(self) -> threading.Lock:
        # No at-fork hook does this: a C fork runs none.
        if self._pid != os.getpid():
            self._mutex = threading.Lock()
            self._pid = os.getpid()
            self.connecting = 0
        return self._mutex

    def connect(self, *args: Any, **kwargs: Any) -> Connection:
        with self._lock():
            self.connecting += 1
            self.max_connecting = max(self.max_connecting, self.connecting)
        try:
            self._step("connect", None)
            if not self.running:
                raise OperationalError("connection refused", sqlstate="08001")
            with self._lock():
                session = Session(len(self.sessions) + 1, args, kwargs)
                self.sessions.append(session)
                self._open[session.serial] = session
                self.max_open = max(self.max_open, len(self._open))
                raw = Connection(self, session, self._sockets)
                self._raws[session.serial] = raw
                return raw
        finally:
            with self._lock():
                self.connecting -= 1

    def _step(self, step: str, serial: int | None, sql: str = "") -> None:
        call = Call(step, serial, threading.current_thread().name, os.getpid(), sql)
        with self._lock():
            self.calls.append(call)
            self._counts[step] += 1
            rules = [rule for rule in self._rules if rule.matches(call)]
            failure = next((r for r in rules if isinstance(r, Failure) and r.due()), None)
        for rule in rules:
            if isinstance(rule, Gate):
                rule.wait(call)
            elif isinstance(rule, Delay):
                time.sleep(rule.seconds)
        if failure is not None:
            raise failure.error()

    def _forget(self, session: Session) -> None:
        session.is_open = False
        session.in_transaction = False
        with self._lock():
            self._open.pop(session.serial, None)

    def _refuse(self, kind: str, message: str, *, silent: bool = False) -> None:
        if kind in self.allow or self._record.closed:
            return
        # At the interpreter's end there is nothing left to read the lines with.
        frames = [] if sys.is_finalizing() else traceback.format_stack(sys._getframe(1), limit=12)
        stack = "".join(frames)
        seen = Violation(kind, message, threading.current_thread().name, os.getpid(), stack)
        self._record.write(json.dumps(vars(seen)).encode() + b"\n")
        if not silent:
            raise Misuse(f"[{kind}] {message}")

    def hold(self, step: str, *, on: Any = None, when: Any = None) -> Gate:
        return self._add(Gate(self, step, on, when))

    def fail(
        self,
        step: str,
        exc: BaseException | Callable[[], BaseException],
        times: int | None = None,
        *,
        after: int = 0,
        on: Any = None,
        when: Any = None,
    ) -> Failure:
        return self._add(Failure(self, step, on, when, exc, times, after))

    def delay(self, step: str, seconds: float, *, on: Any = None, when: Any = None) -> Delay:
        return self._add(Delay(self, step, on, when, seconds))

    def _add(self, rule: Any) -> Any:
        with self._lock():
            self._rules.append(rule)
        return rule

    def recover(self, step: str | None = None) -> None:
        for rule in list(self._rules):
            if not isinstance(rule, Gate) and step in (None, rule.step):
                rule.stop()

    def kill(self, which: Connection | Session) -> None:
        """End one session from the server's side, as pg_terminate_backend does."""
        session = which if isinstance(which, Session) else which._session
        session.killed = True
        self._forget(session)
        if session.peer is not None:
            # shutdown() and not close(): forked children hold copies of this end as well.
            with contextlib.suppress(OSError):
                session.peer.shutdown(socket.SHUT_RDWR)

    def kill_all(self) -> None:
        for session in list(self._open.values()):
            self.kill(session)

    def stop(self) -> None:
        """Every session ends, and new ones are refused until ``start()``."""
        self.running = False
        self.kill_all()

    def start(self) -> None:
        self.running = True

    @property
    def opened(self) -> int:
        return len(self.sessions)

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def open_here(self) -> int:
        """Those that this process opened."""
        return sum(session.pid == os.getpid() for session in list(self._open.values()))

    @property
    def closed(self) -> int:
        return self.opened - self.open

    @property
    def connections(self) -> list[Connection]:
        """The open raw connections of this process, oldest first."""
        found = (self._raws.get(s.serial) for s in list(self._open.values()))
        return [raw for raw in found if raw is not None and raw._session.pid == os.getpid()]

    def count(self, step: str) -> int:
        return self._counts[step]

    @property
    def violations(self) -> list[Violation]:
        size = os.fstat(self._record.fileno()).st_size
        data = os.pread(self._record.fileno(), size, 0)
        return [Violation(**json.loads(line)) for line in data.splitlines()]

    def verify(self, timeout: float = 2.0) -> None:
        """Fail if there was a violation, or if one of this process's connections is left open."""
        for rule in list(self._rules):
            rule.stop()
        try:
            if not self.may_leave_open and not self.violations:
                until(lambda: not self.open_here, timeout, lambda: f"left open: {self.left_open()}")
            found = self.violations
            assert not found, "\n".join(map(str, found))
        finally:
            self.end()

    def left_open(self) -> list[Session]:
        return [session for session in self._open.values() if session.pid == os.getpid()]

    def end(self) -> None:
        """Forget everything: nobody gets in, and what else happens is nobody's business."""
        self.running = False
        for session in self.sessions:
            if session.peer is not None:
                session.peer.close()
        for raw in list(self._raws.values()):
            if raw._sock is not None:
                raw._sock.close()
        self._record.close()


class Connection:
    """A DB-API connection that refuses what no driver allows."""

    Warning, Error, InterfaceError, DatabaseError = Warning, Error, InterfaceError, DatabaseError
    DataError, OperationalError, IntegrityError = DataError, OperationalError, IntegrityError
    InternalError, ProgrammingError = InternalError, ProgrammingError
    NotSupportedError = NotSupportedError

    def __init__(self, server: FakeServer, session: Session, with_socket: bool) -> None:
        self._server = server
        self._session = session
        self._busy = threading.Lock()
        self._user = ""
        self._gone = False  # the client knows that the server has gone
        self._failed = False  # an error means that a rollback is not to be asked for
        self._closed = False
        self._autocommit = False
        self._sock: socket.socket | None = None
        self._inode = 0
        if with_socket:
            self._sock, session.peer = socket.socketpair()
            session.peer.setblocking(False)
            self._inode = os.fstat(self._sock.fileno()).st_ino

    def __repr__(self) -> str:
        return f"<tests.fakes.Connection {self.serial}>"

    def __del__(self) -> None:
        session = self._session
        if self._closed or session.killed or self._gone:
            return
        if session.pid == os.getpid():
            self._server._refuse("dropped", f"{self!r} was dropped while open", silent=True)
        elif not self.severed():
            self._server._refuse(
                "process", f"{self!r} was dropped in a child, its socket alive", silent=True
            )
        if self._sock is not None:
            self._sock.close()

    @property
    def serial(self) -> int:
        return self._session.serial

    @property
    def closed(self) -> int:
        return 1 if self._closed else 2 if self._gone else 0

    @property
    def in_transaction(self) -> bool:
        return self._session.in_transaction

    def fileno(self) -> int:
        if self._sock is None:
            raise InterfaceError("this connection has no socket")
        return self._sock.fileno()

    def severed(self) -> bool:
        """True if something else stands where the socket was."""
        if self._sock is None or self._sock.fileno() < 0:
            return False
        seen = os.fstat(self._sock.fileno())
        return not (stat.S_ISSOCK(seen.st_mode) and seen.st_ino == self._inode)

    @contextlib.contextmanager
    def _using(self, step: str, sql: str = "") -> Iterator[None]:
        if self._session.pid != os.getpid() and not self._closed:
            self._server._refuse(
                "process", f"{step} on {self!r}, opened in process {self._session.pid}"
            )
        if self._closed:
            self._server._refuse("closed", f"{step} on {self!r} after its close")
            raise InterfaceError("connection already closed")
        with self._alone(step):
            try:
                self._server._step(step, self.serial, sql)
            except BaseException as error:
                self._failed |= step in ("commit", "rollback") or is_disconnect(error)
                self._gone |= is_disconnect(error)
                raise
            if self._session.killed:
                self._gone = True
                raise OperationalError(
                    "terminating connection due to administrator command", sqlstate="57P01"
                )
            self._say(step[0].upper().encode())
            yield

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            self._server._refuse(
                "threads", f"{what} on {self!r} while {self._user or 'nobody known'} is inside"
            )
            yield
            return
        self._user = f"{what} by {threading.current_thread().name}"
        try:
            yield
        finally:
            self._user = ""
            self._busy.release()

    def _say(self, data: bytes) -> None:
        if self._sock is None:
            return
        try:
            self._sock.sendall(data)
        except OSError as error:
            self._gone = True
            raise OperationalError(f"connection lost: {error}", sqlstate="08006") from error
        if self._session.pid == os.getpid():
            self._session.received()

    def cursor(self, *args: Any, **kwargs: Any) -> Cursor:
        with self._using("cursor"):
            return Cursor(self)

    def _execute(self, sql: str) -> None:
        with self._using("execute", sql):
            verb = sql.strip().split(" ", 1)[0].strip(";").upper()
            self._session.in_transaction = verb not in ("COMMIT", "ROLLBACK") and (
                verb in ("BEGIN", "START") or self._session.in_transaction or not self._autocommit
            )

    def commit(self) -> None:
        with self._using("commit"):
            self._session.in_transaction = False

    def rollback(self) -> None:
        with self._using("rollback"):
            self._session.in_transaction = False

    @property
    def autocommit(self) -> bool:
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if self._session.in_transaction:
            raise ProgrammingError("autocommit cannot be set inside a transaction")
        self._autocommit = bool(value)

    def cancel(self) -> None:
        """Out of band: from any thread, but a child's would stop the parent's statement."""
        if self._closed:
            raise InterfaceError("connection already closed")
        if self._session.pid != os.getpid():
            self._server._refuse("cancel", f"cancel of {self!r} in another process")

    def close(self) -> None:
        """Polite: says X. In a process that did not open it only into the void."""
        if self._session.pid != os.getpid() and self.severed():
            self._drop()
            return
        if self._closed:
            self._server._refuse("closed", f"second close of {self!r}")
            return
        if self._session.pid != os.getpid():
            self._server._refuse("process", f"close of {self!r} in a child, its socket alive")
        with self._alone("close"):
            if self._session.in_transaction and not (self._failed or self._session.killed):
                self._server._refuse("transaction", f"close of {self!r} inside a transaction")
            try:
                self._server._step("close", self.serial)
                if not self._session.killed:
                    with contextlib.suppress(OperationalError):
                        self._say(b"X")
                    self._session.goodbye = True
            finally:
                # Whatever a driver's close() raises, the connection is of no use after it.
                self._server._forget(self._session)
                self._drop()

    def discard(self) -> None:
        """What ``FakeDriver.discard`` does in a child."""
        if self._session.pid == os.getpid():
            self._server._refuse("process", f"discard of {self!r} in the process that opened it")
        elif not self.severed():
            self._server._refuse("process", f"discard of {self!r}, its socket not severed")
        with self._alone("discard"):
            self._drop()

    def _drop(self) -> None:
        self._closed = True
        if self._sock is not None:
            self._sock.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, exc_type: object, exc: object, tb: object) -> None:
        if exc_type is None:
            self.commit()
        else:
            self.rollback()


class Cursor:
    """Answers a statement with its parameters, or with 1 where there are none."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.arraysize = 1
        self.rowcount = -1
        self.description: Any = None
        self.closed = False
        self._rows: list[tuple[Any, ...]] = []

    def _usable(self) -> None:
        if self.closed:
            self.connection._server._refuse("closed", f"use of a closed cursor: {self.connection}")
            raise InterfaceError("cursor already closed")

    def execute(self, sql: str, params: Any = ()) -> Cursor:
        self._usable()
        self.connection._execute(sql)
        self._rows = [tuple(params) or (1,)]
        self.rowcount = 1
        self.description = [(f"c{n}", None, None, None, None, None, None) for n in self._rows[0]]
        return self

    def executemany(self, sql: str, rows: Any) -> None:
        for row in rows:
            self.execute(sql, row)

    def fetchone(self) -> tuple[Any, ...] | None:
        self._usable()
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        self._usable()
        size = size or self.arraysize
        taken, self._rows = self._rows[:size], self._rows[size:]
        return taken

    def fetchall(self) -> list[tuple[Any, ...]]:
        self._usable()
        taken, self._rows = self._rows, []
        return taken

    def close(self) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchone, None)

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


_default: dict[int, FakeServer] = {}


def default_server() -> FakeServer:
    """The server of module-level ``connect``: one for each process, made at first use."""
    return _default.setdefault(os.getpid(), FakeServer())


def connect(*args: Any, **kwargs: Any) -> Connection:
    """A ``connfunc`` that can be pickled."""
    return default_server().connect(*args, **kwargs)


def is_disconnect(error: BaseException) -> bool:
    """The fake's list: server gone, shut down, or read-only after a failover."""
    state = getattr(error, "sqlstate", None) or ""
    return state.startswith("08") or state in ("57P01", "57P02", "57P03", "25006")


class FakeDriver(Driver):
    """The facts about this module. Being asked about a connection in use is a violation.

    Args:
        knows_transaction: False: answers None, as a driver that cannot tell.
        tells_socket: False: the descriptor must be found otherwise.
        hides_socket, close_before_fork, close_cursors: as in ``Driver``.
    """

    packages = ("tests",)

    def __init__(
        self,
        dbmodule: Any = None,
        *,
        knows_transaction: bool = True,
        tells_socket: bool = True,
        hides_socket: bool = False,
        close_before_fork: bool = False,
        close_cursors: bool = False,
    ) -> None:
        super().__init__(dbmodule or sys.modules[__name__])
        self.knows_transaction = knows_transaction
        self.tells_socket = tells_socket
        self.hides_socket = hides_socket
        self.close_before_fork = close_before_fork
        self.close_cursors = close_cursors
        #: Serial numbers of those discarded in this process.
        self.discarded: list[int] = []

    @contextlib.contextmanager
    def _asked(self, raw: Connection, what: str) -> Iterator[None]:
        if raw._session.pid != os.getpid():
            raw._server._refuse("process", f"the driver is asked for {what} of {raw!r} in a child")
        with raw._alone(what):
            yield

    def fileno(self, raw: Connection) -> int | None:
        with self._asked(raw, "fileno"):
            return raw.fileno() if self.tells_socket and raw._sock is not None else None

    def in_transaction(self, raw: Connection) -> bool | None:
        with self._asked(raw, "in_transaction"):
            if not self.knows_transaction:
                return None
            return raw.in_transaction or bool(raw.closed)

    def is_closed(self, raw: Connection) -> bool:
        with self._asked(raw, "is_closed"):
            return bool(raw.closed)

    def is_disconnect(self, error: BaseException) -> bool:
        return is_disconnect(error)

    def is_full(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) == "53300"

    def session_id(self, raw: Connection) -> int | str | None:
        with self._asked(raw, "session_id"):
            return raw.serial

    def discard(self, raw: Connection) -> None:
        raw.discard()
        self.discarded.append(raw.serial)
