"""How well a reconstruction matches the activations."""

from __future__ import annotations

import math

import numpy as np

from ._checks import check_pair, dense_blocks
from ._cosines import normalized

_NAMES = ("X", "X_hat")


def explained_variance(X, X_hat) -> float:
    """Share of the variance of ``X`` that a reconstruction explains. Higher is better.

    ``1 - SSE / SST`` with ``SSE = sum (X - X_hat)^2`` and ``SST = sum (X - mean)^2``, the
    mean taken per feature and both sums over all entries: one minus the normalised MSE of
    Gao et al. (2024) [1]_, section 2.1, and ``r2_score(multioutput="variance_weighted")``.

    Parameters
    ----------
    X, X_hat : array-like or sparse matrix of shape (n_samples, n_features)
        Data and reconstruction.

    Returns
    -------
    float
        At most 1. 1 for a perfect reconstruction, 0 for the mean of each feature, negative
        for a worse one. For constant ``X``: 1 if reconstructed exactly, else 0.

    Raises
    ------
    ValueError
        If the shapes differ, or if there are no rows or values that are not finite.

    References
    ----------
    .. [1] Gao et al. (2024), "Scaling and evaluating sparse autoencoders", arXiv:2406.04093.

    Examples
    --------
    The errors add up to 1, the squared distances from the mean (1, 1) to 2.

    >>> explained_variance([[0.0, 1.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]])
    0.5
    """
    return 1 - _unexplained(*check_pair(X, X_hat, _NAMES, "explained_variance"))


def fvu(X, X_hat) -> float:
    """Fraction of the variance of ``X`` left unexplained. Lower is better.

    ``SSE / SST``, one minus `explained_variance`: the normalised MSE of Gao et al. (2024)
    [1]_, section 2.1, which divides by the error of always predicting the mean.

    Parameters
    ----------
    X, X_hat : array-like or sparse matrix of shape (n_samples, n_features)
        Data and reconstruction.

    Returns
    -------
    float
        At least 0. 0 for a perfect reconstruction, 1 for the mean of each feature. For
        constant ``X``: 0 if reconstructed exactly, else 1.

    Raises
    ------
    ValueError
        If the shapes differ, or if there are no rows or values that are not finite.

    See Also
    --------
    normalized_mse : Divides by the squared norm of the data instead.

    References
    ----------
    .. [1] Gao et al. (2024), "Scaling and evaluating sparse autoencoders", arXiv:2406.04093.

    Examples
    --------
    >>> fvu([[0.0, 1.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]])
    0.5
    """
    return _unexplained(*check_pair(X, X_hat, _NAMES, "fvu"))


def normalized_mse(X, X_hat) -> float:
    """Squared error relative to the squared norm of ``X``. Lower is better.

    ``sum (X - X_hat)^2 / sum X^2``, both over all entries.

    Parameters
    ----------
    X, X_hat : array-like or sparse matrix of shape (n_samples, n_features)
        Data and reconstruction.

    Returns
    -------
    float
        At least 0. 0 for a perfect reconstruction, 1 for one of zeros. For ``X`` of zeros:
        0 if reconstructed exactly, else infinity.

    Raises
    ------
    ValueError
        If the shapes differ, or if there are no rows or values that are not finite.

    See Also
    --------
    fvu : Divides by the variance, the squared distance from the mean.

    Notes
    -----
    Three quantities go by this name. The text of Gao et al. (2024) [1]_, section 2.1,
    divides by the error of predicting the mean: that is `fvu`. The code published with
    it [2]_ divides by the squared norm, as done here, but for each sample apart, and then
    takes the mean of the ratios, in which samples of small norm count as much as large
    ones. Where the activations have a large mean, as in most transformers, dividing by
    the norm gives much smaller numbers than `fvu`: compare only like with like.

    References
    ----------
    .. [1] Gao et al. (2024), "Scaling and evaluating sparse autoencoders", arXiv:2406.04093.
    .. [2] ``sparse_autoencoder/loss.py`` of https://github.com/openai/sparse_autoencoder.

    Examples
    --------
    The squared error is 1, the squared norm 0 + 1 + 4 + 1 = 6.

    >>> round(normalized_mse([[0.0, 1.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]]), 3)
    0.167
    """
    X, X_hat = check_pair(X, X_hat, _NAMES, "normalized_mse")
    error = total = 0.0
    for x, x_hat in dense_blocks(X, X_hat):
        error += float(np.square(x - x_hat).sum())
        total += float(np.square(x).sum())
    if total == 0:
        return 0.0 if error == 0 else math.inf
    return error / total


