"""What has to be measured in a process of its own: ``python -m stress.bench.child <what> ...``.

Each answer is one line of JSON on standard output. Nothing of nimue is imported here unless the
process is asked to measure nimue.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import stat
import struct
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from stress.bench import fake
from stress.bench.contenders import BY_NAME, Nimue

CONNECTIONS = 20
#: Of the standard library, what nimue imports too; the process without nimue has them as well.
STANDARD = ("contextlib", "ctypes", "inspect", "logging", "mmap", "pathlib", "pickle", "traceback")
#: In the child: nanoseconds until fork() returned and for the first use; pages; live sockets.
TOLD = struct.Struct("qqqq")


def forks(mode: str) -> None:
    """Fork as often as each line of standard input says, and answer with microseconds.

    ``plain`` has the sockets and no pool. The others have a pool: ``idle`` uses it before each
    fork and has all its connections idle; ``lent`` does so too, with one more connection out the
    whole time; ``dormant`` used it once, before the first fork.
    """
    for module in STANDARD:
        importlib.import_module(module)
    server = fake.Server(kind=_Recorded)
    use: Callable[[], None] = _nothing
    prepare: Callable[[], None] = _nothing
    if mode == "plain":
        server.stock(CONNECTIONS)
    else:
        size = CONNECTIONS + (mode == "lent")
        pool = Nimue(server, size, size)
        kept = pool.keep_out(1) if mode == "lent" else []
        pool.loop(1)
        use = partial(pool.loop, 1)
        if mode != "dormant":
            prepare = partial(_fill, pool, size - len(kept))

    for line in sys.stdin:
        answers = [_fork(prepare, use) for _ in range(int(line))]
        print(json.dumps(answers), flush=True)


class _Recorded(fake.SocketConnection):
    """Remembers all of its kind, so that a child can look at their sockets."""

    born: ClassVar[list[_Recorded]] = []

    def __init__(self) -> None:
        super().__init__()
        self.born.append(self)


def _nothing() -> None:
    """Where there is no pool, or nothing is to be done about it."""


def _fill(pool: Nimue, idle: int) -> None:
    """Use the pool, so that its thread runs, and wait until all is open and at rest."""
    pool.loop(1)
    end = time.monotonic() + 5
    while pool.pool.poolstats().poolfree < idle:
        if time.monotonic() > end:
            raise TimeoutError(f"no {idle} idle connections: {pool.pool.poolstats()}")
        time.sleep(0.001)
    time.sleep(0.003)


def _fork(prepare: Callable[[], None], use: Callable[[], None]) -> list[float]:
    """What ``TOLD`` says, with the parent's two times in front, in microseconds."""
    prepare()
    _Recorded.born[:] = [raw for raw in _Recorded.born if not raw.closed]
    descriptors = [raw.fileno() for raw in _Recorded.born]
    read, write = os.pipe()
    clock = time.monotonic_ns
    pages = _pages()
    start = clock()
    pid = os.fork()
    forked = clock()
    if pid == 0:
        try:
            pages = _pages()
            live = sum(map(_is_socket, descriptors))
            ready = clock()
            use()
            used = clock() - ready
            os.write(write, TOLD.pack(forked - start, used, pages, live))
        finally:
            os._exit(0)
    pages = _pages() - pages
    in_child, used_in_child, pages_in_child, live = TOLD.unpack(os.read(read, TOLD.size))
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    kept = sum(map(_is_socket, descriptors))
    again = clock()
    if prepare is not _nothing:
        use()
    used_here = clock() - again
    times = [forked - start, in_child, used_here, used_in_child]
    return [*(nanoseconds / 1e3 for nanoseconds in times), pages, pages_in_child, kept, live]


def _pages() -> int:
    """Pages that this process had to copy or map, so far; a child begins at none."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def footprint(name: str, connections: str) -> None:
    """Milliseconds and bytes of the first pool of a process, bytes of the second, and threads."""
    contender = BY_NAME[name]
    contender.missing()
    server = fake.Server()
    size = int(connections)
    server.stock(2 * size)
    gc.collect()
    tracemalloc.start()
    before = _traced()
    start = time.perf_counter()
    pool = contender(server, size, 2 * size)
    taken = time.perf_counter() - start
    threads = _threads() - 1
    pool.loop(1)
    first = _traced()
    threads_used = _threads() - 1
    second = contender(server, size, 2 * size)
    made = _traced()
    second.loop(1)
    used = _traced()
    answer = {
        "ms": taken * 1e3,
        "first": first - before,
        "made": made - first,
        "used": used - first,
        "threads": threads,
        "threads_used": threads_used,
    }
    print(json.dumps(answer), flush=True)
    pool.close()
    second.close()


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _threads() -> int:
    """As the kernel counts them where it tells, so that no thread of C is missed."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


if __name__ == "__main__":
    commands: dict[str, Callable[..., Any]] = {"forks": forks, "footprint": footprint}
    commands[sys.argv[1]](*sys.argv[2:])
