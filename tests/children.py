"""Code in other processes, always under a watchdog: nothing here waits without a bound.

``forked(fn, *args)``: run ``fn`` in a forked child, return what it returns. An exception is raised
here, with the child's traceback as its cause. A child that hangs is killed by its pid, and the
``Hung`` error shows where it stood; one that dies, or leaves otherwise than told, is ``ChildDied``.

``c_forked(fn, *args)``: the same by ``fork()`` of the C library, with the interpreter's lock held:
no Python hook has run, neither before nor after. That is a uWSGI worker's situation.

``Child(fn, *args)``: the same without waiting; ``.pid``, ``.result()``, ``.signal(number)``,
``.alive``; a context manager that asks for the result, or kills if the test has failed.

``in_process("spawn" | "forkserver" | "fork", fn, *args)``: by multiprocessing.

``in_script(fn, *args)``: in a new interpreter, whose stderr must stay empty (``quiet=True``).
``fn`` and its arguments travel by pickle here and in ``in_process``.

All take ``timeout=`` (20 s). Those that fork take ``leave=``:

- ``"os._exit"`` (default): at once.
- ``"sys.exit"``: the interpreter is finalised: atexit, threads, garbage, modules. Frames that are
  active, those of the test, do not unwind, so their locals live on.
- ``"unwind"``: a true SystemExit to the top; only within ``in_script``.
- a signal's number: the child sends it to itself, and must die of it.

Python 3.12 warns of a fork in a process with threads, and swallows that warning where it is an
error; so the helpers raise it, unless ``expect_threads=True`` says that the test's own threads
live. Threads of the test runner itself (xdist) do not count. The C fork never warns.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import select
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stress.processes import gone  # noqa: F401 - for those that import it from here

TIMEOUT = 20.0
DUMP_SIGNAL = signal.SIGRTMAX - 1 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
ROOT = Path(__file__).resolve().parent.parent

#: Pids of long-lived children that are none of a test's business: servers.
expected: set[int] = set()


class _Harness:
    """The process we are in, before any test: its runner's pipes and threads."""

    pipes: tuple[int, ...] = ()
    threads = 1
    known: frozenset[threading.Thread] = frozenset()
    script = False


_HEADER = struct.Struct("!Q")


class ChildDied(AssertionError):
    """The child left otherwise than it was told to, or without an answer."""


class Hung(AssertionError):
    """The child was killed by the watchdog. The message shows where it stood."""


class ChildTraceback(Exception):
    """The cause of an exception that came from a child: its traceback there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _answer(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    pid = os.getpid()
    try:
        return pickle.dumps((True, fn(*args), ""))
    except BaseException as error:
        if os.getpid() != pid:  # a child of this one, on its way out
            raise
        text = traceback.format_exc()
        try:
            data = pickle.dumps((False, error, text))
            pickle.loads(data)
        except Exception:
            told = RuntimeError(f"in the child, and it cannot be pickled: {error!r}")
            data = pickle.dumps((False, told, text))
        return data


def _open_answer(data: bytes) -> Any:
    good, value, text = pickle.loads(data)
    if good:
        return value
    raise value from ChildTraceback(text)


def _write(fd: int, data: bytes) -> None:
    data = _HEADER.pack(len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int, deadline: float) -> bytes | None:
    """One answer; empty if the other side closed without one, None if it is late."""
    data = b""
    while True:
        if len(data) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(data)
            if len(data) == _HEADER.size + size:
                return data[_HEADER.size :]
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return None
        piece = os.read(fd, 1 << 20)
        if not piece:
            return b""
        data += piece


def _os_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def note_harness() -> None:
    """Remember the test runner's own pipes and threads: forked children must not speak on them."""
    _Harness.threads = max(1, _os_threads())
    _Harness.known = frozenset(threading.enumerate())
    _Harness.pipes = tuple(filter(_is_pipe, map(int, os.listdir("/dev/fd"))))


def _is_pipe(fd: int) -> bool:
    try:
        return fd > 2 and stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def become_subreaper() -> None:
    """Have orphans of the tests' children become ours, so that they are seen and reaped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def c_fork() -> int:
    """fork() by the C library, at a moment at which CPython survives it in the child.

    A thread that has waited for the interpreter's lock for the switch interval asks for it; at a
    fork then, the child hands it over at once and waits for ever for somebody to take it. So that
    interval is long, and whoever waits already gets the lock before. PyDLL and not CDLL, for the
    child must not find that lock held by nobody.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2.0)
    try:
        time.sleep(0.001)
        pid: int = ctypes.PyDLL(None, use_errno=True).fork()
    finally:
        sys.setswitchinterval(interval)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "fork")
    return pid


