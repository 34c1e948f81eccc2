"""Plot the training of the fast kernels over that of plain torch, on real activations.

What is compared: `TopKSAE` with its defaults at 4,096 concepts, ``backend="cpu"``, or "cuda",
against ``backend="reference"``, two seeds each, on token activations of all-MiniLM-L6-v2 (output of
encoder.layer.4, 384 features) over BBC News: the training loss every ten steps, and the
explained variance of 10,000 tokens of held-out articles. Rounding is not the same, so that single
steps drift apart; they are to do so no more than two seeds do.

Needs the ``demo`` extra, matplotlib, and ten minutes on a CPU core; where activations have been
saved, as by ``quality.py data``, matplotlib alone::

    python benchmarks/curves.py [--tokens 100000]
    python benchmarks/curves.py --device cuda --data FOLDER --epochs 20

Writes benchmarks/results/curves-<device>.png and prints one JSON line per fit with machine and
versions.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from _peers import machine, version

from sksae import TopKSAE

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("sksae", "torch", "numba", "triton")
# Backend, use_amp and colour of the curves on each device.
CURVES = {
    "cpu": [("reference", False, "black"), ("cpu", False, "tab:orange")],
    "cuda": [
        ("reference", False, "black"),
        ("cuda", False, "tab:orange"),
        ("cuda", "bf16", "tab:blue"),
    ],
}


def rows(args):
    """Give training and held-out activations."""
    if args.data is None:
        from variants import activations

        return activations(args.tokens)[:2]
    loaded = (np.load(args.data / f"{name}.npy", mmap_mode="r") for name in ("train", "test"))
    train, test = (array.astype(np.float32) for array in loaded)
    return train[: args.tokens], test[:10_000]


def fit(X, test, params):
    """Fit one SAE; give the loss at its steps, and its numbers."""
    start = time.perf_counter()
    sae = TopKSAE(4096, top_k=32, monitoring=10, **params).fit(X)
    seconds = time.perf_counter() - start
    batches = [b for epoch in sae.history_ for b in epoch["batches"] if "step" in b]
    numbers = params | {
        "n_train": len(X),
        "train_loss": round(sae.history_[-1]["train_loss"], 5),
        "explained_variance": round(sae.score(test), 5),
        "dead_fraction": round(sae.dead_fraction_, 5),
        "seconds": round(seconds, 1),
        "ran": sae.backend_,
    }
    return [b["step"] for b in batches], [b["train_loss"] for b in batches], numbers


def main():
    """Fit SAEs of two seeds and draw their losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", choices=tuple(CURVES), default="cpu")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with train.npy and test.npy")
    parser.add_argument("--save", type=Path, default=RESULTS)
    args = parser.parse_args()
    train, test = rows(args)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for seed, style in ((0, "-"), (1, ":")):
        for backend, amp, colour in CURVES[args.device]:
            params = {"backend": backend, "use_amp": amp, "device": args.device}
            params |= {"nb_epochs": args.epochs, "random_state": seed}
            steps, losses, numbers = fit(train, test, params)
            name = backend if not amp else f"{backend}, {amp}"
            label = f"{name}, seed {seed}: EV {numbers['explained_variance']:.4f}"
            axes.plot(steps, losses, style, color=colour, linewidth=1.2, label=label)
            notes = {"machine": machine(), "tokens": args.tokens}
            if args.device == "cuda":
                notes["device_name"] = torch.cuda.get_device_name()
            versions = {name: version(name) for name in PACKAGES}
            notes |= {"threads": torch.get_num_threads(), "versions": versions}
            print(json.dumps(numbers | notes), flush=True)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend()
    figure.savefig(args.save / f"curves-{args.device}.png", dpi=130)


if __name__ == "__main__":
    main()
