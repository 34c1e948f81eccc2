"""Compiled loops of a training step other than selection: rows in, errors, optimizer."""

from __future__ import annotations

import numpy as np

from ._numba import _jit, _kth_of_few, _unit_row
from ._numba_screen import _LANES, _round_row


@_jit
def scale_rows(x, scale, center, limit, out, start, stop):
    """Divide rows by a scale; move those farther from the center than the limit onto it."""
    d = x.shape[1]
    for i in range(start, stop):
        total = x.dtype.type(0)
        for f in range(d):
            value = x[i, f] / scale
            out[i, f] = value
            total += (value - center[f]) * (value - center[f])
        distance = np.sqrt(total)
        if distance > limit:
            share = limit / distance
            for f in range(d):
                out[i, f] = center[f] + (out[i, f] - center[f]) * share


@_jit
def reconstruct(
    indptr, columns, values, dictionary, bias, target, x_hat, error, slopes, start, stop
):
    """Decode rows; give what they are off a target and its products with their dictionary rows."""
    d = dictionary.shape[1]
    for i in range(start, stop):
        for f in range(d):
            x_hat[i, f] = bias[f]
        for at in range(indptr[i], indptr[i + 1]):
            j, value = columns[at], values[at]
            if value != 0:  # some are stored for their slopes alone
                for f in range(d):
                    x_hat[i, f] += value * dictionary[j, f]
        for f in range(d):
            error[i, f] = x_hat[i, f] - target[i, f]
        for at in range(indptr[i], indptr[i + 1]):
            j, total = columns[at], error.dtype.type(0)
            for f in range(d):
                total += error[i, f] * dictionary[j, f]
            slopes[at] = total


@_jit
def adam_rows(
    rows, mean, square, starts, index, weights, table, extra, extra_rows, tangent,
    whole, scale, norm, rest, rate, beta1, beta2, eps, root, tiny, start, stop,
):  # fmt: skip
    """Take a step of Adam on rows whose gradients are sums of rows of a table.

    Parameters
    ----------
    rows, mean, square : ndarray of shape (m, d)
        Changed: the parameter and the running moments of its gradient.
    starts : ndarray of int32, shape (m + 1,)
        The gradient of row j has the entries ``starts[j]`` to ``starts[j + 1]``.
    index : ndarray of int32, shape (n_entries,)
        Rows of the table.
    weights : ndarray of shape (n_entries,)
    table : ndarray of shape (n, d)
    extra : ndarray of int64, shape (n_extra,)
        Rows, in order, that have a further part of their gradient.
    extra_rows : ndarray of shape (n_extra, d)
        That part.
    tangent : bool
        Whether the rows have unit norm: then the part of the gradient along a row is left out,
        and afterwards each row is divided by its norm plus ``tiny``.
    whole, scale, norm, rest : ndarray of shape (m, d) and (m,), or without entries
        Written to, with entries: the rows after the step, as `round_rows` rounds them.
    rate, beta1, beta2, eps, root : float
        The rate divided by the first moment's correction, the rest as Adam has them, and the
        square root of the second moment's correction; in the precision of the rows.
    start, stop : int
        The rows to work on.
    """
    d, one = rows.shape[1], rows.dtype.type(1)
    gradient = np.empty(d, dtype=rows.dtype)
    tops = np.empty(min(d, _LANES), dtype=rows.dtype)
    at_extra = np.searchsorted(extra, start)
    for j in range(start, stop):
        for f in range(d):
            gradient[f] = 0
        for at in range(starts[j], starts[j + 1]):
            i, weight = index[at], weights[at]
            if weight != 0:
                for f in range(d):
                    gradient[f] += weight * table[i, f]
        if tangent and starts[j] < starts[j + 1]:
            along = one - one
            for f in range(d):
                along += gradient[f] * rows[j, f]
            for f in range(d):
                gradient[f] -= along * rows[j, f]
        if at_extra < len(extra) and extra[at_extra] == j:
            for f in range(d):
                gradient[f] += extra_rows[at_extra, f]
            at_extra += 1
        for f in range(d):
            g = gradient[f]
            m = mean[j, f] + (one - beta1) * (g - mean[j, f])
            v = beta2 * square[j, f] + (one - beta2) * g * g
            mean[j, f], square[j, f] = m, v
            rows[j, f] -= rate * m / (np.sqrt(v) / root + eps)
        if tangent:
            _unit_row(rows[j], tiny)
        if len(whole):
            scale[j], norm[j], rest[j] = _round_row(rows[j], whole[j], tops)


@_jit
def sort_by_column(indptr, columns, starts, rows, order):
    """Sort the entries of rows by column, in a stable way, by counting.

    Parameters
    ----------
    indptr : ndarray of int32, shape (n + 1,)
    columns : ndarray of int32, shape (n_entries,)
    starts : ndarray of int32, shape (m + 1,)
        Zeros; written to: where the entries of each column start among the sorted ones.
    rows : ndarray of int32, shape (n_entries,)
        Written to: the rows of the sorted entries.
    order : ndarray of int64, shape (n_entries,)
        Written to: the positions of the sorted entries among the unsorted.
    """
    for at in range(len(columns)):
        starts[columns[at] + 1] += 1
    for j in range(len(starts) - 1):
        starts[j + 1] += starts[j]
    for i in range(len(indptr) - 1):
        for at in range(indptr[i], indptr[i + 1]):
            to = starts[columns[at]]
            rows[to], order[to] = i, at
            starts[columns[at]] += 1
    for j in range(len(starts) - 1, 0, -1):
        starts[j] = starts[j - 1]
    starts[0] = 0


@_jit
def keep_dead(pre, k, leak, slopes, start, stop):
    """Make codes of the pre-codes of dead concepts: leaky, and of each row the k largest.

    Parameters
    ----------
    pre : ndarray of shape (n, m)
        Changed: the codes.
    k : int
    leak : float
        The slope where a pre-code is not positive.
    slopes : ndarray of shape (n, m)
        Written to: the derivatives of the codes by the pre-codes.
    start, stop : int
        The rows to work on.
    """
    m, zero, one = pre.shape[1], pre.dtype.type(0), pre.dtype.type(1)
    scratch = np.empty(m, dtype=pre.dtype)
    for i in range(start, stop):
        cut, n_ties = zero, m
        if k < m:
            cut, n_ties = _kth_of_few(pre[i], m, k, scratch), k
            for j in range(m):
                n_ties -= pre[i, j] > cut
        for j in range(m):
            value = pre[i, j]
            tied = k >= m or (value == cut and n_ties > 0)
            n_ties -= tied
            kept = value > cut or tied or np.isnan(value)
            slope = (one if value > zero else leak) if kept else zero
            slopes[i, j] = slope
            pre[i, j] = value * slope if kept else zero


@_jit
def compare(off, target, x_hat, errors, sizes, start, stop):
    """Subtract from rows what a reconstruction left of a target, and sum squares of both.

    Parameters
    ----------
    off : ndarray of shape (n, d)
        Changed: it minus ``target - x_hat``.
    target, x_hat : ndarray of shape (n, d)
    errors, sizes : ndarray of shape (n,)
        Written to: the sums of squares of the changed rows, and of ``target - x_hat``.
    start, stop : int
        The rows to work on.
    """
    d, zero = off.shape[1], off.dtype.type(0)
    for i in range(start, stop):
        error, size = zero, zero
        for f in range(d):
            left = target[i, f] - x_hat[i, f]
            value = off[i, f] - left
            off[i, f] = value
            error += value * value
            size += left * left
        errors[i], sizes[i] = error, size
