"""Ranges of work for a few threads, for compiled loops that release the interpreter's lock."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch


@functools.lru_cache(maxsize=2)
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Give the threads of a process; after a fork the parent's are gone."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="sksae")


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
    n_threads = torch.get_num_threads()
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
        run()
    finally:
        wait(helpers)  # nothing may be written after an interrupt
    for helper in helpers:
        helper.result()
