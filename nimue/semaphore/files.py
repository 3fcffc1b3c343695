"""Where the files of a semaphore are, and how they are opened: only what is this user's alone.

    <directory>/<name>.lock   only ever locked            <name>.map   the shared memory
                <name>.w<k>   mailbox of member k         <name>.p<k>  the same, for pokes
                <name>.init   guards attach, resize and destroy

None of them is unlinked while anybody is attached: who opens the name afterwards would be in
another semaphore than those who opened it before.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from nimue.error import (
    NimueInvalidParameterValue,
    NimueSemaphoreInUse,
    NimueSemaphoreUnsafe,
    NimueSemaphoreUnwritable,
)
from nimue.process import filesystem

#: The names of those without a name begin so.
PRIVATE = "private-"

#: The longest wait for the guard, in seconds. Whoever holds it needs milliseconds.
PATIENCE = 10.0

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", re.ASCII)
_FILES = re.compile(r"(.+)\.(lock|map|init|[wp][0-9]{1,3})", re.ASCII)

#: Filesystems on which locks are slow, lost or not shared, and memory is not shared at all.
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs"} | {
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
}

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


class OpenFile(NamedTuple):
    """A descriptor and what it stood for when it was opened.

    A process that becomes a daemon closes all descriptors, ours too, and the numbers are then
    others' files. So each is looked at before it is read, written or closed.
    """

    fd: int
    device: int
    inode: int

    def is_same(self) -> bool:
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)

    def close(self) -> None:
        if self.is_same():
            os.close(self.fd)


def hold(fd: int) -> OpenFile:
    status = os.fstat(fd)
    return OpenFile(fd, status.st_dev, status.st_ino)


def check_name(name: str) -> str:
    """The name, if it can be one.

    Raises:
        NimueInvalidParameterValue: it cannot.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise NimueInvalidParameterValue(
            f"name {name!r} is not allowed: 1 to 64 of A-Z a-z 0-9 _ . -, no dot at the beginning"
        )
    return name


def make_name() -> str:
    return PRIVATE + os.urandom(8).hex()


def default_directory() -> str:
    """``$NIMUE_DIR``, or a directory of this user's in memory, or where temporary files are."""
    chosen = os.environ.get("NIMUE_DIR")
    if chosen:
        return chosen
    base = "/dev/shm"
    if not os.path.isdir(base) or not os.access(base, os.W_OK | os.X_OK):
        import tempfile

        base = tempfile.gettempdir()
    return os.path.join(base, f"nimue-{os.geteuid()}")


def open_directory(directory: str | os.PathLike[str] | None) -> str:
    """The absolute path of the directory, which is made if there is none.

    Raises:
        NimueSemaphoreUnsafe: it is not a directory of this user's alone, or not on this host.
        NimueSemaphoreUnwritable: it cannot be made.
    """
    path = os.path.abspath(os.fspath(directory or default_directory()))
    with _explained(f"directory {path}"):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            raise NimueSemaphoreUnwritable(
                f"directory {path} cannot be made: {os.path.dirname(path)} does not exist"
            ) from error
        status = os.lstat(path)
    _check_directory(path, status)
    return path


def find_directory(directory: str | os.PathLike[str] | None) -> tuple[str, bool]:
    """The absolute path of the directory, and whether there is one; it is not made.

    Raises:
        NimueSemaphoreUnsafe: as for ``open_directory``.
    """
    path = os.path.abspath(os.fspath(directory or default_directory()))
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path, False
    _check_directory(path, status)
    return path, True


