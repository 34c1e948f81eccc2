"""The benchmarks run: sizes of a toy, sksae alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"

JOB = {
    "variant": "topk",
    "m": 256,
    "k": 4,
    "b": 64,
    "d": 16,
    "threads": 1,
    "device": "cpu",
    "seconds": 0.01,
    "drop": 1,
    "least": 3,
    "settle_steps": 4,
    "settle_seconds": 2,
    "n_rows": 256,
    "planned_steps": 100,
    "data": None,
}


@pytest.fixture
def benchmarks(monkeypatch):
    """Import modules of the folder, which is no package, and leave torch's threads as found."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield lambda name: __import__(name)
    torch.set_num_threads(threads)
    for name in [n for n in sys.modules if n.startswith(("_speed", "_peer", "speed"))]:
        del sys.modules[name]


@pytest.mark.parametrize("variant", ["topk", "vanilla"])
def test_own_competitors(benchmarks, variant):
    worker = benchmarks("_speed_worker")
    for competitor in ("sksae", "sksae-bare", "sksae-reference"):
        found = worker.answer(competitor, JOB | {"variant": variant})
        assert "error" not in found, found["error"]
        assert found["n_steps"] >= 3 and found["step_ms"] > 0
        assert len(found["product_ms"]) >= 2 and found["peak_rss_mb"] > 0
        assert found["rows_per_s"] == pytest.approx(64_000 / found["step_ms"], rel=1e-2)
        wanted = "reference" if competitor == "sksae-reference" else "cpu"
        assert variant != "topk" or found["backend"].startswith(wanted)
        assert ("encode_ms" in found) == (competitor != "sksae-bare")


def test_bare_loop_takes_the_same_steps(benchmarks):
    """What is called the overhead of skorch is nothing that changes the weights."""
    own, tools = benchmarks("_speed_own"), benchmarks("_speed_tools")
    from sksae import TopKSAE
    from sksae.kernels import Workspace

    X = tools.synthetic(64, 16)
    sae = TopKSAE(256, top_k=4, batch_size=64, nb_epochs=1, auxk_coefficient=0, random_state=0)
    sae.set_params(outlier_ratio=None, lr=1e-3, scheduler_class=None, backend="cpu")
    sae.fit(X.numpy())
    fitted = sae.module_.dictionary._weights.detach().clone()
    sae.set_params(warm_start=True).fit(X.numpy())
    by_fit = sae.module_.dictionary._weights.detach().clone()
    other = TopKSAE(**sae.get_params()).set_params(warm_start=False).fit(X.numpy())
    assert torch.equal(other.module_.dictionary._weights, fitted)
    net, module = other.net_, other.module_.train()
    workspace = Workspace(torch.empty(64, 256))
    loss, _ = own._stored_step(net, X / module.input_scale, workspace)
    own._descend(net, loss, workspace)
    torch.testing.assert_close(module.dictionary._weights.detach(), by_fit, rtol=1e-4, atol=1e-6)


def test_clock_counts_steps_and_ends_them(benchmarks):
    tools = benchmarks("_speed_tools")
    clock, seen = tools.Clock(n_dropped=2, n_least=3, n_most=3), []
    with pytest.raises(tools.Enough):
        for batch in clock.watch(range(100)):
            seen.append(batch)
    # Six requests give five times, of which two are dropped; the sixth batch is not given.
    assert seen == [0, 1, 2, 3, 4]
    assert clock.result()["n_steps"] == 3
    with pytest.raises(RuntimeError, match="0 steps are too few: none is left to time."):
        tools.Clock().result()


def test_cases_are_read_and_refused(benchmarks):
    cases = benchmarks("_speed_cases")
    (entry,) = cases.entries(["topk:m=512,b=32"], ["sksae", "sklearn"])
    assert str(entry.case) == "topk:m=512,k=32,b=32,d=384"
    assert entry.competitors == ["sksae", "sklearn"]
    for name in cases.GROUPS:
        assert cases.entries([name], cases.COMPETITORS)
    with pytest.raises(ValueError, match="'topk:n=3' is not like"):
        cases.entries(["topk:n=3"], ["sksae"])
    with pytest.raises(ValueError, match="'top' is neither in"):
        cases.entries(["top"], ["sksae"])


def test_table_takes_ratios_round_by_round(benchmarks):
    """A slow moment that hits a whole round does not change a ratio."""
    shared = {"case": "topk", "product_ms": [2.0, 2.0], "optimizer_ms": 1.0, "peak_rss_mb": 100}
    results = [
        shared
        | {
            "competitor": name,
            "round": turn,
            "step_ms": ms,
            "rows_per_s": 1e6 / ms,
            "times_product": ms / 2,
        }  # fmt: skip
        for turn, slow in enumerate((1, 10))
        for name, ms in (("sksae", 4.0 * slow), ("other", 12.0 * slow))
    ]
    failed = {"case": "topk", "competitor": "third", "round": 0, "error": "A\nValueError: no"}
    tables = benchmarks("_speed_table")
    text = tables.table([*results, failed])
    (line,) = (line for line in text.splitlines() if line.startswith("| other"))
    assert [cell.strip() for cell in line.split("|")][5] == "3.00"
    assert "topk, third: ValueError: no" in text
    assert "floor 3 ms" in text
    bare = [r | {"competitor": "sksae-bare", "times_product": r["times_product"] / 1.25}
            for r in results if r["competitor"] == "sksae"]  # fmt: skip
    cells = tables.summary([*results, *bare]).splitlines()[-1].split("|")
    assert [cell.strip() for cell in cells][5:9] == ["11.00", "+25.0%", "–", "3.00"]


def test_memory_of_transform(benchmarks):
    found = benchmarks("_speed_memory").measure(2000, 16, 256, 4, threads=1)
    assert found["active"] <= 4 * 2000 and found["rows_per_s"] > 0
    assert found["beyond_mb"] < 1024


def test_data_of_another_width_is_refused(benchmarks, tmp_path):
    np.save(tmp_path / "train.npy", np.zeros((8, 5), dtype=np.float32))
    with pytest.raises(ValueError, match="has 5 features, not 16."):
        benchmarks("_speed_tools").rows(JOB | {"data": str(tmp_path)})


def test_one_command(tmp_path):
    saved = tmp_path / "speed.json"
    command = [sys.executable, str(FOLDER / "speed.py"), "--libraries", "sksae", "--rounds", "1"]
    command += ["--cases", "topk:m=256,k=4,b=64,d=16", "--rows", "256", "--seconds", "0.01"]
    command += ["--threads", "1", "--device", "cpu", "--settle-steps", "4", "--save", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[0])
    assert "error" not in line, line["error"]
    assert "| sksae |" in done.stdout
    kept = json.loads(saved.read_text())
    assert kept["results"] == [line]
    assert {"command", "machine", "threads", "OMP_WAIT_POLICY", "load_at_start"} <= kept.keys()
