"""The Triton kernels: in their interpreter, in another process, and compiled for a device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.3")

# Tests that are too large for the interpreter, or not of it.
LEFT_OUT = ("300-70-3", "float64-5-131", "largest", "ranges", "thread", "layouts", "1e-30")
LEFT_OUT += ("5-131-19-131", "split", "float64")


@pytest.mark.parametrize(
    "names, left_out",
    [
        (("test_kernels.py", "test_cuda.py::test_top_k_in_half_precision"), LEFT_OUT),
        (("test_interpreted.py", "test_row_gradients.py"), ("optimizer", "written_out")),
    ],
)
def test_they_pass_tests_in_the_interpreter(names, left_out):
    """Triton asks the environment once, when it is imported."""
    here = Path(__file__).parent
    choice = "not " + " and not ".join(left_out)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", choice]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    tests = [f"{here}/{name}" for name in names]
    done = subprocess.run(
        [*command, *tests], env=environment, capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout
    assert "passed" in last and "skipped" not in last, done.stdout


BLOCKS = {"ENTRIES": 16, "FEATURES": 128}
ROW = {"ENTRIES": 8, "FEATURES": 1024}
ADAM = {"TINY": 1e-8, "TANGENT": True, "EXTRA": True, "BLOCK": 256}


def kernels(t, half):
    """Give, for a type of numbers, the arguments of each kernel: types, constants, warps."""
    yield "_sum_rows", f"table:{half} starts:*i32 index:*i32 weights:{t} out:{t} d:i32", BLOCKS, 4
    yield "_products", f"rows:{t} dictionary:{t} starts:*i32 columns:*i32 out:{t} d:i32", BLOCKS, 4
    yield "_remove_parallel", f"gradient:{t} atoms:{t} d:i32", {"FEATURES": 1024}, 4
    entries = f"index:*i32 weights:{t}"
    for concepts in ("*i16", "*i32"):
        types = f"table:{half} concepts:{concepts} {entries} out:{t} m:i32 d:i32"
        yield "_block_sums", types, BLOCKS | {"BLOCK": 256}, 4
    yield "_subtract", f"x:{t} center:{t} out:{half} n:i32 d:i32", {"SIZE": 1024}, 4
    types = f"x:{t} scale:{t} center:{t} limit:{t} out:{t} d:i32"
    yield "_scale_rows", types, {"FEATURES": 1024}, 4
    types = f"dictionary:{half} starts:*i32 columns:*i32 values:{t} bias:{t} target:{t} "
    types += f"x_hat:{t} error:{half} slopes:{t} squares:{t} d:i32"
    yield "_reconstruct", types, ROW, 4
    types = f"rows:{t} mean:{t} square:{t} starts:*i32 {entries} table:{half} blocks:{t} "
    types += f"place:*i64 extra:{t} copy:{half} steps:*fp32 numbers:*fp64 d:i32"
    yield "_adam_rows", types, ADAM | ROW | {"COPY": t != half}, 4
    types = f"entries:{t} gradient:{t} mean:{t} square:{t} steps:*fp32 numbers:*fp64 n:i32"
    yield "_adam", types, {"SIZE": 1024}, 4


def selections():
    types = "rows:*fp32 exact:*fp32 bias:*fp32 tried:*i32 rounded:*bf16 of_bias:*fp32 "
    types += "of_rows:*fp32 columns:*i32 values:*fp32 surplus:*fp32 n_tried:i32 k:i32 d:i32"
    constants = {"SHARE": 2**-7, "LOWEST": 0, "TRIED": 64, "FEATURES": 128}
    yield "_choose", types, constants, 1
    for t, lowest in (("*fp32", 0), ("*bf16", 16)):
        constants = {"LOWEST": lowest, "COLUMNS": 2**15}
        yield "_top_k", f"pre:{t} columns:*i32 values:{t} m:i32 k:i32", constants, 32
        types = f"pre:{t} codes:{t} slopes:{t} m:i32 k:i32 leak:fp32"
        yield "_keep_dead", types, {"LOWEST": lowest, "COLUMNS": 1024}, 2
        types = f"pre:{t} tops:{t} m:i32"
        yield "_group_tops", types, {"GROUPS": 1024, "SIZE": 24}, 4
        for each in (True, False):
            constants = {"EACH": each, "COLUMNS": 1024}
            read = f"pre:{t} cut:*fp32" if each else f"pre:{t} cut:{t}"
            yield "_count_above", f"{read} counts:*i32 m:i32", constants, 8
            types = f"{read} starts:*i32 columns:*i32 values:{t} m:i32"
            yield "_store_above", types, constants, 8
        constants = {"LOWEST": lowest, "GROUPS": 1024, "SIZE": 24}
        yield "_top_groups", f"pre:{t} groups:*i32 m:i32 k:i32", constants, 4
        constants = constants | {"SIZE": 32, "N_GROUPS": 32}
        types = f"pre:{t} groups:*i32 columns:*i32 values:{t} m:i32 k:i32"
        yield "_top_of_groups", types, constants, 4


@pytest.mark.parametrize(
    "name, types, constants, n_warps",
    [
        *kernels("*fp32", "*fp32"),
        *kernels("*fp32", "*bf16"),
        *kernels("*fp64", "*fp64"),
        *selections(),
    ],
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
