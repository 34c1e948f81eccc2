"""MatchingPursuitSAE: codes chosen one after the other, each from what is left over."""

from __future__ import annotations

from ._base import BaseSAE
from ._parameters import TOP_K, check_top_k, refuse_parameter


class MatchingPursuitSAE(BaseSAE):
    """Sparse autoencoder that encodes by matching pursuit on its dictionary.

    There is no encoder: from the residual ``r = x - b`` on, each of ``top_k`` steps chooses
    the concept whose dictionary row has the largest inner product with the residual, adds
    that product to its code and subtracts the row, that many times, from the residual [1]_ [2]_.
    The reconstruction is ``z @ components_ + b``; its error is the last residual.

    A concept is judged by what earlier ones left over. So concepts that often come together
    and point in similar directions, such as a general one and its special cases, can both
    be found, where an encoder that sees the whole row has to tell them apart at once. The
    price is time: each step needs the inner products anew.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Steps for each sample, at most ``nb_concepts``. The number of active concepts is
        lower where a concept is chosen again, whose coefficients are added up, and where
        no concept has a positive inner product with what is left over.
    **shared
        The parameters of `BaseSAE`, but for three. ``encoder_module`` and
        ``encoder_init_norm`` have nothing to act on and must keep their defaults.
        ``dictionary_params`` takes an ``initializer`` only: steps are projections, for rows
        of unit norm. ``backend`` has no kernels for stored codes to choose here.

    See Also
    --------
    TopKSAE : All concepts at once, by an encoder.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Notes
    -----
    Codes are not negative, as in all SAEs here: a step at which no inner product is positive
    adds nothing. overcomplete's ``MpSAE`` takes the largest one even if it is negative.
    Classical matching pursuit chooses by absolute value and gives codes of both signs, one
    concept standing for two opposite directions.

    Gradients pass through all steps, the choices taken as given. Dead concepts, which no row
    chooses, learn in the auxiliary loss to explain the last residuals; their pre-codes there
    are their inner products with these.

    With n rows in a batch and m concepts, the inner products cost ``2 * n * m * n_features``
    operations for the first step. For the others, where it is less and takes up to 256 MiB,
    those of the dictionary's rows with each other are computed once, and ``n * m`` numbers
    updated at each step; else it is the same again.

    References
    ----------
    .. [1] Costa et al. (2025), "From flat to hierarchical: extracting sparse representations
       with matching pursuit", section 3, arXiv:2506.03093.
    .. [2] Mallat and Zhang (1993), "Matching pursuits with time-frequency dictionaries", IEEE
       Transactions on Signal Processing 41(12).

    Examples
    --------
    >>> from sksae import MatchingPursuitSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> sae = MatchingPursuitSAE(nb_concepts=64, top_k=4, random_state=0).fit(X)
    >>> codes = sae.transform(X)
    >>> int(codes.getnnz(axis=1).max()), bool(codes.data.min() > 0)
    (4, True)

    The first step of a row takes its largest inner product with the dictionary.

    >>> products = (X - sae.decoder_bias_) @ sae.components_.T
    >>> first = codes.toarray()[range(256), products.argmax(axis=1)]
    >>> bool((first > 0.99 * products.max(axis=1)).all())
    True
    """

    _parameter_constraints = {**BaseSAE._parameter_constraints, "top_k": TOP_K}

    def __init__(self, nb_concepts=1024, *, top_k=32, **shared):
        super().__init__(nb_concepts, **shared)
        self.top_k = top_k

    def _check_parameters(self):
        check_top_k(self)
        why = "it has no encoder: its codes come from the dictionary by matching pursuit"
        refuse_parameter(self, "encoder_module", why)
        refuse_parameter(self, "encoder_init_norm", why)
        params = self.dictionary_params or {}
        if params.get("normalization", "l2") != "l2" or params.get("use_multiplier"):
            raise ValueError(
                "The steps of MatchingPursuitSAE are projections on rows of unit norm, so its "
                "'dictionary_params' can hold an 'initializer' only. Got "
                f"{sorted(set(params) - {'initializer'})} too; leave them out."
            )

    def _module(self):
        from ..modules import MatchingPursuitModule

        return MatchingPursuitModule, {"k": int(self.top_k)}
