"""Triton kernels over stored codes; each program has a row, or a concept, of its own.

No two programs write to one place, so results do not depend on their order. Sums over the
entries of a concept that fires for very many rows run in one program; splitting them
would need atomic additions. Block sizes are guesses: they were compiled for CUDA devices, and
their results checked in Triton's interpreter, but not timed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._codes import SparseCodes

# Entries, features and row features that a program holds at once.
_ENTRIES, _FEATURES, _ROW = 16, 128, 1024
# Columns that fit into the registers of 32 warps.
WIDEST = 2**15


@triton.jit
def _sum_rows(table, starts, index, weights, out, d, ENTRIES: tl.constexpr, FEATURES: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    start, end = tl.load(starts + i), tl.load(starts + i + 1)
    total = tl.zeros((FEATURES,), dtype=out.dtype.element_ty)
    for first in range(start, end, ENTRIES):
        at = first + tl.arange(0, ENTRIES)
        inside = at < end
        j = tl.load(index + at, mask=inside, other=0).to(tl.int64)
        weight = tl.load(weights + at, mask=inside, other=0.0)
        mask = inside[:, None] & (f < d)[None, :]
        tile = tl.load(table + j[:, None] * d + f[None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, None] * tile, axis=0)
    tl.store(out + i * d + f, total, mask=f < d)


@triton.jit
def _products(
    rows, dictionary, starts, columns, out, d, ENTRIES: tl.constexpr, FEATURES: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64)
    start, end = tl.load(starts + i), tl.load(starts + i + 1)
    for first in range(start, end, ENTRIES):
        at = first + tl.arange(0, ENTRIES)
        inside = at < end
        j = tl.load(columns + at, mask=inside, other=0).to(tl.int64)
        total = tl.zeros((ENTRIES,), dtype=out.dtype.element_ty)
        for f0 in range(0, d, FEATURES):
            f = f0 + tl.arange(0, FEATURES)
            row = tl.load(rows + i * d + f, mask=f < d, other=0.0)
            mask = inside[:, None] & (f < d)[None, :]
            tile = tl.load(dictionary + j[:, None] * d + f[None, :], mask=mask, other=0.0)
            total += tl.sum(row[None, :] * tile, axis=1)
        tl.store(out + at, total, mask=inside)


@triton.jit
def _remove_parallel(gradient, atoms, d, FEATURES: tl.constexpr):
    j = tl.program_id(0).to(tl.int64)
    products = tl.zeros((FEATURES,), dtype=gradient.dtype.element_ty)
    for f0 in range(0, d, FEATURES):
        f = f0 + tl.arange(0, FEATURES)
        g = tl.load(gradient + j * d + f, mask=f < d, other=0.0)
        products += g * tl.load(atoms + j * d + f, mask=f < d, other=0.0)
    along = tl.sum(products, axis=0)
    for f0 in range(0, d, FEATURES):
        f = f0 + tl.arange(0, FEATURES)
        g = tl.load(gradient + j * d + f, mask=f < d, other=0.0)
        atom = tl.load(atoms + j * d + f, mask=f < d, other=0.0)
        tl.store(gradient + j * d + f, g - along * atom, mask=f < d)


@triton.jit
def _top_k(pre, columns, values, m, k, LOWEST: tl.constexpr, COLUMNS: tl.constexpr):
    """Search the bits of the k-th largest entry; of numbers above 0 these are in their order."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, COLUMNS)
    x = tl.load(pre + i * m + j, mask=j < m, other=0.0).to(tl.float32)
    x = tl.where((x > 0) | (x != x), x, 0.0)  # NaN stays, as the largest
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    bits = tl.where(j < m, bits, -1)
    cut = 0
    for step in range(31 - LOWEST):
        higher = cut | (1 << (30 - step))
        n_reaching = tl.sum((bits >= higher).to(tl.int32), axis=0)
        cut = tl.where(n_reaching >= k, higher, cut)
    above, equal = bits > cut, (bits == cut).to(tl.int32)
    n_equal = k - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | ((equal > 0) & (tl.cumsum(equal, axis=0) <= n_equal))
    at = i * k + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(columns + at, j, mask=chosen)
    tl.store(values + at, x.to(values.dtype.element_ty), mask=chosen)


def _launch(
    kernel: Any, grid: tuple[int, ...], first: Tensor, *others: Tensor | int, **constants: int
) -> None:
    """Run a kernel's programs, if any, on the device of its first argument."""
    if grid[0]:
        with torch.cuda.device_of(first):
            kernel[grid](first, *others, **constants)


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give the k largest of the positive entries and zeros of each row.

    Of equal entries the first are taken. Sixteen of the 31 bits of a bfloat16 are 0.

    Parameters
    ----------
    pre : Tensor of float32, bfloat16 or float16, shape (n, m)
        With m up to ``WIDEST``. What is not positive counts as 0.
    k : int
        From 1 to m.

    Returns
    -------
    columns : Tensor of int32, shape (n, k)
        In increasing order.
    values : Tensor of shape (n, k)
    """
    (n, m), pre = pre.shape, pre.contiguous()
    columns, values = pre.new_empty(n, k, dtype=torch.int32), pre.new_empty(n, k)
    width, lowest = triton.next_power_of_2(m), 16 if pre.dtype == torch.bfloat16 else 0
    n_warps = max(1, min(32, width // 512))
    constants = {"LOWEST": lowest, "COLUMNS": width, "num_warps": n_warps}
    _launch(_top_k, (n,), pre, columns, values, m, k, **constants)
    return columns, values


def sum_rows(starts: Tensor, index: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Give weighted sums of rows of a table, as `_gathers.sum_rows`."""
    (n, d), table = (len(starts) - 1, table.shape[1]), table.contiguous()
    index, weights = index.contiguous(), weights.contiguous()
    out = table.new_empty(n, d)
    block = min(_FEATURES, triton.next_power_of_2(d))
    grid, constants = (n, triton.cdiv(d, block)), {"ENTRIES": _ENTRIES, "FEATURES": block}
    _launch(_sum_rows, grid, table, starts, index, weights, out, d, **constants)
    return out


def products(codes: SparseCodes, rows: Tensor, dictionary: Tensor) -> Tensor:
    """Give the entries of ``rows @ dictionary.T`` where codes are stored."""
    rows, dictionary = rows.contiguous(), dictionary.contiguous()
    out, d = rows.new_empty(len(codes.columns)), rows.shape[1]
    constants = {"ENTRIES": _ENTRIES, "FEATURES": min(_FEATURES, triton.next_power_of_2(d))}
    layout = codes.indptr, codes.columns
    _launch(_products, (len(rows),), rows, dictionary, *layout, out, d, **constants)
    return out


def remove_parallel_(gradient: Tensor, dictionary: Tensor) -> None:
    """Take out of each row of a contiguous gradient its part along a row of unit norm."""
    n, d = gradient.shape
    block = min(_ROW, triton.next_power_of_2(d))
    _launch(_remove_parallel, (n,), gradient, dictionary.contiguous(), d, FEATURES=block)


def try_out() -> None:
    """Run a kernel; raise what Triton raises where it cannot, as without a C compiler."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    starts, one = torch.tensor([0, 1], dtype=torch.int32, device=device), torch.ones(1, 1)
    sum_rows(starts, starts[:1], one[0].to(device), one.to(device))
