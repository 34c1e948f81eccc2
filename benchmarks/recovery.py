"""Find planted features: every variant, with its defaults, on data whose features are known.

What is compared: sksae's variants and, where there are any, controls, on the synthetic suites of
`sksae.datasets`. Rows, dictionary and start of the SAE follow from the seed; held-out rows share
the dictionary. Only the number of active concepts is given, everything else is the defaults:

- recovered: share of the planted features with a concept at a cosine of 0.8 or more;
- MMCS: mean over the planted features of the largest cosine; MCC: mean absolute cosine of a
  one-to-one matching; uniqueness: share of the concepts that have their best feature to themselves;
- F1: mean over the concepts of how well each detects its best feature in held-out rows;
- EV (explained variance), L0 and dead concepts on held-out rows.

"random directions" is a dictionary that was not trained: what is not above it was not learnt.
Planted features prove a trainer, not that a language model's features are like them.

Hardware: a CPU; all sets but "synth-full" and "korznikov100" (half an hour a fit on one core, and
"synth-full" two minutes for 500,000 rows) fit some minutes each on two cores::

    python benchmarks/recovery.py --sets korznikov50 synth --seeds 101 102 103
    python benchmarks/recovery.py --sets korznikov100 --n-train 2000000 --param nb_epochs=60
    python benchmarks/recovery.py --sets synth-quarter
    python benchmarks/recovery.py --sets synth-full --n-train 500000 --param nb_epochs=80
    python benchmarks/recovery.py --sets synth-full --device cuda
    python benchmarks/recovery.py --table benchmarks/results/recovery-cpu.jsonl

Prints one JSON line per fit, with versions and machine, then tables; --save appends the lines to
a file. Seeds below 100 were used to choose defaults.
"""

import argparse
import itertools
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _peers import machine, version
from _recovery_sets import CASES, budget_of
from sklearn.exceptions import ConvergenceWarning

import sksae
from sksae.metrics import (
    best_matches,
    concept_f1,
    dead_fraction,
    l0,
    mcc,
    mean_max_cosine,
    recovered_fraction,
    uniqueness,
)

PACKAGES = ("sksae", "torch", "overcomplete", "skorch", "scikit-learn", "numba")
MEASURES = ("recovered", "mmcs", "mcc", "uniqueness", "f1", "explained_variance", "l0", "dead")
CONTROL = "random directions"
DEFAULT_SETS = ("korznikov50", "synth", "sharkey", "saelens-docs", "oneill")


# -- one set ------------------------------------------------------------------------


def rows(name, seed, args):
    """Fit everything to one set; give the results, one by one."""
    case = CASES[name]
    on = {"device": args.device} if case.on_device else {}
    source = case.source(None, random_state=seed, **on)
    n_train = args.n_train or case.n_train
    train = source.tensor(n_train) if case.on_device else source.sample(n_train)
    test = source.sample(args.n_test or case.n_test, return_codes=True)
    shared = {"set": name, "seed": seed, "n_train": n_train, "true_l0": round(l0(test[1]), 3)}
    yield shared | {"variant": CONTROL, "budget": None, "params": {}} | control(case, source, seed)
    for variant, budget, own in case.fits(args.variants, args.budgets):
        params = case.params | own | dict(args.param)
        sae = getattr(sksae, variant)(
            case.width,
            **budget_of(variant, budget),
            **params,
            device=args.device,
            random_state=seed,
        )
        settings = {"variant": variant, "budget": budget, "params": params}
        yield shared | settings | measured(sae, train, test, source.dictionary)


def control(case, source, seed):
    """Measure directions that are uniform on the sphere."""
    rng = np.random.default_rng(seed)
    return dictionary_measures(
        rng.standard_normal((case.width, source.dictionary.shape[1])), source.dictionary
    )


