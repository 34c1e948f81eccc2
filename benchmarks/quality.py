"""Compare sksae with four other SAE libraries: quality and training time on equal data.

What is compared: sksae, overcomplete, SAELens, dictionary_learning and sparsify, each trained by
its own trainer with its own defaults (the learning rate is given), on the same token activations
of all-MiniLM-L6-v2 (output of encoder.layer.4, 384 features), in batches of 1,024: 300,000 rows
for 5 epochs, held-out rows from other documents. For every library the weights are read out and
measured by the same code, with that library's own rule of inference:

- explained variance of 30,000 held-out rows, 1 - SSE / SST with the mean of each feature;
- L0 on these rows; dead concepts on these rows and on 100,000 training rows;
- k-sparse probing as in SAEBench (set "bbc", which has topics): articles held out from training,
  codes averaged over their tokens, each topic against as many other articles, a logistic
  regression on the 1, 2 or 5 concepts whose means differ most, 5-fold accuracy;
- seconds of training, and seconds to an explained variance of 0.80, 0.85 and 0.88 on 4,096
  held-out rows. Loading data and these evaluations do not count.

Hardware: a CPU; results name it, and its threads. A run of full size takes 1 to 15 minutes on two
cores and 3 GB. The other libraries are installed from PyPI into one virtual environment each
(7 GB each) on first use; sksae runs in the calling one, with its ``demo`` extra::

    python benchmarks/quality.py data --set bbc
    python benchmarks/quality.py run --library sksae --k 32
    python benchmarks/quality.py run --library saelens --k 32 --lr 1e-3 --variant batchtopk
    python benchmarks/quality.py all --seeds 0 1 2
    python benchmarks/quality.py table

``run`` prints one JSON line with versions and appends it to --results; ``all`` goes through a grid
and skips what is there already.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _peers import CACHE, interpreter, machine
from _quality_sae import BLOCK, PlainSAE, explained_variance

HERE = Path(__file__).parent
# Learning rates (None: the library's own), with further options. The warm-up of 1,000 steps that
# two of them have by default would be most of a run of 1,465 steps.
GRID = {
    "sksae": [(None, {})],
    "overcomplete": [(None, {}), (1e-3, {}), (2e-3, {})],
    "saelens": [(None, {}), (1e-3, {}), (2e-3, {})],
    "dictionary_learning": [
        (None, {}),
        (1e-3, {"warmup_steps": 50}),
        (2e-3, {"warmup_steps": 50}),
    ],
    "sparsify": [
        (None, {}),
        (3e-3, {}),
        (1e-3, {"optimizer": "adam", "lr_warmup_steps": 50}),
        (2e-3, {"optimizer": "adam", "lr_warmup_steps": 50}),
    ],
}
VARIANTS = {"sksae": ("topk", "batchtopk", "jumprelu", "matryoshka"), "sparsify": ("topk",)}
TARGETS = (0.80, 0.85, 0.88)
PROBE_SIZES = (1, 2, 5)
# What makes two runs the same run.
SETTINGS = ("library", "set", "variant", "k", "width", "lr", "options", "seed")
SIZES = ("epochs", "n_train", "batch_size")


# -- one run ------------------------------------------------------------------------


def run(args):
    """Train and measure one SAE; print the result and append it to the results."""
    folder = Path(args.data, args.set)
    with tempfile.TemporaryDirectory() as scratch:
        job = {key: getattr(args, key) for key in (*SETTINGS, *SIZES, "every")}
        job |= {key: str(folder / f"{key}.npy") for key in ("train", "test")}
        job["out"] = str(Path(scratch, "sae"))
        trained = train(job, interpreter(args.library, args.envs))
        sae = PlainSAE.load(f"{job['out']}.npz")
    result = {key: job[key] for key in (*SETTINGS, *SIZES)}
    result |= measure(sae, folder, args.n_train)
    result["n_train"] = min(args.n_train, len(np.load(folder / "train.npy", mmap_mode="r")))
    result |= {"seconds_to": seconds_to(trained["curve"])} | trained
    result |= {"machine": machine(), "command": " ".join(sys.argv)}
    print(json.dumps(result))
    Path(args.results).parent.mkdir(parents=True, exist_ok=True)
    with open(args.results, "a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def train(job, python):
    """Train in a process of its own; give its answer."""
    path = Path(f"{job['out']}-job.json")
    path.write_text(json.dumps(job))
    # Triton's kernels need a GPU; sparsify's trainer would take the first that it sees.
    quiet = {"SPARSIFY_DISABLE_TRITON": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [python, str(HERE / "_quality_peers.py"), str(path)],
        env=os.environ | quiet,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{job['library']} failed:\n{done.stdout[-4000:]}")
    return json.loads(Path(f"{job['out']}.json").read_text())


def seconds_to(curve):
    """Give the seconds of training after which each target was first seen, or None."""
    first = {}
    for target in TARGETS:
        times = (seconds for _, seconds, variance in curve if variance >= target)
        first[f"{target:.2f}"] = next(times, None)
    return first


# -- measures -----------------------------------------------------------------------


def measure(sae, folder, n_train):
    """Give the measures of a trained SAE on the rows in ``folder``."""
    test = torch.from_numpy(np.load(folder / "test.npy"))
    train = np.load(folder / "train.npy", mmap_mode="r")[: min(n_train, 100_000)]
    counts = firing_counts(sae, test)
    fired_in_training = firing_counts(sae, torch.from_numpy(train.copy()))
    measures = {
        "explained_variance": round(explained_variance(sae, test), 5),
        "l0": round(float(counts.sum()) / len(test), 3),
        "dead_on_test": round(float((counts == 0).double().mean()), 5),
        "dead_on_train": round(float((fired_in_training == 0).double().mean()), 5),
    }
    if (folder / "topics.npy").exists():
        measures["probing"] = probing(sae.encode_comparable, folder)
    return measures


@torch.no_grad()
def firing_counts(sae, x):
    """Give in how many rows of ``x`` each concept is active."""
    return sum((sae.encode(rows) > 0).sum(dim=0) for rows in x.split(BLOCK))


def probing(encode, folder):
    """Give the accuracy of k-sparse probes, averaged over the topics; chance is 0.5."""
    features, topics = pool(encode, folder), np.load(folder / "topics.npy")
    accuracies = {
        k: np.mean([topic_accuracy(features, topics == topic, k) for topic in np.unique(topics)])
        for k in PROBE_SIZES
    }
    return {str(k): round(float(accuracy), 4) for k, accuracy in accuracies.items()}


@torch.no_grad()
def pool(encode, folder):
    """Give the mean of ``encode(rows)`` over each held-out text."""
    rows = np.load(folder / "held_out.npy", mmap_mode="r")
    text = torch.from_numpy(np.load(folder / "held_out_text.npy"))
    sums = 0
    for start in range(0, len(rows), BLOCK):
        codes = encode(torch.from_numpy(rows[start : start + BLOCK].copy()))
        here = torch.nn.functional.one_hot(text[start : start + BLOCK], int(text.max()) + 1)
        sums = sums + here.T.to(codes.dtype) @ codes
    return (sums / text.bincount()[:, None]).numpy()


def topic_accuracy(features, positive, k):
    """Cross-validate the probe of one topic on as many texts with it as without it."""
    from sklearn.feature_selection import SelectKBest
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    others = np.random.default_rng(0).permutation(np.flatnonzero(~positive))
    chosen = np.concatenate([np.flatnonzero(positive), others[: positive.sum()]])
    probe = make_pipeline(SelectKBest(mean_difference, k=k), StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return cross_val_score(probe, features[chosen], positive[chosen], cv=folds).mean()


def mean_difference(X, y):
    """Score features by how far their means with and without the topic lie apart."""
    return np.abs(X[y].mean(axis=0) - X[~y].mean(axis=0))


# -- several runs -------------------------------------------------------------------


def run_all(args):
    """Run the grid, apart from what the results hold already."""
    known = [{key: result[key] for key in (*SETTINGS, *SIZES)} for result in read(args.results)]
    grid = itertools.product(args.seeds, args.ks, args.libraries)
    for seed, k, library in grid:
        if args.variant not in VARIANTS.get(library, ("topk", "batchtopk")):
            continue
        for lr, options in GRID[library]:
            one = argparse.Namespace(**vars(args))
            vars(one).update(library=library, k=k, seed=seed, lr=lr, options=options)
            settings = {key: getattr(one, key) for key in (*SETTINGS, *SIZES)}
            if settings in known:
                continue
            print(json.dumps(settings), flush=True)
            if not args.dry_run:
                _run_or_report(one)


def _run_or_report(args):
    """Run; a failure is printed and does not end the grid."""
    try:
        run(args)
    except RuntimeError as error:
        print(error, file=sys.stderr)


def read(path):
    """Give the results as a list of dicts."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(args):
    """Print the results as Markdown tables, averaged over seeds; the last run of a seed counts."""
    head = ("k", "library", "lr", "EV", "L0", "dead on test", "on train", "probing k=1", "2", "5")
    head += ("train s", *(f"s to {target:.2f}" for target in TARGETS), "seeds")
    shared = ("set", "variant", "width", *SIZES, "machine", "threads")
    results = sorted(read(args.results), key=lambda r: (*(str(r[s]) for s in shared), r["k"]))
    for values, group in itertools.groupby(results, key=lambda r: [r[key] for key in shared]):
        print("\n" + ", ".join(f"{k} {v}" for k, v in zip(shared, values, strict=True)) + "\n")
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
        runs = {}
        for result in group:
            same = runs.setdefault(json.dumps([result[key] for key in SETTINGS[:-1]]), {})
            same[result["seed"]] = result
        rows = [list(by_seed.values()) for by_seed in runs.values()]
        for same in sorted(rows, key=lambda r: (r[0]["k"], -_mean(r, _EV))):
            print("| " + " | ".join(_cells(same)) + " |")


