"""A TCP proxy on the loopback, to cut, stall, slow and refuse: ``with Proxy(port) as proxy``.

``proxy.port`` is where to connect; ``proxy.mode`` can be set at any time, and holds when the
assignment returns:

- ``"pass"``: bytes go through.
- ``"stalled"``: nothing is accepted and nothing moves, as if the host slept. The system still
  completes the handshake, so that clients wait for an answer. What waits goes on after ``"pass"``.
- ``"held"``: connections are accepted, and what they say waits; but where a side closes, both are
  closed at once, and what waited is lost. So a server keeps no session of a client that gave up.
- ``"slow"``: whatever is read takes 5 to 30 ms more, and overtakes nothing.
- ``"swallow"``: connections are accepted, bytes go nowhere. Those that lost some stay so for ever.
- ``"refuse"``: new connections are refused; those there are go on.
- ``"cut"``: those there are, and each new one, are reset.

``proxy.cut()`` resets those there are and keeps the mode. ``proxy.connections`` is their number,
``proxy.silenced`` that of those that have lost bytes, ``proxy.accepted`` how many there ever were.

The proxy is a process of its own: forked children of who made it inherit none of its sockets,
and who made it gets no thread by it. It ends with ``close()``, or with its parent.
"""

from __future__ import annotations

import collections
import itertools
import selectors
import socket
import struct
import subprocess
import sys
import time
from typing import Any

MODES = ("pass", "stalled", "held", "slow", "swallow", "refuse", "cut")
HOST = "127.0.0.1"
LIMIT = 10.0
#: Bytes that may wait for a socket before no more is read; more where a close is to be seen.
ROOM, HELD_ROOM = 1 << 18, 1 << 24
#: By how many milliseconds the slow are late, one after the other.
LAGS = (5, 30, 12, 22, 8, 17, 26)


