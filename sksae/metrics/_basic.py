"""Explained variance, L0 and dead concepts."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def _dense(X) -> np.ndarray:
    return X.toarray() if sparse.issparse(X) else np.asarray(X)


def explained_variance(X, X_hat) -> float:
    """Share of the variance of ``X`` that a reconstruction explains. Higher is better.

    ``1 - SSE / SST`` with ``SSE = sum (X - X_hat)^2`` and ``SST = sum (X - mean)^2``, the
    mean taken per feature and both sums over all entries (the total variance form used by
    Gao et al. (2024), arXiv:2406.04093, as one minus the normalised MSE).

    Parameters
    ----------
    X, X_hat : array-like or sparse matrix of shape (n_samples, n_features)
        Data and reconstruction.

    Returns
    -------
    float
        1 for a perfect reconstruction, 0 for the mean of each feature. For constant
        ``X``: 1 if reconstructed exactly, else 0.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> explained_variance([[0.0, 1.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]])
    0.5
    """
    X, X_hat = _dense(X), _dense(X_hat)
    if X.shape != X_hat.shape:
        raise ValueError(f"X has shape {X.shape} but its reconstruction has {X_hat.shape}.")
    X, X_hat = X.astype(np.float64), X_hat.astype(np.float64)
    mean = X.mean(axis=0)
    error = float(np.square(X - X_hat).sum())
    total = float(np.square(X - mean).sum())
    rounding = X.size * (4 * np.finfo(np.float64).eps * np.abs(mean).max()) ** 2
    if total <= rounding:
        return 1.0 if error <= rounding else 0.0
    return 1 - error / total


def l0(codes) -> float:
    """Mean number of active concepts per sample.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes; a stored zero counts as zero.

    Returns
    -------
    float
        Between 0 and nb_concepts.

    Examples
    --------
    >>> l0([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]])
    1.5
    """
    return float(_n_active(codes, axis=1).mean())


def dead_fraction(codes) -> float:
    """Share of the concepts that are active in no sample. Lower is better.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes; a stored zero counts as zero.

    Returns
    -------
    float
        Between 0 and 1.

    Examples
    --------
    >>> dead_fraction([[1.0, 2.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    0.5
    """
    return float((_n_active(codes, axis=0) == 0).mean())


def _n_active(codes, axis: int) -> np.ndarray:
    if sparse.issparse(codes):
        return np.asarray((codes != 0).sum(axis=axis)).ravel()
    return np.count_nonzero(np.asarray(codes), axis=axis)
