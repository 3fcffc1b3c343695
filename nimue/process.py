"""Processes and descriptors: every branch on the platform is in here."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

#: Of ``madvise``; Linux 4.14 and later. The module ``mmap`` has no name for it.
_MADV_WIPEONFORK = 18


class Door(Protocol):
    """``door[0]`` is true while nothing has to be looked at on the way in."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


class _PidDoor:
    """A door for platforms without pages that a fork wipes: it asks for the process each time."""

    def __init__(self) -> None:
        self._open_in = 0

    def __getitem__(self, index: int, /) -> int:
        return self._open_in == os.getpid()

    def __setitem__(self, index: int, value: int, /) -> None:
        self._open_in = os.getpid() if value else 0


def make_door() -> Door:
    """A byte that reads 0 in every child, whoever forked it, C code without hooks included.

    On Linux a page under ``MADV_WIPEONFORK`` (madvise(2)), which costs a tenth of ``getpid``.
    """
    if sys.platform == "linux":
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            page.madvise(_MADV_WIPEONFORK)
        except OSError:
            page.close()
        else:
            return page
    return _PidDoor()


class Socket(NamedTuple):
    """A descriptor and what it stood for when it was recorded; the number alone is reused."""

    fd: int
    device: int
    inode: int


#: Where there is none: no descriptor has this number.
NO_SOCKET = Socket(2**31 - 1, 0, 0)


def identify(fd: int | None) -> Socket | None:
    """Record what ``fd`` stands for; None if that is not an open socket."""
    if fd is None or fd < 0:
        return None
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return Socket(fd, status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def sever(numbers: Sequence[int], severed: bytearray, void: int) -> None:
    """Cut this process off from sockets without a byte on the wire; others keep them.

    ``numbers`` are those of each ``Socket``, one after the other; ``severed`` becomes 1 for each
    that was cut off, and stays as it is where the number of the descriptor stands for another file
    now. One loop, without a call to anything of ours: in a child each costs copied pages.

    The descriptor becomes ``void``, which must be the null device opened for reading: every
    write fails with EBADF and every read is an end of file. A dead socket there instead would
    answer a write with SIGPIPE.
    """
    for place in range(len(severed)):
        fd, device, inode = numbers[3 * place : 3 * place + 3]
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        if status.st_dev == device and status.st_ino == inode:
            os.dup2(void, fd, False)
            severed[place] = 1


def open_void() -> int:
    """The descriptor that severed ones become."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def be_ready_to_fork() -> None:
    """Before there is anything to keep: the import lock of a C fork's child may be held for ever.

    That is what :func:`immortalise` would wait for there. Nobody else pays for ``ctypes``.
    """
    import ctypes  # noqa: F401


def immortalise(thing: object) -> None:
    """Keep ``thing`` from ever being finalised, at the interpreter's end included.

    A reference in a module's global would not do: the interpreter clears those, and an inherited
    connection of mysqlclient says goodbye on its parent's socket when it is deallocated.
    """
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def open_sockets() -> set[Socket]:
    """All connected sockets of this process; empty where the platform does not list them."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return set()
    return {found for found in (identify(int(name)) for name in names) if found is not None}


def forked_here(thread: int) -> bool:
    """True if the running thread is the one that forked this process, and was ``thread`` before.

    On Linux the first thread of a process has the process's number. Elsewhere it cannot be known
    without a fork hook, and the answer is no.
    """
    return (
        sys.platform == "linux"
        and threading.get_native_id() == os.getpid()
        and threading.get_ident() == thread
    )


def is_main_thread() -> bool:
    """Whether this is the one thread whose number no other thread of the process can have had."""
    return threading.current_thread() is threading.main_thread()


def is_gone(thread: threading.Thread) -> bool:
    """Whether ``thread`` has ended, for the kernel too.

    ``join`` returns a moment before that, and Python 3.12 and later count the kernel's threads at
    a fork.
    """
    return (
        thread.ident is not None
        and not thread.is_alive()
        and not os.path.exists(f"/proc/self/task/{thread.native_id}")
    )


#: Those that were started here and that nobody has joined. Beyond so many they are looked at.
_started: set[threading.Thread] = set()
_CROWD = 16


def start(thread: threading.Thread) -> None:
    """Start ``thread``, and hold it until it has been joined.

    Since Python 3.13 a thread object that goes unjoined detaches its thread. In a child that C
    code forked nobody has told it that the thread is not there: the stack, which the C library
    took back at the fork, is freed a second time, and the child dies of the next.
    """
    be_ready_to_fork()
    if len(_started) > _CROWD:
        for former in filter(is_gone, list(_started)):
            former.join()
            _started.discard(former)
    _started.add(thread)
    try:
        thread.start()
    except BaseException:
        if thread.ident is None:
            _started.discard(thread)
        raise


def leave_behind_threads() -> None:
    """In a child: never free those of the parent."""
    global _started
    if _started:
        immortalise(_started)
        _started = set()


def still_here(threads: Iterable[threading.Thread]) -> list[threading.Thread]:
    """Those of ``threads`` that are not gone; started or not."""
    threads = list(threads)
    if len(threads) < 2:
        return [thread for thread in threads if not is_gone(thread)]
    try:
        tasks = set(os.listdir("/proc/self/task"))
    except OSError:
        tasks = set()
    return [
        thread
        for thread in threads
        if thread.ident is None or thread.is_alive() or str(thread.native_id) in tasks
    ]


def forget_gone(threads: set[threading.Thread]) -> None:
    """Keep those that are not gone, while others add more."""
    known = set(threads)
    threads -= known.difference(still_here(known))


def is_deserted() -> bool:
    """Whether daemon threads are all that is left of this process.

    At the end of the main thread the interpreter ends them. But it knows no such end in a child
    that another thread has forked: when what that thread was to run is over, only the thread ends.
    """
    return not threading.main_thread().is_alive() and all(
        thread.daemon or not thread.is_alive() for thread in threading.enumerate()
    )


def await_end(threads: Iterable[threading.Thread], deadline: float) -> None:
    """Wait until these threads are gone, or until ``deadline``."""
    for thread in still_here(threads):
        if thread is threading.current_thread() or thread.ident is None:
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
        while not is_gone(thread) and time.monotonic() < deadline:
            time.sleep(0)


class Pipe:
    """A bell that can be polled for. Any number of rings before it is heard are one."""

    def __init__(self) -> None:
        self.fd, self._other = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._other, False)
        self._inode = os.fstat(self.fd).st_ino

    @property
    def is_open(self) -> bool:
        """Whether the descriptors are still this pipe's: a process may close all that it has."""
        try:
            return {os.fstat(fd).st_ino for fd in (self.fd, self._other)} == {self._inode}
        except OSError:
            return False

    def write(self) -> None:
        if self.is_open:  # else whoever polls looks for another
            try:
                os.write(self._other, b"!")
            except BlockingIOError:  # full: it will be heard
                pass

    def drain(self) -> None:
        if self.is_open:
            try:
                while len(os.read(self.fd, 4096)) == 4096:
                    pass
            except BlockingIOError:
                pass

    def close(self) -> None:
        if self.is_open:
            os.close(self.fd)
            os.close(self._other)


