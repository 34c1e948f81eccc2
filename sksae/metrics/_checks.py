"""What the metrics accept: checked matrices, and float64 blocks of their rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
from scipy import sparse

# Values in a dense float64 block: 32 MB, however many rows there are.
BLOCK_VALUES = 2**22


def check_matrix(X, name: str, metric: str, *, finite: bool = True) -> Any:
    """Give ``X`` as an ndarray or a CSR matrix without duplicate entries.

    Parameters
    ----------
    X : array-like, sparse matrix or torch.Tensor of shape (n_rows, n_columns)
    name, metric : str
        The argument and the function, for the messages.
    finite : bool, default=True
        Whether to refuse NaN and infinity.

    Raises
    ------
    TypeError
        If it is not numeric.
    ValueError
        If it is not two-dimensional, empty or not finite.
    """
    X = _canonical(X.tocsr()) if sparse.issparse(X) else _array(X)
    if X.ndim != 2:
        raise ValueError(
            f"{name} of {metric} must have two dimensions, (rows, columns). Got shape "
            f"{X.shape}. Reshape it to one row per sample: {name}.reshape(-1, n_columns)."
        )
    if 0 in X.shape:
        raise ValueError(
            f"{name} of {metric} must have at least one row and one column. Got shape {X.shape}."
        )
    if X.dtype.kind not in "biuf":
        raise TypeError(f"{name} of {metric} must hold real numbers. Got dtype {X.dtype}.")
    if finite:
        _refuse_not_finite(X.data if sparse.issparse(X) else X, name, metric)
    return X


def check_pair(X, Y, names: tuple[str, str], metric: str) -> tuple[Any, Any]:
    """Check two matrices of the same shape.

    Raises
    ------
    ValueError
        If the shapes differ, or as `check_matrix`.
    """
    X, Y = check_matrix(X, names[0], metric), check_matrix(Y, names[1], metric)
    if X.shape != Y.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} of {metric} must have the same shape: {names[0]} has "
            f"shape {X.shape} but {names[1]} has {Y.shape}."
        )
    return X, Y


def check_number(value, name: str, metric: str) -> float:
    """Give a finite float.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is NaN or infinite.
    """
    if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1:
        value = value.item()
    if not isinstance(value, Real):
        raise TypeError(
            f"{name} of {metric} must be a number, such as the mean over tokens. "
            f"Got {type(value).__name__}."
        )
    if not math.isfinite(value):
        raise ValueError(f"{name} of {metric} must be finite. Got {value}.")
    return float(value)


def check_share(value, name: str, metric: str, low: float = 0.0) -> float:
    """Give a float in [low, 1].

    Raises
    ------
    ValueError
        If it is outside.
    """
    value = check_number(value, name, metric)
    if not low <= value <= 1:
        raise ValueError(f"{name} of {metric} must be between {low:g} and 1. Got {value}.")
    return value


def dense_blocks(*matrices) -> Iterator[list[np.ndarray]]:
    """Go through matrices of as many rows together, in dense float64 blocks of rows."""
    widest = max(X.shape[1] for X in matrices)
    for rows in row_slices(matrices[0].shape[0], widest):
        yield [_dense(X[rows]) for X in matrices]


def row_slices(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Cut rows into slices whose dense blocks are of a limited size."""
    step = max(1, BLOCK_VALUES // n_columns)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _dense(X) -> np.ndarray:
    return np.asarray(X.toarray() if sparse.issparse(X) else X, dtype=np.float64)


def _array(X) -> np.ndarray:
    if hasattr(X, "detach"):  # a tensor: numpy takes none with gradients, on a GPU or in bfloat16
        X = X.detach().cpu()
        X = X.float() if X.is_floating_point() and X.element_size() < 4 else X
    X = np.asarray(X)
    if X.dtype == object:
        try:
            X = X.astype(np.float64)
        except (TypeError, ValueError):
            pass  # check_matrix refuses it by its dtype
    return X


def _canonical(X):
    if X.ndim == 2 and not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    return X


def _refuse_not_finite(values, name, metric):
    # A sum is finite unless an entry is not, or unless it overflows: look again only then.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):
            return
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise ValueError(
            f"{name} of {metric} must be finite, but {wrong} of {values.size} values are NaN or "
            "infinite. Leave their rows out, or find the step that makes them."
        )
