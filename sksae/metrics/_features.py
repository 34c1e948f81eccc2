"""A learnt dictionary against the features that are known to be there."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ._checks import check_matrix, check_share, row_slices
from ._cosines import cosine_blocks, matched_mean, max_cosine, unit_pair


def mean_max_cosine(components, features) -> float:
    """Mean over the true features of the best cosine with a concept. Higher is better.

    The mean max cosine similarity (MMCS) of Sharkey et al. (2022) [1]_: signed, and one
    concept may serve several features.

    Parameters
    ----------
    components : array-like of shape (nb_concepts, n_features)
        The learnt dictionary. The lengths of the rows do not matter.
    features : array-like of shape (n_true, n_features)
        The true features.

    Returns
    -------
    float
        Between -1 and 1; 1 if every feature is a row of ``components`` up to its length.

    Raises
    ------
    ValueError
        If the numbers of columns differ, or if one is empty or not finite.

    References
    ----------
    .. [1] Sharkey, Braun and Millidge (2022), "Taking features out of superposition with
       sparse autoencoders", AI Alignment Forum.

    Examples
    --------
    The first feature is found; the best cosine of the second is 0.8.

    >>> mean_max_cosine([[1.0, 0.0], [0.6, 0.8]], [[2.0, 0.0], [0.0, 1.0]])
    0.9
    """
    learnt, true = unit_pair(components, features, "mean_max_cosine")
    return float(max_cosine(true, learnt).mean())


def recovered_fraction(components, features, threshold=0.8) -> float:
    """Share of the true features that a concept points to. Higher is better.

    A feature is recovered if its largest cosine with a concept is ``threshold`` or more
    (Korznikov et al. (2026) [1]_, section on synthetic data, with 0.8).

    Parameters
    ----------
    components : array-like of shape (nb_concepts, n_features)
        The learnt dictionary. The lengths of the rows do not matter.
    features : array-like of shape (n_true, n_features)
        The true features.
    threshold : float, default=0.8
        Smallest cosine of a recovered feature, between -1 and 1.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the numbers of columns differ, if one is empty or not finite, or if ``threshold``
        is not between -1 and 1.

    References
    ----------
    .. [1] Korznikov et al. (2026), "Sanity checks for sparse autoencoders: do SAEs beat
       random baselines?", arXiv:2602.14111.

    Examples
    --------
    The best cosines are 1 and 0.8.

    >>> components, features = [[1.0, 0.0], [0.6, 0.8]], [[2.0, 0.0], [0.0, 1.0]]
    >>> recovered_fraction(components, features)
    1.0
    >>> recovered_fraction(components, features, threshold=0.9)
    0.5
    """
    threshold = check_share(threshold, "threshold", "recovered_fraction", low=-1)
    learnt, true = unit_pair(components, features, "recovered_fraction")
    # A cosine that equals the threshold on paper may fall short of it by rounding.
    return float((max_cosine(true, learnt) >= threshold - 1e-12).mean())


def mcc(components, features) -> float:
    """Mean absolute cosine of concepts and true features, matched one to one. Higher is better.

    The mean correlation coefficient of SynthSAEBench [1]_: the one-to-one matching that
    makes the sum of ``|cos|`` largest, and the mean over the matched pairs. Not Matthews'
    coefficient of the same letters.

    Parameters
    ----------
    components : array-like of shape (nb_concepts, n_features)
        The learnt dictionary. The lengths of the rows do not matter.
    features : array-like of shape (n_true, n_features)
        The true features.

    Returns
    -------
    float
        Between 0 and 1. Where one dictionary has more rows, the rows that find no partner
        do not count.

    Raises
    ------
    ValueError
        If the numbers of columns differ, or if one is empty or not finite.

    See Also
    --------
    pw_mcc : The same between dictionaries of several seeds.

    Notes
    -----
    Matching takes ``8 * nb_concepts * n_true`` bytes, and time that grows with the cube of
    the smaller number.

    References
    ----------
    .. [1] "SynthSAEBench" (2026), arXiv:2602.14687; ``mean_correlation_coefficient`` in
       SAELens.

    Examples
    --------
    The first row matches the first feature (1), the second the other, but for its sign (0.8).

    >>> mcc([[1.0, 0.0], [0.6, -0.8]], [[2.0, 0.0], [0.0, 1.0]])
    0.9
    """
    return matched_mean(*unit_pair(components, features, "mcc"), signed=False)


def best_matches(components, features) -> np.ndarray:
    """Index of the true feature that each concept matches best.

    The feature with the largest absolute cosine, as in SynthSAEBench (arXiv:2602.14687).

    Parameters
    ----------
    components : array-like of shape (nb_concepts, n_features)
        The learnt dictionary. The lengths of the rows do not matter.
    features : array-like of shape (n_true, n_features)
        The true features.

    Returns
    -------
    ndarray of int, shape (nb_concepts,)
        From 0 to ``n_true - 1``; several concepts may share a feature. The first of equals.

    Raises
    ------
    ValueError
        If the numbers of columns differ, or if one is empty or not finite.

    Examples
    --------
    >>> best_matches([[1.0, 0.0], [0.6, -0.8], [0.8, 0.6]], [[2.0, 0.0], [0.0, 1.0]])
    array([0, 1, 0])
    """
    return _best_matches(*unit_pair(components, features, "best_matches"))


def uniqueness(components, features) -> float:
    """Share of the concepts that do not share their true feature. Higher is better.

    The number of different features among the `best_matches` of the concepts, divided by
    the number of concepts: ``feature_uniqueness`` of SynthSAEBench (arXiv:2602.14687).

    Parameters
    ----------
    components : array-like of shape (nb_concepts, n_features)
        The learnt dictionary. The lengths of the rows do not matter.
    features : array-like of shape (n_true, n_features)
        The true features.

    Returns
    -------
    float
        Above 0 and at most 1, and at most ``n_true / nb_concepts``.

    Raises
    ------
    ValueError
        If the numbers of columns differ, or if one is empty or not finite.

    Examples
    --------
    Of three concepts, two match the first feature.

    >>> round(uniqueness([[1.0, 0.0], [0.6, -0.8], [0.8, 0.6]], [[2.0, 0.0], [0.0, 1.0]]), 3)
    0.667
    """
    matches = _best_matches(*unit_pair(components, features, "uniqueness"))
    return len(np.unique(matches)) / len(matches)


def concept_scores(codes, activations, *, match) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each concept as a detector of its true feature.

    A concept predicts its feature in the samples in which its code is not zero; the feature
    is there in the samples in which its own activation is not zero (the classification
    metrics of SynthSAEBench, arXiv:2602.14687). Higher is better.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes of the samples.
    activations : array-like or sparse matrix of shape (n_samples, n_true)
        Strengths of the true features in the same samples.
    match : array-like of int, shape (nb_concepts,)
        The true feature of each concept, such as `best_matches` gives.

    Returns
    -------
    dict of str to ndarray of shape (nb_concepts,)
        "precision", the share of a concept's firings in which its feature is there;
        "recall", the share of the feature's samples in which the concept fires; "f1", their
        harmonic mean. Between 0 and 1, and 0 where undefined: a dead concept has 0 in all.

    Raises
    ------
    ValueError
        If the numbers of samples differ, if ``match`` is not one feature index a concept,
        or if a matrix is empty or not finite.

    Examples
    --------
    The concept fires twice, once rightly, and misses one of the feature's two samples.

    >>> concept_scores([[1.0], [2.0], [0.0]], [[1.0], [0.0], [1.0]], match=[0])
    {'precision': array([0.5]), 'recall': array([0.5]), 'f1': array([0.5])}
    """
    hits, fired, present = _overlap(codes, activations, match, "concept_scores")
    return {
        "precision": hits / np.maximum(fired, 1),
        "recall": hits / np.maximum(present, 1),
        # The harmonic mean, without dividing by a precision or recall of zero.
        "f1": 2 * hits / np.maximum(fired + present, 1),
    }


