"""Forked processes that do as they are told, and surely end."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

#: Seconds that a child may live, whatever becomes of its parent: the kernel's alarm ends it.
LIFE = 120
#: Seconds that a parent waits for what a child has to say.
ANSWER = 30.0

_NUMBER = struct.Struct("@q")


class Line:
    """One end of what parent and child talk over: whole numbers, one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def tell(self, number: int) -> None:
        self.sock.sendall(_NUMBER.pack(number))

    def hear(self) -> int:
        """The next number.

        Raises:
            EOFError: the other end is gone.
            TimeoutError: it says nothing, and this end has a limit.
        """
        data = b""
        while len(data) < _NUMBER.size:
            more = self.sock.recv(_NUMBER.size - len(data))
            if not more:
                raise EOFError("the other process has ended")
            data += more
        number: int = _NUMBER.unpack(data)[0]
        return number


class Child(Line):
    """A forked process at work, seen from its parent."""

    def __init__(self, work: Callable[[Line], None]) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _run(work, Line(theirs))
        theirs.close()
        ours.settimeout(ANSWER)
        super().__init__(ours)

    def kill(self) -> None:
        """SIGKILL, and no more: it is not waited for."""
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """For one that was killed: nothing of it is left."""
        os.waitpid(self.pid, 0)
        self.sock.close()


def _run(work: Callable[[Line], None], line: Line) -> None:
    """The whole life of a child, which never gets out of here."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIFE)
        work(line)
        status = 0
    except (EOFError, KeyboardInterrupt):
        pass  # the parent is gone, or is interrupted as well
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


class Crew:
    """Children that end together."""

    def __init__(self) -> None:
        self.children: list[Child] = []

    def fork(self, work: Callable[[Line], None]) -> Child:
        child = Child(work)
        self.children.append(child)
        return child

    def end(self) -> None:
        """Killed, and reaped."""
        for child in self.children:
            child.kill()
        while self.children:
            self.children.pop().reap()


@contextmanager
def crew() -> Iterator[Crew]:
    """Whatever happens, its children do not outlive it."""
    made = Crew()
    try:
        yield made
    finally:
        made.end()


def first(children: Sequence[Child]) -> Child:
    """Whoever of them has something to say.

    Raises:
        TimeoutError: nobody has.
    """
    poll = select.poll()
    by_fd = {child.sock.fileno(): child for child in children}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    for fd, _ in poll.poll(ANSWER * 1000):
        return by_fd[fd]
    raise TimeoutError(f"none of {len(children)} processes has said anything for {ANSWER:g} s")


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for a fact.

    Raises:
        TimeoutError: it does not come true.
    """
    end = time.monotonic() + ANSWER
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {ANSWER:g} s: {what}")
        time.sleep(0.002)
