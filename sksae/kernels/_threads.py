"""Ranges of work for a few threads, for compiled loops that release the interpreter's lock.

torch has threads of its own, which wait for work by spinning for a while after each operation,
and then keep these from a core. So what comes between two ranges of work is better done by one
thread, see `own_threads`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from threadpoolctl import ThreadpoolController


class _State(threading.local):
    n_threads: int | None = None  # of torch, where it is kept to one


_state = _State()
_Limit = Callable[[int], Any]


@functools.cache
def _limits() -> list[tuple[Callable[[], int], _Limit]]:
    """Give ways to ask and to say how many threads the calling thread's operations may use."""
    openmp = ThreadpoolController().select(user_api="openmp").lib_controllers
    limits: list[tuple[Callable[[], int], _Limit]] = [
        (library.get_num_threads, library.set_num_threads) for library in openmp
    ]
    if torch.backends.mkl.is_available():
        with contextlib.suppress(OSError, AttributeError):
            # Torch's own copy of MKL, which threadpoolctl does not see; 0 is what all threads use.
            library = ctypes.CDLL(torch._C.__file__)
            limits.append((lambda: 0, library.MKL_Set_Num_Threads_Local))
    return limits


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """Keep torch's operations of the calling thread to one thread.

    `split` uses as many threads as torch had.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:  # or within another such block
        yield
        return
    before = [get() for get, _ in _limits()]
    _state.n_threads = n_threads
    try:
        for _, limit in _limits():
            limit(1)
        yield
    finally:
        for (_, limit), n in zip(_limits(), before, strict=True):
            limit(n)
        _state.n_threads = None


def _start() -> None:
    torch.get_num_threads()  # what this sets when first called in a thread must not come later
    for _, limit in _limits():
        limit(1)


@functools.lru_cache(maxsize=2)
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Give the threads of a process; after a fork the parent's are gone."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="sksae", initializer=_start)


def split(work: Callable[[int, int], None], n: int, pieces: int = 1) -> None:
    """Call ``work(start, stop)`` on ranges that cover 0 to n, in ``torch.get_num_threads()``.

    Parameters
    ----------
    work : callable
        Its calls may run at the same time.
    n : int
        End of the last range.
    pieces : int, default=1
        Ranges per thread; more of them where they may differ in effort.
    """
    n_threads = _state.n_threads or torch.get_num_threads()
    if n_threads == 1 or n < 2:
        work(0, n)
        return
    n_ranges = min(n, n_threads * pieces)
    bounds = [n * i // n_ranges for i in range(n_ranges + 1)]
    ranges = iter(list(zip(bounds[:-1], bounds[1:], strict=True)))

    def run() -> None:
        for start, stop in ranges:  # each range goes to one thread
            work(start, stop)

    helpers = [_pool(n_threads - 1, os.getpid()).submit(run) for _ in range(n_threads - 1)]
    try:
        with own_threads():
            run()
    finally:
        wait(helpers)  # nothing may be written after an interrupt
    for helper in helpers:
        helper.result()
