"""Effect sizes and p-values of each column of a matrix against a target."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse, special

from ..metrics._checks import row_slices

# Variation below this share of a column's size is rounding.
_ROUNDING = 16 * np.finfo(np.float64).eps


class Association(NamedTuple):
    """What a test says of each column.

    Attributes
    ----------
    effects, pvalues : ndarray of shape (n_columns,)
        0 and 1 where the column is constant.
    constant : ndarray of bool, shape (n_columns,)
    means : ndarray of shape (n_classes, n_columns), or None
        Of each class.
    """

    effects: np.ndarray
    pvalues: np.ndarray
    constant: np.ndarray
    means: np.ndarray | None


def welch(X, codes) -> Association:
    """Compare two classes: Cohen's d, and Welch's t-test.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_columns)
    codes : ndarray of shape (n_samples,)
        Class of each sample, 0 or 1; at least two of each.
    """
    sizes, means, squares = _moments(X, codes, 2)
    difference = means[1] - means[0]
    pooled = np.sqrt(squares.sum(axis=0) / (len(codes) - 2))
    share = squares / (sizes * (sizes - 1))[:, None]  # squared standard errors of the means
    constant = _constant(X, means, squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        effects = difference / pooled
        t = difference / np.sqrt(share.sum(axis=0))
        df = share.sum(axis=0) ** 2 / (share**2 / (sizes - 1)[:, None]).sum(axis=0)
    # Two constants that differ: no test has a smaller p-value.
    pvalues = np.where(np.isinf(t), 0.0, 2 * special.stdtr(df, -np.abs(t)))
    return _association(effects, pvalues, constant, means)


def anova(X, codes, n_classes) -> Association:
    """Compare classes: eta squared, and the F-test of the one-way analysis of variance."""
    sizes, means, squares = _moments(X, codes, n_classes)
    grand = sizes @ means / len(codes)
    between = sizes @ (means - grand) ** 2
    within = squares.sum(axis=0)
    df = n_classes - 1, len(codes) - n_classes
    with np.errstate(divide="ignore", invalid="ignore"):
        effects = between / (between + within)
        pvalues = special.fdtrc(*df, (between / df[0]) / (within / df[1]))
    pvalues = np.where(within == 0, 0.0, pvalues)
    return _association(effects, pvalues, _constant(X, means, squares), means)


def pearson(X, y) -> Association:
    """Correlate with a number: Pearson's r, and its t-test."""
    n = len(y)
    _, means, squares = _moments(X, np.zeros(n, dtype=np.int64), 1)
    centered = (y - y.mean()) / np.linalg.norm(y - y.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(np.asarray(X.T @ centered).ravel() / np.sqrt(squares[0]), -1, 1)
        t = np.abs(r) * np.sqrt((n - 2) / ((1 - r) * (1 + r)))
    return _association(r, 2 * special.stdtr(n - 2, -t), _constant(X, means, squares), None)


def _association(effects, pvalues, constant, means):
    effects, pvalues = np.where(constant, 0.0, effects), np.where(constant, 1.0, pvalues)
    return Association(effects, pvalues, constant, means)


def _constant(X, means, squares):
    """Tell which columns do not vary."""
    spread = np.sqrt(squares.sum(axis=0) / X.shape[0])
    return (spread == 0) & (np.ptp(means, axis=0) <= _ROUNDING * _largest(X))


def _largest(X):
    if sparse.issparse(X):
        return abs(X).max(axis=0).toarray().ravel()
    return np.maximum(X.max(axis=0), -X.min(axis=0))


def _moments(X, codes, n_classes):
    """Give size, means and sums of squared deviations of each class.

    The deviations are squared after the mean is taken off: the difference of two large
    sums would be rounding where the variance is small.
    """
    sizes = np.bincount(codes, minlength=n_classes)
    rows = np.arange(len(codes))
    members = sparse.csr_array((np.ones(len(codes)), (codes, rows)), (n_classes, len(codes)))
    means = members @ X
    means = (means.toarray() if sparse.issparse(means) else means) / sizes[:, None]
    if sparse.issparse(X):
        squares = _sparse_squares(X, codes, means, sizes)
    else:
        squares = _dense_squares(X, codes, means, members.tocsc())
    rounding = sizes[:, None] * (_ROUNDING * _largest(X)) ** 2
    return sizes, means, np.where(squares <= rounding, 0.0, squares)


def _dense_squares(X, codes, means, members):
    squares = np.zeros_like(means)
    for rows in row_slices(*X.shape):
        squares += members[:, rows] @ (X[rows] - means[codes[rows]]) ** 2
    return squares


def _sparse_squares(X, codes, means, sizes):
    at = np.repeat(codes, np.diff(X.indptr)) * X.shape[1] + X.indices.astype(np.int64)
    deviations = (X.data - means.ravel()[at]) ** 2
    stored = np.bincount(at, minlength=means.size).reshape(means.shape)
    squares = np.bincount(at, deviations, minlength=means.size).reshape(means.shape)
    return squares + (sizes[:, None] - stored) * means**2
