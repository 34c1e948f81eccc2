"""Triton kernels over stored codes; each program has a row, or a concept, of its own.

No two programs write to one place, so results do not depend on their order. Sums over the
entries of a concept are split where it fires for many rows: whole blocks of entries are added
up before, by programs of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._codes import SparseCodes, indptr_of
from ._gathers import TINY

# Entries, features and row features that a program holds at once.
_ENTRIES, _FEATURES, _ROW = 16, 128, 1024
# Columns that fit into the registers of 32 warps, and features of a row that fit into one program.
WIDEST, WIDEST_ROW = 2**15, 2**13
# Features of gathered rows that a thread holds, and entries of a concept that are added up before.
_GATHERED, _BLOCK = 64, 256
# Groups that the columns of a wide row are put into, columns of each, and candidates of a row.
_FEWEST_GROUPS, _MOST_GROUPS = 256, 2048
_SMALLEST_GROUP, _LARGEST_GROUP, _MOST_CANDIDATES = 8, 64, 2**14
# Columns that are compared with a cut at once, and of dead concepts at least.
_SCANNED, _FEWEST_KEPT = 1024, 256


@triton.jit
def _sum(total, table, index, weights, start, end, f, d, ENTRIES: tl.constexpr):
    """Add weighted rows of a table, of which ``f`` are the features, to what there is."""
    for first in range(start, end, ENTRIES):
        at = first + tl.arange(0, ENTRIES)
        inside = at < end
        j = tl.load(index + at, mask=inside, other=0).to(tl.int64)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(total.dtype)
        mask = inside[:, None] & (f < d)[None, :]
        tile = tl.load(table + j[:, None] * d + f[None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, None] * tile.to(total.dtype), axis=0)
    return total


@triton.jit
def _sum_rows(table, starts, index, weights, out, d, ENTRIES: tl.constexpr, FEATURES: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    start, end = tl.load(starts + i), tl.load(starts + i + 1)
    total = tl.zeros((FEATURES,), dtype=out.dtype.element_ty)
    total = _sum(total, table, index, weights, start, end, f, d, ENTRIES)
    tl.store(out + i * d + f, total, mask=f < d)


@triton.jit
def _block_sums(
    table, concepts, index, weights, out, m, d, BLOCK: tl.constexpr, ENTRIES: tl.constexpr,
    FEATURES: tl.constexpr,
):  # fmt: skip
    """Add up the entries of a block, if all of them are of one concept."""
    b = tl.program_id(0).to(tl.int64)
    first = tl.load(concepts + b * BLOCK)
    last = tl.load(concepts + b * BLOCK + BLOCK - 1)
    if (first == last) & (first < m):
        f = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
        total = tl.zeros((FEATURES,), dtype=out.dtype.element_ty)
        start = b * BLOCK
        total = _sum(total, table, index, weights, start, start + BLOCK, f, d, ENTRIES)
        tl.store(out + b * d + f, total, mask=f < d)


@triton.jit
def _stepped(value, m, v, g, numbers, steps):
    """Give what a step of Adam makes of entries, and of the running moments of their gradient."""
    n, smallest = tl.load(steps).to(tl.float64), tl.full((), 1e-300, tl.float64)
    rate, beta1, beta2 = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    correction1 = 1 - tl.exp(n * tl.log(tl.maximum(beta1, smallest)))
    correction2 = 1 - tl.exp(n * tl.log(tl.maximum(beta2, smallest)))
    size, root = (rate / correction1).to(value.dtype), tl.sqrt(correction2).to(value.dtype)
    eps = tl.load(numbers + 3).to(value.dtype)
    m += (1 - beta1).to(value.dtype) * (g - m)
    v = beta2.to(value.dtype) * v + (1 - beta2).to(value.dtype) * g * g
    return value - size * m / (tl.sqrt(v) / root + eps), m, v


@triton.jit
def _adam(entries, gradient, mean, square, steps, numbers, n, SIZE: tl.constexpr):
    """Take a step of Adam on some entries of a parameter."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < n
    value, g = tl.load(entries + at, mask=inside), tl.load(gradient + at, mask=inside)
    m, v = tl.load(mean + at, mask=inside), tl.load(square + at, mask=inside)
    value, m, v = _stepped(value, m, v, g, numbers, steps)
    tl.store(mean + at, m, mask=inside)
    tl.store(square + at, v, mask=inside)
    tl.store(entries + at, value, mask=inside)


