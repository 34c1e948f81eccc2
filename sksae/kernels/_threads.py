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
import weakref
from collections.abc import Callable, Iterator
from itertools import accumulate
from queue import SimpleQueue
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


class _Job:
    """A call in another thread, and its end."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()

    def __call__(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._error = error
        finally:
            self._running.release()

    def wait(self) -> None:
        """Return when the call has, interrupted or not; raise what was raised."""
        interrupt = None
        while True:
            try:
                self._running.acquire()
                break
            except KeyboardInterrupt as exc:
                interrupt = exc
        if (error := interrupt or self._error) is not None:
            raise error


class _Pool:
    """Threads that wait for jobs.

    Those of `concurrent.futures` take as long again to start and to end a job, which at some
    milliseconds for a training step counts.
    """

    def __init__(self, n_threads: int) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        weakref.finalize(self, _stop, self._jobs, n_threads)
        for _ in range(n_threads):
            threading.Thread(target=_serve, args=[self._jobs], name="sksae", daemon=True).start()

    def submit(self, run: Callable[[], None]) -> _Job:
        """Have a function called in one of the threads."""
        job = _Job(run)
        self._jobs.put(job)
        return job


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    with contextlib.suppress(Exception):  # more threads than asked for are slow, not wrong
        _start()
    while (job := jobs.get()) is not None:
        job()
        del job  # and what it refers to, while waiting


def _stop(jobs: SimpleQueue[_Job | None], n_threads: int) -> None:
    for _ in range(n_threads):
        jobs.put(None)


@functools.lru_cache(maxsize=2)
def _pool(n_threads: int, process: int) -> _Pool:
    """Give the threads of a process; after a fork the parent's are gone."""
    return _Pool(n_threads)


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

    pool = _pool(n_threads - 1, os.getpid())
    jobs = [pool.submit(run) for _ in range(n_threads - 1)]
    with contextlib.ExitStack() as ends:  # nothing may be written after an interrupt
        for job in jobs:
            ends.callback(job.wait)
        with own_threads():
            run()


def split_all(jobs: list[tuple[Callable[[int, int], None], int]], pieces: int = 1) -> None:
    """Call each ``work`` of pairs ``(work, n)`` on ranges that cover 0 to n, as `split` does."""
    ends = list(accumulate(n for _, n in jobs))

    def run(start: int, stop: int) -> None:
        for (work, n), end in zip(jobs, ends, strict=True):
            first, last = max(start - end + n, 0), min(stop - end + n, n)
            if first < last:
                work(first, last)

    split(run, ends[-1] if ends else 0, pieces)
