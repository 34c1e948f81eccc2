"""The Triton kernels: in their interpreter, in another process, and compiled for a device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_they_pass_the_tests_of_all_kernels_in_the_interpreter():
    """Triton asks the environment once, when it is imported."""
    tests = Path(__file__).parent / "test_kernels.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, str(tests)], env=environment, capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout
    assert "passed" in last and "skipped" not in last
