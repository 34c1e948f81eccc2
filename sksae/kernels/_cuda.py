"""Sparse kernels for CUDA devices: Triton where it runs, torch's gathers elsewhere.

In training nothing here but `above` reads the device, so that the host runs ahead of it. For
that `top_k` and `largest` give layouts of a size known beforehand, filled up with entries of
value 0 that are no codes (``SparseCodes.kept``). How many codes exceed a cut only the device
knows.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from . import _gathers
from ._codes import SparseCodes
from ._gathers import unit_rows_
from ._half import HalfScreened

__all__ = [
    "above",
    "adam_",
    "adam_rows_",
    "choose_exactly",
    "keep_dead",
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


# Share of the groups of columns up to which it pays to look at the largest ones alone.
_LARGEST_SHARE = 1 / 8


@functools.cache
def _find() -> tuple[ModuleType | None, str]:
    """Give the module of Triton kernels, or None, and what computes."""
    try:
        from . import _triton
    except ImportError:
        return None, "torch's gathers, as Triton is not installed"
    try:
        _triton.try_out()
    except Exception as exc:  # no C compiler, an old device, a driver that does not match
        reason = f"{type(exc).__name__}: {exc}".splitlines()[0]
        return None, f"torch's gathers, as Triton does not run here: {reason}"
    return _triton, "Triton"


def compiled() -> ModuleType | None:
    """Give the module of Triton kernels, or None where they do not run."""
    return _find()[0]


def name() -> str:
    """Say what computes here."""
    return f"stored codes only, {_find()[1]}"


def _compiled_for(pre: Tensor) -> ModuleType:
    """Give the kernels that take pre-codes of this precision."""
    return _gathers if pre.dtype == torch.float64 else compiled() or _gathers


def top_k(pre: Tensor | HalfScreened, k: int) -> tuple[SparseCodes, Tensor]:
    """Select the k largest positive entries of each row; see `_cpu.top_k`.

    Each row has k entries, of which ``kept`` are codes.
    """
    if isinstance(pre, HalfScreened):
        chosen = pre.top_k(k)
        return top_k(pre.dense(), k) if chosen is None else chosen
    columns, values = (t.flatten() for t in largest_of_rows(pre, k))
    return equal_rows(columns, values > 0, pre.shape[1], k), values


def equal_rows(columns: Tensor, kept: Tensor, m: int, k: int) -> SparseCodes:
    """Give the layout of rows of k entries each."""
    indptr = torch.arange(0, len(columns) + 1, k, dtype=torch.int32, device=columns.device)
    return SparseCodes(indptr, columns, m, kept, k)


def largest_of_rows(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give columns, int32, and values of the k largest entries of each row; of negative ones 0."""
    kernels, m = compiled(), pre.shape[1]
    if kernels is not None and kernels.has_top_k(m, k) and pre.dtype != torch.float64:
        return kernels.top_k(pre, k)
    values, columns = pre.topk(k, dim=1, sorted=False)
    return columns.int(), values.relu()