def _check_directory(path: str, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise NimueSemaphoreUnsafe(f"{path} is not a directory (a symbolic link is not followed)")
    _check_owner(f"directory {path}", status)
    kind = filesystem(status.st_dev)
    if kind in _REMOTE:
        raise NimueSemaphoreUnsafe(
            f"directory {path} is on a network filesystem ({kind}): a semaphore needs one of this "
            "host's own; choose it by directory= or $NIMUE_DIR"
        )


def _check_owner(what: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise NimueSemaphoreUnsafe(
            f"{what} belongs to user {status.st_uid}, but this process runs as {os.geteuid()}: "
            "only the same user can share a semaphore"
        )
    if status.st_mode & 0o022:
        raise NimueSemaphoreUnsafe(
            f"{what} has mode {status.st_mode & 0o7777:o}: others than its owner may write it; "
            "allowed is at most 755, and 700 is best"
        )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the system that a user can do something about, told so."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NimueSemaphoreUnsafe(f"{what}: a symbolic link is not followed") from error
        if error.errno in _REFUSALS:
            raise NimueSemaphoreUnwritable(
                f"{what} cannot be made or written ({error.strerror}): a semaphore needs a "
                "directory with 200 kB free that this user may write; choose it by directory= or "
                "$NIMUE_DIR"
            ) from error
        raise


def open_file(path: str, create: bool = True) -> OpenFile:
    """Open a plain file of this user's alone.

    Raises:
        FileNotFoundError: there is none, and none was to be made.
        NimueSemaphoreUnsafe: it is of another kind, or others may write it.
        NimueSemaphoreUnwritable: it cannot be made.
    """
    return _open(path, os.O_RDWR | (os.O_CREAT if create else 0), stat.S_ISREG, "a plain file")


def open_to_read(path: str) -> OpenFile:
    """Open a plain file of this user's alone, to change nothing; errors as for ``open_file``.

    Raises:
        NimueSemaphoreUnsafe: also where it must not be read.
    """
    try:
        return _open(path, os.O_RDONLY, stat.S_ISREG, "a plain file")
    except NimueSemaphoreUnwritable as error:
        raise NimueSemaphoreUnsafe(f"{path} cannot be read: {error.__cause__}") from error


def open_pipe(path: str, flags: int) -> OpenFile:
    """Open a named pipe of this user's alone; errors as for ``open_file``."""
    return _open(path, flags, stat.S_ISFIFO, "a named pipe")


def _open(path: str, flags: int, is_right: Callable[[int], bool], kind: str) -> OpenFile:
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with _explained(path):
        try:
            fd = os.open(path, flags, 0o600)
        except IsADirectoryError as error:
            raise NimueSemaphoreUnsafe(f"{path} is not {kind}") from error
    try:
        status = os.fstat(fd)
        if not is_right(status.st_mode):
            raise NimueSemaphoreUnsafe(f"{path} is not {kind}")
        _check_owner(path, status)
    except BaseException:
        os.close(fd)
        raise
    return OpenFile(fd, status.st_dev, status.st_ino)


def make_pipe(path: str) -> None:
    with _explained(path):
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            pass


def allocate(path: str, fd: int, size: int) -> None:
    """Give the file its size now: a full filesystem is an error here, not SIGBUS later.

    Raises:
        NimueSemaphoreUnwritable: there is no room.
    """
    with _explained(path):
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
            return
        at = os.fstat(fd).st_size
        while at < size:
            at += os.pwrite(fd, bytes(size - at), at)


@contextmanager
def guard(base: str, patience: float = PATIENCE) -> Iterator[None]:
    """Be the only one who attaches to, resizes or destroys the semaphore at ``base``.

    Those without a name share one guard, so that none is left behind by each.

    Raises:
        NimueSemaphoreInUse: somebody else has been at it all the time.
    """
    from filelock import FileLock, Timeout

    directory, name = os.path.split(base)
    path = os.path.join(directory, PRIVATE[:-1] if name.startswith(PRIVATE) else name) + ".init"
    lock = FileLock(path, timeout=patience, mode=0o600, poll_interval=0.005)
    with _explained(path):
        try:
            lock.acquire()
        except Timeout as error:
            raise NimueSemaphoreInUse(
                f"{path} has been locked for {patience:g} s by a process that attaches to, resizes "
                "or destroys the semaphore"
            ) from error
    try:
        yield
    finally:
        lock.release()


def files_of(base: str) -> list[str]:
    """The files of the semaphore at ``base``, the lock file last; without its guard."""
    directory, name = os.path.split(base)
    found = [
        file
        for file in os.listdir(directory)
        if (match := _FILES.fullmatch(file)) and match[1] == name and match[2] != "init"
    ]
    return [os.path.join(directory, file) for file in sorted(found, key=_lock_last)]


def _lock_last(file: str) -> bool:
    return file.endswith(".lock")


def names(directory: str | os.PathLike[str] | None = None) -> list[str]:
    """The names of all semaphores in a directory, which need not exist; used or not."""
    try:
        found = os.listdir(directory or default_directory())
    except FileNotFoundError:
        return []
    return sorted(
        match[1] for file in found if (match := _FILES.fullmatch(file)) and match[2] == "lock"
    )