def _EV(result):
    return result["explained_variance"]


def _mean(results, value):
    """Average over seeds; None where a run has no value."""
    values = [value(result) for result in results]
    return None if None in values else float(np.mean(values))


def _cells(results):
    """Give one line of the table."""
    first = results[0]
    options = " ".join(f"{key}={value}" for key, value in first["options"].items())
    yield str(first["k"])
    yield f"{first['library']} {options}".strip()
    yield "own" if first["lr"] is None else f"{first['lr']:g}"
    spread = np.std([_EV(result) for result in results], ddof=1) if len(results) > 1 else None
    yield f"{_mean(results, _EV):.4f}" + ("" if spread is None else f" ± {spread:.4f}")
    yield _number(_mean(results, lambda r: r["l0"]), ".1f")
    yield _number(_mean(results, lambda r: r["dead_on_test"]), ".1%")
    yield _number(_mean(results, lambda r: r["dead_on_train"]), ".1%")
    for k in PROBE_SIZES:
        yield _number(_mean(results, lambda r, k=k: r.get("probing", {}).get(str(k))), ".3f")
    yield _number(_mean(results, lambda r: r["seconds"]), ".0f")
    for target in TARGETS:
        key = f"{target:.2f}"
        yield _number(_mean(results, lambda r, key=key: r["seconds_to"][key]), ".0f")
    yield str(len(results))