def _let_ended_threads_go() -> None:
    """A thread that was joined is still counted for a moment: ``join`` returns before its end."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        alive = len(set(threading.enumerate()) - _Harness.known)
        if _os_threads() <= _Harness.threads + alive:
            return
        time.sleep(0.001)


def _forking(expect_threads: bool) -> tuple[int, list[Any]]:
    _let_ended_threads_go()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pid = os.fork()
        # Looked at only when there is a warning: the child must stay as the fork made it.
        ours = bool(seen) and 0 < _os_threads() <= _Harness.threads
    wrong = [
        warning
        for warning in seen
        if not (
            issubclass(warning.category, DeprecationWarning)
            and "multi-threaded" in str(warning.message)
            and (expect_threads or ours)
        )
    ]
    return pid, wrong


class Child:
    """A forked child. See the module's docstring."""

    living: dict[int, Child] = {}  # noqa: RUF012

    def __init__(
        self,
        fn: Callable[..., Any],
        *args: Any,
        leave: str | int = "os._exit",
        timeout: float = TIMEOUT,
        expect_threads: bool = False,
        fork: Callable[[], int] | None = None,
    ) -> None:
        if leave == "unwind" and not _Harness.script:
            raise ValueError("leave='unwind' would unwind the test runner: use in_script()")
        self.timeout = timeout
        self.status: int | None = None
        self._leave = leave
        self._deadline = time.monotonic() + timeout
        self._dump = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._pipe, theirs = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        # Others' warnings are theirs: only a fork that can warn is listened to.
        self.pid, self._warnings = (fork(), []) if fork else _forking(expect_threads)
        if self.pid == 0:
            self._be_child(theirs, fn, args)
        os.close(theirs)
        Child.living[self.pid] = self

    def _be_child(self, pipe: int, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            Child.living = {}
            os.close(self._pipe)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in _Harness.pipes:
                os.dup2(null, fd)
            os.close(null)
            faulthandler.register(DUMP_SIGNAL, self._dump, all_threads=True)
            _write(pipe, _answer(fn, args))
            if self._leave == "sys.exit":
                ctypes.pythonapi.Py_Exit(0)
            elif isinstance(self._leave, int):
                os.kill(os.getpid(), self._leave)
                time.sleep(5)
            elif self._leave == "os._exit":
                os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        if self._leave == "unwind":
            raise SystemExit(0)
        os._exit(71)

    def __repr__(self) -> str:
        return f"<Child {self.pid}{'' if self.status is None else f' left with {self.status}'}>"

    @property
    def alive(self) -> bool:
        return not self._reap()

    def _reap(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return False
            self.status = os.waitstatus_to_exitcode(status)
        return True

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Send a signal. A child killed so is not asked for its result: see ``wait``."""
        if self.alive:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end alone; returns the exit code, negative for a signal."""
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
        while not self._reap():
            if time.monotonic() >= self._deadline:
                raise Hung(self.put_down())
            time.sleep(0.001)
        self.close()
        assert self.status is not None
        return self.status

    def result(self, timeout: float | None = None) -> Any:
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
        data = _read(self._pipe, self._deadline)
        if data is None:
            raise Hung(self.put_down())
        status = self.wait()
        due = -self._leave if isinstance(self._leave, int) else 0
        if not data or status != due:
            answered = "with" if data else "without"
            raise ChildDied(f"child {self.pid} left with {status}, not {due}, {answered} an answer")
        for warning in self._warnings:
            raise warning.category(str(warning.message))
        return _open_answer(data)

    def put_down(self, *, ask: bool = True) -> str:
        """Kill it; returns where it stood."""
        dump = _dump_of(self.pid, self._dump.fileno()) if ask else ""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        self.close()
        return f"child {self.pid} was killed after {self.timeout:g} s; it stood in\n{dump}"

    def close(self) -> None:
        if not self._dump.closed:
            Child.living.pop(self.pid, None)
            self._dump.close()
            os.close(self._pipe)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, exc_type: Any, *rest: object) -> None:
        if exc_type is not None and self.alive:
            self.put_down(ask=False)
        elif self.status is None:
            self.result()


def _dump_of(pid: int, fd: int) -> str:
    """Ask a hung process for its stacks; they come through the file behind ``fd``."""
    try:
        os.kill(pid, DUMP_SIGNAL)
    except ProcessLookupError:
        return "(it is gone)"
    size, patience = -1, time.monotonic() + 1
    while time.monotonic() < patience:
        time.sleep(0.05)
        seen = os.fstat(fd).st_size
        if seen and seen == size:
            break
        size = seen
    text = os.pread(fd, 1 << 20, 0).decode(errors="replace")
    return text or "(it did not answer)"


def forked(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run ``fn`` in a forked child; options: leave, timeout, expect_threads."""
    return Child(fn, *args, **options).result()


def c_forked(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run ``fn`` in a child that no Python hook has seen; options: leave, timeout."""
    return Child(fn, *args, fork=c_fork, **options).result()


def c_child(fn: Callable[..., Any], *args: Any, **options: Any) -> Child:
    """As ``Child``, by a fork without hooks."""
    return Child(fn, *args, fork=c_fork, **options)


def _serve(conn: Any, dump: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with open(dump, "wb", buffering=0) as file:
        faulthandler.register(DUMP_SIGNAL, file, all_threads=True)
        conn.send_bytes(_answer(fn, args))
        conn.close()
        faulthandler.unregister(DUMP_SIGNAL)


def in_process(start_method: str, fn: Callable[..., Any], *args: Any, timeout: float = 60.0) -> Any:
    """Run ``fn`` in a process of multiprocessing; it leaves as that method does."""
    context: Any = multiprocessing.get_context(start_method)
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder, ours:
        dump = os.path.join(folder, "dump")
        process = context.Process(target=_serve, args=(theirs, dump, fn, args))
        deadline = time.monotonic() + timeout
        with theirs:
            process.start()
        try:
            data = _received(ours, timeout)
            process.join(max(0.0, deadline - time.monotonic()))
            if data is None or process.exitcode is None:
                with open(dump, "a+b") as file:
                    stood = _dump_of(process.pid, file.fileno())
                raise Hung(f"{start_method} child killed after {timeout:g} s; it stood in\n{stood}")
            if not data or process.exitcode != 0:
                raise ChildDied(f"{start_method} child left with {process.exitcode}")
        finally:
            process.kill()
            process.join(10)
            process.close()
    return _open_answer(data)


def _received(conn: Any, timeout: float) -> bytes | None:
    try:
        return conn.recv_bytes() if conn.poll(timeout) else None
    except EOFError:
        return b""


def in_script(
    fn: Callable[..., Any],
    *args: Any,
    timeout: float = 60.0,
    quiet: bool = True,
    env: dict[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> Any:
    """Run ``fn`` in a new interpreter, given ``options``, that ends as scripts do."""
    pipe, theirs = os.pipe()
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests import children"
    command = [sys.executable, *options, "-c", f"{code}; children._be_script({theirs})"]
    with tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as stdin:
        stdin.write(pickle.dumps((fn, args)))
        stdin.seek(0)
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stderr=stderr,
            pass_fds=[theirs],
            env={**os.environ, **(env or {})},
        )
        os.close(theirs)
        try:
            data = _read(pipe, time.monotonic() + timeout)
            late = data is None
            try:
                process.wait(timeout=0 if late else timeout)
            except subprocess.TimeoutExpired:
                late = True
                _dump_of(process.pid, stderr.fileno())
            finally:
                process.kill()
                process.wait(10)
        finally:
            os.close(pipe)
        stderr.seek(0)
        told = stderr.read().decode(errors="replace")
    if late:
        raise Hung(f"script killed after {timeout:g} s; it said\n{told}")
    if not data or process.returncode != 0:
        raise ChildDied(f"script left with {process.returncode}; it said\n{told}")
    value = _open_answer(data)
    if quiet and told:
        raise ChildDied(f"the script was to be quiet; it said\n{told}")
    return value


def _be_script(pipe: int) -> None:
    _Harness.script = True
    faulthandler.register(DUMP_SIGNAL, sys.stderr, all_threads=True)
    fn, args = pickle.load(sys.stdin.buffer)
    _write(pipe, _answer(fn, args))
    os.close(pipe)


def left_over(patience: float = 2.0) -> list[str]:
    """What a test left behind: children alive, which are killed by pid, or never asked about.

    Orphans of its children, which have become ours, are given ``patience`` seconds to end.
    """
    wrong = []
    for child in list(Child.living.values()):
        if child.alive:
            wrong.append(f"{child} was still alive")
            child.put_down(ask=False)
        else:
            wrong.append(f"nobody has asked for the end of {child}")
            child.close()
    wrong += [f"{process} was still alive" for process in multiprocessing.active_children()]
    deadline = time.monotonic() + patience
    while others := _reaped(_children_here() - _known()):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.005)
    for pid in others:
        wrong.append(f"process {pid} was still alive: {command(pid)}")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return wrong


def _reaped(pids: set[int]) -> set[int]:
    """Those of ``pids`` that are alive."""
    return {pid for pid in pids if _is_alive(pid)}


def _is_alive(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _children_here() -> set[int]:
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children") as file:
                found.update(map(int, file.read().split()))
    except OSError:
        pass
    return found


def _known() -> set[int]:
    from multiprocessing import forkserver

    known = set(expected)
    known.add(getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None) or 0)
    known.add(getattr(forkserver._forkserver, "_forkserver_pid", None) or 0)
    return known


def command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return "(gone)"