def measured(sae, train, test, dictionary):
    """Fit one SAE and give its measures on held-out rows."""
    X, true_codes = test
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        sae.fit(train)
    seconds = time.perf_counter() - start
    codes, components = sae.transform(X), sae.components_
    match = best_matches(components, dictionary)
    on_rows = {
        "f1": concept_f1(codes, true_codes, match=match),
        "explained_variance": sae.score(X),
        "l0": l0(codes),
        "dead": dead_fraction(codes),
        "seconds": seconds,
    }
    rounded = {key: round(float(value), 4) for key, value in on_rows.items()}
    details = {"steps": sae.n_steps_, "lr": sae.net_.lr, "backend": sae.backend_}
    return dictionary_measures(components, dictionary) | rounded | details


def dictionary_measures(components, dictionary):
    """Give what follows from the directions alone."""
    metrics = {
        "recovered": recovered_fraction,
        "mmcs": mean_max_cosine,
        "mcc": mcc,
        "uniqueness": uniqueness,
    }
    return {key: round(metric(components, dictionary), 4) for key, metric in metrics.items()}


def circumstances():
    """Give what else a number depends on."""
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in PACKAGES},
        "command": " ".join(sys.argv),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


# -- tables -------------------------------------------------------------------------


def table(results):
    """Give the results as Markdown tables, averaged over seeds, with what was published."""
    head = ("budget", "variant", *MEASURES, "seconds", "seeds")
    lines = []
    for name in dict.fromkeys(result["set"] for result in results):
        here = [result for result in results if result["set"] == name]
        width, active = CASES[name].width, np.mean([result["true_l0"] for result in here])
        sizes = sorted({result["n_train"] for result in here})
        lines += ["", f"{name}: {width} concepts, {active:.2f} features active, {sizes} rows", ""]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(_cells(same))} |" for same in _by_settings(here)]
        lines += ["", *CASES[name].published]
    return "\n".join(lines)


def _by_settings(results):
    """Group the results of one set that differ in their seeds only; the last of a seed counts."""
    runs = {}
    for result in results:
        key = json.dumps([result[k] for k in ("budget", "variant", "params", "n_train")])
        runs.setdefault(key, {})[result["seed"]] = result
    return [list(by_seed.values()) for by_seed in runs.values()]


def _cells(same):
    first = same[0]
    known = CASES[first["set"]].params
    own = {key: value for key, value in first["params"].items() if known.get(key) != value}
    yield "–" if first["budget"] is None else str(first["budget"])
    yield " ".join([first["variant"], *(f"{key}={_short(value)}" for key, value in own.items())])
    for measure in MEASURES:
        yield _number([result.get(measure) for result in same])
    seconds = [result.get("seconds") for result in same]
    yield "–" if None in seconds else f"{np.mean(seconds):.0f}"
    yield str(len(same))


def _short(value):
    return [f"{v:.3g}" for v in value] if isinstance(value, list) else value


def _number(values):
    """Give a mean, with its standard deviation over seeds."""
    if None in values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def read(path):
    """Give the results that a file holds."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# -- command line -------------------------------------------------------------------


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
    parser.add_argument("--sets", nargs="+", choices=CASES, default=list(DEFAULT_SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[101])
    parser.add_argument("--variants", nargs="+", help="by default all of a set")
    parser.add_argument("--budgets", type=int, nargs="+",
                        help="numbers of active concepts, by default those of the set")  # fmt: skip
    parser.add_argument("--n-train", type=int, help="training rows, by default those of the set")
    parser.add_argument("--n-test", type=int, help="held-out rows, by default those of the set")
    parser.add_argument("--param", type=option, action="append", default=[], metavar="KEY=VALUE",
                        help="parameter of all estimators; may be repeated")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", help="file that the lines are appended to")
    parser.add_argument("--table", metavar="FILE", help="only print the tables of a file")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the sets, or print what a file holds."""
    args = parse(arguments)
    if args.table:
        print(table(read(args.table)))
        return
    results = []
    for name, seed in itertools.product(args.sets, args.seeds):
        for result in rows(name, seed, args):
            results.append(result | circumstances())
            print(json.dumps(results[-1]), flush=True)
            if args.save:
                with open(args.save, "a", encoding="utf-8") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
