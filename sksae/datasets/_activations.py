"""Synthetic activations whose concepts are known."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_random_state


def make_activations(
    n_samples=1000,
    n_features=32,
    nb_concepts=64,
    *,
    n_active=4,
    noise=0.0,
    offset=0.0,
    return_codes=False,
    random_state=None,
):
    """Make activations that are sparse sums of random unit directions.

    ``X = codes @ dictionary + offset + noise``: every sample has exactly ``n_active``
    active concepts, chosen uniformly, with strengths uniform in [0.5, 1.5].

    Parameters
    ----------
    n_samples : int, default=1000
    n_features : int, default=32
    nb_concepts : int, default=64
        Number of planted concepts.
    n_active : int, default=4
        Active concepts of each sample, at most ``nb_concepts``.
    noise : float, default=0.0
        Standard deviation of Gaussian noise in each entry.
    offset : float or array-like of shape (n_features,), default=0.0
        Added to every sample.
    return_codes : bool, default=False
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    X : ndarray of shape (n_samples, n_features), float32
    dictionary : ndarray of shape (nb_concepts, n_features), float32
        Rows of unit Euclidean norm.
    codes : ndarray of shape (n_samples, nb_concepts), float32
        Only with ``return_codes=True``.

    Raises
    ------
    ValueError
        If ``n_active`` exceeds ``nb_concepts``.

    Examples
    --------
    >>> X, dictionary = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> X.shape, dictionary.shape
    ((256, 16), (64, 16))
    """
    if not 0 < n_active <= nb_concepts:
        raise ValueError(
            f"n_active={n_active} must be between 1 and nb_concepts={nb_concepts}. "
            "Lower n_active or raise nb_concepts."
        )
    rng = check_random_state(random_state)
    dictionary = rng.standard_normal((nb_concepts, n_features))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    active = rng.random_sample((n_samples, nb_concepts)).argpartition(n_active - 1, axis=1)
    codes = np.zeros((n_samples, nb_concepts))
    strengths = rng.uniform(0.5, 1.5, size=(n_samples, n_active))
    np.put_along_axis(codes, active[:, :n_active], strengths, axis=1)
    X = codes @ dictionary + np.asarray(offset)
    X += noise * rng.standard_normal(X.shape)
    out = [a.astype(np.float32) for a in (X, dictionary, codes)]
    return tuple(out) if return_codes else tuple(out[:2])