def _number(value, form):
    return "–" if value is None else format(value, form)


# -- command line -------------------------------------------------------------------


def data(args):
    """Extract one set of activations; print sizes, and what probes of bare features reach."""
    from _quality_data import store

    folder = Path(args.data, args.set)
    store(args.set, folder)
    sizes = {file.stem: np.load(file, mmap_mode="r").shape for file in folder.glob("*.npy")}
    bare = {"probing": probing(lambda x: x, folder)} if "topics" in sizes else {}
    print(json.dumps({"set": args.set, **sizes, **bare}))


def option(text):
    """Read ``key=value``, the value as JSON if it is some."""
    key, value = text.split("=", 1)
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def parse(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name) for name in ("data", "run", "all", "table")}
    for name in ("data", "run", "all"):
        parsers[name].add_argument("--set", choices=("bbc", "perl", "smollm"), default="bbc")
        parsers[name].add_argument("--data", default=CACHE / "data")
    for name in ("run", "all"):
        _add_sizes(parsers[name])
    for name in ("run", "all", "table"):
        parsers[name].add_argument("--results", default=CACHE / "quality.jsonl")
    one, grid = parsers["run"], parsers["all"]
    one.add_argument("--library", choices=GRID, required=True)
    one.add_argument("--k", type=int, default=32)
    one.add_argument("--lr", type=float, help="by default the library's own")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--option", action="append", type=option, default=[], metavar="KEY=VALUE",
                     help="further argument of the library's trainer; may be repeated")  # fmt: skip
    grid.add_argument("--ks", type=int, nargs="+", default=[16, 32, 64])
    grid.add_argument("--seeds", type=int, nargs="+", default=[0])
    grid.add_argument("--libraries", nargs="+", choices=GRID, default=list(GRID))
    grid.add_argument("--dry-run", action="store_true", help="only print what would run")
    args = parser.parse_args(arguments)
    if args.command == "run":
        args.options = dict(args.option)
    return args


def _add_sizes(parser):
    parser.add_argument("--variant", choices=VARIANTS["sksae"], default="topk")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--n-train", type=int, default=300_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations; 0: none")
    parser.add_argument("--envs", default=CACHE)


def main():
    """Do what the command line says."""
    args = parse()
    {"data": data, "run": run, "all": run_all, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
