"""The toy of Korznikov et al.: many features that fire independently."""

from __future__ import annotations

import torch

from ._planted import (
    PlantedFeatures,
    answer,
    bernoulli,
    check_count,
    check_range,
    check_samples,
    generator,
    places,
    scattered,
    unit_vectors,
)

_LAWS = ("constant", "variable")
_LOG10_P = (-5.5, -1.2)
_LOG_STRENGTH_STD = 0.25


def make_korznikov(
    n_samples=1000,
    *,
    n_features=100,
    nb_concepts=3200,
    n_active=20,
    law="constant",
    device="cpu",
    return_codes=False,
    random_state=None,
):
    """Make rows of many features that fire independently of each other.

    ``X = (b * c) @ dictionary`` with features uniform on the sphere,
    ``b ~ Bernoulli(p_i)`` and strengths ``c = exp(0.25 g)``, ``g ~ N(0, 1)`` [1]_. The
    defaults are the paper's. Far more features than dimensions and a weak interference of
    each with all others make them hard to find, though each is simple.

    Parameters
    ----------
    n_samples : int or None, default=1000
        None gives the `PlantedFeatures` to draw rows from.
    n_features : int, default=100
        Dimensions.
    nb_concepts : int, default=3200
        Number of planted features.
    n_active : float, default=20
        With ``law="constant"``, features active in a row on average, at most
        ``nb_concepts``: ``p_i = n_active / nb_concepts``. Not used by the other law.
    law : {"constant", "variable"}, default="constant"
        "variable" draws each ``log10(p_i)`` uniformly from [-5.5, -1.2]: the rarest feature
        is in 3 of a million rows, the most frequent in 6 of a hundred, and 0.64 % of
        ``nb_concepts`` are active on average.
    device : str or torch.device, default="cpu"
        Where rows are drawn.
    return_codes : bool, default=False
        Whether to return the strengths.
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    X : ndarray of shape (n_samples, n_features), float32
    dictionary : ndarray of shape (nb_concepts, n_features), float32
        Rows of unit Euclidean norm.
    probabilities : ndarray of shape (nb_concepts,), float64
        The p_i.
    codes : CSR matrix of shape (n_samples, nb_concepts), float32
        Only with ``return_codes=True``.

    Raises
    ------
    ValueError
        For a size below 1, an unknown law, or more active features than there are.

    References
    ----------
    .. [1] Korznikov et al. (2026), "Sanity checks for sparse autoencoders: do SAEs beat
       random baselines?", section on synthetic data, arXiv:2602.14111.

    Examples
    --------
    >>> X, dictionary, p = make_korznikov(10, n_features=50, nb_concepts=400, n_active=8)
    >>> X.shape, dictionary.shape, float(p[0])
    ((10, 50), (400, 50), 0.02)
    """
    _check(n_samples, n_features, nb_concepts, n_active, law)
    rng = generator(random_state, device)
    dictionary = unit_vectors(nb_concepts, n_features, rng)
    if law == "constant":
        p = torch.full((nb_concepts,), n_active / nb_concepts, dtype=torch.float64)
    else:
        low, high = _LOG10_P
        share = torch.rand(nb_concepts, generator=rng, device=rng.device).cpu()
        p = 10 ** (low + (high - low) * share.double())

    active = p.float().to(rng.device)

    def draw(n, rng):
        place = places(bernoulli(n, active, rng))
        noise = torch.randn(len(place), generator=rng, device=rng.device)
        strengths = noise.mul_(_LOG_STRENGTH_STD).exp_()
        return scattered(place, strengths, (n, nb_concepts))

    rows = torch.randint(2**31 - 1, (), generator=rng, device=rng.device).item()
    return answer(PlantedFeatures(draw, dictionary, p, random_state=rows), n_samples, return_codes)


def _check(n_samples, n_features, nb_concepts, n_active, law):
    owner = "make_korznikov"
    check_samples(n_samples, owner)
    check_count(n_features, "n_features", owner)
    check_count(nb_concepts, "nb_concepts", owner)
    check_range(n_active, "n_active", owner, 0, nb_concepts)
    if law not in _LAWS:
        raise ValueError(f"The 'law' parameter of {owner} must be one of {_LAWS}. Got {law!r}.")
