"""The toy of Sharkey, Braun and Millidge: features ever rarer, correlated or not."""

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
    unit_vectors,
)


def make_sharkey(
    n_samples=1000,
    *,
    n_features=256,
    nb_concepts=512,
    n_active=5,
    decay=0.99,
    correlated=False,
    return_codes=False,
    random_state=None,
):
    """Make rows of features whose frequency decays, with strengths uniform in [0, 1].

    Feature i, from 0, is active with probability ``decay^i * n_active / nb_concepts``, so
    that with the defaults not ``n_active`` but 0.97 features are active on average, and more
    than a third of the rows are zero [1]_ [2]_. With ``correlated=True`` the probability in
    a row is ``decay^i * Phi(g_i)``, scaled to ``n_active`` features on average (and cut at
    1), where g is a Gaussian vector with random correlations and Phi the distribution
    function.

    Parameters
    ----------
    n_samples : int or None, default=1000
        None gives the `PlantedFeatures` to draw rows from.
    n_features : int, default=256
        Dimensions.
    nb_concepts : int, default=512
        Number of planted features.
    n_active : float, default=5
        Features that would be active on average without decay; with ``correlated=True``
        those that are.
    decay : float, default=0.99
        From a feature's probability to the next one's, from 0 to 1.
    correlated : bool, default=False
        Whether features tend to come together. Their Gaussian vector has the symmetric
        matrix of ``(U + U') / 2``, U uniform in [0, 1], made positive definite on the
        diagonal and scaled to a unit diagonal.
    return_codes : bool, default=False
        Whether to return the strengths.
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    X : ndarray of shape (n_samples, n_features), float32
    dictionary : ndarray of shape (nb_concepts, n_features), float32
        Rows of unit Euclidean norm, uniform on the sphere.
    probabilities : ndarray of shape (nb_concepts,), float64
        Expected share of the rows in which each feature is active.
    codes : CSR matrix of shape (n_samples, nb_concepts), float32
        Only with ``return_codes=True``.

    Raises
    ------
    ValueError
        For a size below 1, or a number out of its range.

    References
    ----------
    .. [1] Sharkey, Braun and Millidge (2022), "Taking features out of superposition with
       sparse autoencoders", AI Alignment Forum.
    .. [2] Cunningham et al. (2023), "Sparse autoencoders find highly interpretable features
       in language models", arXiv:2309.08600; toy models of their repository.

    Examples
    --------
    >>> X, dictionary, p = make_sharkey(10, random_state=0)
    >>> X.shape, round(float(p.sum()), 2)
    ((10, 256), 0.97)
    """
    owner = "make_sharkey"
    check_samples(n_samples, owner)
    check_count(n_features, "n_features", owner)
    check_count(nb_concepts, "nb_concepts", owner)
    check_range(n_active, "n_active", owner, 0, nb_concepts)
    check_range(decay, "decay", owner, 0, 1)
    rng = generator(random_state)
    dictionary = unit_vectors(nb_concepts, n_features, rng)
    fading = float(decay) ** torch.arange(nb_concepts, dtype=torch.float64)
    scale = n_active / (fading.sum() if correlated else nb_concepts)
    root = _root_of_correlations(nb_concepts, rng) if correlated else None

    def draw(n, rng):
        p = (fading * scale).float()
        if root is not None:
            gaussian = torch.randn((n, nb_concepts), generator=rng) @ root.T
            p = 2 * p * torch.special.ndtr(gaussian)  # Phi is 1/2 on average
        active = bernoulli(n, p, rng) if root is None else torch.rand(p.shape, generator=rng) < p
        return active * torch.rand(active.shape, generator=rng)

    rows = torch.randint(2**31 - 1, (), generator=rng).item()
    source = PlantedFeatures(draw, dictionary, _expected(fading * scale, root), random_state=rows)
    return answer(source, n_samples, return_codes)


def _expected(p, root):
    """Give the mean of p, or of ``2 p U`` cut at 1 for a uniform U."""
    if root is None:
        return p
    most = 2 * p
    return torch.where(most > 1, 1 - 1 / (2 * most.clamp(min=1)), p)


def _root_of_correlations(n, rng):
    """Give a lower triangular root of a random correlation matrix, shape (n, n)."""
    uniform = torch.rand((n, n), generator=rng, dtype=torch.float64)
    matrix = (uniform + uniform.T) / 2
    smallest = float(torch.linalg.eigvalsh(matrix)[0])
    if smallest < 1e-3:
        matrix.diagonal().add_(1e-3 - 1.001 * smallest)
    std = matrix.diagonal().sqrt()
    return torch.linalg.cholesky(matrix / std[:, None] / std).float()
