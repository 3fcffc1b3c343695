"""Processes that are not related by fork: by name, and by pickle."""

from __future__ import annotations

import pickle

import pytest

from nimue.semaphore import SharedSemaphore
from tests.children import in_process, in_script
from tests.semaphores import give_all, take_all, whole


def _how_many(semaphore):
    return len(take_all(semaphore)), semaphore.limit, semaphore.name


def _how_many_by_name(name, directory):
    return len(take_all(SharedSemaphore(name, 3, directory=directory)))


def _drop_it(semaphore):
    semaphore.try_acquire().give_back()


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("name", ["s", None])
def test_what_is_sent_by_pickle_is_the_same_semaphore(tmp_path, method, name):
    semaphore = SharedSemaphore(name, 3, directory=tmp_path)
    held = semaphore.acquire()
    assert in_process(method, _how_many, semaphore) == (2, 3, semaphore.name)
    held.give_back()
    whole(semaphore, 3)
    semaphore.close()


def test_by_name_in_a_process_of_no_relation(tmp_path):
    semaphore = SharedSemaphore("s", 3, directory=tmp_path)
    held = semaphore.acquire()
    assert in_script(_how_many_by_name, "s", str(tmp_path)) == 2
    held.give_back()
    whole(semaphore, 3)


def test_a_copy_takes_the_limit_that_is_in_force(tmp_path):
    semaphore = SharedSemaphore("s", 3, directory=tmp_path)
    data = pickle.dumps(semaphore)
    semaphore.resize(5)
    copy = pickle.loads(data)
    assert copy.limit == 5
    assert copy._core is semaphore._core
    give_all(taken := take_all(copy))
    assert len(taken) == 5


def test_unpickling_opens_nothing_and_cannot_fail(tmp_path):
    semaphore = SharedSemaphore("s", 3, directory=tmp_path)
    data = pickle.dumps(semaphore)
    semaphore.destroy()
    copy = pickle.loads(data)
    assert not (tmp_path / "s.lock").exists()
    assert repr(copy) == "<SharedSemaphore 's', limit 3>"
    again = pickle.loads(pickle.dumps(copy))
    assert not copy.others_waiting()
    whole(again, 3)


def test_a_private_one_outlives_the_process_it_was_sent_to(tmp_path):
    semaphore = SharedSemaphore(None, 2, directory=tmp_path)
    in_script(_drop_it, semaphore)
    whole(semaphore, 2)
    semaphore.close()
    # Sent when nobody uses it any more, it is made there, and goes with that process.
    in_script(_drop_it, semaphore)
    assert not list(tmp_path.glob("*.lock"))
