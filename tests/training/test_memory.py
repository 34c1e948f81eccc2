"""What passes over all rows keeps nothing of them, in a process of its own."""

import subprocess
import sys

import pytest

# A row is 1 KiB, in float64 2 KiB. Reading zeros that were never written takes no memory itself.
PASSES = """
import resource, sys
import numpy as np, torch
from sksae.training._data import InputStatistics, RowBatches, mean_and_variance

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux

task = {"statistics": InputStatistics.of, "variance": mean_and_variance}[sys.argv[1]]
task(RowBatches(np.zeros((4096, 256), np.float32), torch.device("cpu"), torch.float32))
data = RowBatches(np.zeros((300_000, 256), np.float32), torch.device("cpu"), torch.float32)
before = peak()
task(data)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts KiB, as Linux does")
@pytest.mark.parametrize("task", ["statistics", "variance"])
def test_passes_over_rows_keep_none(task):
    done = subprocess.run(
        [sys.executable, "-c", PASSES, task], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 200  # MiB, of 293 in float32 and 586 in float64
