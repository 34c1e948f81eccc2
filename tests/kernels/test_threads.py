"""Who works on what: ranges for threads, and torch's own threads kept away meanwhile."""

import threading

import numpy as np
import pytest
import torch

from sksae.kernels import own_threads
from sksae.kernels._threads import split


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
