"""The suites with known features, in sizes of a few seconds: what is planted is found."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sksae import BatchTopKSAE, TopKSAE, VanillaSAE
from sksae.datasets import make_korznikov, make_oneill, make_saelens_toy
from sksae.metrics import mcc, recovered_fraction

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def random_directions(dictionary):
    return np.random.default_rng(0).standard_normal(dictionary.shape)


@pytest.mark.parametrize(
    ("sae", "at_least"), [(TopKSAE(16, top_k=4), 0.9), (VanillaSAE(16, target_l0=4), 0.99)]
)
def test_toy_of_saelens(sae, at_least):
    X, dictionary, _ = make_saelens_toy(20_000, random_state=0)
    sae.set_params(random_state=0).fit(X)
    assert mcc(sae.components_, dictionary) > at_least
    assert mcc(random_directions(dictionary), dictionary) < 0.5


@pytest.mark.parametrize("sae", [TopKSAE(16, top_k=3), VanillaSAE(16, target_l0=3)])
def test_toy_of_oneill(sae):
    """In eight dimensions random directions are not far from sixteen sources."""
    X, dictionary, _ = make_oneill(random_state=0)
    sae.set_params(batch_size=32, nb_epochs=30, random_state=0).fit(X)
    assert mcc(sae.components_, dictionary) > 0.85
    assert mcc(random_directions(dictionary), dictionary) < 0.7


def test_toy_of_korznikov_is_no_matter_of_chance():
    X, dictionary, _ = make_korznikov(
        60_000, n_features=50, nb_concepts=400, n_active=8, random_state=0
    )
    sae = TopKSAE(400, top_k=8, nb_epochs=10, random_state=0).fit(X)
    assert recovered_fraction(sae.components_, dictionary) > 0.6
    assert recovered_fraction(random_directions(dictionary), dictionary) == 0
    # Nor does the data's own geometry give them away: rows point to no single feature.
    assert recovered_fraction(X[:400], dictionary) < 0.05


def test_features_alike_in_frequency_are_found_by_not_sharing_codes_at_once():
    """Sharing the codes of a batch from the first step on misses what TopK finds."""
    X, dictionary, _ = make_korznikov(
        30_000, n_features=30, nb_concepts=150, n_active=5, random_state=0
    )
    found = []
    for params in ({"relative_start": 0}, {}, {"relative_start": 0.8}, {"topk_start": 0.8}):
        sae = BatchTopKSAE(150, top_k=5, batch_size=512, nb_epochs=6, random_state=0, **params)
        found.append(recovered_fraction(sae.fit(X).components_, dictionary))
    assert found[0] < 0.5
    assert found[0] + 0.03 < found[1] < found[2]
    assert min(found[2:]) > 0.6


def test_benchmark_prints_lines_and_a_table(tmp_path):
    saved = tmp_path / "rows.jsonl"
    script = [sys.executable, str(BENCHMARKS / "recovery.py")]
    sizes = ["--n-train", "512", "--n-test", "300", "--param", "nb_epochs=1", "--save", str(saved)]
    command = [*script, "--sets", "saelens-docs", "--seeds", "0", "1", "--variants", "TopKSAE"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines == [json.loads(line) for line in saved.read_text().splitlines()]
    assert [line["variant"] for line in lines] == ["random directions", "TopKSAE"] * 2
    assert {"seed", "versions", "machine", "command", "lr", "steps"} <= lines[1].keys()
    assert lines[1]["mcc"] != lines[3]["mcc"]
    (cells,) = (line for line in done.stdout.splitlines() if line.startswith("| 4 | TopKSAE"))
    assert "±" in cells and cells.split("|")[-2].strip() == "2"


def test_cases_of_the_benchmark(monkeypatch):
    """All sets can be made; variants that are not there yet are left out."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sets = __import__("_recovery_sets")
    for name, case in sets.CASES.items():
        fits = list(case.fits())
        assert {"TopKSAE", "BatchTopKSAE"} <= {variant for variant, _, _ in fits}, name
    assert list(sets.CASES["synth"].fits(["NoSuchSAE"])) == []
    assert sets.budget_of("JumpReLUSAE", 5) == {"target_l0": 5}
    assert sets.budget_of("TopKSAE", 5) == {"top_k": 5}
    source = sets.CASES["korznikov50"].source(None, random_state=0)
    assert source.dictionary.shape == (400, 50)
