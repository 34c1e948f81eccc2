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


# Share of the expected cut of a row above which the maxima are looked at.
_FIRST_GUESS = np.float32(0.8)
# By how much it is raised until too few reach it.
_STEP_UP = np.float32(1.25)
# The number of groups is a multiple of it, for vector registers.
_GROUPS = 64
# Columns that are looked at one by one where any of them exceeds its cut.
_CHUNK = 32
# How often the range is halved in which a cut is looked for.
_HALVINGS = 16


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
def _raise_to(tops, values):
    """Raise each number to the value in its place, where that is larger."""
    for g in range(len(values)):
        tops[g] = values[g] if values[g] > tops[g] else tops[g]


@_jit
def _group_tops(row, tops):
    """Write the maxima of groups of columns; group g has the columns g, g + n_groups, ..."""
    n_groups, mean = len(tops), row[0] - row[0]
    tops[:] = row[:n_groups]
    for base in range(n_groups, len(row), n_groups):
        _raise_to(tops, row[base : base + n_groups])
    for g in range(n_groups):
        mean += tops[g]
    return mean / row.dtype.type(n_groups)


@_jit
def _n_groups(m, k):
    """Give a number of groups of m columns in which maxima are looked for above a cut."""
    whole = -(-int(np.sqrt(k * m)) // _GROUPS) * _GROUPS
    return min(m, max(2 * k, whole))


@_jit
def _reaching(row, tops, bound, groups, columns, values):
    """Write the entries of a row that reach a bound; give their number.

    ``groups``, ``columns`` and ``values`` have one place more than there can be entries, so
    that each is written before it is known whether it counts: a guess of the processor about
    a branch would be wrong too often.
    """
    m, n_groups, n_reaching, n = len(row), len(tops), 0, 0
    for g in range(n_groups):
        groups[n_reaching] = g
        n_reaching += tops[g] >= bound
    for at in range(n_reaching):
        for j in range(groups[at], m, n_groups):
            columns[n] = j
            values[n] = row[j]
            n += row[j] >= bound
    return n


@_jit
def _n_reaching(values, n, bound):
    """Count those of ``values[:n]`` that reach a bound."""
    count = np.int32(0)  # as wide as a number, for vector registers
    for g in range(n):
        count = np.int32(count + np.int32(values[g] >= bound))
    return count


@_jit
def _cut_between(values, n, k, low, high):
    """Close in on the k-th largest of ``values[:n]`` from a number that k of them reach.

    Halves the range by counting, which takes less time than sorting; gives a number that k of
    them or, after so many halvings, few more reach, and how many do.
    """
    half, n_low = values.dtype.type(0.5), _n_reaching(values, n, low)
    for _ in range(_HALVINGS):
        if n_low == k:
            break
        middle = low + half * (high - low)
        n_middle = _n_reaching(values, n, middle)
        if n_middle >= k:
            low, n_low = middle, n_middle
        else:
            high = middle
    return low, n_low


@_jit
def _kth_of_few(values, n, k, scratch):
    """Give a number that the k largest of ``values[:n]``, k < n, reach, and no others but ties."""
    low, high = values[0], values[0]
    for f in range(n):
        low = values[f] if values[f] < low else low
        high = values[f] if values[f] > high else high
    cut, n_reaching = _cut_between(values, n, k, low, high)
    if n_reaching == k:
        return cut
    for f in range(n):
        scratch[f] = values[f]
    return _kth_largest(scratch, n, k)


@_jit
def _cut_from_tops(tops, k, guess, scratch):
    """Give a number that the k largest maxima of groups and hardly more reach, or 0.

    0 is where fewer are positive. It is looked for above a guess, if enough reach that.
    """
    n, zero = len(tops), tops.dtype.type(0)
    low = high = tops.dtype.type(guess)
    if low > zero and _n_reaching(tops, n, low) >= k:
        for _ in range(_HALVINGS):
            high *= _STEP_UP
            if _n_reaching(tops, n, high) < k:
                break
            low = high
    else:
        low = high = zero
        if _n_reaching(tops, n, zero) < k:
            return zero
        for g in range(n):
            high = tops[g] if tops[g] > high else high
    cut, n_reaching = _cut_between(tops, n, k, low, high)
    if n_reaching <= 2 * k:
        return cut
    for g in range(n):
        scratch[g] = tops[g] if tops[g] > 0 else 0  # also where it is NaN
    return max(_kth_largest(scratch, n, k), zero)


@_jit
def _smooth(mean, value):
    """Give a running mean of a value; the first one where there is none."""
    return value if np.isinf(mean) else mean + (value - mean) / 8


@_jit
def _keep_largest(found, values, n_found, k, scratch, columns, out):
    """Write the k largest positive of the values; of equal ones the first. Give their number."""
    cut, n_ties = values.dtype.type(0), k
    if n_found > k:
        cut = max(_kth_of_few(values, n_found, k, scratch), cut)
        for f in range(n_found):
            n_ties -= values[f] > cut
    n_kept = 0
    for f in range(n_found):
        if n_kept == k:
            break
        tied = values[f] == cut and n_ties > 0 and cut > 0
        n_ties -= tied
        columns[n_kept], out[n_kept] = found[f], values[f]
        n_kept += values[f] > cut or tied
    return n_kept


@_jit
def top_k(pre, k, columns, values, counts, start, stop):
    """Give the k largest positive entries of each row; of equal ones the first found.

    They are looked for above the k-th largest of the maxima of groups of columns, which is
    never above the k-th largest entry and not far below it.

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
    tops = np.empty(_n_groups(m, k), dtype=pre.dtype)
    entries, scratch = np.empty((2, m + 1), dtype=pre.dtype)
    groups, found = np.empty((2, m + 1), dtype=np.int32)
    ratio = pre.dtype.type(np.inf)
    for i in range(start, stop):
        mean = _group_tops(pre[i], tops)
        bound = _cut_from_tops(tops, k, _FIRST_GUESS * ratio * mean, scratch)
        n_found = _reaching(pre[i], tops, bound, groups, found, entries)
        counts[i] = _keep_largest(found, entries, n_found, k, scratch, columns[i], values[i])
        if bound > 0 and mean > 0:
            ratio = _smooth(ratio, bound / mean)


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
def _n_above(values, cuts):
    """Count the values that exceed the cut in their place."""
    count = np.int32(0)  # as in `_n_reaching`
    for g in range(len(values)):
        count = np.int32(count + np.int32(values[g] > cuts[g]))
    return count


@_jit
def fill_above(pre, cut, indptr, columns, values, start, stop):
    """Write the entries of each row that exceed their column's cut."""
    for i in range(start, stop):
        at = indptr[i]
        for base in range(0, pre.shape[1], _CHUNK):
            part, cuts = pre[i, base : base + _CHUNK], cut[base : base + _CHUNK]
            if _n_above(part, cuts) == 0:
                continue
            for g in range(len(part)):
                if part[g] > cuts[g]:
                    columns[at], values[at] = base + g, part[g]
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
def _unit_row(row, eps):
    """Divide a row by its norm plus a little."""
    total = row.dtype.type(0)
    for f in range(len(row)):
        total += row[f] * row[f]
    factor = row.dtype.type(1 / (np.sqrt(total) + eps))
    for f in range(len(row)):
        row[f] *= factor


@_jit
def unit_rows(rows, eps, start, stop):
    """Divide each row by its norm plus a little."""
    for j in range(start, stop):
        _unit_row(rows[j], eps)
