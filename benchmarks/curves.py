"""Plot the training of the fast kernels over that of plain torch, on real activations.

What is compared: `TopKSAE` with its defaults at 4,096 concepts, ``backend="cpu"`` against
``backend="reference"``, two seeds each, on token activations of all-MiniLM-L6-v2 (output of
encoder.layer.4, 384 features) over BBC News: the training loss every ten steps, and the
explained variance of 10,000 tokens of held-out articles. Rounding is not the same, so that single
steps drift apart; they are to do so no more than two seeds do.

Needs the ``demo`` extra, matplotlib, and some ten minutes on a CPU core::

    python benchmarks/curves.py [n_training_tokens]

Writes benchmarks/results/curves-cpu.png and prints one JSON line per fit with machine and versions.
"""

import json
import sys
import time
from pathlib import Path

import matplotlib
import torch
from _peers import machine, version
from variants import activations

from sksae import TopKSAE

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RESULT = Path(__file__).parent / "results" / "curves-cpu.png"
PACKAGES = ("sksae", "torch", "numba")


def fit(X, test, backend, seed):
    """Fit one SAE; give the loss at its steps, and its numbers."""
    params = {"top_k": 32, "nb_epochs": 5, "monitoring": 10, "random_state": seed}
    start = time.perf_counter()
    sae = TopKSAE(4096, backend=backend, device="cpu", **params).fit(X)
    seconds = time.perf_counter() - start
    batches = [b for epoch in sae.history_ for b in epoch["batches"] if "step" in b]
    numbers = {
        "backend": backend,
        "seed": seed,
        "n_train": len(X),
        "train_loss": round(sae.history_[-1]["train_loss"], 5),
        "explained_variance": round(sae.score(test), 5),
        "dead_fraction": round(sae.dead_fraction_, 5),
        "seconds": round(seconds, 1),
        "ran": sae.backend_,
    }
    return [b["step"] for b in batches], [b["train_loss"] for b in batches], numbers


def main():
    """Fit four SAEs and draw their losses."""
    n_train = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    train, test, *_ = activations(n_train)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for seed, style in ((0, "-"), (1, ":")):
        for backend, colour in (("reference", "black"), ("cpu", "tab:orange")):
            steps, losses, numbers = fit(train, test, backend, seed)
            label = f"{backend}, seed {seed}: EV {numbers['explained_variance']:.4f}"
            axes.plot(steps, losses, style, color=colour, linewidth=1.2, label=label)
            notes = {"command": f"python benchmarks/curves.py {n_train}", "machine": machine()}
            versions = {name: version(name) for name in PACKAGES}
            notes |= {"threads": torch.get_num_threads(), "versions": versions}
            print(json.dumps(numbers | notes), flush=True)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend()
    figure.savefig(RESULT, dpi=130)


if __name__ == "__main__":
    main()
