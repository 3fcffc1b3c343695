"""One worker of a storm: ``python -m stress.storm.worker <order as JSON> <name>``.

It takes, asks, holds and gives back in all its threads until it is told to leave, by a byte in a
file that all share; or until it is killed. It ends by itself at a bound, and shows where it stood.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import random
import signal
import sys
import threading
import time
from typing import Any

import psycopg2
import psycopg2.extensions

from nimue import NimueConnectionPool
from stress.diary import Diary, now
from stress.storm.forks import Fork, WrongAnswer, choose, told
from stress.storm.order import PATIENCE, Order

ASK = "select %s, pg_backend_pid(), current_setting('nimue.word', true)"


class Session(psycopg2.extensions.connection):  # type: ignore[misc]
    """One that writes down that it is there: from after it is open until before it is closed.

    Now and then its ``close()`` takes long: as long, its permit has to stay taken.
    """

    order: Order
    #: That of the running process.
    diary: Diary
    dice = random.Random()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.owner = os.getpid()
        self.diary.note("open", now(), self.get_backend_pid())

    def close(self) -> None:
        if not self.closed and self.owner == os.getpid():
            if self.dice.random() < self.order.slow / 100:
                time.sleep(self.order.goodbye)
            self.diary.note("bye", now(), self.get_backend_pid())
        super().close()


def make_pool(order: Order, name: str) -> NimueConnectionPool:
    """That of this process, whose diary has this name."""
    Session.order, Session.diary = order, Diary(order.folder, name)
    connect = {**order.connect, "connection_factory": Session}
    return NimueConnectionPool(psycopg2.connect, connkwargs=connect, timeout=PATIENCE, **order.pool)


class Board:
    """One byte that all processes see: whether it is over."""

    def __init__(self, folder: str) -> None:
        fd = os.open(os.path.join(folder, "..", "over"), os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(fd, 1)
        finally:
            os.close(fd)

    @property
    def is_over(self) -> bool:
        return bool(self._memory[0])


class Worker:
    """The threads of one process, over its pool."""

    def __init__(self, order: Order, pool: NimueConnectionPool) -> None:
        self.order, self.pool, self.diary = order, pool, Session.diary
        self.board = Board(order.folder)
        #: Shut for a C fork, which wants all other threads at rest.
        self._gate, self._forking = threading.Event(), threading.Lock()
        self._gate.set()
        self.diary.note_files("up")

    def run(self) -> None:
        """Work until it is over, close the pool, and write down what is left."""
        threads = [
            threading.Thread(target=self._work, args=(n,), daemon=True)
            for n in range(self.order.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.pool.close(timeout=PATIENCE)
        settled = time.monotonic() + 2
        while len(threading.enumerate()) > 1 and time.monotonic() < settled:
            time.sleep(0.005)
        self.diary.note_files("out")

    def _work(self, thread: int) -> None:
        dice = random.Random(f"{self.order.seed} {self.diary.name} {thread}")
        while not self.board.is_over:
            self._gate.wait()
            try:
                self._request(self.diary, thread, dice, True)
            except Exception as error:
                self.diary.note("err", thread, told(error))
                return

    def _request(self, diary: Diary, thread: int, dice: random.Random, may_fork: bool) -> None:
        diary.note("ask", thread, now())
        conn = self.pool.getconnection()
        backend: int = conn.get_backend_pid()
        diary.note("got", thread, now(), backend)
        try:
            with_transaction = dice.random() < 0.4
            _talk(conn, f"{diary.name} {thread} {now()}", backend, with_transaction)
            if may_fork:
                self._may_fork(conn, dice)
            time.sleep(dice.random() * self.order.hold)
            if with_transaction and dice.random() < 0.5:
                conn.commit()
        finally:
            diary.note("end", thread, now())
            conn.close()

    def _may_fork(self, conn: Any, dice: random.Random) -> None:
        chance = dice.random() * 100
        if chance < self.order.forks + self.order.c_forks:
            kind = "C" if chance < self.order.c_forks else "hooked"
            fork = Fork(self.diary, self.order.folder, kind, choose(dice), self._use_in_child)
            if kind == "hooked":
                fork.run(conn)
            elif self._forking.acquire(blocking=False):
                self._gate.clear()
                fork.run(conn)
                self._gate.set()
                self._forking.release()

    def _use_in_child(self, diary: Diary, deed: str) -> None:
        """A child's own: some requests; if it is to die, it leaves the last for that to end."""
        Session.diary = diary
        dice = random.Random(diary.name)
        for _ in range(dice.randint(1, 4)):
            self._request(diary, 0, dice, False)
        if deed == "die":
            diary.note("ask", 0, now())
            conn = self.pool.getconnection()
            diary.note("got", 0, now(), conn.get_backend_pid())
            time.sleep(dice.random() * self.order.hold)
            diary.note("end", 0, now())
            _immortal.append(conn)
        elif deed == "stay":
            self.pool.close(timeout=PATIENCE)


#: What a child that dies in a hold has.
_immortal: list[Any] = []


def _talk(conn: Any, word: str, backend: int, with_transaction: bool) -> None:
    """Ask, and compare what comes; ``with_transaction``, leave something behind in it."""
    with conn.cursor() as cursor:
        cursor.execute(ASK, (word,))
        answer = cursor.fetchall()
        if [tuple(row[:2]) for row in answer] != [(word, backend)]:
            raise WrongAnswer(f"asked {word!r} of session {backend}, got {answer!r}")
        if answer[0][2]:
            raise WrongAnswer(f"session {backend} is in a transaction of {answer[0][2]!r}")
        if with_transaction:
            cursor.execute("select set_config('nimue.word', %s, true)", (word,))
            cursor.execute("select current_setting('nimue.word')")
            if (answer := cursor.fetchall()) != [(word,)]:
                raise WrongAnswer(f"left {word!r} in session {backend}, found {answer!r}")
            return
    conn.rollback()


def be_worker(order: Order, pool: NimueConnectionPool) -> None:
    """In a fresh interpreter, or in a fork of a process that has made the pool."""
    faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
    signal.alarm(int(order.bound))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    Worker(order, pool).run()


def main(text: str, name: str) -> None:
    order = Order.of(text)
    be_worker(order, make_pool(order, name))


if __name__ == "__main__":
    main(*sys.argv[1:])
