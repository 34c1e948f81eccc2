"""How sparse codes are, and how often each concept fires."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from ._checks import check_matrix, check_share


def l0(codes) -> float:
    """Mean number of active concepts per sample. Lower is sparser.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes. A concept is active where its code is not zero; a stored zero counts as zero.

    Returns
    -------
    float
        Between 0 and nb_concepts.

    Raises
    ------
    ValueError
        If ``codes`` is empty, not two-dimensional or not finite.

    Examples
    --------
    Two active concepts in the first row, one in the second.

    >>> l0([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]])
    1.5
    """
    codes = check_matrix(codes, "codes", "l0")
    return float(n_active(codes, axis=1).mean())


def dead_fraction(codes) -> float:
    """Share of the concepts that are active in no sample. Lower is better.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes. A concept is active where its code is not zero; a stored zero counts as zero.

    Returns
    -------
    float
        Between 0 and 1. It falls with the number of samples: a rare concept may look dead
        in few of them.

    Raises
    ------
    ValueError
        If ``codes`` is empty, not two-dimensional or not finite.

    Examples
    --------
    The last two of four concepts never fire.

    >>> dead_fraction([[1.0, 2.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    0.5
    """
    codes = check_matrix(codes, "codes", "dead_fraction")
    return float((n_active(codes, axis=0) == 0).mean())


def firing_density(codes) -> np.ndarray:
    """Share of the samples in which each concept is active.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes. A concept is active where its code is not zero; a stored zero counts as zero.

    Returns
    -------
    ndarray of shape (nb_concepts,), float64
        Between 0 (dead) and 1 (always on). Its sum is `l0`.

    Raises
    ------
    ValueError
        If ``codes`` is empty, not two-dimensional or not finite.

    Examples
    --------
    >>> firing_density([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]])
    array([0.5, 1. , 0. ])
    """
    codes = check_matrix(codes, "codes", "firing_density")
    return n_active(codes, axis=0) / codes.shape[0]


def dense_fraction(codes, threshold=0.1) -> float:
    """Share of the concepts that are active in many samples. Lower is better.

    Concepts that fire in more than a tenth of the tokens tend to be harder to interpret:
    Rajamanoharan et al. (2024) [1]_ count them, and SAEBench (arXiv:2503.09532) does as
    ``freq_over_10_percent``.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes. A concept is active where its code is not zero; a stored zero counts as zero.
    threshold : float, default=0.1
        Share of the samples, between 0 and 1, that a dense concept exceeds.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If ``codes`` is empty, not two-dimensional or not finite, or if ``threshold`` is
        not between 0 and 1.

    References
    ----------
    .. [1] Rajamanoharan et al. (2024), "Jumping ahead: improving reconstruction fidelity
       with JumpReLU sparse autoencoders", arXiv:2407.14435.

    Examples
    --------
    Of two concepts, the second is active in both samples.

    >>> dense_fraction([[1.0, 2.0], [0.0, 3.0]], threshold=0.5)
    0.5
    """
    threshold = check_share(threshold, "threshold", "dense_fraction")
    codes = check_matrix(codes, "codes", "dense_fraction")
    return float((n_active(codes, axis=0) / codes.shape[0] > threshold).mean())


class DensityHistogram(NamedTuple):
    """How many concepts fire how often.

    Parameters
    ----------
    counts : ndarray of shape (n_bins,), int64
        Number of concepts in each bin.
    edges : ndarray of shape (n_bins + 1,), float64
        Edges of the bins, in log10 of the share of samples: -2 is one sample in a hundred.
    n_dead : int
        Number of concepts that never fire; they have no logarithm and are in no bin.
    """

    counts: np.ndarray
    edges: np.ndarray
    n_dead: int


def density_histogram(codes, bins=20) -> DensityHistogram:
    """Histogram of the log10 firing densities of the concepts.

    The plot that shows at a glance whether a dictionary has dead concepts, rare ones and
    always-on ones (Bricken et al. (2023), "Towards monosemanticity").

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes. A concept is active where its code is not zero; a stored zero counts as zero.
    bins : int or array-like of shape (n_bins + 1,), default=20
        Number of bins of equal width from ``log10(1 / n_samples)`` to 0, or their edges in
        log10 of the share of samples.

    Returns
    -------
    DensityHistogram
        The named tuple ``(counts, edges, n_dead)``. With an int for ``bins``, ``counts``
        and ``n_dead`` add up to the number of concepts.

    Raises
    ------
    ValueError
        If ``codes`` is empty, not two-dimensional or not finite.

    Examples
    --------
    Of four concepts one fires in every sample, two in one of ten, one never.

    >>> import numpy as np
    >>> codes = np.zeros((10, 4))
    >>> codes[:, 0], codes[3, 1:3] = 1.0, 1.0
    >>> counts, edges, n_dead = density_histogram(codes, bins=2)
    >>> counts, edges, n_dead
    (array([2, 1]), array([-1. , -0.5,  0. ]), 1)
    """
    codes = check_matrix(codes, "codes", "density_histogram")
    fired = n_active(codes, axis=0)
    densities = np.log10(fired[fired > 0] / codes.shape[0])
    whole = (float(np.log10(1 / codes.shape[0])), 0.0)
    counts, edges = np.histogram(densities, bins=bins, range=whole)
    return DensityHistogram(counts, edges, int((fired == 0).sum()))


def n_active(codes, axis: int) -> np.ndarray:
    """Count the values that are not zero, of each concept (axis 0) or sample (axis 1)."""
    if not sparse.issparse(codes):
        return np.count_nonzero(codes, axis=axis)
    fired = codes.data != 0
    if axis == 0:
        return np.bincount(codes.indices[fired], minlength=codes.shape[1])
    return np.diff(np.concatenate([[0], np.cumsum(fired)])[codes.indptr])
