"""A world after SynthSAEBench: frequencies, trees, correlations and strengths like a model's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._forest import Forest, check_forest
from ._orthogonal import spread_apart
from ._planted import (
    PlantedFeatures,
    answer,
    check_count,
    check_range,
    check_samples,
    generator,
    places,
    scattered,
    unit_vectors,
)

_LARGEST_SHARED_VARIANCE = 0.99


def make_synth_bench(
    n_samples=1000,
    *,
    n_features=128,
    nb_concepts=1024,
    zipf_exponent=0.5,
    p_max=0.4,
    p_min=5e-4,
    n_trees=8,
    branching=4,
    depth=3,
    correlation_rank=25,
    correlation_scale=0.1,
    mean_strengths=(5.0, 4.0),
    std_strength=0.5,
    orthogonal_steps=100,
    bias=0.5,
    device="cpu",
    return_codes=False,
    random_state=None,
):
    """Make rows like a language model's: frequent and rare features in trees, correlated.

    A world after SynthSAEBench [1]_, by default with a sixteenth of its features in a sixth
    of its dimensions. The full configuration is ``n_features=768, nb_concepts=16384,
    n_trees=128``. A row is made in four steps:

    - Which features could be active: those whose Gaussian exceeds what its probability
      asks for. The Gaussians are ``L e + sqrt(1 - |L_i|^2) h`` with e of
      ``correlation_rank`` entries: features come together, or apart.
    - Strengths: ``max(0, m_i + s_i g)`` with g Gaussian.
    - Trees, from their roots down: a child needs its parent; of the siblings that are
      left, one that is chosen at random stays; its strength is multiplied by its parent's,
      relative to the parent's ``m_i``.
    - ``X = codes @ dictionary + b``, with the directions pushed apart.

    Parameters
    ----------
    n_samples : int or None, default=1000
        None gives the `PlantedFeatures` to draw rows from.
    n_features : int, default=128
        Dimensions.
    nb_concepts : int, default=1024
        Number of planted features.
    zipf_exponent : float, default=0.5
        The wanted frequency of feature i, from 1, is ``i^-exponent``, moved and scaled to
        the range from ``p_max`` (the first) to ``p_min`` (the last).
    p_max, p_min : float, default=0.4 and 5e-4
        Between 0 and 1.
    n_trees : int, default=8
        Trees, whose roots are the first features; then follow their children, in order of
        the parents, and so on. 0 is without trees.
    branching : int, default=4
        Children of each feature that has some.
    depth : int, default=3
        Generations below a root. The trees hold ``n_trees * (1 + branching + ... +
        branching^depth)`` features, at most ``nb_concepts``; the others stand alone.
    correlation_rank : int, default=25
        Columns of L.
    correlation_scale : float, default=0.1
        Standard deviation of the entries of L. 0 is without correlations.
    mean_strengths : tuple of two floats, default=(5.0, 4.0)
        The m_i fall, or rise, linearly from the first feature's to the last one's.
    std_strength : float, default=0.5
        The s_i are ``abs(std_strength + std_strength * g)``, one for each feature.
    orthogonal_steps : int, default=100
        Steps of Adam, with a rate of 3e-4, that push the directions apart.
    bias : float, default=0.5
        Norm of b, whose direction is random.
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
        Share of the rows in which each feature is active, after the trees; exact without
        correlations. See Notes.
    codes : CSR matrix of shape (n_samples, nb_concepts), float32
        Only with ``return_codes=True``.

    Raises
    ------
    ValueError
        For a number out of its range, or trees of more features than there are.

    Notes
    -----
    As in the paper, the probability with which a feature of a tree could be active is
    raised so that it is about as frequent as wanted: divided by its parent's wanted
    frequency, and multiplied by 1 + that of its siblings given the parent. Where children
    are wanted more often than their parent is there, as for many roots, no probability up to
    1 does that, and they are rarer. ``probabilities`` are what follows.

    References
    ----------
    .. [1] Chanin et al. (2026), "SynthSAEBench: evaluating sparse autoencoders on scalable
       realistic synthetic data", sections 3 and 4, arXiv:2602.14687.

    Examples
    --------
    >>> X, dictionary, p = make_synth_bench(100, orthogonal_steps=0, random_state=0)
    >>> X.shape, dictionary.shape, round(float(p[0]), 1)
    ((100, 128), (1024, 128), 0.4)
    """
    check_samples(n_samples, _OWNER)
    _check_sizes(n_features, nb_concepts, correlation_rank, orthogonal_steps)
    _check_numbers(zipf_exponent, p_max, p_min, correlation_scale, std_strength, bias)
    check_forest(n_trees, branching, depth, nb_concepts, _OWNER)
    rng = generator(random_state, device)
    directions = unit_vectors(nb_concepts + 1, n_features, rng)
    dictionary = spread_apart(directions[:-1], orthogonal_steps, 3e-4)
    forest = Forest(n_trees, branching, depth)
    strengths = _strengths(nb_concepts, mean_strengths, std_strength, rng)
    wanted = _zipf(nb_concepts, zipf_exponent, p_max, p_min)
    could = forest.compensated(wanted)
    copula = _copula(could, correlation_rank, correlation_scale, rng)

    def draw(n, rng):
        active = _could_fire(n, copula, rng)
        place = places(active)
        noise = torch.randn(len(place), generator=rng, device=rng.device)
        mean, std = (value[place % nb_concepts] for value in strengths)
        codes = scattered(place, (mean + std * noise).clamp_(min=0), active.shape)
        return forest.prune_(codes, strengths.mean, rng)

    positive = torch.special.ndtr(strengths.mean.double() / strengths.std.double()).cpu()
    p = forest.marginals(could * positive)
    rows = torch.randint(2**31 - 1, (), generator=rng, device=rng.device).item()
    source = PlantedFeatures(draw, dictionary, p, bias * directions[-1], rows)
    return answer(source, n_samples, return_codes)


_OWNER = make_synth_bench.__name__


class _Strengths(NamedTuple):
    mean: Tensor
    std: Tensor


class _Copula(NamedTuple):
    """Gaussians that share some factors, and the values that they have to exceed."""

    loadings: Tensor
    own_std: Tensor
    cut: Tensor


def _zipf(n, exponent, p_max, p_min):
    """Give the wanted frequencies, shape (n,), float64."""
    falling = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    span = falling[0] - falling[-1]
    share = (falling - falling[-1]) / span if span > 0 else torch.ones_like(falling)
    return p_min + (p_max - p_min) * share


def _strengths(n, mean, std, rng):
    first, last = mean
    means = torch.linspace(first, last, n, device=rng.device)
    noise = torch.randn(n, generator=rng, device=rng.device)
    return _Strengths(means, (std + std * noise).abs())


def _copula(p, rank, scale, rng):
    loadings = scale * torch.randn((len(p), rank), generator=rng, device=rng.device)
    shared = loadings.square().sum(dim=1, keepdim=True)
    loadings *= (_LARGEST_SHARED_VARIANCE / shared.clamp(min=_LARGEST_SHARED_VARIANCE)).sqrt()
    own = (1 - loadings.square().sum(dim=1)).sqrt()
    return _Copula(loadings, own, -torch.special.ndtri(p).float().to(rng.device))


def _could_fire(n, copula, rng):
    shared = torch.randn((n, copula.loadings.shape[1]), generator=rng, device=rng.device)
    gaussian = torch.randn((n, len(copula.cut)), generator=rng, device=rng.device)
    return gaussian.mul_(copula.own_std).addmm_(shared, copula.loadings.T) > copula.cut


def _check_sizes(n_features, nb_concepts, correlation_rank, orthogonal_steps):
    check_count(n_features, "n_features", _OWNER)
    check_count(nb_concepts, "nb_concepts", _OWNER)
    check_count(correlation_rank, "correlation_rank", _OWNER)
    check_count(orthogonal_steps, "orthogonal_steps", _OWNER, least=0)


def _check_numbers(zipf_exponent, p_max, p_min, correlation_scale, std_strength, bias):
    check_range(zipf_exponent, "zipf_exponent", _OWNER, 0)
    check_range(p_max, "p_max", _OWNER, 1e-12, 1)
    check_range(p_min, "p_min", _OWNER, 1e-12, p_max)
    check_range(correlation_scale, "correlation_scale", _OWNER, 0)
    check_range(std_strength, "std_strength", _OWNER, 1e-12)
    check_range(bias, "bias", _OWNER, 0)
