"""Directories and files: what is not safe or not ours is refused, each with its own error."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from nimue.error import (
    NimueInvalidParameterValue,
    NimueSemaphoreError,
    NimueSemaphoreInUse,
    NimueSemaphoreLimitMismatch,
    NimueSemaphoreLost,
    NimueSemaphoreUnsafe,
    NimueSemaphoreUnsupported,
    NimueSemaphoreUnwritable,
    NimueSemaphoreVersionMismatch,
)
from nimue.semaphore import SharedSemaphore, files, names, shared
from tests.children import Child, forked
from tests.semaphores import Board, hold_until_killed, refusal, take_all, whole


def make(directory, limit=2, **options):
    return SharedSemaphore("s", limit, directory=directory, **options)


def refused(directory, kind, **options):
    """The message, which names the place; in a child, so that this process has opened nothing."""

    def attempt():
        return refusal(lambda: make(directory, **options), kind)

    text = forked(attempt)
    assert str(directory) in text
    assert issubclass(kind, NimueSemaphoreError)
    return text


@pytest.fixture
def used(tmp_path):
    """A semaphore of limit 2 that another process uses."""
    board = Board()

    def use():
        hold_until_killed(make(tmp_path), board)

    with Child(use) as child:
        board.until(0, 1)
        yield child
        child.signal()
        child.wait()


def test_files_and_directory_are_for_this_user_only(tmp_path):
    folder = tmp_path / "new"
    semaphore = make(folder)
    held = take_all(semaphore)
    assert semaphore.take(0.01) is None  # makes a mailbox
    assert os.stat(folder).st_mode & 0o777 == 0o700
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file
    assert sorted(file.name for file in folder.iterdir()) == ["s.init", "s.lock", "s.map", "s.w0"]
    assert os.path.getsize(folder / "s.lock") == 0
    for permit in held:
        permit.give_back()


def test_where_the_directory_is(tmp_path, monkeypatch):
    monkeypatch.setenv("NIMUE_DIR", str(tmp_path / "chosen"))
    assert SharedSemaphore("s", 1).directory == str(tmp_path / "chosen")
    assert SharedSemaphore("s", 1, directory=tmp_path / "b").directory == str(tmp_path / "b")
    assert names() == ["s"] and names(tmp_path / "nowhere") == []
    monkeypatch.delenv("NIMUE_DIR")
    assert files.default_directory() == f"/dev/shm/nimue-{os.geteuid()}"
    monkeypatch.setattr(os.path, "isdir", lambda path: path != "/dev/shm")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert files.default_directory() == str(tmp_path / f"nimue-{os.geteuid()}")


def test_a_change_of_directory_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    semaphore = make("here")
    monkeypatch.chdir("/")
    assert semaphore.directory == str(tmp_path / "here")
    whole(semaphore, 2)


def test_a_directory_that_others_may_write(tmp_path):
    os.chmod(tmp_path, 0o770)
    assert "770" in refused(tmp_path, NimueSemaphoreUnsafe)


def test_a_directory_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    assert "not a directory" in refused(tmp_path / "file", NimueSemaphoreUnsafe)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert "symbolic link" in refused(tmp_path / "link", NimueSemaphoreUnsafe)


def _owned_by(monkeypatch, path, uid):
    """Let that path look as if it were another's, whoever runs the tests."""
    real = {"lstat": os.lstat, "fstat": os.fstat}
    inode = os.lstat(path).st_ino

    def foreign(status):
        if status.st_ino != inode:
            return status
        return os.stat_result((*status[:4], uid, *status[5:]))

    for name, function in real.items():
        monkeypatch.setattr(os, name, lambda at, of=function: foreign(of(at)))