@triton.jit
def _adam_rows(
    rows, mean, square, starts, index, weights, table, blocks, place, extra, copy, steps,
    numbers, d, TINY: tl.constexpr, TANGENT: tl.constexpr, EXTRA: tl.constexpr,
    COPY: tl.constexpr, BLOCK: tl.constexpr, ENTRIES: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Take a step of Adam on a row whose gradient is a sum; see `_numba_step.adam_rows`."""
    j = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, FEATURES)
    at, inside = j * d + f, f < d
    start, end = tl.load(starts + j), tl.load(starts + j + 1)
    # From the first to the last are whole blocks, which were added up before.
    first, last = (start + BLOCK - 1) // BLOCK, end // BLOCK
    head = tl.where(first < last, first * BLOCK, end)
    tail = tl.where(first < last, last * BLOCK, end)
    row = tl.load(rows + at, mask=inside, other=0.0)
    number = row.dtype
    gradient = tl.zeros((FEATURES,), dtype=number)
    gradient = _sum(gradient, table, index, weights, start, head, f, d, ENTRIES)
    for b in range(first, last):
        gradient += tl.load(blocks + b * d + f, mask=inside, other=0.0)
    gradient = _sum(gradient, table, index, weights, tail, end, f, d, ENTRIES)
    if TANGENT:
        gradient -= tl.sum(gradient * row, axis=0) * row
    if EXTRA:
        i = tl.load(place + j)
        gradient += tl.load(extra + i * d + f, mask=inside & (i >= 0), other=0.0)
    m = tl.load(mean + at, mask=inside, other=0.0)
    v = tl.load(square + at, mask=inside, other=0.0)
    row, m, v = _stepped(row, m, v, gradient, numbers, steps)
    if TANGENT:
        row /= tl.sqrt(tl.sum(row * row, axis=0)) + TINY
    tl.store(mean + at, m, mask=inside)
    tl.store(square + at, v, mask=inside)
    tl.store(rows + at, row, mask=inside)
    if COPY:
        tl.store(copy + at, row.to(copy.dtype.element_ty), mask=inside)


@triton.jit
def _scale_rows(x, scale, center, limit, out, d, FEATURES: tl.constexpr):
    """Divide a row by a scale; move it onto the limit if it is farther from the center."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, FEATURES)
    inside = f < d
    u = tl.load(x + i * d + f, mask=inside, other=0.0) / tl.load(scale)
    middle, most = tl.load(center + f, mask=inside, other=0.0), tl.load(limit)
    distance = tl.sqrt(tl.sum((u - middle) * (u - middle), axis=0))  # type: ignore[var-annotated]
    if distance > most:
        u = middle + (u - middle) * (most / distance)
    tl.store(out + i * d + f, u, mask=inside)


@triton.jit
def _subtract(x, center, out, n, d, SIZE: tl.constexpr):
    """Subtract a row from some entries of rows."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < n
    c = tl.load(x + at, mask=inside) - tl.load(center + at % d, mask=inside)
    tl.store(out + at, c.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _reconstruct(
    dictionary, starts, columns, values, bias, target, x_hat, error, slopes, squares, d,
    ENTRIES: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Decode a row; give what it is off a target and its products with its dictionary rows."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, FEATURES)
    inside = f < d
    start, end = tl.load(starts + i), tl.load(starts + i + 1)
    total = tl.load(bias + f, mask=inside, other=0.0)
    total = _sum(total, dictionary, columns, values, start, end, f, d, ENTRIES)
    off = total - tl.load(target + i * d + f, mask=inside, other=0.0)
    tl.store(x_hat + i * d + f, total, mask=inside)
    tl.store(error + i * d + f, off.to(error.dtype.element_ty), mask=inside)
    tl.store(squares + i, tl.sum(off * off, axis=0))
    for first in range(start, end, ENTRIES):
        at = first + tl.arange(0, ENTRIES)
        j = tl.load(columns + at, mask=at < end, other=0).to(tl.int64)
        mask = (at < end)[:, None] & inside[None, :]
        tile = tl.load(dictionary + j[:, None] * d + f[None, :], mask=mask, other=0.0)
        tl.store(slopes + at, tl.sum(off[None, :] * tile.to(off.dtype), axis=1), mask=at < end)


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
def _search(keys, k, cut, BITS: tl.constexpr):
    """Tell which k are largest, of equal ones the first; searches the bits of the k-th."""
    for step in range(BITS):
        higher = cut | (1 << (BITS - 1 - step))
        n_reaching = tl.sum((keys >= higher).to(tl.int32), axis=0)
        cut = tl.where(n_reaching >= k, higher, cut)
    above, equal = keys > cut, (keys == cut).to(tl.int32)
    n_equal = k - tl.sum(above.to(tl.int32), axis=0)
    return above | ((equal > 0) & (tl.cumsum(equal, axis=0) <= n_equal))


@triton.jit
def _chosen(bits, k, LOWEST: tl.constexpr):
    """Tell which k of whole numbers are largest; of those not negative, LOWEST bits are 0."""
    return _search(bits >> LOWEST, k, tl.full((), 0, tl.int32), 31 - LOWEST)


@triton.jit
def _bits(x):
    """Give whole numbers in the order of positive ones; of others 0, of NaN the largest."""
    x = tl.where((x > 0) | (x != x), x, 0.0)
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _store_chosen(columns, values, first, chosen, j, x):
    at = first + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    x = tl.where((x > 0) | (x != x), x, 0.0)
    tl.store(columns + at, j, mask=chosen)
    tl.store(values + at, x.to(values.dtype.element_ty), mask=chosen)


@triton.jit
def _top_k(pre, columns, values, m, k, LOWEST: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, COLUMNS)
    x = tl.load(pre + i * m + j, mask=j < m, other=0.0).to(tl.float32)
    chosen = _chosen(tl.where(j < m, _bits(x), -1), k, LOWEST)
    _store_chosen(columns, values, i * k, chosen, j, x)


@triton.jit
def _choose(
    rows, exact, bias, tried, rounded, of_bias, of_rows, columns, values, surplus, n_tried, k, d,
    SHARE: tl.constexpr, LOWEST: tl.constexpr, TRIED: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Keep the k largest of the products of a row, with biases; tell how sure they are."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, TRIED)
    inside = c < n_tried
    j = tl.load(tried + i * n_tried + c, mask=inside, other=0)
    x = tl.load(exact + i * n_tried + c, mask=inside, other=0.0) + tl.load(bias + j)
    chosen = _chosen(tl.where(inside, _bits(x), -1), k, LOWEST)
    _store_chosen(columns, values, i * k, chosen, j, x)
    squares = tl.zeros((FEATURES,), dtype=x.dtype)
    for f0 in range(0, d, FEATURES):
        f = f0 + tl.arange(0, FEATURES)
        row = tl.load(rows + i * d + f, mask=f < d, other=0.0)
        squares += row * row
    infinite = float("inf")
    least = tl.load(rounded + i * n_tried + c, mask=inside, other=infinite).to(x.dtype)
    level = tl.load(of_bias) + tl.load(of_rows) * tl.sqrt(tl.sum(squares, axis=0))
    highest = tl.min(least, axis=0) * (1 + SHARE) + level
    smallest = tl.min(tl.where(chosen, tl.maximum(x, 0.0), infinite), axis=0)
    tl.store(surplus + i, smallest - highest)


@triton.jit
def _keep_dead(
    pre, codes, slopes, m, k, leak, LOWEST: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Keep the k largest of a row, of whatever sign, by a leaky ReLU."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, COLUMNS)
    x = tl.load(pre + i * m + j, mask=j < m, other=float("-inf")).to(tl.float32)
    bits = x.to(tl.int32, bitcast=True)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> LOWEST  # in the order of the numbers
    n_positive = tl.sum((keys >= 0).to(tl.int32), axis=0)
    start = tl.where(n_positive >= k, 0, -(1 << (31 - LOWEST)))
    chosen = _search(keys, k, start, 31 - LOWEST) & (x != float("-inf"))
    slope = tl.where(chosen, tl.where(x > 0, 1.0, leak), 0.0)
    code = tl.where(chosen, x, 0.0) * slope
    tl.store(codes + i * m + j, code.to(codes.dtype.element_ty), mask=j < m)
    tl.store(slopes + i * m + j, slope.to(slopes.dtype.element_ty), mask=j < m)


@triton.jit
def _tops(pre, i, m, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """Give the largest entry, at least 0, of each group of columns g, g + GROUPS and so on."""
    g = tl.arange(0, GROUPS)
    top = tl.zeros((GROUPS,), dtype=tl.float32)
    for s in tl.static_range(SIZE):
        j = s * GROUPS + g
        x = tl.load(pre + i * m + j, mask=j < m, other=0.0).to(tl.float32)
        top = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    return top


@triton.jit
def _group_tops(pre, tops, m, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    top = _tops(pre, i, m, GROUPS, SIZE)
    tl.store(tops + i * GROUPS + tl.arange(0, GROUPS), top.to(tops.dtype.element_ty))


@triton.jit
def _top_groups(pre, groups, m, k, LOWEST: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """Find the k groups of columns that have the largest entries.

    The k largest entries of the row are among them.
    """
    i = tl.program_id(0).to(tl.int64)
    chosen = _chosen(_bits(_tops(pre, i, m, GROUPS, SIZE)), k, LOWEST)
    at = i * k + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(groups + at, tl.arange(0, GROUPS), mask=chosen)


@triton.jit
def _top_of_groups(
    pre, groups, columns, values, m, k, LOWEST: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, N_GROUPS: tl.constexpr,
):  # fmt: skip
    """Choose among the entries of k groups, in the order of their columns."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, N_GROUPS)
    g = tl.load(groups + i * k + c, mask=c < k, other=0)
    j = (tl.arange(0, SIZE) * GROUPS)[:, None] + g[None, :]
    inside = (c < k)[None, :] & (j < m)
    x = tl.load(pre + i * m + j, mask=inside, other=0.0).to(tl.float32)
    bits = tl.where(inside, _bits(x), -1)
    j, x, bits = (tl.reshape(j, (SIZE * N_GROUPS,)), tl.reshape(x, (SIZE * N_GROUPS,)),
                  tl.reshape(bits, (SIZE * N_GROUPS,)))  # fmt: skip
    _store_chosen(columns, values, i * k, _chosen(bits, k, LOWEST), j, x)


@triton.jit
def _exceeds(pre, cut, i, j, m, EACH: tl.constexpr):
    """Give some entries of a row, and which exceed the cut, their column's own or that of all."""
    x = tl.load(pre + i * m + j, mask=j < m, other=0.0)
    level = tl.load(cut + j, mask=j < m, other=0.0) if EACH else tl.load(cut)
    return x, (x.to(tl.float32) > level.to(tl.float32)) & (j < m)


@triton.jit
def _count_above(pre, cut, counts, m, EACH: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    total = tl.zeros((COLUMNS,), dtype=tl.int32)
    for first in range(0, m, COLUMNS):
        _, above = _exceeds(pre, cut, i, first + tl.arange(0, COLUMNS), m, EACH)
        total += above.to(tl.int32)
    tl.store(counts + i, tl.sum(total, axis=0))


@triton.jit
def _store_above(pre, cut, starts, columns, values, m, EACH: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    at = tl.load(starts + i)
    for first in range(0, m, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        x, above = _exceeds(pre, cut, i, j, m, EACH)
        n_above = tl.sum(above.to(tl.int32), axis=0)
        if n_above > 0:
            place = at + tl.cumsum(above.to(tl.int32), axis=0) - 1
            tl.store(columns + place, j, mask=above)
            tl.store(values + place, x, mask=above)
            at += n_above


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    first: Tensor,
    *others: Tensor | float,
    **constants: float,
) -> None:
    """Run a kernel's programs, if any, on the device of its first argument."""
    if grid[0]:
        with torch.cuda.device_of(first):
            kernel[grid](first, *others, **constants)


def _whole_row(d: int, per_thread: int) -> dict[str, int]:
    """Give the constants of a program that holds whole rows of d features."""
    width = triton.next_power_of_2(d)
    n_warps = max(1, min(16, width // (32 * per_thread)))
    entries = max(1, min(_ENTRIES, _GATHERED * 32 * n_warps // width))
    return {"ENTRIES": entries, "FEATURES": width, "num_warps": n_warps}


def has_top_k(m: int, k: int) -> bool:
    """Tell whether `top_k` takes rows of m entries."""
    return m <= WIDEST or _group_sizes(m, k) is not None


def _group_sizes(m: int, k: int) -> tuple[int, int] | None:
    """Give a number of groups and entries of each, where rows are better looked at in groups."""
    groups = triton.next_power_of_2(m + 1) // (2 * _SMALLEST_GROUP)
    groups = max(min(groups, _MOST_GROUPS), triton.next_power_of_2(4 * k), _FEWEST_GROUPS)
    size = triton.cdiv(m, groups)
    candidates = triton.next_power_of_2(size) * triton.next_power_of_2(k)
    if not _SMALLEST_GROUP <= size <= _LARGEST_GROUP or candidates > _MOST_CANDIDATES:
        return None
    return groups, size


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give the k largest of the positive entries and zeros of each row.

    Of equal entries that not all can be taken, some are. Sixteen of the 31 bits of a bfloat16
    are 0.

    Parameters
    ----------
    pre : Tensor of float32, bfloat16 or float16, shape (n, m)
        Of which `has_top_k`. What is not positive counts as 0.
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
    lowest = 16 if pre.dtype == torch.bfloat16 else 0
    sizes = _group_sizes(m, k)
    if sizes is None:
        width = triton.next_power_of_2(m)
        constants = {"LOWEST": lowest, "COLUMNS": width, "num_warps": max(1, min(32, width // 512))}
        _launch(_top_k, (n,), pre, columns, values, m, k, **constants)
        return columns, values
    groups, size = sizes
    chosen = torch.empty_like(columns)
    constants = {"LOWEST": lowest, "GROUPS": groups, "num_warps": max(1, min(16, groups // 1024))}
    _launch(_top_groups, (n,), pre, chosen, m, k, SIZE=size, **constants)
    size, n_groups = triton.next_power_of_2(size), triton.next_power_of_2(k)
    constants |= {"N_GROUPS": n_groups, "num_warps": max(1, min(16, size * n_groups // 256))}
    _launch(_top_of_groups, (n,), pre, chosen, columns, values, m, k, SIZE=size, **constants)
    return columns, values


def choose_exactly(
    tried: tuple[Tensor, Tensor],
    product: tuple[Tensor, Tensor, Tensor],
    level: tuple[Tensor, Tensor],
    share: float,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute some pre-codes of each row in float32; see `_cuda.choose_exactly`."""
    (n, n_tried), (rows, weight, bias) = tried[0].shape, (t.contiguous() for t in product)
    indptr = torch.arange(0, n * n_tried + 1, n_tried, dtype=torch.int32, device=rows.device)
    exact = products(SparseCodes(indptr, tried[0].flatten(), len(weight)), rows, weight)
    columns, values = tried[0].new_empty(n, k), rows.new_empty(n, k)
    surplus, width = rows.new_empty(n), triton.next_power_of_2(n_tried)
    constants = {"SHARE": share, "LOWEST": 0, "TRIED": width, "FEATURES": _FEATURES}
    given = (exact, bias, *tried, *level, columns, values, surplus, n_tried, k, rows.shape[1])
    _launch(_choose, (n,), rows, *given, **constants, num_warps=max(1, min(32, width // 256)))
    return columns, values, surplus


def group_tops(pre: Tensor) -> Tensor | None:
    """Give the largest entries, or 0, of groups of columns of each row.

    Parameters
    ----------
    pre : Tensor of float32, bfloat16 or float16, shape (n, m)

    Returns
    -------
    Tensor of shape (n, n_groups), or None
        Group g has the columns g, g + n_groups, g + 2 n_groups and so on. None where rows
        are too narrow, or too wide, for that to pay.
    """
    (n, m), pre = pre.shape, pre.contiguous()
    sizes = _group_sizes(m, 1)
    if sizes is None:
        return None
    groups, size = sizes
    tops = pre.new_empty(n, groups)
    constants = {"GROUPS": groups, "SIZE": size, "num_warps": max(1, min(16, groups // 1024))}
    _launch(_group_tops, (n,), pre, tops, m, **constants)
    return tops


def above(pre: Tensor, cut: Tensor) -> tuple[SparseCodes, Tensor]:
    """Select the entries of pre-codes (n, m) that exceed a cut; see `_gathers.above`."""
    found = fewer_above(pre, cut, pre.numel())
    assert found is not None
    return found


def fewer_above(pre: Tensor, cut: Tensor, most: int) -> tuple[SparseCodes, Tensor] | None:
    """Select the entries that exceed a cut; give None if there are more than ``most``."""
    (n, m), pre = pre.shape, pre.contiguous()
    each = cut.ndim > 0
    cut = cut.contiguous() if each else cut.to(pre.dtype)
    counts = torch.empty(n, dtype=torch.int32, device=pre.device)
    block = min(_SCANNED, triton.next_power_of_2(m))
    constants = {"EACH": each, "COLUMNS": block, "num_warps": max(1, min(8, block // 256))}
    _launch(_count_above, (n,), pre, cut, counts, m, **constants)
    indptr = indptr_of(counts)
    n_stored = int(indptr[-1])
    if n_stored > most:
        return None
    columns = torch.empty(n_stored, dtype=torch.int32, device=pre.device)
    values = pre.new_empty(n_stored)
    _launch(_store_above, (n,), pre, cut, indptr, columns, values, m, **constants)
    return SparseCodes(indptr, columns, m), values


def keep_dead(pre: Tensor, k: int, leak: float) -> tuple[Tensor, Tensor]:
    """Keep the k largest pre-codes of each row, by a leaky ReLU; see `_cuda.keep_dead`."""
    (n, m), pre = pre.shape, pre.contiguous()
    codes, slopes = torch.empty_like(pre), torch.empty_like(pre)
    # Powers of 4, so that few kinds have to be compiled as concepts die and come back.
    width = max(_FEWEST_KEPT, 4 ** math.ceil((m - 1).bit_length() / 2))
    width, lowest = min(width, WIDEST), 16 if pre.dtype == torch.bfloat16 else 0
    constants = {"LOWEST": lowest, "COLUMNS": width, "num_warps": max(1, min(32, width // 512))}
    _launch(_keep_dead, (n,), pre, codes, slopes, m, min(k, m), leak, **constants)
    return codes, slopes


def sum_rows(starts: Tensor, index: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Give weighted sums of rows of a table, as `_gathers.sum_rows`."""
    (n, d), table = (len(starts) - 1, table.shape[1]), table.contiguous()
    index, weights = index.contiguous(), weights.contiguous()
    out = weights.new_empty(n, d)
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


def reconstruct(
    codes: SparseCodes, values: Tensor, dictionary: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode stored codes and compare the result with a target; see `_cpu.reconstruct`."""
    target, (n, d) = target.contiguous(), target.shape
    x_hat, error = torch.empty_like(target), torch.empty_like(target, dtype=dictionary.dtype)
    slopes, squares = torch.empty_like(values), target.new_empty(n)
    read = (codes.indptr, codes.columns, values.contiguous(), bias, target)
    given = (*read, x_hat, error, slopes, squares, d)
    _launch(_reconstruct, (n,), dictionary.contiguous(), *given, **_whole_row(d, 16))
    return x_hat, error, slopes, squares.sum()


def scale_rows(x: Tensor, scale: Tensor, center: Tensor, limit: Tensor) -> Tensor:
    """Divide rows by a scale and move far ones onto a limit; see `_cpu.scale_rows`."""
    (n, d), x = x.shape, x.contiguous()
    out, constants = torch.empty_like(x), _whole_row(d, 16)
    del constants["ENTRIES"]
    _launch(_scale_rows, (n,), x, scale, center.contiguous(), limit, out, d, **constants)
    return out


def subtract(x: Tensor, center: Tensor, dtype: torch.dtype) -> Tensor:
    """Give ``x - center`` in a precision, as `_cpu.subtract`."""
    x, out = x.contiguous(), torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    n, grid = x.numel(), (triton.cdiv(x.numel(), _ROW),)
    _launch(_subtract, grid, x, center.contiguous(), out, n, x.shape[1], SIZE=_ROW)
    return out


def adam_(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    numbers: Tensor,
) -> None:
    """Take a step of Adam with a contiguous parameter.

    Parameters
    ----------
    parameter, gradient : Tensor
        Of equal shape.
    state : dict of Tensor
        The optimizer's state of the parameter; its step is the number of this one.
    numbers : Tensor of shape (4,), float64
        See `adam_numbers`.
    """
    n = parameter.numel()
    read = (gradient.contiguous(), state["exp_avg"], state["exp_avg_sq"], state["step"], numbers)
    _launch(_adam, (triton.cdiv(n, _ROW),), parameter, *read, n, SIZE=_ROW)


def adam_rows_(
    parameter: Tensor,
    sums: Any,
    part: tuple[Tensor, Tensor] | None,
    state: dict[str, Tensor],
    numbers: Tensor,
    copy: Tensor | None,
) -> None:
    """Take a step of Adam with a parameter whose gradient is given as sums.

    Parameters
    ----------
    parameter : Tensor of shape (m, d)
        Contiguous.
    sums : Sums
        Its gradient.
    part : tuple of Tensor of shape (n_part,) and (n_part, d), or None
        Rows that have a further part of their gradient, and that part. Row m stands for none.
    state, numbers
        As in `adam_`.
    copy : Tensor of shape (m, d), optional
        Written to: the parameter after the step, in the copy's precision.
    """
    (m, d), table = parameter.shape, sums.table.contiguous()
    entries = sums.index, sums.weights.contiguous()
    n_blocks, block = len(sums.index) // _BLOCK, min(_FEATURES, triton.next_power_of_2(d))
    blocks, concepts = parameter.new_empty(n_blocks, d), sums.codes.sorted_concepts[0]
    constants = {"BLOCK": _BLOCK, "ENTRIES": 4 * _ENTRIES, "FEATURES": block}
    grid = n_blocks, triton.cdiv(d, block)
    _launch(_block_sums, grid, table, concepts, *entries, blocks, m, d, **constants)
    place = extra = parameter
    if part is not None:
        place = torch.full((m + 1,), -1, dtype=torch.int64, device=parameter.device)
        place[part[0]] = torch.arange(len(part[0]), device=parameter.device)
        extra = part[1].contiguous()
    constants = {"TINY": TINY, "TANGENT": sums.tangent, "BLOCK": _BLOCK} | _whole_row(d, 8)
    constants |= {"EXTRA": part is not None, "COPY": copy is not None}
    moments, written = (state["exp_avg"], state["exp_avg_sq"]), parameter if copy is None else copy
    read = (sums.starts, *entries, table, blocks, place, extra)
    given = (*moments, *read, written, state["step"], numbers, d)
    _launch(_adam_rows, (m,), parameter, *given, **constants)


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
