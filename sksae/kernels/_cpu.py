"""Sparse kernels for the CPU: compiled loops where Numba is there, torch's gathers elsewhere.

Sums of gathered rows go through torch's ``embedding_bag``, which is as fast as the memory;
what torch lacks is selection without sorting, which Numba compiles.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from . import _gathers
from ._codes import SparseCodes, indptr_of
from ._gathers import TINY, sum_of_squares, sum_rows
from ._screen import Screened
from ._threads import split

__all__ = [
    "above",
    "largest",
    "name",
    "products",
    "reconstruct",
    "remove_parallel_",
    "scale_rows",
    "subtract",
    "sum_rows",
    "top_k",
    "unit_rows_",
]

# Share of the expected cut above which entries are looked for, and rows of a first guess.
_GUESS, _GUESS_ROWS = 0.8, 64
_SMALLEST_CUT = 1e-3


@functools.cache
def compiled():
    """Give the module of compiled loops, or None where Numba is not installed."""
    try:
        from . import _numba
    except ImportError:  # also of a Numba that does not know this NumPy
        return None
    return _numba


def step_loops():
    """Give the module of the other compiled loops, where Numba is installed."""
    from . import _numba_step

    return _numba_step


def name() -> str:
    """Say what computes here."""
    how = "torch's gathers" if compiled() is None else "torch's gathers and loops compiled by Numba"
    return f"stored codes only, {how}"


def by_concept(codes: SparseCodes) -> tuple[Tensor, Tensor, Tensor] | None:
    """Give `SparseCodes.by_concept` by counting; None without Numba."""
    if compiled() is None:
        return None
    starts = torch.zeros(codes.n_concepts + 1, dtype=torch.int32)
    rows, order = torch.empty_like(codes.columns), torch.empty(len(codes.columns), dtype=torch.long)
    tensors = (codes.indptr, codes.columns, starts, rows, order)
    step_loops().sort_by_column(*(t.numpy() for t in tensors))
    return starts, rows, order


def top_k(pre: Tensor | Screened, k: int) -> tuple[SparseCodes, Tensor]:
    """Select the k largest positive entries of each row.

    Parameters
    ----------
    pre : Tensor or Screened of shape (n, m)
        Pre-codes.
    k : int
        From 1 to m.

    Returns
    -------
    codes : SparseCodes
    values : Tensor of shape (n_stored,)
    """
    if isinstance(pre, Screened):
        chosen = pre.top_k(k)
        return top_k(pre.dense(), k) if chosen is None else chosen
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
    return SparseCodes(indptr_of(counts), columns, m), values


def above(pre: Tensor | Screened, cut: Tensor) -> tuple[SparseCodes, Tensor]:
    """Select the entries that exceed a cut.

    Parameters
    ----------
    pre : Tensor or Screened of shape (n, m)
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
    if isinstance(pre, Screened):
        chosen = pre.above(cut)
        return above(pre.dense(), cut) if chosen is None else chosen
    if loops is None:
        return _gathers.above(pre, cut)
    counts = torch.empty(n, dtype=torch.int64)
    pre_array, cut_array, counts_array = pre.numpy(), cut.numpy(), counts.numpy()
    split(lambda a, b: loops.count_above(pre_array, cut_array, counts_array, a, b), n, 4)
    indptr = indptr_of(counts)
    n_stored = int(indptr[-1])
    columns, values = torch.empty(n_stored, dtype=torch.int32), pre.new_empty(n_stored)
    out = [x.numpy() for x in (indptr, columns, values)]
    split(lambda a, b: loops.fill_above(pre_array, cut_array, *out, a, b), n, 4)
    return SparseCodes(indptr, columns, m), values


def largest(
    pre: Tensor | Screened, n_kept: int, expected: Tensor
) -> tuple[SparseCodes, Tensor, Tensor]:
    """Select the largest positive entries of all rows together.

    Entries are looked for above a guess, which is lowered until there are enough.

    Parameters
    ----------
    pre : Tensor or Screened of shape (n, m)
        Pre-codes.
    n_kept : int
        From 1 to n * m.
    expected : Tensor of shape ()
        About what the cut will be; NaN where that is not known. It decides how fast the
        cut is found, not which it is.

    Returns
    -------
    codes : SparseCodes
    values : Tensor of shape (n_stored,)
        Those that reach the cut; where entries are equal to it, more than ``n_kept``.
    cut : Tensor of shape ()
        The ``n_kept``-th largest of the entries, or 0 where fewer are positive.
    """
    if isinstance(pre, Screened) and expected.isnan():
        pre = pre.dense()
    guess = _GUESS * _expected(pre, n_kept, expected)
    codes, values = above(pre, guess)
    while len(values) < n_kept and guess > 0:
        guess = torch.where(guess > _SMALLEST_CUT, guess / 2, 0)
        codes, values = above(pre, guess)
    if len(values) < n_kept:
        return codes, values, values.new_zeros(())
    cut = nth_largest(values, n_kept)
    return *codes.keep(values >= cut, values), cut


