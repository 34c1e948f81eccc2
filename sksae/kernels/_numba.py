"""Compiled loops over rows and over concepts; each works on a range, for threads to share.

They are compiled once and kept on disk (Numba's cache). None of them is parallel by itself:
`_threads.split` runs them on ranges in threads, with the interpreter's lock released.
"""

from __future__ import annotations

import numba
import numpy as np

# Sums may be reordered, so that they run in vector registers; NaN and infinity stay exact.
_jit = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}
)


@_jit
def _kth_largest(values, n, k):
    """Reorder ``values[:n]`` so that the k largest come first; give the k-th largest."""
    low, high, k = 0, n - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return values[k]


@_jit
def _group_tops(row, tops):
    """Write the maxima of groups of columns; group g has the columns g, g + n_groups, ..."""
    m, n_groups = len(row), len(tops)
    for g in range(n_groups):
        tops[g] = row[g]
    for base in range(n_groups, m, n_groups):
        for g in range(min(n_groups, m - base)):
            tops[g] = row[base + g] if row[base + g] > tops[g] else tops[g]
    mean = row[0] - row[0]
    for g in range(n_groups):
        mean += tops[g]
    return mean / row.dtype.type(n_groups)


@_jit
def _candidates(row, tops, bound, columns, values):
    """Write the positive entries of a row that reach a bound; give their number."""
    m, n_groups, n = len(row), len(tops), 0
    for g in range(n_groups):
        if tops[g] >= bound and tops[g] > 0:
            for j in range(g, m, n_groups):
                if row[j] >= bound and row[j] > 0:
                    columns[n] = j
                    values[n] = row[j]
                    n += 1
    return n


@_jit
def top_k(pre, k, columns, values, counts, start, stop):
    """Give the k largest positive entries of each row; of equal ones the first found.

    Entries are looked for among those above a guess, which earlier rows give; where it is
    too high, above the k-th largest of the maxima of groups of columns, which is never
    above the k-th largest entry.

    Parameters
    ----------
    pre : ndarray of shape (n, m)
    k : int
        At most m.
    columns, values : ndarray of shape (n, k)
        Written to; the first ``counts[i]`` of row i.
    counts : ndarray of int64, shape (n,)
        Written to.
    start, stop : int
        The rows to work on.
    """
    m = pre.shape[1]
    n_groups = min(m, max(64, 2 * k, int(np.sqrt(k * m))))
    tops = np.empty(n_groups, dtype=pre.dtype)
    scratch = np.empty(m, dtype=pre.dtype)
    found = np.empty(m, dtype=np.int32)
    share = pre.dtype.type(np.inf)
    for i in range(start, stop):
        row = pre[i]
        mean = _group_tops(row, tops)
        n_found = _candidates(row, tops, share * mean, found, scratch)
        cut = share * mean
        if n_found < k:
            share *= pre.dtype.type(0.98)
            for g in range(n_groups):
                scratch[g] = tops[g] if tops[g] > 0 else 0  # also where it is NaN
            cut = _kth_largest(scratch, n_groups, k)
            n_found = _candidates(row, tops, cut, found, scratch)
        n_above = 0
        if n_found > k:
            cut = _kth_largest(scratch, n_found, k)
            for f in range(n_found):
                n_above += row[found[f]] > cut
        n_ties, n_kept = k - n_above, 0
        for f in range(n_found):
            value = row[found[f]]
            if n_found <= k or value > cut or (value == cut and n_ties > 0):
                n_ties -= value == cut
                columns[i, n_kept] = found[f]
                values[i, n_kept] = value
                n_kept += 1
        counts[i] = n_kept
        if n_kept == k and mean > 0:
            share = pre.dtype.type(0.95) * cut / mean


@_jit
def count_above(pre, cut, counts, start, stop):
    """Count the entries of each row that exceed their column's cut."""
    m = pre.shape[1]
    for i in range(start, stop):
        n = 0
        for j in range(m):
            n += pre[i, j] > cut[j]
        counts[i] = n


@_jit
def fill_above(pre, cut, indptr, columns, values, start, stop):
    """Write the entries of each row that exceed their column's cut."""
    m = pre.shape[1]
    for i in range(start, stop):
        at, end = indptr[i], indptr[i + 1]
        for j in range(m):
            if at == end:
                break
            if pre[i, j] > cut[j]:
                columns[at] = j
                values[at] = pre[i, j]
                at += 1


@_jit
def products(indptr, columns, rows, dictionary, out, start, stop):
    """Write, for each stored entry, the product of its row with its dictionary row."""
    d = rows.shape[1]
    for i in range(start, stop):
        for at in range(indptr[i], indptr[i + 1]):
            j, total = columns[at], rows.dtype.type(0)
            for f in range(d):
                total += rows[i, f] * dictionary[j, f]
            out[at] = total


@_jit
def remove_parallel(gradient, atoms, start, stop):
    """Take out of each row its part along a row of unit norm."""
    d = atoms.shape[1]
    for j in range(start, stop):
        along = gradient.dtype.type(0)
        for f in range(d):
            along += gradient[j, f] * atoms[j, f]
        for f in range(d):
            gradient[j, f] -= along * atoms[j, f]


@_jit
def unit_rows(rows, eps, start, stop):
    """Divide each row by its norm plus a little."""
    d = rows.shape[1]
    for j in range(start, stop):
        total = rows.dtype.type(0)
        for f in range(d):
            total += rows[j, f] * rows[j, f]
        factor = rows.dtype.type(1 / (np.sqrt(total) + eps))
        for f in range(d):
            rows[j, f] *= factor
