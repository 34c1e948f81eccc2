"""ArchetypalSAE: a TopK autoencoder whose dictionary stays in reach of the data."""

from __future__ import annotations

from numbers import Integral, Real

from .._sklearn import Interval, StrOptions
from ._base import _array
from ._candidates import find_candidates, given_candidates
from ._parameters import refuse_parameter
from ._topk import TopKSAE

_POINTS_PER_CONCEPT = 2


class ArchetypalSAE(TopKSAE):
    """Sparse autoencoder whose concepts are combinations of directions of the data.

    The codes are those of `TopKSAE`. A dictionary row is not free, but next to an archetype,
    a convex combination of candidates C: directions in which training rows lie from their
    center [1]_::

        archetype_i   = unit(sum_j w_ij C_j)        w_ij >= 0, sum_j w_ij = 1
        components_i  = unit(archetype_i + r_i)     |r_i| <= delta

    where ``unit`` divides by the norm; W and the relaxations r are learnt. So each concept
    points to where data are, and can be told by the candidates that make it up. Fits that
    differ in ``random_state`` agree more than those of `TopKSAE`, at the price of some
    explained variance and of time.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Active concepts per sample, at most ``nb_concepts``.
    points : {"kmeans", "random"} or array-like of shape (n_points, n_features), \
            default="kmeans"
        The candidates: centers of clusters of rows (spherical k-means [2]_ on their
        directions), rows drawn at random, or points in input units, such as rows that stand
        for something. The first two depend on the rows alone and not on ``random_state``. In
        `partial_fit` they come from the rows of the first call.
    n_points : int or None, default=None
        Number of candidates; at most the number of rows. None is ``2 * nb_concepts``. Without
        a use, and refused, where ``points`` are given.
    delta : float, default=0.3
        Largest norm of a relaxation, from 0 (none) to below 1: a concept is at most
        ``arcsin(delta)`` away from its archetype, 17 degrees for 0.3.
    k_anneal : float or int, default=0.0
        As in `TopKSAE`.
    **shared
        The parameters of `BaseSAE`, but for ``dictionary_params``, which has nothing to act
        on and must be None or empty.

    Attributes
    ----------
    points_ : ndarray of shape (n_points, n_features)
        The candidates C, as directions of unit norm from the center of the data.
    archetype_weights_ : ndarray of shape (nb_concepts, n_points)
        W; its rows are positive and sum to 1.

    See Also
    --------
    TopKSAE : The same with a free dictionary.
    sksae.metrics.stability : The agreement of several fits.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Notes
    -----
    In the paper a row is ``exp(m) (W C + R)`` with candidates in input units, one learnt m and
    ``delta`` in input units. Here rows have unit norm, as in all SAEs of this library, and
    scale is left to the codes: rows lie in the cone of the candidates, not in their convex
    hull. The center of the data, their geometric median at the start, is subtracted from the
    candidates, as the decoder bias, which starts there, is from rows. With as many candidates
    as concepts or more, archetypes start at the largest clusters.

    Fits on the same rows share candidates and start, and differ in the order of the rows.
    Much of their agreement comes from that: a `TopKSAE` whose ``initializer`` is the first
    ``nb_concepts`` of ``points_`` has part of it too. Agreement does not show that concepts
    are right, or that other data would give the same.

    Beside a step of `TopKSAE`, a step takes ``4 * nb_concepts * n_points * n_features``
    operations, whatever the batch; a larger ``batch_size`` or fewer ``n_points`` save time.

    References
    ----------
    .. [1] Fel et al. (2025), "Archetypal SAE: Adaptive and stable dictionary learning for
       concept extraction in large vision models", equation 4, arXiv:2502.12892.
    .. [2] Dhillon and Modha (2001), "Concept decompositions for large sparse text data using
       clustering", Machine Learning 42, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sksae import ArchetypalSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> sae = ArchetypalSAE(nb_concepts=32, top_k=4, delta=0.0, random_state=0).fit(X)
    >>> sae.archetype_weights_.shape
    (32, 64)

    Without relaxation a concept is a combination of candidates and nothing else.

    >>> combined = sae.archetype_weights_ @ sae.points_
    >>> combined /= np.linalg.norm(combined, axis=1, keepdims=True)
    >>> bool(np.allclose(combined, sae.components_, atol=1e-5))
    True
    """

    _parameter_constraints = {
        **TopKSAE._parameter_constraints,
        "points": [StrOptions({"kmeans", "random"}), "array-like"],
        "n_points": [None, Interval(Integral, 1, None, closed="left")],
        "delta": [Interval(Real, 0, 1, closed="left")],
    }
    _own_structure = ("points", "n_points")

    def __init__(
        self,
        nb_concepts=1024,
        *,
        top_k=32,
        points="kmeans",
        n_points=None,
        delta=0.3,
        k_anneal=0.0,
        **shared,
    ):
        super().__init__(nb_concepts, top_k=top_k, k_anneal=k_anneal, **shared)
        self.points = points
        self.n_points = n_points
        self.delta = delta

    def _check_parameters(self):
        super()._check_parameters()
        if self.dictionary_params:
            why = "its dictionary is made of candidates from the data, see 'points'"
            refuse_parameter(self, "dictionary_params", why)
        if not isinstance(self.points, str):
            refuse_parameter(self, "n_points", "its 'points' are given")

    def _module(self):
        from ..modules import ArchetypalModule

        return ArchetypalModule, {"top_k": self.top_k, "delta": float(self.delta)}

    def _module_from_rows(self, data):
        if isinstance(self.points, str):
            n_points = int(self.n_points or _POINTS_PER_CONCEPT * self.nb_concepts)
            points = find_candidates(data, n_points, self.points)
        else:
            points = given_candidates(self.points, data, type(self).__name__)
        return {"points": points.cpu()}  # modules are built there

    @property
    def points_(self):
        """The candidates, as unit vectors, shape (n_points, n_features)."""
        return _array(self.module_.dictionary.C)

    @property
    def archetype_weights_(self):
        """The weights of the candidates in each archetype, shape (nb_concepts, n_points)."""
        return _array(self.module_.dictionary.weights())