def mean_cosine(X, X_hat) -> float:
    """Mean cosine of the angle between a row and its reconstruction. Higher is better.

    It ignores the lengths of both, so it does not see shrinkage; the core evaluation of
    SAEBench (Karvonen et al. (2025), arXiv:2503.09532) reports it as ``cossim``.

    Parameters
    ----------
    X, X_hat : array-like or sparse matrix of shape (n_samples, n_features)
        Data and reconstruction.

    Returns
    -------
    float
        Between -1 and 1. A row of zeros counts 1 if its reconstruction is zero too, else 0.

    Raises
    ------
    ValueError
        If the shapes differ, or if there are no rows or values that are not finite.

    Examples
    --------
    The first row keeps its direction, the second turns by a right angle.

    >>> mean_cosine([[2.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [1.0, 0.0]])
    0.5
    """
    X, X_hat = check_pair(X, X_hat, _NAMES, "mean_cosine")
    total = 0.0
    for x, x_hat in dense_blocks(X, X_hat):
        both_zero = ~(x.any(axis=1) | x_hat.any(axis=1))
        cosines = np.einsum("ij,ij->i", normalized(x), normalized(x_hat))
        total += float(np.clip(cosines, -1, 1).sum()) + int(both_zero.sum())
    return total / X.shape[0]


def relative_reconstruction_bias(X, X_hat) -> float:
    """How much a reconstruction shrinks: 1 is unbiased, below 1 is shrinkage.

    ``gamma = sum ||x_hat||^2 / sum <x, x_hat>``, both over the samples: the factor by which
    dividing all reconstructions would bring them closest to the data (Rajamanoharan et al.
    (2024) [1]_, equation 10). An L1 penalty pushes it below 1.

    Parameters
    ----------
    X, X_hat : array-like or sparse matrix of shape (n_samples, n_features)
        Data and reconstruction.

    Returns
    -------
    float
        Best at 1; neither higher nor lower is better. 0 for a reconstruction of zeros,
        negative where the reconstruction points away from the data, infinite where it is
        not zero but at right angles to it.

    Raises
    ------
    ValueError
        If the shapes differ, or if there are no rows or values that are not finite.

    References
    ----------
    .. [1] Rajamanoharan et al. (2024), "Improving dictionary learning with gated sparse
       autoencoders", arXiv:2404.16014.

    Examples
    --------
    Half of each row: (1 + 1) / (2 + 2).

    >>> relative_reconstruction_bias([[2.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]])
    0.5
    """
    X, X_hat = check_pair(X, X_hat, _NAMES, "relative_reconstruction_bias")
    squares = dots = 0.0
    for x, x_hat in dense_blocks(X, X_hat):
        squares += float(np.square(x_hat).sum())
        dots += float((x * x_hat).sum())
    if squares == 0:
        return 0.0
    return squares / dots if dots else math.inf


def _unexplained(X, X_hat) -> float:
    mean = sum(x.sum(axis=0) for (x,) in dense_blocks(X)) / X.shape[0]
    error = total = 0.0
    for x, x_hat in dense_blocks(X, X_hat):
        error += float(np.square(x - x_hat).sum())
        total += float(np.square(x - mean).sum())
    # Below this, the total is the rounding error of the mean of constant features.
    n_values = X.shape[0] * X.shape[1]
    rounding = n_values * (4 * np.finfo(np.float64).eps * np.abs(mean).max()) ** 2
    if total <= rounding:
        return 0.0 if error <= rounding else 1.0
    return error / total
