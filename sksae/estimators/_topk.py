"""TopKSAE: the k largest codes of each sample."""

from __future__ import annotations

from ._base import BaseSAE
from ._parameters import STEPS, TOP_K, check_top_k


class TopKSAE(BaseSAE):
    """Sparse autoencoder that keeps the k largest codes of each sample.

    The codes are ``z = topk(relu(W (x - b) + c), k)`` and the reconstruction is
    ``z @ components_ + b`` [1]_.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Active concepts per sample, at most ``nb_concepts``. A sample with fewer positive
        codes has fewer.
    k_anneal : float or int, default=0.0
        Over that share of the steps of the fit (an int: over that many steps) the number
        of active concepts falls linearly from four times ``top_k`` to ``top_k``.
    **shared
        The parameters of `BaseSAE`.

    See Also
    --------
    BatchTopKSAE : The same budget, shared across a batch.
    BaseSAE : The shared parameters, fitted attributes and methods.

    References
    ----------
    .. [1] Gao et al. (2024), "Scaling and evaluating sparse autoencoders", section 2.3,
       arXiv:2406.04093.

    Examples
    --------
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, dictionary = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> codes = TopKSAE(nb_concepts=64, top_k=4, random_state=0).fit_transform(X)
    >>> codes.shape, int((codes != 0).sum(axis=1).max())
    ((256, 64), 4)
    """

    _parameter_constraints = {**BaseSAE._parameter_constraints, "top_k": TOP_K, "k_anneal": STEPS}

    def __init__(self, nb_concepts=1024, *, top_k=32, k_anneal=0.0, **shared):
        super().__init__(nb_concepts, **shared)
        self.top_k = top_k
        self.k_anneal = k_anneal

    def _check_parameters(self):
        check_top_k(self)

    def _module(self):
        from ..modules import TopKModule

        return TopKModule, {"top_k": self.top_k}
