"""Peak memory of ``transform`` on rows that lie on disk, for ``speed.py --memory``."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _speed_tools import forget_peak, peak, synthetic


def measure(n, d, m, k, threads):
    """Encode ``n`` rows (n, d) with ``m`` concepts, ``k`` active, from a memory map.

    Returns
    -------
    dict
        Sizes in MB: ``input_mb``, ``output_mb``, ``used_mb`` (the peak beyond what the process,
        fitted, had before) and ``beyond_mb``, which is the peak beyond input and output.
    """
    from sksae import TopKSAE

    torch.set_num_threads(threads)
    train = synthetic(max(4096, 2 * min(m, 16384)), d)
    sae = TopKSAE(m, top_k=k, nb_epochs=1, device="cpu", random_state=0).fit(train.numpy())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        _write(path, n, train.numpy())
        del train
        X = np.load(path, mmap_mode="r")
        before, start = forget_peak(), time.perf_counter()
        codes = sae.transform(X)
        seconds = time.perf_counter() - start
    used = peak()["peak_rss_mb"] - before
    output = sum(a.nbytes for a in (codes.data, codes.indices, codes.indptr)) / 2**20
    return {
        "what": f"transform of {n} x {d} rows, {m} concepts, {k} active",
        "input_mb": round(4 * n * d / 2**20),
        "output_mb": round(output),
        "rss_before_mb": before,
        "used_mb": used,
        "beyond_mb": round(used - 4 * n * d / 2**20 - output),
        "active": int(codes.nnz),
        "seconds": round(seconds, 2),
        "rows_per_s": round(n / seconds, 1),
    }


def _write(path, n, rows):
    """Write ``n`` rows, the given ones again and again."""
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, rows.shape[1]))
    for start in range(0, n, len(rows)):
        file[start : start + len(rows)] = rows[: n - start]
    file.flush()
