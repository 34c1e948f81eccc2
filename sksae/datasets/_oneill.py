"""The toy of O'Neill et al.: a few sources in half as many dimensions."""

from __future__ import annotations

import torch

from ._planted import (
    PlantedFeatures,
    answer,
    check_count,
    check_samples,
    generator,
    unit_vectors,
)


def make_oneill(
    n_samples=1024,
    *,
    n_features=8,
    nb_concepts=16,
    n_active=3,
    return_codes=False,
    random_state=None,
):
    """Make rows of a fixed number of sources with half-normal strengths.

    In every row ``n_active`` of the sources, chosen uniformly, have strength ``abs(g)``,
    ``g ~ N(0, 1)`` [1]_. Strengths near 0 cannot be told from absent sources, and three of
    sixteen in eight dimensions is at the edge of what can be decoded at all, so that no
    linear encoder finds every code; the directions can be found.

    Parameters
    ----------
    n_samples : int or None, default=1024
        None gives the `PlantedFeatures` to draw rows from.
    n_features : int, default=8
        Dimensions.
    nb_concepts : int, default=16
        Number of sources.
    n_active : int, default=3
        Sources of each row, at most ``nb_concepts``.
    return_codes : bool, default=False
        Whether to return the strengths.
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    X : ndarray of shape (n_samples, n_features), float32
    dictionary : ndarray of shape (nb_concepts, n_features), float32
        Rows of unit Euclidean norm.
    probabilities : ndarray of shape (nb_concepts,), float64
        ``n_active / nb_concepts`` each.
    codes : CSR matrix of shape (n_samples, nb_concepts), float32
        Only with ``return_codes=True``.

    Raises
    ------
    ValueError
        For a size below 1, or more active sources than there are.

    References
    ----------
    .. [1] O'Neill, Gumran and Klindt (2025), "Compute optimal inference and provable
       amortisation gap in sparse autoencoders", section on synthetic data,
       arXiv:2411.13117.

    Examples
    --------
    >>> X, dictionary, p, codes = make_oneill(5, return_codes=True, random_state=0)
    >>> codes.getnnz(axis=1)
    array([3, 3, 3, 3, 3], dtype=int32)
    """
    owner = "make_oneill"
    check_samples(n_samples, owner)
    for name, value in {"n_features": n_features, "nb_concepts": nb_concepts}.items():
        check_count(value, name, owner)
    check_count(n_active, "n_active", owner)
    if n_active > nb_concepts:
        raise ValueError(
            f"n_active={n_active} of {owner} exceeds nb_concepts={nb_concepts}. Lower n_active or "
            "raise nb_concepts."
        )
    rng = generator(random_state)
    dictionary = unit_vectors(nb_concepts, n_features, rng)

    def draw(n, rng):
        order = torch.rand((n, nb_concepts), generator=rng)
        active = order.topk(n_active, dim=1, sorted=False).indices
        strengths = torch.randn((n, n_active), generator=rng).abs_()
        return torch.zeros((n, nb_concepts)).scatter_(1, active, strengths)

    p = torch.full((nb_concepts,), n_active / nb_concepts, dtype=torch.float64)
    rows = torch.randint(2**31 - 1, (), generator=rng).item()
    return answer(PlantedFeatures(draw, dictionary, p, random_state=rows), n_samples, return_codes)
