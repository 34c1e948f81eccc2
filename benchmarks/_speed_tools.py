"""Instruments of ``speed.py``: a clock for steps, the product, memory, and rows.

Imported in every library's environment; needs torch and numpy alone.
"""

import ctypes
import gc
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch

WINDOW_ON_CUDA = 10


class Enough(KeyboardInterrupt):
    """Ends a library's trainer when enough steps are timed, as Ctrl-C would."""


class Clock:
    """Times steps: from one request of a trainer for a batch to the next.

    A GPU is waited for every ten steps only, since a wait at each would slow it down; a time
    is then that of ten steps, divided by ten.

    Parameters
    ----------
    n_dropped : int
        Times at the start that do not count.
    n_least, n_most : int
        Times that count, at least and at most.
    seconds : float
        After so many, and ``n_least`` times, `Enough` is raised.
    on_cuda : bool
    """

    def __init__(self, n_dropped=4, n_least=5, n_most=1000, seconds=4.0, on_cuda=False):
        self.n_dropped, self.n_least, self.n_most = n_dropped, n_least, n_most
        self.seconds, self.window = seconds, WINDOW_ON_CUDA if on_cuda else 1
        self.n_requests, self.marks, self.n_rows = 0, [], None

    def watch(self, batches):
        """Give the batches, noting when each was asked for."""
        batches = iter(batches)
        while True:
            asked = self.now()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.note(asked)
            yield batch

    def now(self):
        """Give the time; a GPU has then done what it was told, if it is time to wait for it."""
        if self.window > 1 and self.n_requests % self.window == 0:
            torch.cuda.synchronize()
        return time.perf_counter()

    def note(self, asked):
        """Note a request for a batch; end the trainer if there are enough."""
        if self.n_requests % self.window == 0:
            self.marks.append(asked)
        self.n_requests += 1
        n_timed = len(self.marks) - 1 - self.n_dropped
        if n_timed < self.n_least:
            return
        if n_timed >= self.n_most or self.marks[-1] - self.marks[self.n_dropped] >= self.seconds:
            raise Enough

    def result(self):
        """Give median and mean milliseconds of a step, and the number of steps timed."""
        marks = self.marks[self.n_dropped :]
        steps = [(b - a) / self.window for a, b in zip(marks[:-1], marks[1:], strict=True)]
        if not steps:
            raise RuntimeError(f"{self.n_requests} steps are too few: none is left to time.")
        return {
            "step_ms": _ms(statistics.median(steps)),
            "mean_step_ms": _ms(statistics.fmean(steps)),
            "n_steps": len(steps) * self.window,
        }


def repeat(work, seconds, on_cuda=False, n_least=3):
    """Give the median seconds of a call, after one that does not count."""
    times, start = [], time.perf_counter()
    work()
    while len(times) < n_least or time.perf_counter() - start < seconds:
        if on_cuda:
            torch.cuda.synchronize()
        before = time.perf_counter()
        work()
        if on_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def product_ms(job):
    """Give the milliseconds of the encoder's product alone, b x d by d x m.

    In float32 on a CPU, in bfloat16 on a GPU; the result is written to the same memory.
    """
    on_cuda = job["device"] == "cuda"
    kind = {"device": job["device"], "dtype": torch.bfloat16 if on_cuda else torch.float32}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(job["b"], job["d"], generator=generator).to(**kind)
    weight = torch.randn(job["m"], job["d"], generator=generator).to(**kind)
    out = torch.empty(job["b"], job["m"], **kind)
    return _ms(repeat(lambda: torch.mm(x, weight.T, out=out), min(0.5, job["seconds"]), on_cuda))


def optimizer_ms(job):
    """Give the milliseconds in which the memory could serve Adam on both matrices.

    Seven float32 transfers per weight (weight, gradient and two moments read; weight and moments
    written) at the rate at which 256 MB are copied.
    """
    n, on_cuda = 2**25, job["device"] == "cuda"
    a = torch.ones(n, device=job["device"])
    b = torch.empty_like(a)
    seconds = repeat(lambda: b.copy_(a), min(0.2, job["seconds"]), on_cuda)
    return _ms(7 * 2 * job["m"] * job["d"] / (2 * n) * seconds)


def _ms(seconds):
    return round(1000 * seconds, 4)


def forget_peak():
    """Start to look for the peak of memory anew, where the system can (Linux).

    Returns
    -------
    int
        MB in use now.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what was freed counts as in use
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return _status("VmRSS")


def peak():
    """Give the peak of memory since `forget_peak`, in MB; that of a GPU's memory as well."""
    used = {"peak_rss_mb": _status("VmHWM")}
    if torch.cuda.is_initialized():
        used["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return used


def _status(key):
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(x for x in lines if x.startswith(key)).split()[1]) / 1024)
    except (OSError, StopIteration):
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def rows(job):
    """Give the rows that every library is trained on, a float32 tensor (n, d) on the device."""
    if job["data"]:
        array = np.load(Path(job["data"], "train.npy"), mmap_mode="r")
        if array.shape[1] != job["d"]:
            raise ValueError(f"{job['data']} has {array.shape[1]} features, not {job['d']}.")
        return torch.from_numpy(np.array(array[: job["n_rows"]], dtype=np.float32)).to(
            job["device"]
        )
    if job["device"] == "cuda":
        return planted(job["n_rows"], job["d"], job["device"])
    return synthetic(job["n_rows"], job["d"])


def planted(n_rows, d, device, seed=0):
    """Give rows with a mean, of 32 active features each, of 16,384 of falling frequency.

    Of a wide dictionary that large batches train, few concepts die on such rows.
    """
    generator = torch.Generator(device).manual_seed(seed)
    on = {"device": device, "generator": generator}
    directions = torch.nn.functional.normalize(torch.randn(2**14, d, **on), dim=1)
    frequency = torch.arange(1, 2**14 + 1, device=device) ** -0.5
    X = 0.2 * torch.randn(d, **on).repeat(n_rows, 1)
    for block in X.split(8192):
        active = torch.multinomial(
            frequency, 32 * len(block), replacement=True, generator=generator
        )
        strengths = 0.5 + torch.rand(len(block), 32, **on)
        block += torch.nn.functional.embedding_bag(
            active.view(-1, 32), directions, per_sample_weights=strengths, mode="sum"
        )
    return X


def synthetic(n_rows, d, seed=0):
    """Give rows with a mean, 64 directions of falling variance, and noise."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(64, d)
    scales = torch.arange(1, rank + 1) ** -0.5
    directions = torch.randn(rank, d, generator=generator) * scales[:, None]
    mean = torch.randn(d, generator=generator)
    X = torch.randn(n_rows, rank, generator=generator) @ directions
    for block in X.split(8192):
        block += mean + 0.3 * torch.randn(block.shape, generator=generator)
    return X
