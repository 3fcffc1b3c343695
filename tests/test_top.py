"""nimue top: what it shows is true, whatever the processes shown are at; nobody notices it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from nimue.cli import main, top_columns, top_gather, top_screen
from nimue.error import NimueSemaphoreUnsafe
from nimue.semaphore import Figures, SharedSemaphore, observe
from nimue.semaphore.files import guard
from nimue.semaphore.layout import EDIT, SIZE
from tests.children import ROOT, Child, forked
from tests.fakes import until
from tests.semaphores import (
    Board,
    hold_until_killed,
    take_and_tell,
    whole,
)

psutil = pytest.importorskip("psutil")
rich = pytest.importorskip("rich")

PATIENCE = 30.0
#: Less than anybody waits for the guard of a semaphore.
AT_ONCE = 8.0

PICTURE = {"directory", "semaphores"}
SEMAPHORE = {"name", "error", "used", "limit", "held", "excess", "connecting", "generation"} | {
    "reclaimed",
    "processes",
}
PROCESS = {"pid", "elsewhere", "namespace", "state", "command", "permits", "held_seconds"} | {
    "waiting_threads",
    "waiting_seconds",
    "tcp_sockets",
    "unix_sockets",
    "pool",
}
POOL = {"in_use", "idle", "connecting", "waiting", "opened", "failed", "timeouts", "closed"} | {
    "waited_seconds",
    "longest_seconds",
    "poolmin",
    "poolmax",
    "shed",
    "refused",
    "generation",
    "told_seconds",
}


def environment(**more):
    unwanted = ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "PYTHONWARNINGS", "NIMUE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    path = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return {**env, "PYTHONPATH": path, "TERM": "xterm", **more}


def top(*arguments, timeout=PATIENCE, **more):
    """The command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "nimue", "top", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=timeout,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def picture(directory, *arguments, timeout=PATIENCE):
    done = top("--json", "--directory", directory, *arguments, timeout=timeout)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def seen(directory, name="s", timeout=PATIENCE):
    (semaphore,) = picture(directory, name, timeout=timeout)["semaphores"]
    return semaphore


def process(directory, pid):
    (found,) = (one for one in seen(directory)["processes"] if one["pid"] == pid)
    return found


