"""Compiled loops around a product in small integers: rounding, and selection from what it gives."""

from __future__ import annotations

import numpy as np

from ._numba import (
    _CHUNK,
    _FIRST_GUESS,
    _cut_from_tops,
    _group_tops,
    _jit,
    _keep_largest,
    _n_groups,
    _n_reaching,
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
def _round_row(row, whole, tops):
    """Round a row as `round_rows` does; give its scale, norm and the norm of what is lost."""
    one = row.dtype.type(1)
    top = _largest_size(row, tops)
    step = top / row.dtype.type(_LARGEST) if top > _TINY else one
    inverse = one / step if top > _TINY else one - one
    total, lost = one - one, one - one
    half = one / row.dtype.type(2)
    for f in range(len(row)):
        value = row[f] * inverse
        nearest = np.int32(value + half if value > 0 else value - half)
        whole[f] = nearest
        left = row[f] - row.dtype.type(nearest) * step
        lost += left * left
        total += row[f] * row[f]
    return step, np.sqrt(total), np.sqrt(lost)


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
    tops = np.empty(min(rows.shape[1], _LANES), dtype=rows.dtype)
    for i in range(start, stop):
        scale[i], norm[i], rest[i] = _round_row(rows[i], whole[i], tops)


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
def _margin(norm, rest, table_norm, table_rest):
    """Give how far below a cut a rough pre-code may be whose true one is above it."""
    of_row, of_table = rest * table_norm, norm * table_rest
    return np.sqrt(of_row * of_row + of_table * of_table)


@_jit
def top_k(
    acc, rows, scale, norm, rest, weight, bias, table, table_norm, table_rest, k,
    columns, values, counts, n_tried, start, stop,
):  # fmt: skip
    """Give the k largest positive pre-codes of each row, from roughly known ones.

    Those that rounding may have kept from the k largest are computed anew.

    Parameters
    ----------
    acc : ndarray of int32, shape (n, m)
        Products of the rounded rows and the rounded table.
    rows : ndarray of shape (n, d)
    scale, norm, rest : ndarray of shape (n,)
        As `round_rows` gives them for the rows.
    weight, bias : ndarray of shape (m, d) and (m,)
    table : ndarray of shape (m,)
        The scale of the weights.
    table_norm, table_rest : float
        The largest norm and rest of the weights, times the deviations that count as level,
        divided by the square root of d.
    k : int
    columns, values : ndarray of shape (n, k)
        Written to; the first ``counts[i]`` of row i.
    counts, n_tried : ndarray of int64, shape (n,)
        Written to; ``n_tried`` is how many were computed anew.
    start, stop : int
        The rows to work on.
    """
    m, one = len(weight), rows.dtype.type(1)
    tops = np.empty(_n_groups(m, k), dtype=rows.dtype)
    row = np.empty(m, dtype=rows.dtype)
    entries, scratch = np.empty((2, m + 1), dtype=rows.dtype)
    groups, found = np.empty((2, m + 1), dtype=np.int32)
    ratio = rows.dtype.type(np.inf)
    for i in range(start, stop):
        inverse = one / scale[i]
        margin = _margin(norm[i], rest[i], table_norm, table_rest) * inverse
        _roughly(acc[i], table, bias, inverse, row)
        mean = _group_tops(row, tops)
        bound = _cut_from_tops(tops, k, _FIRST_GUESS * ratio * mean, scratch)
        n_found = _reaching(row, tops, bound - margin, groups, found, entries)
        for f in range(n_found):
            entries[f] = _dot(rows[i], weight[found[f]]) + bias[found[f]]
        n_tried[i] = n_found
        counts[i] = _keep_largest(found, entries, n_found, k, scratch, columns[i], values[i])
        if bound > 0 and mean > 0:
            ratio = _smooth(ratio, bound / mean)


@_jit
def above(
    acc, rows, scale, norm, rest, weight, bias, table, table_norm, table_rest, cut,
    columns, values, counts, start, stop,
):  # fmt: skip
    """Give the pre-codes of each row that exceed their column's cut; see `top_k`.

    Parameters
    ----------
    cut : ndarray of shape (m,)
    columns, values : ndarray of shape (n_places,)
        Written to: what is found, row by row and by column.
    counts : ndarray of int64, shape (n,)
        Written to.

    Returns
    -------
    n_found, n_tried : int
        How many there are, and how many were computed anew; -1 for ``n_found`` where there are
        too few places for those of all rows.
    """
    m, one = len(weight), rows.dtype.type(1)
    row = np.empty(m, dtype=rows.dtype)
    beyond = bias - cut
    n_found = n_tried = 0
    for i in range(start, stop):
        inverse, first = one / scale[i], n_found
        least = -_margin(norm[i], rest[i], table_norm, table_rest) * inverse
        _roughly(acc[i], table, beyond, inverse, row)
        for base in range(0, m, _CHUNK):
            part = row[base : base + _CHUNK]
            if _n_reaching(part, len(part), least) == 0:
                continue
            for g in range(len(part)):
                if part[g] >= least:
                    if n_found == len(columns):
                        return -1, n_tried
                    n_tried += 1
                    j = base + g
                    exact = _dot(rows[i], weight[j]) + bias[j]
                    columns[n_found], values[n_found] = j, exact
                    n_found += exact > cut[j]
        counts[i] = n_found - first
    return n_found, n_tried
