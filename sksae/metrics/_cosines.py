"""Cosines between the rows of dictionaries, in blocks and matched one to one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from ._checks import check_matrix, row_slices


def unit_rows(dictionary, name: str, metric: str) -> np.ndarray:
    """Check a dictionary and give its rows in float64 with norm one; zeros stay zeros."""
    rows = check_matrix(dictionary, name, metric)
    rows = rows.toarray() if sparse.issparse(rows) else rows
    return normalized(np.asarray(rows, dtype=np.float64))


def normalized(rows: np.ndarray) -> np.ndarray:
    """Divide each row by its norm; zeros stay zeros."""
    # By the largest entry first, so that the squares neither overflow nor vanish.
    rows = rows / _or_one(np.abs(rows).max(axis=1, keepdims=True))
    return rows / _or_one(np.linalg.norm(rows, axis=1, keepdims=True))


def unit_pair(components, features, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Check two dictionaries of the same space and give their rows with norm one.

    Raises
    ------
    ValueError
        If their rows are of different length, or as `check_matrix`.
    """
    learnt = unit_rows(components, "components", metric)
    true = unit_rows(features, "features", metric)
    check_width(learnt, true, ("components", "features"), metric)
    return learnt, true


def check_width(a, b, names: tuple[str, str], metric: str) -> None:
    """Refuse dictionaries of different spaces.

    Raises
    ------
    ValueError
        If the numbers of columns differ.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} of {metric} must have as many columns, the dimension of "
            f"the activations: {names[0]} has shape {a.shape} but {names[1]} has {b.shape}."
        )


def cosine_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Give blocks of rows of ``a`` with their cosines to all rows of ``b``."""
    for rows in row_slices(len(a), len(b)):
        yield rows, np.clip(a[rows] @ b.T, -1, 1)


def max_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest signed cosine of each row of ``a`` with any row of ``b``."""
    return np.concatenate([cosines.max(axis=1) for _, cosines in cosine_blocks(a, b)])


def matched_mean(a: np.ndarray, b: np.ndarray, *, signed: bool) -> float:
    """Mean cosine over the one-to-one matching of rows that makes it largest.

    The smaller dictionary is matched whole. Holds all cosines: ``8 * len(a) * len(b)`` bytes.
    """
    cosines = np.empty((len(a), len(b)))
    for rows, block in cosine_blocks(a, b):
        cosines[rows] = block if signed else np.abs(block)
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


def _or_one(norms):
    return np.where(norms == 0, 1.0, norms)
