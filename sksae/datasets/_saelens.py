"""The first toy of SAELens's documentation: fewer features than dimensions."""

from __future__ import annotations

import torch

from ._orthogonal import spread_apart
from ._planted import (
    PlantedFeatures,
    answer,
    bernoulli,
    check_count,
    check_range,
    check_samples,
    generator,
    unit_vectors,
)

_STEPS, _LR = 200, 0.01


def make_saelens_toy(
    n_samples=1000,
    *,
    n_features=32,
    nb_concepts=16,
    probability=0.25,
    return_codes=False,
    random_state=None,
):
    """Make rows of a few nearly orthogonal features of strength 1.

    The first example of SAELens's guide to synthetic data [1]_: 16 features in 32
    dimensions, each in every fourth row and independent of the others. There is no
    superposition; what cannot find these features is broken.

    Parameters
    ----------
    n_samples : int or None, default=1000
        None gives the `PlantedFeatures` to draw rows from.
    n_features : int, default=32
        Dimensions.
    nb_concepts : int, default=16
        Number of planted features. Up to ``n_features`` of them are made orthogonal to about
        a thousandth.
    probability : float, default=0.25
        Of each feature, from 0 to 1.
    return_codes : bool, default=False
        Whether to return the strengths.
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    X : ndarray of shape (n_samples, n_features), float32
    dictionary : ndarray of shape (nb_concepts, n_features), float32
        Rows of unit Euclidean norm.
    probabilities : ndarray of shape (nb_concepts,), float64
    codes : CSR matrix of shape (n_samples, nb_concepts), float32
        Only with ``return_codes=True``.

    Raises
    ------
    ValueError
        For a size below 1 or a probability that is none.

    References
    ----------
    .. [1] SAELens, "Training SAEs on synthetic data", basic training workflow.

    Examples
    --------
    >>> import numpy as np
    >>> X, dictionary, _ = make_saelens_toy(100, random_state=0)
    >>> X.shape, bool(abs(dictionary @ dictionary.T - np.eye(16)).max() < 0.01)
    ((100, 32), True)
    """
    owner = "make_saelens_toy"
    check_samples(n_samples, owner)
    check_count(n_features, "n_features", owner)
    check_count(nb_concepts, "nb_concepts", owner)
    check_range(probability, "probability", owner, 0, 1)
    rng = generator(random_state)
    dictionary = spread_apart(unit_vectors(nb_concepts, n_features, rng), _STEPS, _LR)
    p = torch.full((nb_concepts,), float(probability), dtype=torch.float64)

    def draw(n, rng):
        return bernoulli(n, p.float(), rng).float()

    rows = torch.randint(2**31 - 1, (), generator=rng).item()
    return answer(PlantedFeatures(draw, dictionary, p, random_state=rows), n_samples, return_codes)
