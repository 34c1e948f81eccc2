"""Compiled loops around a product in small integers: rounding, and selection from what it gives."""

from __future__ import annotations

import numpy as np

from ._numba import (
    _FIRST_GUESS,
    _cut_from_tops,
    _group_tops,
    _jit,
    _keep_largest,
    _reaching,
    _smooth,
)

# The largest absolute value of a row becomes this integer; smaller rows than _TINY become zeros.
_LARGEST, _TINY = 127, 1e-30
_LANES = 32


@_jit
def _largest_size(row, tops):
    """Give the largest absolute value; ``tops`` are the largest of every few, for registers."""
    n_tops = len(tops)
    for g in range(n_tops):
        tops[g] = abs(row[g])
    for base in range(n_tops, len(row), n_tops):
        for g in range(min(n_tops, len(row) - base)):
            size = abs(row[base + g])
            tops[g] = size if size > tops[g] else tops[g]
    top = tops[0]
    for g in range(n_tops):
        top = tops[g] if tops[g] > top else top
    return top


@_jit
def round_rows(rows, whole, scale, norm, rest, start, stop):
    """Round rows to whole numbers up to 127; say what was lost.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
    whole : ndarray of int8, shape (n, d)
        Written to: ``rows / scale``, rounded.
    scale, norm, rest : ndarray of shape (n,)
        Written to: the scale, and the norms of the row and of what rounding takes from it.
    start, stop : int
        The rows to work on.
    """
    d, one = rows.shape[1], rows.dtype.type(1)
    tops = np.empty(min(d, _LANES), dtype=rows.dtype)
    for i in range(start, stop):
        top = _largest_size(rows[i], tops)
        step = top / rows.dtype.type(_LARGEST) if top > _TINY else one
        inverse = one / step if top > _TINY else one - one
        total, lost = one - one, one - one
        half = one / rows.dtype.type(2)
        for f in range(d):
            value = rows[i, f] * inverse
            nearest = np.int32(value + half if value > 0 else value - half)
            whole[i, f] = nearest
            left = rows[i, f] - rows.dtype.type(nearest) * step
            lost += left * left
            total += rows[i, f] * rows[i, f]
        scale[i], norm[i], rest[i] = step, np.sqrt(total), np.sqrt(lost)


@_jit
def _roughly(acc, table_scale, bias, inverse, row):
    """Write the pre-codes of a row of integer products, divided by the row's scale."""
    for j in range(len(row)):
        row[j] = row.dtype.type(acc[j]) * table_scale[j] + bias[j] * inverse


@_jit
def _dot(x, y):
    total = x.dtype.type(0)
    for f in range(len(x)):
        total += x[f] * y[f]
    return total


@_jit
def top_k(
    acc, rows, inverse, margin, weight, bias, table, k,
    columns, values, counts, n_tried, start, stop,
):  # fmt: skip
    """Give the k largest positive pre-codes of each row, from roughly known ones.

    Those that rounding may have kept from the k largest are computed anew.

    Parameters
    ----------
    acc : ndarray of int32, shape (n, m)
        Products of the rounded rows and the rounded table.
    rows : ndarray of shape (n, d)
    inverse, margin : ndarray of shape (n,)
        One over the scale of a row, and, divided by the scale, how far below the cut a rough
        pre-code may be whose true one is above it.
    weight, bias : ndarray of shape (m, d) and (m,)
    table : ndarray of shape (m,)
        The scale of the weights.
    k : int
    columns, values : ndarray of shape (n, k)
        Written to; the first ``counts[i]`` of row i.
    counts, n_tried : ndarray of int64, shape (n,)
        Written to; ``n_tried`` is how many were computed anew.
    start, stop : int
        The rows to work on.
    """
    m = len(weight)
    n_groups = min(m, max(64, 2 * k, int(np.sqrt(k * m))))
    tops = np.empty(n_groups, dtype=rows.dtype)
    row = np.empty(m, dtype=rows.dtype)
    entries, scratch = np.empty((2, m + 1), dtype=rows.dtype)
    groups, found = np.empty((2, m + 1), dtype=np.int32)
    ratio = rows.dtype.type(np.inf)
    for i in range(start, stop):
        _roughly(acc[i], table, bias, inverse[i], row)
        mean = _group_tops(row, tops)
        bound = _cut_from_tops(tops, k, _FIRST_GUESS * ratio * mean, scratch)
        n_found = _reaching(row, tops, bound - margin[i], groups, found, entries)
        for f in range(n_found):
            entries[f] = _dot(rows[i], weight[found[f]]) + bias[found[f]]
        n_tried[i] = n_found
        counts[i] = _keep_largest(found, entries, n_found, k, scratch, columns[i], values[i])
        if bound > 0 and mean > 0:
            ratio = _smooth(ratio, bound / mean)


@_jit
def count_above(acc, inverse, margin, bias, table, cut, counts, start, stop):
    """Count the entries of each row that may exceed their column's cut; see `top_k`."""
    for i in range(start, stop):
        n = 0
        for j in range(len(cut)):
            rough = cut.dtype.type(acc[i, j]) * table[j] + (bias[j] - cut[j]) * inverse[i]
            n += rough >= -margin[i]
        counts[i] = n


@_jit
def fill_above(
    acc, rows, inverse, margin, weight, bias, table, cut,
    indptr, columns, values, start, stop,
):  # fmt: skip
    """Write what `count_above` counts, computed anew; where it does not exceed the cut, NaN."""
    for i in range(start, stop):
        at, end = indptr[i], indptr[i + 1]
        for j in range(len(cut)):
            if at == end:
                break
            rough = cut.dtype.type(acc[i, j]) * table[j] + (bias[j] - cut[j]) * inverse[i]
            if rough >= -margin[i]:
                exact = _dot(rows[i], weight[j]) + bias[j]
                columns[at] = j
                values[at] = exact if exact > cut[j] else np.nan
                at += 1
