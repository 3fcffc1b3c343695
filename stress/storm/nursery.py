"""The preloading parent: ``python -m stress.storm.nursery <order as JSON>``.

It has made the pool and used it, and forks a worker at each line ``fork <name>`` or ``C <name>``,
whose pid it answers. ``reap <pid> <seconds>`` waits for the end of one, and answers its status.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback

from nimue import NimueConnectionPool
from stress.diary import Diary, now
from stress.storm.forks import c_fork_at_rest, hooked_fork
from stress.storm.order import Order
from stress.storm.worker import Session, be_worker, make_pool


def _fork(order: Order, pool: NimueConnectionPool, kind: str, name: str) -> int:
    pid = c_fork_at_rest(1.0) if kind == "C" else None
    pid = hooked_fork() if pid is None else pid
    if pid:
        return pid
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.close(null)
        Session.diary = Diary(order.folder, name)
        be_worker(order, pool)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _reap(pid: int, bound: float) -> int | None:
    deadline = time.monotonic() + bound
    while True:
        seen, status = os.waitpid(pid, os.WNOHANG)
        if seen:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)


def main(text: str) -> None:
    order = Order.of(text)
    faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
    signal.alarm(int(order.bound))
    pool = make_pool(order, "nursery")
    diary = Session.diary
    _use(pool, diary)
    diary.note_files("up")
    print("ready", flush=True)
    for line in sys.stdin:
        what, *words = line.split()
        if what == "reap":
            print(_reap(int(words[0]), float(words[1])), flush=True)
        elif what == "use":
            _use(pool, diary)
            print("used", flush=True)
        else:
            print(_fork(order, pool, what, words[0]), flush=True)
    pool.close(timeout=5)
    diary.note_files("out")


def _use(pool: NimueConnectionPool, diary: Diary) -> None:
    """What is idle after it, the next fork finds; or whoever waits gets its permit."""
    diary.note("ask", 0, now())
    with pool.connection() as conn:
        diary.note("got", 0, now(), conn.get_backend_pid())
        with conn.cursor() as cursor:
            cursor.execute("select 1")
        diary.note("end", 0, now())


if __name__ == "__main__":
    main(sys.argv[1])