def choose_exactly(
    tried: tuple[Tensor, Tensor],
    product: tuple[Tensor, Tensor, Tensor],
    level: tuple[Tensor, Tensor],
    share: float,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute some pre-codes of each row in float32 and keep the k largest.

    Parameters
    ----------
    tried : tuple of Tensor of shape (n, n_tried)
        Their columns, int32, and what rounding made of them: no other of the row exceeds the least
        of these.
    product : tuple of Tensor of shape (n, d), (m, d) and (m,)
        Its input, weights and biases.
    level : tuple of Tensor of shape ()
        How far pre-codes may be off by rounding, of which the second is multiplied by the norm of
        the input.
    share : float
        And by how much of their size.
    k : int
        At most n_tried.

    Returns
    -------
    columns, values : Tensor of shape (n, k)
        Columns, int32, and pre-codes; of negative ones 0.
    surplus : Tensor of shape (n,)
        By how much the least of them exceeds what a pre-code that was not tried can be.
    """
    kernels = compiled()
    if kernels is None or tried[0].shape[1] > kernels.WIDEST:
        kernels = _gathers
    return kernels.choose_exactly(tried, product, level, share, k)


def above(pre: Tensor | HalfScreened, cut: Tensor) -> tuple[SparseCodes, Tensor]:
    """Select the entries that exceed a cut; see `_cpu.above`."""
    if isinstance(pre, HalfScreened):
        chosen = pre.above(cut)
        return above(pre.dense(), cut) if chosen is None else chosen
    return _compiled_for(pre).above(pre, cut)


def fewer_above(pre: Tensor, cut: Tensor, most: int) -> tuple[SparseCodes, Tensor] | None:
    """Select the entries that exceed a cut; give None if there are more than ``most``."""
    return _compiled_for(pre).fewer_above(pre, cut, most)


def keep_dead(pre: Tensor, k: int, leak: float) -> tuple[Tensor, Tensor]:
    """Keep the k largest pre-codes of each row, by a leaky ReLU.

    Parameters
    ----------
    pre : Tensor of shape (n, n_dead)
        Pre-codes; minus infinity where there is none.
    k : int
        How many are kept, if there are as many.
    leak : float
        Slope where pre-codes are not positive.

    Returns
    -------
    codes, slopes : Tensor of shape (n, n_dead)
        The codes and their derivatives by the pre-codes; 0 for those that are not kept.
    """
    kernels, width = compiled(), pre.shape[1]
    if kernels is not None and width <= kernels.WIDEST and pre.dtype != torch.float64:
        return kernels.keep_dead(pre, k, leak)
    slopes = torch.ones_like(pre).masked_fill_(pre <= 0, leak)
    left_out = pre == -torch.inf
    if k < width:
        others = torch.ones_like(left_out).scatter_(1, pre.topk(k, dim=1).indices, False)
        left_out = left_out | others
    slopes.masked_fill_(left_out, 0)
    return pre.masked_fill(left_out, 0) * slopes, slopes


def largest(
    pre: Tensor | HalfScreened, n_kept: int, expected: Tensor
) -> tuple[SparseCodes, Tensor, Tensor]:
    """Select the largest positive entries of all rows together; see `_cpu.largest`.

    There is place for as many entries equal to the cut as there are rows, so for those
    of one concept in a batch of equal rows; what is more is dropped. ``expected`` is not used.
    """
    pre = pre.dense() if isinstance(pre, HalfScreened) else pre
    n, m = pre.shape
    values, at = _largest_entries(pre, min(n_kept + n, pre.numel()))
    cut = values.topk(n_kept, sorted=False).values.min().clamp(min=0)
    at, order = at.sort()
    rows, values = at // m, values[order].relu()
    starts = torch.arange(n + 1, device=pre.device)
    indptr = torch.searchsorted(rows, starts, out_int32=True)
    kept = (values >= cut) & (values > 0)
    codes = SparseCodes(indptr, (at % m).int(), m, kept, n_spare=len(at) - n_kept)
    return codes, values * kept, cut


def _largest_entries(pre: Tensor, n_largest: int) -> tuple[Tensor, Tensor]:
    """Give the largest entries, those of which are right that are positive, and their places."""
    kernels, m = compiled(), pre.shape[1]
    tops = None if kernels is None or pre.dtype == torch.float64 else kernels.group_tops(pre)
    if tops is None or n_largest > _LARGEST_SHARE * tops.numel():
        return pre.flatten().topk(n_largest, sorted=False)
    # They are in as many groups of columns, those with the largest entries.
    n_groups = tops.shape[1]
    group = tops.flatten().topk(n_largest, sorted=False).indices
    steps = torch.arange(0, m, n_groups, device=pre.device)
    columns = (group % n_groups)[:, None] + steps
    at = (group // n_groups * m)[:, None] + columns
    entries = pre.flatten()[at.clamp_(max=pre.numel() - 1)].masked_fill_(columns >= m, -torch.inf)
    values, chosen = entries.flatten().topk(n_largest, sorted=False)
    return values, at.flatten()[chosen]


def sum_rows(starts: Tensor, index: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Give weighted sums of rows of a table; see `_gathers.sum_rows`."""
    return (compiled() or _gathers).sum_rows(starts, index, weights, table)


def products(codes: SparseCodes, rows: Tensor, dictionary: Tensor) -> Tensor:
    """Give the entries of ``rows @ dictionary.T`` where codes are stored; see `_cpu.products`."""
    return (compiled() or _gathers).products(codes, rows, dictionary)


def remove_parallel_(gradient: Tensor, dictionary: Tensor) -> None:
    """Take out of each row its part along a row of unit norm; see `_cpu.remove_parallel_`."""
    (compiled() or _gathers).remove_parallel_(gradient, dictionary)


def _for_rows(d: int) -> ModuleType:
    """Give the kernels whose programs hold whole rows of d features."""
    kernels = compiled()
    return _gathers if kernels is None or d > kernels.WIDEST_ROW else kernels


def scale_rows(x: Tensor, scale: Tensor, center: Tensor, limit: Tensor) -> Tensor:
    """Divide rows by a scale and move far ones onto a limit; see `_cpu.scale_rows`."""
    return _for_rows(x.shape[1]).scale_rows(x, scale, center, limit)


def subtract(x: Tensor, center: Tensor, dtype: torch.dtype) -> Tensor:
    """Give ``x - center`` in a precision; see `_cpu.subtract`."""
    return (compiled() or _gathers).subtract(x, center, dtype)


def reconstruct(
    codes: SparseCodes, values: Tensor, dictionary: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode stored codes and compare the result with a target; see `_cpu.reconstruct`."""
    return _for_rows(target.shape[1]).reconstruct(codes, values, dictionary, bias, target)


def adam_rows_(*args) -> None:
    """Take a step of Adam with a parameter whose gradient is given as sums; see `_triton`."""
    kernels = compiled()
    assert kernels is not None
    kernels.adam_rows_(*args)


def adam_(*args) -> None:
    """Take a step of Adam with a parameter that has a gradient; see `_triton`."""
    kernels = compiled()
    assert kernels is not None
    kernels.adam_(*args)
