"""A TCP proxy on the loopback, to cut, stall and refuse: ``with Proxy(port) as proxy``.

``proxy.port`` is where to connect; ``proxy.mode`` can be set at any time, and holds when the
assignment returns:

- ``"pass"``: bytes go through.
- ``"stalled"``: nothing is accepted and nothing moves, as if the host slept. The system still
  completes the handshake, so that clients wait for an answer. What waits goes on after ``"pass"``.
- ``"swallow"``: connections are accepted, bytes go nowhere. Those that lost some stay so for ever.
- ``"refuse"``: new connections are refused; those there are go on.
- ``"cut"``: those there are, and each new one, are reset.

``proxy.cut()`` resets those there are and keeps the mode. ``proxy.connections`` is their number,
``proxy.accepted`` how many there ever were.

The proxy is a process of its own: forked children of who made it inherit none of its sockets,
and who made it gets no thread by it. It ends with ``close()``, or with its parent.
"""

from __future__ import annotations

import selectors
import socket
import struct
import subprocess
import sys
from typing import Any

MODES = ("pass", "stalled", "swallow", "refuse", "cut")
HOST = "127.0.0.1"
LIMIT = 10.0


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
        self.finished = False  # has sent its last byte
        self.lost = False  # a byte of its pair went nowhere


class _Loop:
    """One thread, one selector: all that the proxy's process does."""

    def __init__(self, control: socket.socket, upstream: int) -> None:
        self.control = control
        self.upstream = upstream
        self.mode = "pass"
        self.accepted = 0
        self.ends: list[_End] = []
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
            for key, events in self.selector.select():
                if key.fileobj is self.control:
                    if not self._obey():
                        return
                    break  # what was selected may be gone
                if key.fileobj is self.listener:
                    self._accept()
                    break
                if key.data in self.ends:
                    self._serve(key.data, events)

    def _watch(self) -> None:
        """Tell the selector what the mode and the waiting bytes call for."""
        accepting = self.mode in ("pass", "swallow", "cut")
        self._want(self.listener, selectors.EVENT_READ if accepting else 0, None)
        for end in self.ends:
            events = 0
            if self.mode != "stalled":
                if not end.finished and len(end.other.due) < 1 << 18:
                    events |= selectors.EVENT_READ
                if end.due:
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
        self._pass_end(end)
        self._pass_end(end.other)

    def _read(self, end: _End) -> None:
        data = end.sock.recv(1 << 16)
        end.finished = not data
        if self.mode == "swallow":
            end.lost = end.other.lost = True
        if not end.lost:
            end.other.due += data

    def _pass_end(self, end: _End) -> None:
        """The end of what the other side says, once all before it has been written."""
        if end not in self.ends:
            return
        if end.finished and end.other.finished and not (end.due or end.other.due):
            self._drop(end)
        elif end.other.finished and not end.due and not end.lost:
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
