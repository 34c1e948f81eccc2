"""The Triton kernels: in their interpreter, in another process, and compiled for a device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.3")

# Tests that are too large for the interpreter, or not of it.
LEFT_OUT = ("300-70-3", "float64-5-131", "largest", "ranges", "thread", "layouts", "1e-30", "above")
LEFT_OUT += ("5-131-19-131", "split", "float64")


def test_they_pass_the_tests_of_all_kernels_in_the_interpreter():
    """Triton asks the environment once, when it is imported."""
    here = Path(__file__).parent
    tests = here / "test_kernels.py", f"{here / 'test_cuda.py'}::test_top_k_in_half_precision"
    choice = "not " + " and not ".join(LEFT_OUT)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", choice]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [*command, *map(str, tests)], env=environment, capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout
    assert "passed" in last and "skipped" not in last, done.stdout


BLOCKS = {"ENTRIES": 16, "FEATURES": 128}


def kernels(t):
    """Give, for a type of numbers, the arguments of each kernel: types, constants, warps."""
    yield "_sum_rows", f"starts:*i32 index:*i32 weights:{t} table:{t} out:{t} d:i32", BLOCKS, 4
    yield "_products", f"starts:*i32 columns:*i32 rows:{t} dictionary:{t} out:{t} d:i32", BLOCKS, 4
    yield "_remove_parallel", f"gradient:{t} atoms:{t} d:i32", {"FEATURES": 1024}, 4


def selections():
    for t, lowest in (("*fp32", 0), ("*bf16", 16)):
        constants = {"LOWEST": lowest, "COLUMNS": 2**15}
        yield "_top_k", f"pre:{t} columns:*i32 values:{t} m:i32 k:i32", constants, 32


@pytest.mark.parametrize(
    "name, types, constants, n_warps", [*kernels("*fp32"), *kernels("*fp64"), *selections()]
)
def test_they_compile_for_a_device_that_need_not_be_there(name, types, constants, n_warps):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sksae.kernels import _triton

    signature = dict(argument.split(":") for argument in types.split())
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(getattr(_triton, name), signature, constants)
    target = GPUTarget("cuda", 80, 32)
    assert compile(source, target=target, options={"num_warps": n_warps}).asm["cubin"]