def _expected(pre: Tensor | Screened, n_kept: int, expected: Tensor) -> Tensor:
    if not expected.isnan():
        return expected.to(pre.dtype)
    assert isinstance(pre, Tensor)
    sample = pre[:: -(-len(pre) // _GUESS_ROWS)]
    n_sampled = max(1, n_kept * len(sample) // len(pre))
    return sample.flatten().topk(n_sampled, sorted=False).values.min().clamp(min=0)


def nth_largest(values: Tensor, n: int) -> Tensor:
    """Give the n-th largest, n from 1, of numbers of shape (n_values,)."""
    at = len(values) - n
    return torch.from_numpy(np.partition(values.numpy(), at)[at : at + 1])[0]


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
    loops = compiled()
    if loops is None:
        return _gathers.products(codes, rows, dictionary)
    out = rows.new_empty(len(codes.columns))
    arrays = (codes.indptr, codes.columns, rows.contiguous(), dictionary.contiguous(), out)
    views = [x.numpy() for x in arrays]
    split(lambda a, b: loops.products(*views, a, b), len(rows), 4)
    return out


def reconstruct(
    codes: SparseCodes, values: Tensor, dictionary: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode stored codes and compare the result with a target.

    Parameters
    ----------
    codes : SparseCodes
    values : Tensor of shape (n_stored,)
    dictionary : Tensor of shape (n_concepts, d)
    bias : Tensor of shape (d,)
    target : Tensor of shape (n, d)

    Returns
    -------
    x_hat : Tensor of shape (n, d)
        The reconstruction.
    error : Tensor of shape (n, d)
        It minus the target, in the precision of the dictionary.
    slopes : Tensor of shape (n_stored,)
        `products` of the error and the dictionary.
    squares : Tensor of shape ()
        Sum of the squares of the error.
    """
    if compiled() is None:
        return _gathers.reconstruct(codes, values, dictionary, bias, target)
    x_hat, error = target.new_empty((2, *target.shape))
    slopes = values.new_empty(values.shape)
    given = (codes.indptr, codes.columns, values, dictionary, bias, target)
    arrays = [x.contiguous().numpy() for x in given]
    arrays += [x.numpy() for x in (x_hat, error, slopes)]
    split(lambda a, b: step_loops().reconstruct(*arrays, a, b), len(target), 4)
    return x_hat, error, slopes, sum_of_squares(error)


def scale_rows(x: Tensor, scale: Tensor, center: Tensor, limit: Tensor) -> Tensor:
    """Divide rows by a scale; move those farther than a limit from a center onto the limit.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    scale : Tensor of shape ()
    center : Tensor of shape (d,)
    limit : Tensor of shape ()

    Returns
    -------
    Tensor of shape (n, d)
    """
    if compiled() is None:
        return _gathers.scale_rows(x, scale, center, limit)
    out = x.new_empty(x.shape)
    numbers = [t.to(x.dtype).numpy()[()] for t in (scale, limit)]
    arrays = [t.contiguous().numpy() for t in (x, center)]
    given = (arrays[0], numbers[0], arrays[1], numbers[1], out.numpy())
    split(lambda a, b: step_loops().scale_rows(*given, a, b), len(x), 1)
    return out


def subtract(x: Tensor, center: Tensor, dtype: torch.dtype) -> Tensor:
    """Give ``x - center`` in a precision.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    center : Tensor of shape (d,)
    dtype : torch.dtype

    Returns
    -------
    Tensor of shape (n, d)
    """
    return _gathers.subtract(x, center, dtype)


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
        return _gathers.remove_parallel_(gradient, dictionary)
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
        return _gathers.unit_rows_(rows)
    array = rows.numpy()
    split(lambda a, b: loops.unit_rows(array, TINY, a, b), len(rows), 4)
