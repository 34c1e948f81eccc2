"""Sparse kernels for the CPU: compiled loops where Numba is there, torch's gathers elsewhere.

Sums of gathered rows go through torch's ``embedding_bag``, which is as fast as the memory;
what torch lacks is selection without sorting, which Numba compiles.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ._codes import SparseCodes
from ._threads import split

# Bytes of gathered dictionary rows held at once, where products are computed without Numba.
_GATHERED = 2**25
_TINY = 1e-8


@functools.cache
def compiled():
    """Give the module of compiled loops, or None where Numba is not installed."""
    try:
        from . import _numba
    except ImportError:  # also of a Numba that does not know this NumPy
        return None
    return _numba


def name() -> str:
    """Say what these kernels are."""
    how = "torch's gathers" if compiled() is None else "torch's gathers and loops compiled by Numba"
    return f"stored codes only, {how}"


def top_k(pre: Tensor, k: int) -> tuple[SparseCodes, Tensor]:
    """Select the k largest positive entries of each row.

    Parameters
    ----------
    pre : Tensor of shape (n, m)
        Pre-codes.
    k : int
        From 1 to m.

    Returns
    -------
    codes : SparseCodes
    values : Tensor of shape (n_stored,)
    """
    loops, (n, m) = compiled(), pre.shape
    if loops is None or 4 * k > m:
        values, columns = pre.topk(k, dim=1, sorted=False)
        counts, columns = (values > 0).sum(dim=1), columns.int()
        order = None if bool((counts == k).all()) else values > 0
    else:
        values, columns = pre.new_empty(n, k), torch.empty(n, k, dtype=torch.int32)
        counts = torch.empty(n, dtype=torch.int64)
        arrays = [x.numpy() for x in (pre, columns, values, counts)]
        pre_array, *out = arrays
        split(lambda a, b: loops.top_k(pre_array, k, *out, a, b), n, 4)
        order = None
        if bool((counts < k).any()):
            order = torch.arange(k) < counts[:, None]
    values, columns = (x.reshape(-1) if order is None else x[order] for x in (values, columns))
    return SparseCodes(_indptr(counts), columns, m), values


def above(pre: Tensor, cut: Tensor) -> tuple[SparseCodes, Tensor]:
    """Select the entries that exceed a cut.

    Parameters
    ----------
    pre : Tensor of shape (n, m)
        Pre-codes.
    cut : Tensor of shape () or (m,)
        One for all columns, or one for each.

    Returns
    -------
    codes : SparseCodes
    values : Tensor of shape (n_stored,)
    """
    loops, (n, m) = compiled(), pre.shape
    cut = cut.to(pre.dtype).expand(m).contiguous()
    if loops is None:
        mask = pre > cut
        rows_and_columns = mask.nonzero()
        indptr = _indptr(mask.sum(dim=1))
        return SparseCodes(indptr, rows_and_columns[:, 1].int(), m), pre[mask]
    counts = torch.empty(n, dtype=torch.int64)
    pre_array, cut_array, counts_array = pre.numpy(), cut.numpy(), counts.numpy()
    split(lambda a, b: loops.count_above(pre_array, cut_array, counts_array, a, b), n, 4)
    indptr = _indptr(counts)
    n_stored = int(indptr[-1])
    columns, values = torch.empty(n_stored, dtype=torch.int32), pre.new_empty(n_stored)
    out = [x.numpy() for x in (indptr, columns, values)]
    split(lambda a, b: loops.fill_above(pre_array, cut_array, *out, a, b), n, 4)
    return SparseCodes(indptr, columns, m), values


def _indptr(counts: Tensor) -> Tensor:
    indptr = torch.zeros(len(counts) + 1, dtype=torch.int32)
    torch.cumsum(counts, 0, dtype=torch.int32, out=indptr[1:])
    return indptr


def sum_rows(starts: Tensor, index: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Give weighted sums of rows of a table: a sparse matrix times a dense one.

    Parameters
    ----------
    starts : Tensor of int32, shape (n + 1,)
        Sum i has the entries ``starts[i]`` to ``starts[i + 1]``.
    index : Tensor of int32, shape (n_entries,)
        Rows of the table.
    weights : Tensor of shape (n_entries,)
    table : Tensor of shape (n_rows, d)

    Returns
    -------
    Tensor of shape (n, d)
    """
    if not len(index):
        return table.new_zeros(len(starts) - 1, table.shape[1])
    return embedding_bag(
        index, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def products(codes: SparseCodes, rows: Tensor, dictionary: Tensor) -> Tensor:
    """Give the entries of ``rows @ dictionary.T`` where codes are stored.

    Parameters
    ----------
    codes : SparseCodes
    rows : Tensor of shape (n, d)
    dictionary : Tensor of shape (n_concepts, d)

    Returns
    -------
    Tensor of shape (n_stored,)
    """
    out, loops = rows.new_empty(len(codes.columns)), compiled()
    if loops is not None:
        arrays = (codes.indptr, codes.columns, rows.contiguous(), dictionary.contiguous(), out)
        views = [x.numpy() for x in arrays]
        split(lambda a, b: loops.products(*views, a, b), len(rows), 4)
        return out
    size = max(1, _GATHERED // (rows.element_size() * max(1, rows.shape[1])))
    entries = (out, codes.rows, codes.columns)
    for part, i, j in zip(*(x.split(size) for x in entries), strict=True):
        part.copy_((rows[i] * dictionary[j]).sum(dim=1))
    return out


def remove_parallel_(gradient: Tensor, dictionary: Tensor) -> None:
    """Take out of each row of a gradient its part along a dictionary row of unit norm.

    Parameters
    ----------
    gradient : Tensor of shape (m, d)
        Changed in place.
    dictionary : Tensor of shape (m, d)
    """
    loops = compiled()
    if loops is None:
        along = torch.linalg.vecdot(gradient, dictionary)
        gradient.addcmul_(along[:, None], dictionary, value=-1)
        return
    arrays = gradient.numpy(), dictionary.numpy()
    split(lambda a, b: loops.remove_parallel(*arrays, a, b), len(gradient), 4)


def unit_rows_(rows: Tensor) -> None:
    """Divide each row by its norm plus 1e-8, as overcomplete does.

    Parameters
    ----------
    rows : Tensor of shape (m, d)
        Changed in place.
    """
    loops = compiled() if rows.device.type == "cpu" else None
    if loops is None or not rows.is_contiguous():
        rows.div_(rows.norm(dim=1, keepdim=True) + _TINY)
        return
    array = rows.numpy()
    split(lambda a, b: loops.unit_rows(array, _TINY, a, b), len(rows), 4)


def nth_largest(values: Tensor, n: int) -> Tensor:
    """Give the n-th largest of some numbers.

    Parameters
    ----------
    values : Tensor of shape (n_values,)
    n : int
        From 1 to n_values.

    Returns
    -------
    Tensor
        One number.
    """
    at = len(values) - n
    return torch.from_numpy(np.partition(values.numpy(), at)[at : at + 1])[0]
