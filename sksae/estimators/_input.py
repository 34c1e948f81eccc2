"""From what a caller passes as X to the rows that training and encoding read."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from sklearn import get_config
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import check_array, validate_data

from ..training._data import as_tensor

_DTYPES = [np.float64, np.float32]
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def to_array(X, owner: str, name: str = "X", width: str = "n_features"):
    """Turn tensors into arrays and half precision into float32; leave the rest alone.

    Raises
    ------
    ValueError
        For three dimensions or more, with the way to flatten them.
    """
    if isinstance(X, torch.Tensor):
        if X.layout is not torch.strided:
            raise TypeError(
                f"{owner} takes dense tensors, got one of layout {X.layout}. Use X.to_dense(), or "
                "a scipy CSR matrix."
            )
        X = X.detach()
        X = (X.float() if X.dtype in (torch.float16, torch.bfloat16) else X).cpu().numpy()
    if getattr(X, "ndim", 2) > 2:
        raise ValueError(
            f"{owner} expects {name} of shape (n_samples, {width}), got shape {tuple(X.shape)}. "
            f"Flatten it to one row per token: {name}.reshape(-1, {name}.shape[-1])."
        )
    if getattr(X, "dtype", None) == np.float16:
        X = X.astype(np.float32)
    return X


def stays_on_device(X) -> bool:
    """Tell whether rows are read from the CUDA device that they are on."""
    is_dense = isinstance(X, torch.Tensor) and X.layout is torch.strided and X.ndim == 2
    return is_dense and X.device.type == "cuda" and X.dtype in _FLOATS


def precision_of(X) -> torch.dtype:
    """Give the precision in which rows are computed with, float64 for those that have it."""
    return torch.float64 if X.dtype in (np.float64, torch.float64) else torch.float32


def check_input(estimator, X, *, reset: bool, min_samples: int = 1, on_device: bool = False):
    """Validate X as scikit-learn does; give a float32 or float64 ndarray or CSR matrix.

    With ``on_device`` rows that are on a CUDA device are given as a tensor that is there, in
    half precision too.
    """
    owner = type(estimator).__name__
    rows = X.detach() if on_device and stays_on_device(X) else None
    checked = validate_data(
        estimator,
        to_array(X, owner) if rows is None else np.broadcast_to(np.float32(0), X.shape),
        reset=reset,
        accept_sparse="csr",
        dtype=_DTYPES,
        ensure_min_samples=min_samples,
        ensure_all_finite=False,
    )
    checked = checked if rows is None else rows
    _check_finite(checked, owner)
    return checked


def _check_finite(X, owner: str) -> None:
    """Refuse what is not finite as scikit-learn does, whose own sum has one thread."""
    if get_config()["assume_finite"]:
        return
    entries = X if isinstance(X, torch.Tensor) else as_tensor(X.data if sparse.issparse(X) else X)
    if not torch.isfinite(entries.sum(dtype=precision_of(entries))):
        X = to_array(X, owner)
        assert_all_finite(X, estimator_name=owner, input_name="X")


def check_target(estimator, y, n_rows: int, n_outputs: int | None = None):
    """Validate the rows to predict; give two dimensions, and whether there was one.

    Parameters
    ----------
    estimator : BaseSAE
    y : array-like, sparse matrix or torch.Tensor of shape (n_rows,) or (n_rows, n_outputs)
    n_rows : int
        Number of rows of X.
    n_outputs : int, optional
        The width that was fitted.

    Returns
    -------
    y : ndarray or CSR matrix of shape (n_rows, n_outputs)
    is_vector : bool

    Raises
    ------
    ValueError
        If there is none, or if it has another number of rows or another width.
    """
    owner = type(estimator).__name__
    if y is None:
        raise ValueError(
            f"{owner} requires y to be passed, but the target y is None. Pass the activations "
            "to predict, one row for each row of X; of an extractor with two layers these are "
            "the columns of the second one."
        )
    y = to_array(y, owner, "y", "n_outputs")
    y = check_array(
        y, accept_sparse="csr", dtype=_DTYPES, ensure_2d=False, estimator=owner, input_name="y"
    )
    is_vector = y.ndim == 1
    y = y.reshape(-1, 1) if is_vector else y
    if y.shape[0] != n_rows:
        raise ValueError(
            f"{owner} needs one row of y for each row of X. Got {n_rows} rows of X and "
            f"{y.shape[0]} rows of y. Take both from one pass of an extractor, with "
            "layer=[first, second]."
        )
    if n_outputs is not None and y.shape[1] != n_outputs:
        raise ValueError(
            f"y has {y.shape[1]} columns, but this {owner} was fitted to predict {n_outputs}. "
            "Pass the activations of the same layer as in fit."
        )
    return y, is_vector


def check_tensor(tensor, name: str, n_columns: int, owner: str) -> None:
    """Refuse what `encode` and `decode` cannot take.

    Raises
    ------
    TypeError
        If it is no tensor.
    ValueError
        If it has another width.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(tensor).__name__}. For arrays and frames "
            f"use transform and inverse_transform of {owner}."
        )
    if tensor.shape[-1:] != (n_columns,):
        raise ValueError(
            f"{name} must have {n_columns} columns for this {owner}, got shape "
            f"{tuple(tensor.shape)}."
        )


def check_codes(estimator, Z, nb_concepts: int):
    """Validate codes for `inverse_transform`; give an ndarray or CSR matrix."""
    owner = type(estimator).__name__
    Z = check_array(
        to_array(Z, owner), accept_sparse="csr", dtype=_DTYPES, estimator=owner, input_name="Z"
    )
    if Z.shape[1] != nb_concepts:
        raise ValueError(
            f"Z has {Z.shape[1]} columns, but {owner} has {nb_concepts} concepts. Pass codes as "
            "transform gives them, one column per concept."
        )
    return Z


def split_rows(n_rows: int, groups: np.ndarray | None, fraction: float, seed: int, owner: str):
    """Split row numbers into training and held-out ones, whole texts where they are known.

    Returns
    -------
    train, valid : ndarray of int
        In ascending order.
    """
    rng = np.random.RandomState(seed)
    if groups is None or len(np.unique(groups)) < 2:
        groups = np.arange(n_rows)
    kinds = np.unique(groups)
    n_valid = max(1, round(fraction * len(kinds)))
    held_out = np.isin(groups, rng.permutation(kinds)[:n_valid])
    train, valid = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if len(train) < 2:
        raise ValueError(
            f"validation_fraction={fraction} leaves {len(train)} of {n_rows} rows to {owner} to "
            "train on. Lower validation_fraction or pass more rows."
        )
    return train, valid