class Proxy:
    """A handle on the proxy's process.

    Args:
        upstream: the port of the server.
        noted: the id of its process is put there while it lives.
    """

    def __init__(self, upstream: int, noted: set[int] | None = None) -> None:
        self._noted: set[int] = set() if noted is None else noted
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(LIMIT)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(theirs.fileno()), str(upstream)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._noted.add(self._process.pid)
        self._mode = "pass"
        try:
            self.port = int(self._ask("port"))
        except BaseException:
            self.close()
            raise

    def _ask(self, what: str) -> str:
        self._ours.sendall(what.encode() + b"\n")
        answer = self._ours.recv(100).decode().strip()
        if not answer:
            raise RuntimeError("the proxy has gone")
        return answer

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"no such mode: {mode!r}; there are {', '.join(MODES)}")
        self._ask(mode)
        self._mode = mode

    def cut(self) -> None:
        """Reset the connections there are."""
        self._ask("reset")

    @property
    def connections(self) -> int:
        return int(self._ask("connections"))

    @property
    def accepted(self) -> int:
        return int(self._ask("accepted"))

    @property
    def silenced(self) -> int:
        return int(self._ask("silenced"))

    def close(self) -> None:
        self._ours.close()
        try:
            self._process.kill()
            self._process.wait(LIMIT)
        finally:
            self._noted.discard(self._process.pid)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _End:
    """One socket of a pair, and what waits to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.other: _End = self
        self.due = bytearray()
        self.late: collections.deque[tuple[float, bytes]] = collections.deque()  # goes to due, when
        self.finished = False  # has sent its last byte
        self.told = False  # that the other has finished
        self.lost = False  # a byte of its pair went nowhere

    def put(self, data: bytes, lag: float) -> None:
        """It is due in so many seconds, and not before what came before."""
        if lag or self.late:
            due = time.monotonic() + lag
            self.late.append((max(due, self.late[-1][0]) if self.late else due, data))
        else:
            self.due += data

    def ripen(self, now: float) -> None:
        while self.late and self.late[0][0] <= now:
            self.due += self.late.popleft()[1]

    @property
    def waiting(self) -> int:
        return len(self.due) + sum(len(data) for _, data in self.late)


class _Loop:
    """One thread, one selector: all that the proxy's process does."""

    def __init__(self, control: socket.socket, upstream: int) -> None:
        self.control = control
        self.upstream = upstream
        self.mode = "pass"
        self.accepted = 0
        self.ends: list[_End] = []
        self.lags = itertools.cycle(LAGS)
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ, None)
        self.listener = self._bound(0)
        self.port = self.listener.getsockname()[1]
        self.listener.listen(256)

    def _bound(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.setblocking(False)
        return listener

    def run(self) -> None:
        while True:
            self._watch()
            for key, events in self.selector.select(self._patience()):
                if key.fileobj is self.control:
                    if not self._obey():
                        return
                    break  # what was selected may be gone
                if key.fileobj is self.listener:
                    self._accept()
                    break
                if key.data in self.ends:
                    self._serve(key.data, events)

    def _patience(self) -> float | None:
        """Seconds until the next of the late are due."""
        times = [end.late[0][0] for end in self.ends if end.late]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _watch(self) -> None:
        """Tell the selector what the mode and the waiting bytes call for."""
        now = time.monotonic()
        room = HELD_ROOM if self.mode == "held" else ROOM
        accepting = self.mode not in ("stalled", "refuse")
        self._want(self.listener, selectors.EVENT_READ if accepting else 0, None)
        for end in self.ends:
            end.ripen(now)
            events = 0
            if self.mode != "stalled":
                if not end.finished and end.other.waiting < room:
                    events |= selectors.EVENT_READ
                if end.due and self.mode != "held":
                    events |= selectors.EVENT_WRITE
            self._want(end.sock, events, end)

    def _want(self, sock: socket.socket, events: int, data: Any) -> None:
        key = self.selector.get_map().get(sock)
        if key is None and events:
            self.selector.register(sock, events, data)
        elif key is not None and not events:
            self.selector.unregister(sock)
        elif key is not None and key.events != events:
            self.selector.modify(sock, events, data)

    def _obey(self) -> bool:
        order = self.control.recv(100).decode().strip()
        if order in MODES:
            self._switch(order)
        elif order == "reset":
            self._reset()
        told = {
            "port": self.port,
            "connections": len(self.ends) // 2,
            "accepted": self.accepted,
            "silenced": sum(end.lost for end in self.ends) // 2,
        }
        if order:
            self.control.sendall(f"{told.get(order, 'ok')}\n".encode())
        return bool(order)

    def _switch(self, mode: str) -> None:
        if mode == "refuse" and self.mode != "refuse":
            # Bound but deaf: connections are refused, and nobody else can take the port.
            self._want(self.listener, 0, None)
            self.listener.close()
            self.listener = self._bound(self.port)
        elif mode != "refuse" and self.mode == "refuse":
            self.listener.listen(256)
        self.mode = mode
        if mode == "cut":
            self._reset()
        elif mode == "held":
            for end in [one for one in self.ends if one.finished]:
                self._drop(end)

    def _accept(self) -> None:
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        self.accepted += 1
        if self.mode == "cut":
            _reset(client)
            return
        near, far = _End(client), None
        try:
            far = _End(socket.create_connection((HOST, self.upstream), 2))
        except OSError:
            _reset(client)
            return
        near.other, far.other = far, near
        self.ends += [near, far]

    def _serve(self, end: _End, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                sent = end.sock.send(end.due)
                del end.due[:sent]
            if events & selectors.EVENT_READ:
                self._read(end)
        except BlockingIOError:
            return
        except OSError:
            self._drop(end, reset=True)
            return
        if end.finished and self.mode == "held":
            self._drop(end)
        self._pass_end(end)
        self._pass_end(end.other)

    def _read(self, end: _End) -> None:
        data = end.sock.recv(1 << 16)
        end.finished = not data
        if self.mode == "swallow":
            end.lost = end.other.lost = True
        if not end.lost:
            end.other.put(data, next(self.lags) / 1000 if self.mode == "slow" else 0.0)

    def _pass_end(self, end: _End) -> None:
        """The end of what the other side says, once all before it has been written."""
        if end not in self.ends:
            return
        if end.finished and end.other.finished and not (end.waiting or end.other.waiting):
            self._drop(end)
        elif end.other.finished and not (end.waiting or end.lost or end.told):
            end.told = True  # a second time is an error, and what waits for the other would be lost
            try:
                end.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._drop(end, reset=True)

    def _drop(self, end: _End, *, reset: bool = False) -> None:
        for one in (end, end.other):
            if one in self.ends:
                self.ends.remove(one)
                self._want(one.sock, 0, one)
                if reset:
                    _reset(one.sock)
                else:
                    one.sock.close()

    def _reset(self) -> None:
        while self.ends:
            self._drop(self.ends[0], reset=True)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


if __name__ == "__main__":
    _Loop(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])).run()