def uwsgi() -> Any | None:
    """The module that exists only inside a uWSGI server; None elsewhere."""
    if "uwsgi" in sys.modules:
        return sys.modules["uwsgi"]
    try:
        import uwsgi
    except ImportError:
        return None
    return uwsgi


def is_uwsgi_master() -> bool:
    """Whether this is no worker of uWSGI's yet: it forks as soon as the application is there."""
    server = sys.modules.get("uwsgi")  # if there is one, it has been imported for its hook
    return getattr(server, "worker_id", lambda: 1)() == 0


class Identity(NamedTuple):
    """What tells a process from all others of this host. Zeros where the platform cannot tell."""

    pid: int
    started: int
    namespace: int


def identify_process() -> Identity:
    """Who the running process is: its number, when it started, in which space of numbers."""
    started = namespace = 0
    try:
        with open("/proc/self/stat", "rb") as file:
            started = int(file.read().rpartition(b")")[2].split()[19])
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        pass
    return Identity(os.getpid(), started, namespace)


def command_line(pid: int) -> str:
    """The command of a process; empty if it is gone, or the platform does not tell."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def filesystem(device: int) -> str:
    """The kind of filesystem on a device; empty where the platform does not tell."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                here, _, there = line.partition(" - ")
                if here.split()[2] == number:
                    return there.split()[0]
    except OSError:
        pass
    return ""


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when process ``pid`` ends; None if there is none."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


#: ``struct flock`` of fcntl(2) by platform: its format, and the places of kind, start, length and
#: pid among its five fields; ``l_whence`` is the fifth.
_FLOCKS = {"linux": ("hhqqi4x", 0, 2, 3, 4), "darwin": ("qqihh", 3, 0, 1, 2)}
_FLOCK = _FLOCKS.get(sys.platform) if sys.maxsize > 2**32 else None


def has_record_locks() -> bool:
    """Whether record locks (fcntl(2)) and named pipes are here, in a form that is known."""
    return _FLOCK is not None and hasattr(os, "mkfifo")


def pack_flock(kind: int, byte: int) -> bytes:
    """The ``struct flock`` for one byte of a file."""
    assert _FLOCK is not None
    form, at_kind, at_start, at_length, _ = _FLOCK
    fields = [0] * 5
    fields[at_kind], fields[at_start], fields[at_length] = kind, byte, 1
    return struct.pack(form, *fields)


def read_flock(answer: bytes) -> tuple[int, int]:
    """Kind and pid out of a ``struct flock``."""
    assert _FLOCK is not None
    fields = struct.unpack(_FLOCK[0], answer)
    return fields[_FLOCK[1]], fields[_FLOCK[4]]
