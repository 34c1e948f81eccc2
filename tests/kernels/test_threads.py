"""Who works on what: ranges for threads, and torch's own threads kept away meanwhile."""

import threading
import time

import numpy as np
import pytest
import torch

from sksae.kernels import _threads, own_threads
from sksae.kernels._threads import split, split_all


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_torch_has_one_thread_within_and_as_many_as_before_after(two_threads):
    with own_threads():
        assert torch.get_num_threads() == 1
        with own_threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), own_threads():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_other_threads_keep_theirs(two_threads):
    seen = []
    with own_threads():
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert seen == [2]


@pytest.mark.parametrize("within", [False, True])
def test_ranges_are_shared_by_all_threads_and_torch_has_one_in_each(two_threads, within):
    both, seen = threading.Barrier(2, timeout=30), []

    def work(start, stop):
        both.wait()  # which one thread alone would not get past
        seen.append((start, stop, torch.get_num_threads()))

    if within:
        with own_threads():
            split(work, 10)
    else:
        split(work, 10)
    assert sorted(seen) == [(0, 5, 1), (5, 10, 1)]
    assert torch.get_num_threads() == 2


def test_products_in_ranges_are_those_of_the_whole(two_threads):
    x, w = torch.randn(33, 40), torch.randn(70, 40)
    out = torch.empty(33, 70)
    split(lambda i, j: torch.mm(x[i:j], w.T, out=out[i:j]), len(x), 3)
    torch.testing.assert_close(out, x @ w.T)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 100])
def test_ranges_cover_everything_once(n_threads, n, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    seen = np.zeros(n, dtype=int)

    def work(start, stop):
        seen[start:stop] += 1

    split(work, n, 3)
    assert (seen == 1).all()


def test_an_error_in_a_thread_arrives(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def work(start, stop):
        if start:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        split(work, 10)


def test_an_interrupt_waits_for_the_other_threads(two_threads):
    """What is written to must not be written to any more when the caller goes on."""
    both, ended = threading.Barrier(2, timeout=30), []

    def work(start, stop):
        both.wait()
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.1)
        ended.append(start)

    with pytest.raises(KeyboardInterrupt):
        split(work, 2)
    assert len(ended) == 1
    ranges = []
    split(lambda start, stop: ranges.append((start, stop)), 2)
    assert sorted(ranges) == [(0, 1), (1, 2)]


def test_several_jobs_are_shared_as_one(two_threads):
    first, second = np.zeros(7, dtype=int), np.zeros(30, dtype=int)

    def counting(array):
        def work(start, stop):
            array[start:stop] += 1

        return work

    split_all([(counting(first), 7), (counting(second), 30), (counting(first), 0)], 3)
    assert (first == 1).all() and (second == 1).all()
    split_all([])


def test_threads_of_a_pool_end_with_it():
    before = set(threading.enumerate())
    pool = _threads._Pool(3)
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    del pool
    for thread in started:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in started)