def text(directory, *arguments):
    done = top("--once", "--directory", directory, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def line(directory, pid):
    (found,) = re.findall(rf"^ *{pid} .*$", text(directory), re.M)
    return found


def made(directory, name="s", limit=3):
    """A semaphore that nobody is attached to."""
    SharedSemaphore(name, limit, directory=directory).close()


def holding(directory, board, at=0, count=1):
    hold_until_killed(SharedSemaphore("s", directory=directory), board, at, count)


def kill(child):
    child.signal(signal.SIGKILL)
    child.wait()


# -- what it shows


@pytest.mark.parametrize("how", ["--once", "--json", None])
def test_with_nothing_to_show_it_says_where_it_looked(tmp_path, how):
    for directory in (tmp_path / "absent", tmp_path):
        done = top(*filter(None, [how]), "--directory", directory)
        assert (done.returncode, done.stderr) == (0, "")
        assert str(directory) in done.stdout
    assert not (tmp_path / "absent").exists() and os.listdir(tmp_path) == []
    assert str(tmp_path / "chosen") in top("--once", NIMUE_DIR=str(tmp_path / "chosen")).stdout
    assert os.listdir(tmp_path) == []


def test_a_holder(tmp_path):
    made(tmp_path)
    unused = seen(tmp_path)
    assert (unused["used"], unused["limit"], unused["held"]) == (False, 3, 0)
    assert "unused" in text(tmp_path)
    board = Board()
    child = Child(holding, tmp_path, board, 0, 2)
    board.until(0, 1)
    found = seen(tmp_path)
    assert found["used"] and found["held"] == 2
    (one,) = found["processes"]
    assert (one["pid"], one["permits"], one["state"]) == (child.pid, 2, "alive")
    assert 0 < one["held_seconds"] < PATIENCE
    assert one["waiting_threads"] == 0 and one["waiting_seconds"] is None
    assert one["pool"] is None and not one["elsewhere"]
    assert one["tcp_sockets"] == one["unix_sockets"] == 0
    with open(f"/proc/{child.pid}/cmdline") as file:
        assert one["command"].split() == file.read().replace("\0", " ").split()
    shown = text(tmp_path)
    assert "2 of 3 permits held" in shown and "unused" not in shown
    assert re.search(rf"^ *{child.pid} +2 .* s ", line(tmp_path, child.pid))
    assert "in use" not in shown and "permit wait" not in shown
    kill(child)


def test_who_waits_and_for_how_long(tmp_path):
    semaphore, board = SharedSemaphore("s", 1, directory=tmp_path), Board()
    permit = semaphore.acquire()

    def wait_twice():
        threads = [
            threading.Thread(target=take_and_tell, args=(semaphore, board, at)) for at in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    child = Child(wait_twice)
    until(lambda: [one.threads for one in semaphore.snapshot().waiters] == [2])
    first = process(tmp_path, child.pid)
    assert (first["permits"], first["held_seconds"]) == (0, None)
    assert first["waiting_threads"] == 2 and first["pool"] is None
    assert 0 < first["waiting_seconds"] < process(tmp_path, child.pid)["waiting_seconds"]
    assert process(tmp_path, os.getpid())["permits"] == 1
    assert re.search(r" 0 +0 +2, \d", line(tmp_path, child.pid))
    permit.give_back()
    child.result()
    assert child.pid not in [one["pid"] for one in seen(tmp_path)["processes"]]


def test_what_the_pools_tell(tmp_path):
    semaphore = SharedSemaphore("s", 5, directory=tmp_path)
    now = time.monotonic_ns()
    figures = Figures(
        *range(11, 20),
        longest_since_ns=now - 2 * 10**9,
        poolmin=21,
        poolmax=22,
        shed=23,
        refused=24,
        generation=25,
        told_ns=now,
    )
    semaphore.family.publish(figures)
    one = process(tmp_path, os.getpid())
    pool = one["pool"]
    assert one["permits"] == 0
    for name in POOL - {"waited_seconds", "longest_seconds", "told_seconds"}:
        assert pool[name] == getattr(figures, name), name
    assert pool["waited_seconds"] == 19e-9
    assert 0 < pool["told_seconds"] < PATIENCE
    assert pool["longest_seconds"] == pytest.approx(pool["told_seconds"] + 2, abs=0.1)
    numbers = [str(number) for number in (11, 12, 13, 14, 15, 16, 17)]
    shown = line(tmp_path, os.getpid())
    assert numbers == shown.split()[3:10] or numbers == shown.split()[2:9], shown
    assert re.search(r" \d[.\d]* s +23 +24 ", shown)


def test_the_semaphore_itself(tmp_path):
    semaphore = SharedSemaphore("s", 4, directory=tmp_path)
    held = [semaphore.acquire() for _ in range(4)]
    turn = semaphore.family.try_connecting(2)
    semaphore.family.renew()
    semaphore.resize(1)
    found = seen(tmp_path)
    told = [found[name] for name in ("limit", "held", "excess", "connecting", "generation")]
    assert told == [1, 4, 3, 1, 1]
    shown = text(tmp_path)
    assert "4 of 1 permits held, 3 above the lowered limit, 1 connecting, generation 1" in shown
    for permit in (*held, turn):
        permit.give_back()
    found = seen(tmp_path)
    assert [found[name] for name in ("held", "excess", "connecting")] == [0, 0, 0]


def test_a_dead_holder_is_shown_until_its_permits_are_taken(tmp_path):
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()
    child = Child(hold_until_killed, semaphore, board, 0, 2)
    board.until(0, 1)
    kill(child)
    found = seen(tmp_path)
    assert (found["held"], found["reclaimed"]) == (0, 0)
    (one,) = found["processes"]
    assert (one["pid"], one["state"], one["permits"]) == (child.pid, "dead", 2)
    assert one["command"] == "" and one["tcp_sockets"] is None
    assert "dead" in line(tmp_path, child.pid)
    whole(semaphore, 2)
    found = seen(tmp_path)
    assert (found["held"], found["reclaimed"], found["processes"]) == (0, 2, [])
    assert "2 reclaimed from the dead" in text(tmp_path)


def _with_sockets(directory, port, path, board):
    held = SharedSemaphore("s", directory=directory).acquire()
    server = socket.create_server(("127.0.0.1", 0))
    board[1] = server.getsockname()[1]
    ours, _ = server.accept()
    kept = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    unix = socket.socket(socket.AF_UNIX)
    unix.connect(path)
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    lonely = socket.socket()
    board[0] = 1
    time.sleep(60)
    print(held, ours, kept, unix, datagram, lonely)


def test_permits_beside_the_sockets_it_really_has(tmp_path):
    """Those that it opened and that are connected; not one that came to its own port."""
    made(tmp_path)
    board, path = Board(), f"{tmp_path}/socket"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as local,
        contextlib.ExitStack() as stack,
    ):
        local.bind(path)
        local.listen()
        child = Child(_with_sockets, tmp_path, server.getsockname()[1], path, board)
        until(lambda: board[1])
        stack.enter_context(socket.create_connection(("127.0.0.1", board[1])))
        peers = [stack.enter_context(server.accept()[0]) for _ in range(3)]
        board.until(0, 1)
        one = process(tmp_path, child.pid)
        # Nor one that listens, as those inherited from here, nor one without a peer.
        assert [one[name] for name in ("permits", "tcp_sockets", "unix_sockets")] == [1, 3, 1]
        # The server closes one: it is not established any more.
        peers[0].close()
        until(lambda: process(tmp_path, child.pid)["tcp_sockets"] == 2)
        kill(child)


def _in_another_namespace(directory, board, at, namespace):
    semaphore = SharedSemaphore("s", directory=directory)
    presence = semaphore._here()
    who = presence.slots._who._replace(pid=1, namespace=namespace)
    presence.slots._who = presence.members._who = who
    semaphore.family.publish(Figures(in_use=at))
    hold_until_killed(semaphore, board, at, at)


def test_processes_of_another_namespace_are_marked_and_kept_apart(tmp_path):
    """Two containers have a process 1 each, and so has this host: it is none of them."""
    made(tmp_path)
    board = Board()
    children = [Child(_in_another_namespace, tmp_path, board, at, 70 + at) for at in (1, 2)]
    for at in (1, 2):
        board.until(at, 1)
    found = seen(tmp_path)["processes"]
    told = [(one["pid"], one["namespace"], one["permits"], one["elsewhere"]) for one in found]
    assert told == [(1, 71, 1, True), (1, 72, 2, True)]
    assert [one["pool"]["in_use"] for one in found] == [1, 2]
    for one in found:
        assert (one["command"], one["tcp_sockets"], one["state"]) == ("", None, "alive")
    assert len(re.findall(r"^ +1 elsewhere ", text(tmp_path), re.M)) == 2
    for child in children:
        kill(child)


# -- whatever the others are at


def test_those_that_are_stopped_do_not_hold_it_up(tmp_path):
    """Not even in the middle of attaching, resizing or giving back."""
    made(tmp_path)
    board = Board()

    def stop():
        semaphore = SharedSemaphore("s", directory=tmp_path)
        held = semaphore.acquire()
        presence = semaphore._here()
        with guard(f"{tmp_path}/s"), presence.lock:
            assert semaphore._core.locks.take(EDIT)
            board[0] = 1
            os.kill(os.getpid(), signal.SIGSTOP)
        held.give_back()

    child = Child(stop)
    board.until(0, 1)
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
    (one,) = seen(tmp_path, timeout=AT_ONCE)["processes"]
    assert (one["pid"], one["state"], one["permits"]) == (child.pid, "stopped", 1)
    assert f"{child.pid} stopped" in line(tmp_path, child.pid)
    kill(child)


def test_one_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    for name in ("a", "foreign", "short", "mapless", "unpaired", "zeros", "z"):
        made(tmp_path, name)
    for name, at in (("foreign", 8), ("unpaired", 32)):
        with open(tmp_path / f"{name}.map", "r+b") as file:
            file.seek(at)
            file.write(struct.pack("@I", 77))
    os.truncate(tmp_path / "short.map", SIZE - 8)
    (tmp_path / "zeros.map").write_bytes(bytes(SIZE))
    (tmp_path / "empty.lock").touch(0o600)
    (tmp_path / "empty.map").touch(0o600)
    (tmp_path / "mapless.map").unlink()
    (tmp_path / "link.lock").symlink_to(tmp_path / "a.lock")
    os.mkfifo(tmp_path / "pipe.lock", 0o600)
    (tmp_path / "\x1b[31m.lock").touch(0o600)
    before = sorted(os.listdir(tmp_path))
    found = {one["name"]: one for one in picture(tmp_path)["semaphores"]}
    errors = {name: one["error"] for name, one in found.items()}
    assert errors.pop("a") is errors.pop("z") is None
    assert found["a"]["limit"] == found["z"]["limit"] == 3
    assert "version 0x4d, not 0x1" in errors["foreign"] and found["foreign"]["limit"] is None
    for name, reason in {
        "short": "cut short",
        "unpaired": "does not belong",
        "empty": "too short",
        "zeros": "never finished",
        "mapless": "mapless.map is missing",
        "link": "symbolic link",
        "pipe": "not a plain file",
        "\x1b[31m": "not allowed",
    }.items():
        assert reason in errors[name], errors
    shown = text(tmp_path)
    assert "\x1b" not in shown
    for name in ("foreign", "short", "mapless", "a", "z"):
        assert len(re.findall(rf"^{name}  .+$", shown, re.M)) == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_a_name_that_there_is_not(tmp_path):
    for name in ("b", "a"):
        made(tmp_path, name)
    for how in ((), ("--once",), ("--json",)):
        done = top("c", *how, "--directory", tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "'c'" in done.stderr and f"{tmp_path}; there are: a, b" in done.stderr
    done = top("../c", "--directory", tmp_path / "absent")
    assert done.returncode == 2 and "none at all" in done.stderr
    assert [one["name"] for one in picture(tmp_path)["semaphores"]] == ["a", "b"]
    assert [one["name"] for one in picture(tmp_path, "b")["semaphores"]] == ["b"]
    assert re.findall(r"^(\w)  0 of 3", text(tmp_path, "b"), re.M) == ["b"]


def test_a_directory_that_others_may_write_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    done = top("--once", "--directory", tmp_path / "open")
    assert done.returncode == 2 and "mode 777" in done.stderr and done.stdout == ""


# -- for programs


def test_the_keys_are_as_documented(tmp_path):
    semaphore, board = SharedSemaphore("s", 3, directory=tmp_path), Board()
    semaphore.family.publish(Figures(in_use=1))
    child = Child(hold_until_killed, semaphore, board)
    board.until(0, 1)
    (tmp_path / "bad.lock").touch(0o600)
    whole_picture = picture(tmp_path)
    assert whole_picture.keys() == PICTURE
    assert whole_picture["directory"] == str(tmp_path)
    bad, good = whole_picture["semaphores"]
    assert bad.keys() == good.keys() == SEMAPHORE
    for one in good["processes"]:
        assert one.keys() == PROCESS
        assert one["pool"] is None or one["pool"].keys() == POOL
    assert sorted(one["pool"] is None for one in good["processes"]) == [False, True]
    readme = (ROOT / "README.md").read_text()
    for key in SEMAPHORE | PROCESS | POOL | PICTURE:
        assert f"`{key}`" in readme, key
    kill(child)


@pytest.mark.parametrize("name", ["rich", "psutil"])
def test_what_is_not_installed_is_named_with_the_command(tmp_path, name):
    made(tmp_path)
    program = (
        f"import sys; sys.modules[{name!r}] = None\n"
        f"from nimue.cli import main; sys.exit(main(['top', *sys.argv[1:]]))"
    )
    for how in ("--once", "--json"):
        done = subprocess.run(
            [sys.executable, "-c", program, how, "--directory", tmp_path],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=PATIENCE,
            check=False,
        )
        if (name, how) == ("rich", "--json"):
            assert done.returncode == 0 and json.loads(done.stdout)["semaphores"]
        else:
            assert done.returncode == 2 and done.stdout == ""
            assert f"not installed: {name}." in done.stderr
            assert "pip install 'nimue[demo]'" in done.stderr


def test_the_help_explains_each_column(capsys):
    with pytest.raises(SystemExit) as end:
        main(["top", "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for column in top_columns.COLUMNS:
        assert re.search(rf"^  {column.heading}  ", said, re.M)
    assert max(map(len, said.splitlines())) <= 80


# -- nobody notices


def contents(directory):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}


def test_it_leaves_no_trace(tmp_path):
    made(tmp_path)
    (tmp_path / "s.init").unlink()
    before = contents(tmp_path)
    assert seen(tmp_path)["limit"] == 3 and text(tmp_path)
    assert contents(tmp_path) == before
    semaphore = SharedSemaphore("s", directory=tmp_path)
    assert seen(tmp_path)["used"]
    assert semaphore.family.rows() == []
    whole(semaphore, 3)
    semaphore.destroy()


def test_looking_where_one_is_attached_oneself_frees_nothing(tmp_path):
    semaphore, board = SharedSemaphore("s", 2, directory=tmp_path), Board()
    permit = semaphore.acquire()
    child = Child(hold_until_killed, semaphore, board)
    board.until(0, 1)
    assert main(["top", "--json", "--directory", str(tmp_path)]) == 0
    found = observe("s", tmp_path)
    assert found.snapshot.held == 2 and found.is_used
    assert forked(lambda: observe("s", tmp_path).snapshot.held) == 2
    assert forked(lambda: SharedSemaphore("s", directory=tmp_path).try_acquire()) is None
    kill(child)
    permit.give_back()
    assert observe("absent", tmp_path) is None
    whole(semaphore, 2)


def test_a_lock_file_that_is_open_by_other_means_is_left_alone(tmp_path):
    """To close it once more would free what is held through the other."""
    forked(made, tmp_path, "s", 1)

    def look():
        with open(tmp_path / "s.lock", "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 1024)
            with pytest.raises(NimueSemaphoreUnsafe, match="by other means"):
                observe("s", tmp_path)
            return forked(refused, file)

    def refused(file):
        file.close()
        return SharedSemaphore("s", directory=tmp_path).try_acquire() is None

    assert forked(look)


def test_nothing_stays_open(tmp_path):
    forked(made, tmp_path)

    def look():
        def held():
            with open("/proc/self/maps") as maps:
                return len(os.listdir("/proc/self/fd")), maps.read().count(f"{tmp_path}/s.map")

        observe("s", tmp_path)
        before = held()
        for _ in range(20):
            observe("s", tmp_path)
        return before, held()

    before, after = forked(look)
    assert before == after and after[1] == 0


def test_a_semaphore_that_comes_and_goes_is_there_or_not(tmp_path):
    """Never an error: files in the making, or being removed, are not yet or no longer one."""

    def make_and_destroy():
        for _ in range(60):
            SharedSemaphore("s", 2, directory=tmp_path).destroy()

    child = Child(make_and_destroy)
    found = []
    while not select.select([child._pipe], [], [], 0)[0]:
        now = top_gather.look(str(tmp_path), None)
        found += [one.error for one in now.semaphores]
    child.result()
    assert not list(filter(None, found))


# -- the live view


BOOT = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "nimue", "top", *sys.argv[1:]])
"""


class Terminal:
    """A live view in a terminal of its own; ``said``: all that it wrote."""

    def __init__(self, *arguments, rows=40, columns=150):
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(),
        )
        os.close(slave)
        self._pieces = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # the other side has gone
            while piece := os.read(self.master, 65536):
                self._pieces.append(piece)

    @property
    def said(self):
        return b"".join(self._pieces).decode(errors="replace")

    def last(self):
        """The picture that was drawn last, without colours; it may be but half drawn."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.said.rpartition("Semaphores in ")[2])

    def until(self, pattern):
        until(lambda: re.search(pattern, self.last()), PATIENCE, lambda: self.said)

    def type(self, text):
        os.write(self.master, text)

    def end(self):
        status = self.process.wait(PATIENCE)
        self._reader.join()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        os.close(self.master)


def assert_restored(said):
    """The cursor is there again, and what was on the screen before."""
    assert said.rindex("\x1b[?1049h") < said.rindex("\x1b[?1049l")
    assert said.rindex("\x1b[?25l") < said.rindex("\x1b[?25h")
    assert "Traceback" not in said


def test_the_live_view_follows_and_ends_on_ctrl_c(tmp_path):
    semaphore, board = SharedSemaphore("s", 3, directory=tmp_path), Board()
    with Terminal("--directory", tmp_path) as live:
        live.until("0 of 3 permits held")
        child = Child(hold_until_killed, semaphore, board, expect_threads=True)
        live.until(rf"1 of 3 permits held[^~]*{child.pid} +1 ")
        child.signal(signal.SIGSTOP)
        live.until(rf"{child.pid} +stopped")
        kill(child)
        live.until(rf"{child.pid} +dead")
        live.type(b"\x03")
        assert live.end() == 0
        assert_restored(live.said)
    whole(semaphore, 3)


def test_the_live_view_is_in_nobodys_way(tmp_path):
    """It does not keep a semaphore from its end, nor from another limit."""
    made(tmp_path)
    with Terminal("s", "--directory", tmp_path) as live:
        live.until("0 of 3 permits held")
        semaphore = SharedSemaphore("s", 5, directory=tmp_path)
        live.until("0 of 5 permits held")
        semaphore.destroy()
        until(lambda: live.said.rpartition("No semaphores in ")[0], PATIENCE)
        made(tmp_path)
        until(lambda: "0 of 3" in live.said.rpartition("No semaphores in ")[2], PATIENCE)
        live.process.terminate()
        assert live.end() == 128 + signal.SIGTERM
        assert_restored(live.said)


def test_what_does_not_fit_is_left_out_and_said(tmp_path):
    for number in range(30):
        made(tmp_path, f"s{number:02}")
    with Terminal("--directory", tmp_path, rows=20, columns=100) as live:
        live.until(r"s00  0 of 3[^~]*\.\.\. \d+ more lines")
        assert "s29" not in live.said
        live.type(b"\x03")
        assert live.end() == 0


# -- drawing


def drawn(semaphore, width):
    from rich.console import Console

    out = io.StringIO()
    screen = Console(file=out, width=width, highlight=False)
    screen.print(top_screen.render(top_gather.Picture("/d", (semaphore,)), width))
    return out.getvalue()


POOL_FACTS = top_gather.Pool(*range(10, 18), 1.0, 12345.0, 18, 19, 20, 21, 22, 0.1)
FACTS = top_gather.Process(
    123456, False, 1, "stopped", "a \x1b[2J\nb " + "c" * 90, 7, 61.0, 2, 5.0, 8, 9, POOL_FACTS
)


def test_no_number_is_cut():
    semaphore = top_gather.Semaphore("s", None, True, 9, 7, 0, 0, 0, 0, (FACTS,))
    widest = drawn(semaphore, 500)
    cells = [column.cell(FACTS) for column in top_columns.COLUMNS]
    for width in (40, 80, 100, 120, 160):
        shown = drawn(semaphore, width)
        assert max(map(len, shown.splitlines())) <= width
        (row,) = re.findall(r"^ *123456 .*$", shown, re.M)
        absent = re.findall(r"no room for: ([^)]*)", " ".join(shown.split()))
        headings = absent[0].split(", ") if absent else []
        for column, cell in zip(top_columns.COLUMNS, cells, strict=True):
            if column is not top_columns.COMMAND:
                assert (f" {cell} " in f"{row} ") == (column.heading not in headings), row
    assert "no room" not in widest and "\x1b" not in widest
    assert "a [2J b ccc" in widest


def test_columns_with_nothing_to_tell_are_left_out():
    idle = dataclasses.replace(POOL_FACTS, failed=0, longest_seconds=None)
    process = dataclasses.replace(FACTS, pool=idle, state="alive", unix_sockets=0)
    shown = drawn(top_gather.Semaphore("s", None, True, 9, 7, 0, 0, 0, 0, (process,)), 500)
    for heading in ("failed", "longest", "unix", "state"):
        assert heading not in shown
    unknown = dataclasses.replace(process, tcp_sockets=None, pool=None)
    shown = drawn(top_gather.Semaphore("s", None, True, 9, 7, 0, 0, 0, 0, (unknown,)), 500)
    assert " ? " in shown and "idle" not in shown


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (150, "2 min"), (7200, "2 h")],
)
def test_durations(seconds, told):
    assert top_columns.duration(seconds) == told
