"""A dictionary against itself, and dictionaries of several seeds against each other."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from ._checks import row_slices
from ._cosines import check_width, matched_mean, unit_rows


def dictionary_coherence(components, *, average=False) -> float:
    """Largest absolute cosine between two different rows. Lower is better.

    The mutual coherence ``max_{i != j} |cos(d_i, d_j)|`` of Donoho and Elad (2003) [1]_,
    equation 5: it tells whether any two concepts point along the same line. One such pair
    is enough for a value of 1; ``average=True`` takes, in place of the largest, the mean
    over the rows of each row's largest cosine, as SynthSAEBench (arXiv:2602.14687) does to
    describe its dictionaries.

    Parameters
    ----------
    components : array-like of shape (nb_concepts, n_features)
        The dictionary. The lengths of the rows do not matter. A row of zeros has cosine 0
        with every other.
    average : bool, default=False
        Mean over the rows instead of the maximum.

    Returns
    -------
    float
        Between 0 (all rows at right angles) and 1. 0 for a single row.

    Raises
    ------
    ValueError
        If ``components`` is empty, not two-dimensional or not finite.

    Notes
    -----
    The cosines are computed in blocks and never held all at once.

    References
    ----------
    .. [1] Donoho and Elad (2003), "Optimally sparse representation in general
       (nonorthogonal) dictionaries via l1 minimization", PNAS 100(5).

    Examples
    --------
    The third row has cosine 0.8 with the first and 0.6 with the second.

    >>> dictionary_coherence([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    0.8
    """
    largest = _largest_cosines(unit_rows(components, "components", "dictionary_coherence"))
    return float(largest.mean() if average else largest.max())


def pw_mcc(dictionaries) -> float:
    """Agreement of dictionaries from several seeds, up to sign. Higher is better.

    Pairwise mean correlation coefficient of Song et al. (2025) [1]_: the mean of `mcc` over
    all pairs of dictionaries.

    Parameters
    ----------
    dictionaries : sequence of array-like of shape (nb_concepts, n_features)
        Two dictionaries or more, such as ``components_`` of fits that differ in
        ``random_state``.

    Returns
    -------
    float
        Between 0 and 1; 1 for the same rows in any order and with any sign.

    Raises
    ------
    ValueError
        If there are fewer than two, or if one is empty, not finite, or of another width.

    See Also
    --------
    stability : The same with signed cosines.

    Notes
    -----
    Matching takes ``8 * nb_concepts ** 2`` bytes and up to ``nb_concepts ** 3`` steps a
    pair: seconds at 2,048 concepts, many minutes at 16,384.

    References
    ----------
    .. [1] Song et al. (2025), "Position: Mechanistic interpretability should prioritize
       feature consistency in SAEs", arXiv:2505.20254.

    Examples
    --------
    The second dictionary is the first with the rows swapped and one sign changed.

    >>> pw_mcc([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [-1.0, 0.0]]])
    1.0
    """
    return _pairwise(dictionaries, "pw_mcc", signed=False)


def stability(dictionaries) -> float:
    """Agreement of dictionaries from several seeds, sign included. Higher is better.

    Mean over all pairs of dictionaries of the mean cosine of their rows, matched one to one
    so that this mean is largest (Fel et al. (2023) [1]_; the consistency of Paulo and
    Belrose (2025) [2]_ is of the same kind). It is `pw_mcc` but for the sign: rows that
    point in opposite directions agree there and disagree here. Codes are not negative, so
    opposite rows are different concepts, and this is the stricter number.

    Parameters
    ----------
    dictionaries : sequence of array-like of shape (nb_concepts, n_features)
        Two dictionaries or more, such as ``components_`` of fits that differ in
        ``random_state``.

    Returns
    -------
    float
        Between -1 and 1, at most `pw_mcc`; 1 for the same rows in any order.

    Raises
    ------
    ValueError
        If there are fewer than two, or if one is empty, not finite, or of another width.

    See Also
    --------
    pw_mcc : The same with absolute cosines; its notes on cost hold here too.

    References
    ----------
    .. [1] Fel et al. (2023), "A holistic approach to unifying automatic concept extraction
       and concept importance estimation", arXiv:2306.07304.
    .. [2] Paulo and Belrose (2025), "Sparse autoencoders trained on the same data learn
       different features", arXiv:2501.16615.

    Examples
    --------
    One row is found again, the other only at a right angle: (1 + 0) / 2. A row found with
    its sign changed counts -1.

    >>> stability([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    0.5
    >>> stability([[[1.0, 0.0]], [[-1.0, 0.0]]])
    -1.0
    """
    return _pairwise(dictionaries, "stability", signed=True)


def _pairwise(dictionaries, metric, *, signed):
    units = [
        unit_rows(dictionary, f"dictionaries[{i}]", metric)
        for i, dictionary in enumerate(dictionaries)
    ]
    if len(units) < 2:
        raise ValueError(
            f"{metric} compares dictionaries, so it needs at least 2. Got {len(units)}. Pass a "
            "list: [sae.components_ for sae in saes]."
        )
    for i, other in enumerate(units[1:], start=1):
        check_width(units[0], other, ("dictionaries[0]", f"dictionaries[{i}]"), metric)
    return float(np.mean([matched_mean(a, b, signed=signed) for a, b in combinations(units, 2)]))


def _largest_cosines(units):
    """Give each row's largest absolute cosine with another row, each pair computed once."""
    largest = np.zeros(len(units))
    for rows in row_slices(len(units), len(units)):
        cosines = np.abs(units[rows] @ units[rows.start :].T)
        np.fill_diagonal(cosines, 0)
        np.maximum(largest[rows], cosines.max(axis=1), out=largest[rows])
        later = largest[rows.start :]
        np.maximum(later, cosines.max(axis=0), out=later)
    return np.minimum(largest, 1)
