"""Old and new at once, after a crash, side by side; and where the files cannot be used at all."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import signal
import time

import pytest

from nimue import (
    NimueInvalidParameterValue,
    NimuePoolTimeout,
    NimueSemaphoreError,
    SharedSemaphore,
    error,
)
from nimue.semaphore import change, names
from tests.children import Child, forked
from tests.fakes import spawn, until
from tests.forking import ask, end, make_pool, nimue_threads, serves
from tests.semaphores import Board, refusal
from tests.test_semaphore_files import _owned_by
from tests.test_total import held, shared


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def keep_all(pool, board, at, count):
    """For a child: take so many connections, say so, and stay."""
    kept = [pool.getconnection() for _ in range(count)]
    board[at] = 1
    time.sleep(60)
    return kept


class TestRollingDeploy:
    def test_the_last_one_rules_for_all(self, socket_server, caplog):
        """And nobody puts the old limit back: no old worker, nor one forked from its master."""
        board = Board()

        def old_worker(pool):
            handle = pool.getconnection()
            assert ask(handle)
            seen = pool.totalmax
            handle.close()
            pool.close()
            return seen

        def old_master():
            pool = shared(socket_server, totalmax=4)
            out = [pool.getconnection() for _ in range(2)]
            board[0] = 1
            board.until(1, 1)
            until(lambda: pool.totalmax == 2)
            copy = pickle.dumps(pool._state.limit)
            assert pickle.loads(copy).totalmax == 2
            until(lambda: pool.totalstats().excess == 0)
            out.pop().close()
            seen = Child(old_worker, pool, expect_threads=True).result()
            out.pop().close()
            end(pool)
            return seen

        master = Child(old_master, timeout=40)
        board.until(0, 1)
        new = shared(socket_server, totalmax=2)
        assert "was 4; from now on it is 2 for all processes" in caplog.text
        board[1] = 1
        assert master.result() == 2
        assert new.totalmax == 2
        handles = [new.getconnection(timeout=10) for _ in range(2)]
        with pytest.raises(NimuePoolTimeout):
            new.getconnection(timeout=0.1)
        for handle in handles:
            handle.close()
        end(new)

    def test_what_is_above_the_new_limit_comes_back_in_time(self, socket_server):
        board = Board()

        def old():
            pool = shared(socket_server, totalmax=4)
            handles = [pool.getconnection() for _ in range(4)]
            handles.pop().close()
            board[0] = 1
            # The idle one at once, for it is above the limit; then those in use.
            until(lambda: pool.poolstats().poolsize == 3)
            board.until(1, 1)
            for handle in handles:
                assert ask(handle)
                handle.close()
            until(lambda: pool.poolstats().poolsize <= 1)
            return pool.poolstats().shed

        child = Child(old)
        board.until(0, 1)
        new = shared(socket_server, totalmax=1)
        until(lambda: new.totalstats().excess == 2)
        board[1] = 1
        assert serves(new)
        assert child.result() >= 3
        assert new.totalstats().excess == 0
        end(new)

    def test_the_same_limit_again_is_not_worth_a_word(self, server, caplog):
        one, other = shared(server), shared(server)
        assert "from now on" not in caplog.text
        end(one)
        end(other)


class TestCrash:
    def test_everything_can_be_had_after_all_were_killed(self, socket_server, caplog):
        board = Board()

        def worker(place):
            keep_all(shared(socket_server, totalmax=5), board, place, 2)

        children = [Child(worker, place) for place in range(2)]
        for place in range(2):
            board.until(place, 1)
        for child in children:
            child.signal(signal.SIGKILL)
            child.wait()
        pool = shared(socket_server, totalmax=4)
        assert "from now on" not in caplog.text
        handles = [pool.getconnection(timeout=5) for _ in range(4)]
        assert held() == 4
        for handle in handles:
            handle.close()
        end(pool)

    def test_what_they_left_of_unnamed_ones_is_removed(self, socket_server):
        board = Board()

        def worker(place):
            keep_all(make_pool(socket_server, totalmax=3), board, place, 3)

        children = [Child(worker, place) for place in range(2)]
        for place in range(2):
            board.until(place, 1)
        assert len(names()) == 2
        for child in children:
            child.signal(signal.SIGKILL)
            child.wait()
        pool = make_pool(socket_server, totalmax=1)
        assert names() == [pool._state.limit.semaphore.name]
        end(pool)
        until(lambda: names() == [])


class TestSideBySide:
    def test_two_names_in_several_processes(self, socket_server):
        pools = [shared(socket_server, name=name, totalmax=2) for name in ("one", "other")]

        def child(which):
            handles = [pools[which].getconnection(timeout=10) for _ in range(2)]
            with pytest.raises(NimuePoolTimeout):
                pools[which].getconnection(timeout=0.1)
            other = pools[1 - which].getconnection(timeout=10)
            for handle in (*handles, other):
                handle.close()

        for which in range(2):
            forked(child, which)
        for pool in pools:
            assert serves(pool)
            end(pool)

    def test_two_pools_of_one_name_in_several_processes(self, socket_server):
        board = Board()

        def child(place):
            pools = [shared(socket_server, totalmax=3) for _ in range(2)]
            board[place] = 1
            board.until(9, 1)
            done = 0
            for turn in range(20):
                handles = [pools[turn % 2].getconnection(timeout=15)]
                total = pools[0].totalstats()
                assert total.held <= 3 and total.totalmax == 3
                (row,) = [row for row in total.processes if row.pid == os.getpid()]
                assert row.permits >= 1
                done += all(ask(handle) for handle in handles)
                for handle in handles:
                    handle.close()
            for pool in pools:
                end(pool)
            return done

        children = [Child(child, place, timeout=40) for place in range(3)]
        until(lambda: all(board[place] for place in range(3)))
        board[9] = 1
        assert [each.result() for each in children] == [20] * 3
        assert SharedSemaphore("shared").snapshot().holders == ()


class TestFilesThatCannotBeUsed:
    """The constructor says so; nothing was opened, and nothing stays behind."""

    def _refused(self, server, kind, **options):
        def attempt():
            gc.collect()
            change.let_unused_go()
            before = descriptors()
            text = refusal(lambda: shared(server, poolmin=2, **options), kind)
            assert server.count("connect") == 0
            assert descriptors() <= before
            assert not nimue_threads()
            return text

        assert issubclass(kind, NimueSemaphoreError)
        return forked(attempt)

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    def test_a_filesystem_that_is_full_or_read_only(self, server, monkeypatch, number):
        def refuse(*args):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", refuse)
            for name in ("shared", None):
                text = self._refused(server, error.NimueSemaphoreUnwritable, name=name)
                assert os.strerror(number) in text and "$NIMUE_DIR" in text
        pool = shared(server)
        assert serves(pool)
        end(pool)

    def test_a_directory_that_is_not_to_be_written(self, server, monkeypatch):
        real = os.open

        def refuse(path, flags, *rest, **options):
            if flags & os.O_CREAT and str(path).startswith(os.environ["NIMUE_DIR"]):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(path, flags, *rest, **options)

        monkeypatch.setattr(os, "open", refuse)
        text = self._refused(server, error.NimueSemaphoreUnwritable)
        assert os.environ["NIMUE_DIR"] in text

    def test_a_directory_that_cannot_be_made(self, server, monkeypatch, tmp_path):
        monkeypatch.setenv("NIMUE_DIR", str(tmp_path / "no" / "where"))
        assert "does not exist" in self._refused(server, error.NimueSemaphoreUnwritable)

    def test_the_name_is_another_users(self, server, monkeypatch):
        folder = os.environ["NIMUE_DIR"]
        path = os.path.join(folder, "shared.lock")
        with open(path, "w"):
            os.chmod(path, 0o600)
        with monkeypatch.context() as patch:
            if os.geteuid() == 0:
                os.chown(path, 12345, -1)
            else:
                _owned_by(patch, path, 12345)
            text = self._refused(server, error.NimueSemaphoreUnsafe)
        assert "user 12345" in text and path in text

    def test_the_directory_is_another_users(self, server, monkeypatch):
        _owned_by(monkeypatch, os.environ["NIMUE_DIR"], 12345)
        assert "user 12345" in self._refused(server, error.NimueSemaphoreUnsafe)

    @pytest.mark.parametrize("name", ["a/b", ".hidden", "two words", "x" * 65, "ä", "a\n"])
    def test_names_that_a_file_cannot_have(self, server, name):
        with pytest.raises(NimueInvalidParameterValue, match="name"):
            shared(server, name=name, poolmin=1)
        assert server.opened == 0
        pool = make_pool(server, name=name)
        assert pool.name == name
        end(pool)

    @pytest.mark.parametrize("totalmax", [0, -1, 1025, "3", 2.5, True])
    def test_limits_that_are_none(self, server, totalmax):
        with pytest.raises(NimueInvalidParameterValue, match="totalmax"):
            shared(server, totalmax=totalmax, poolmin=1)
        assert server.opened == 0 and names() == []


class TestRemovedWhileInUse:
    def _remove(self):
        os.unlink(os.path.join(os.environ["NIMUE_DIR"], "shared.lock"))

    def test_who_waits_hears_of_it(self, socket_server):
        pool, board = shared(socket_server), Board()
        child = Child(keep_all, pool, board, 0, 3)
        board.until(0, 1)
        asking = [spawn(pool.getconnection, timeout=60) for _ in range(3)]
        until(lambda: len(SharedSemaphore("shared").snapshot().waiters) == 1)
        self._remove()
        for each in asking:
            with pytest.raises(error.NimueSemaphoreLost) as told:
                each.result()
            assert "shared.lock" in str(told.value) and "removed" in str(told.value)
        with pytest.raises(error.NimueSemaphoreLost, match=f"process {child.pid}"):
            pool.getconnection()
        child.signal(signal.SIGKILL)
        child.wait()
        # Nobody is left whom a new one would not know.
        assert serves(pool)
        end(pool)

    def test_what_is_held_stays(self, socket_server):
        pool = shared(socket_server, totalmax=2)
        handles = [pool.getconnection() for _ in range(2)]
        asking = spawn(pool.getconnection, timeout=60)
        until(lambda: SharedSemaphore("shared").snapshot().waiters)
        self._remove()
        until(lambda: isinstance(pool._state.backoff.last_error, error.NimueSemaphoreLost))
        with pytest.raises(NimuePoolTimeout) as told:
            pool.getconnection(timeout=0.1)
        assert isinstance(told.value.__cause__, error.NimueSemaphoreLost)
        assert all(ask(handle) for handle in handles)
        handles.pop().close()
        served = asking.result()
        assert ask(served)
        served.close()
        assert serves(pool)
        handles.pop().close()
        end(pool)
        assert serves_anew(socket_server)

    def test_by_the_directory_as_a_whole(self, socket_server, tmp_path):
        pool = shared(socket_server, totalmax=1)
        handle = pool.getconnection()
        asking = spawn(pool.getconnection, timeout=60)
        until(lambda: SharedSemaphore("shared").snapshot().waiters)
        os.rename(os.environ["NIMUE_DIR"], tmp_path / "elsewhere")
        assert ask(handle)
        handle.close()
        asking.result().close()
        end(pool)


def test_what_was_decided_is_done_though_the_files_go_then(server, monkeypatch):
    """Else what is to be closed would be in nobody's hands."""
    pool = shared(server)
    limit = pool._state.limit
    assert serves(pool)

    def lost(*args):
        raise error.NimueSemaphoreLost("just now")

    monkeypatch.setattr(type(limit), "publish", lost)
    limit._publish_at = 0.0
    limit._family.renew()
    pool._state.wake()
    until(lambda: pool.poolstats().closed == 1)
    assert serves(pool)
    end(pool)


def serves_anew(server):
    pool = shared(server, totalmax=2)
    served = serves(pool)
    end(pool)
    return served