def concept_f1(codes, activations, *, match) -> float:
    """Mean over the concepts of the F1 of `concept_scores`. Higher is better.

    Parameters
    ----------
    codes : array-like or sparse matrix of shape (n_samples, nb_concepts)
        Codes of the samples.
    activations : array-like or sparse matrix of shape (n_samples, n_true)
        Strengths of the true features in the same samples.
    match : array-like of int, shape (nb_concepts,)
        The true feature of each concept, such as `best_matches` gives.

    Returns
    -------
    float
        Between 0 and 1. Dead concepts count as 0.

    Raises
    ------
    ValueError
        As `concept_scores`.

    Examples
    --------
    The first concept detects its feature in every sample (1), the second is dead (0).

    >>> concept_f1([[1.0, 0.0], [0.0, 0.0]], [[3.0, 1.0], [0.0, 1.0]], match=[0, 1])
    0.5
    """
    hits, fired, present = _overlap(codes, activations, match, "concept_f1")
    return float((2 * hits / np.maximum(fired + present, 1)).mean())


def _best_matches(learnt, true):
    return np.concatenate([np.abs(c).argmax(axis=1) for _, c in cosine_blocks(learnt, true)])


def _overlap(codes, activations, match, metric):
    """Count, for each concept, samples with both, with the concept, with its feature."""
    codes = check_matrix(codes, "codes", metric)
    activations = check_matrix(activations, "activations", metric)
    if codes.shape[0] != activations.shape[0]:
        raise ValueError(
            f"codes and activations of {metric} must have one row per sample both: codes has "
            f"shape {codes.shape} but activations has {activations.shape}."
        )
    match = _check_match(match, codes.shape[1], activations.shape[1], metric)
    counts = np.zeros((3, codes.shape[1]), dtype=np.int64)
    for rows in row_slices(codes.shape[0], max(codes.shape[1], activations.shape[1])):
        fires = sparse.csr_array(codes[rows] != 0)
        there = sparse.csr_array(activations[rows] != 0)[:, match]
        both = fires.multiply(there)
        counts += [np.asarray(m.astype(np.int64).sum(axis=0)) for m in (both, fires, there)]
    return counts


def _check_match(match, nb_concepts, n_true, metric):
    match = np.asarray(match)
    wanted = match.dtype.kind in "iu" and match.shape == (nb_concepts,)
    if not wanted or match.min() < 0 or match.max() >= n_true:
        raise ValueError(
            f"match of {metric} must hold the index of a true feature, from 0 to {n_true - 1}, "
            f"for each of the {nb_concepts} concepts. Got shape {match.shape} and dtype "
            f"{match.dtype}. best_matches(components, features) gives it."
        )
    return match
