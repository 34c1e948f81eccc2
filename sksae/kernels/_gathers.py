"""Sums and products of gathered rows in plain torch, on any device.

What `_cpu` and `_cuda` fall back to where they cannot compile their loops.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ._codes import SparseCodes, indptr_of

# Bytes of gathered dictionary rows held at once.
_GATHERED = 2**25
TINY = 1e-8


def above(pre: Tensor, cut: Tensor) -> tuple[SparseCodes, Tensor]:
    """Select the entries of pre-codes (n, m) that exceed a cut, one or one per column."""
    mask = pre > cut
    rows, columns = mask.nonzero().unbind(dim=1)
    codes = SparseCodes(indptr_of(mask.sum(dim=1)), columns.int(), pre.shape[1])
    return codes, pre[rows, columns]


def fewer_above(pre: Tensor, cut: Tensor, most: int) -> tuple[SparseCodes, Tensor] | None:
    """Select the entries that exceed a cut; give None if there are more than ``most``."""
    return None if torch.count_nonzero(pre > cut) > most else above(pre, cut)


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
    """Give the entries of ``rows @ dictionary.T`` where codes are stored."""
    out = rows.new_empty(len(codes.columns))
    size = max(1, _GATHERED // (rows.element_size() * max(1, rows.shape[1])))
    entries = (out, codes.rows, codes.columns)
    for part, i, j in zip(*(x.split(size) for x in entries), strict=True):
        part.copy_((rows[i] * dictionary[j]).sum(dim=1))
    return out


def choose_exactly(
    tried: tuple[Tensor, Tensor],
    product: tuple[Tensor, Tensor, Tensor],
    level: tuple[Tensor, Tensor],
    share: float,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute some pre-codes of each row in full precision; see `_cuda.choose_exactly`."""
    (columns, rounded), (rows, weight, bias) = tried, product
    n_tried, columns_of_all = columns.shape[1], columns.flatten()
    indptr = torch.arange(
        0, len(columns_of_all) + 1, n_tried, dtype=torch.int32, device=rows.device
    )
    codes = SparseCodes(indptr, columns_of_all, len(weight), per_row=n_tried)
    exact = products(codes, rows, weight) + bias.index_select(0, codes.columns)
    values, at = exact.view_as(columns).topk(k, dim=1)
    norms, least = torch.linalg.vector_norm(rows, dim=1), rounded.amin(dim=1).to(rows.dtype)
    highest = least * (1 + share) + torch.addcmul(level[0], norms, level[1])
    values = values.relu()
    return columns.gather(1, at), values, values[:, -1] - highest


def reconstruct(
    codes: SparseCodes, values: Tensor, dictionary: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode stored codes and compare the result with a target; see `_cpu.reconstruct`."""
    table = dictionary.to(values.dtype)
    x_hat = sum_rows(codes.indptr, codes.columns, values, table) + bias
    error = x_hat - target
    slopes, squares = products(codes, error, table), sum_of_squares(error)
    return x_hat, error.to(dictionary.dtype), slopes, squares


def sum_of_squares(x: Tensor) -> Tensor:
    """Give the sum of the squares of all entries, one number."""
    flat = x.flatten()
    return flat.dot(flat)


def scale_rows(x: Tensor, scale: Tensor, center: Tensor, limit: Tensor) -> Tensor:
    """Divide rows by a scale and move far ones onto a limit; see `_cpu.scale_rows`."""
    u = x / scale
    centered = u - center
    distance = centered.norm(dim=1, keepdim=True)
    if u.device.type == "cpu" and not (distance > limit).any():
        return u
    return torch.where(distance > limit, center + centered * (limit / distance), u)


def subtract(x: Tensor, center: Tensor, dtype: torch.dtype) -> Tensor:
    """Give ``x - center`` in a precision; see `_cpu.subtract`."""
    return torch.sub(x, center, out=x.new_empty(x.shape, dtype=dtype))


def remove_parallel_(gradient: Tensor, dictionary: Tensor) -> None:
    """Take out of each row of a gradient its part along a dictionary row of unit norm."""
    along = torch.linalg.vecdot(gradient, dictionary)
    gradient.addcmul_(along[:, None], dictionary, value=-1)


def unit_rows_(rows: Tensor) -> None:
    """Divide each row by its norm plus 1e-8, as overcomplete does."""
    rows.div_(rows.norm(dim=1, keepdim=True) + TINY)
