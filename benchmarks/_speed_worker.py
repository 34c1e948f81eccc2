"""A process of one competitor for ``speed.py``: a job a line in, an answer a line out.

    python _speed_worker.py COMPETITOR

It stays for the whole run, so that a library is imported once. Whatever the library prints
goes to standard error.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import traceback
import warnings
from statistics import fmean

import torch
from _peer_data import warm_up
from _peers import DISTRIBUTIONS, MODULES, version
from _speed_tools import Clock, forget_peak, optimizer_ms, peak, product_ms, repeat, rows


def measure(competitor, job):
    """Train and encode once; give times, memory and what the machine could do meanwhile."""
    torch.set_num_threads(job["threads"])
    load = os.getloadavg()[0]
    X = rows(job)
    warm_up(job["device"])
    torch.manual_seed(0)
    products = [product_ms(job)]
    on_cuda = job["device"] == "cuda"
    clock = Clock(job["drop"], job["least"], seconds=job["seconds"], on_cuda=on_cuda)
    before = forget_peak()
    found, encode = _own(competitor, job, X, clock) or _peer(competitor, job, X, clock)
    products.append(product_ms(job))
    found = {"rss_before_mb": before} | found
    if callable(encode):
        encode = _encode_seconds(job, X, encode) * job["b"] / (clock.n_rows or job["b"])
        products.append(product_ms(job))
    answer = _scaled(clock.result(), job["b"] / (clock.n_rows or job["b"]))
    product = fmean(products[:2])
    answer |= {
        "rows_per_s": round(1000 * job["b"] / answer["step_ms"], 1),
        "product_ms": products,
        "optimizer_ms": optimizer_ms(job),
        "times_product": round(answer["step_ms"] / product, 3),
    }
    if encode is not None:
        answer["encode_ms"] = round(1000 * encode, 3)
        answer["encode_rows_per_s"] = round(job["b"] / encode, 1)
        answer["encode_times_product"] = round(1000 * encode / fmean(products[-2:]), 3)
    return answer | found | {"load": round(load, 2)}


def _own(competitor, job, X, clock):
    """Run sksae; give None for other competitors."""
    import_from = {"sksae": "fit", "sksae-bare": "bare", "sksae-reference": "reference"}
    if competitor not in import_from:
        return None
    import _speed_own

    return getattr(_speed_own, import_from[competitor])(job, X, clock)


def _peer(competitor, job, X, clock):
    import _speed_fits

    notes, encode = getattr(_speed_fits, competitor)(job, X, clock)
    return notes | peak(), encode


@torch.no_grad()
def _encode_seconds(job, X, encode):
    x = X[: job["b"]]
    return repeat(lambda: encode(x), min(1.0, job["seconds"]), job["device"] == "cuda")


def _scaled(result, factor):
    """Give times of a batch where the library's steps have other numbers of rows."""
    ms = {key: round(value * factor, 4) for key, value in result.items() if key != "n_steps"}
    return result | ms


def versions(competitor):
    """Give the versions of what ran."""
    packages = [DISTRIBUTIONS[competitor.partition("-")[0]], "torch", "numpy"]
    packages += ["skorch", "numba", "scikit-learn"] if competitor.startswith("sksae") else []
    return {name: version(name) for name in packages}


def answer(competitor, job):
    """Do one job; a failure is an answer too."""
    try:
        return measure(competitor, job) | {"versions": versions(competitor)}
    except Exception:
        return {"error": traceback.format_exc()[-2000:]}
    finally:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def main():
    """Answer jobs until there are no more."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    library = sys.argv[1].partition("-")[0]
    with contextlib.suppress(Exception):  # a job will tell
        importlib.import_module(MODULES.get(library, library))
    for line in sys.stdin:
        answers.write(json.dumps(answer(sys.argv[1], json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