def test_a_directory_or_file_of_another_user(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _owned_by(patch, tmp_path, 12345)
        text = refused(tmp_path, NimueSemaphoreUnsafe)
        assert "user 12345" in text and f"runs as {os.geteuid()}" in text
    (tmp_path / "s.lock").touch(0o600)
    _owned_by(monkeypatch, tmp_path / "s.lock", 12345)
    assert "user 12345" in refused(tmp_path, NimueSemaphoreUnsafe)


@pytest.mark.parametrize("suffix", ["lock", "map"])
def test_files_that_are_not_safe(tmp_path, suffix):
    path = tmp_path / f"s.{suffix}"
    path.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in refused(tmp_path, NimueSemaphoreUnsafe)
    assert not (tmp_path / "elsewhere").exists()
    path.unlink()
    path.touch()
    path.chmod(0o666)
    assert "666" in refused(tmp_path, NimueSemaphoreUnsafe)
    path.unlink()
    os.mkfifo(path)
    assert "not a plain file" in refused(tmp_path, NimueSemaphoreUnsafe)
    path.unlink()
    path.mkdir()
    assert "not a plain file" in refused(tmp_path, NimueSemaphoreUnsafe)


def test_a_network_filesystem(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "filesystem", lambda device: "nfs4")
    assert "nfs4" in refused(tmp_path, NimueSemaphoreUnsafe)


def _mounted(tmp_path, options):
    """Run in a mount namespace of its own: a small or read-only filesystem."""
    folder = tmp_path / "mount"
    folder.mkdir()
    script = (
        "from nimue.semaphore import SharedSemaphore\n"
        f"try: SharedSemaphore('s', 2, directory={str(folder / 'd')!r})\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = f'mount -t tmpfs -o {options} none {folder} && exec {os.sys.executable} -c "$0"'
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command, script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_full_filesystem(tmp_path):
    answer = _mounted(tmp_path, "size=64k,mode=755")
    if answer.returncode:  # no namespaces here; the next test says the same of a failing call
        return
    assert answer.stdout.startswith("NimueSemaphoreUnwritable "), answer.stdout + answer.stderr
    assert "No space left" in answer.stdout and "200 kB" in answer.stdout


def test_a_read_only_filesystem(tmp_path):
    answer = _mounted(tmp_path, "ro")
    if answer.returncode:
        return
    assert answer.stdout.startswith("NimueSemaphoreUnwritable "), answer.stdout + answer.stderr
    assert "Read-only" in answer.stdout


@pytest.mark.parametrize("number", [28, 122, 30])
def test_a_filesystem_that_refuses_room(tmp_path, monkeypatch, number):
    def refuse(fd, offset, length):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert os.strerror(number) in refused(tmp_path, NimueSemaphoreUnwritable)
    monkeypatch.undo()
    whole(make(tmp_path), 2)  # what is left behind is no hindrance


def test_without_fallocate_the_room_is_written(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    semaphore = make(tmp_path)
    assert os.stat(tmp_path / "s.map").st_blocks * 512 >= 118784
    whole(semaphore, 2)


def test_another_limit_in_use(tmp_path, used):
    text = refused(tmp_path, NimueSemaphoreLimitMismatch, limit=5)
    assert "limit 2, not 5" in text and "adopt" in text
    assert issubclass(NimueSemaphoreLimitMismatch, ValueError)
    assert forked(lambda: make(tmp_path, 5, on_mismatch="adopt").limit) == 2
    assert forked(lambda: make(tmp_path, 5, on_mismatch="resize").limit) == 5
    assert forked(lambda: make(tmp_path, 5).limit) == 5


def test_a_refused_process_is_not_attached(tmp_path, used):
    with pytest.raises(NimueSemaphoreLimitMismatch):
        make(tmp_path, 5)
    used.signal()
    used.wait()
    forked(lambda: make(tmp_path, 9).destroy())


def test_another_limit_when_nobody_uses_it(tmp_path):
    forked(lambda: make(tmp_path, 2).acquire() and None, leave=9)
    semaphore = make(tmp_path, 5)
    whole(semaphore, 5)
    with pytest.raises(NimueSemaphoreLimitMismatch):
        make(tmp_path, 6)
    make(tmp_path, 6, on_mismatch="resize")
    whole(semaphore, 6)


@pytest.mark.parametrize(
    ("at", "told"),
    [(0, "begins with"), (8, "version"), (12, "byte order"), (16 + 4, "slots"), (24, "members")],
)
def test_another_version_in_use(tmp_path, used, at, told):
    with open(tmp_path / "s.map", "r+b") as file:
        file.seek(at)
        file.write(struct.pack("=I", 77))
    text = refused(tmp_path, NimueSemaphoreVersionMismatch)
    assert told in text and f"process {used.pid}" in text


def test_another_version_that_nobody_uses_is_made_anew(tmp_path):
    forked(lambda: make(tmp_path).limit)
    with open(tmp_path / "s.map", "r+b") as file:
        file.seek(8)
        file.write(struct.pack("=I", 77))
    with pytest.raises(NimueInvalidParameterValue, match="give a limit"):
        make(tmp_path, None)
    whole(make(tmp_path), 2)


def test_a_map_that_was_removed_or_belongs_to_another_lock_file(tmp_path, used):
    os.rename(tmp_path / "s.map", tmp_path / "kept")
    assert "removed or replaced" in refused(tmp_path, NimueSemaphoreLost)
    os.rename(tmp_path / "kept", tmp_path / "s.map")
    (tmp_path / "s.lock").rename(tmp_path / "old")
    board = Board()

    def use_anew():
        hold_until_killed(make(tmp_path), board)

    # A new lock file with the old map: nobody is known to use it, so it is made anew.
    with Child(use_anew) as child:
        board.until(0, 1)
        child.signal()
        child.wait()


def test_files_removed_under_those_who_use_them(tmp_path):
    semaphore, board = make(tmp_path), Board()
    child = Child(hold_until_killed, semaphore, board)
    board.until(0, 1)
    held = semaphore.acquire()
    for file in tmp_path.iterdir():
        file.unlink()
    text = refusal(semaphore.try_acquire, NimueSemaphoreLost)
    assert str(tmp_path / "s.lock") in text and "removed" in text and "held 1 permits" in text
    held.give_back()
    text = refusal(semaphore.try_acquire, NimueSemaphoreLost)
    assert f"process {child.pid}" in text
    child.signal()
    child.wait()
    # Now nobody is left who could exceed it.
    whole(semaphore, 2)


def test_what_another_thread_has_parted_from_is_not_taken_for_the_new_files(tmp_path, monkeypatch):
    """Which may have the same inode, and the same descriptor: both numbers are free again."""
    one, other = make(tmp_path), make(tmp_path)
    sound = os.fstat(one._core.locks.fd)
    for file in tmp_path.iterdir():
        file.unlink()

    def fstat(number):
        monkeypatch.undo()
        other.acquire().give_back()
        return sound

    monkeypatch.setattr(os, "fstat", fstat)
    one.acquire().give_back()
    whole(one, 2)


def test_a_guard_that_is_never_left(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / "s.init"):

        def attempt():
            with files.guard(str(tmp_path / "s"), 0.05):
                pass

        assert "0.05 s" in refusal(attempt, NimueSemaphoreInUse)


def test_a_lock_file_that_something_else_in_the_process_has_open(tmp_path):
    """As another interpreter of the process would: the kernel would grant both the same."""
    forked(lambda: make(tmp_path).limit)

    def attempt():
        with open(tmp_path / "s.lock"):
            return refusal(lambda: make(tmp_path), NimueSemaphoreUnsafe)

    assert "open in this process already" in forked(attempt)


def test_a_platform_without_record_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "has_record_locks", lambda: False)
    with pytest.raises(NimueSemaphoreUnsupported, match="record locks"):
        make(tmp_path)


def test_many_processes_make_it_at_once(tmp_path):
    board = Board()

    def race(number):
        board[100 + number] = 1
        board.until(0, 1)
        taken = make(tmp_path, 3).try_acquire()
        board[1 + number] = 1 if taken else 2
        board.until(99, 1)
        return taken is not None

    children = [Child(race, number) for number in range(12)]
    for number in range(12):
        board.until(100 + number, 1)
    board[0] = 1
    for number in range(12):
        board.until(1 + number, 1)
    board[99] = 1
    assert sum(child.result() for child in children) == 3


def test_an_interrupted_or_failed_attach_leaves_no_descriptor(tmp_path, monkeypatch):
    def refuse(fd, offset, length):
        raise OSError(28, os.strerror(28))

    before = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(NimueSemaphoreUnwritable):
            make(tmp_path)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_directory_whose_parent_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NimueSemaphoreUnwritable, match="nowhere does not exist"):
        SharedSemaphore("a", 1, directory=tmp_path / "nowhere" / "here")
