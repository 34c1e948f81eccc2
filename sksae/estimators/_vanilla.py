"""VanillaSAE: ReLU codes under an L1 penalty."""

from __future__ import annotations

import math

from .._sklearn import StrOptions
from ..losses import vanilla_l1
from ._base import BaseSAE
from ._parameters import COEFFICIENT, PENALISED, check_resampling, check_target_l0

_AUTO = 0.1


class VanillaSAE(BaseSAE):
    """Sparse autoencoder with ReLU codes and an L1 penalty.

    The codes are ``z = relu(W (x - b) + c)`` and the reconstruction is
    ``z @ components_ + b``. In scaled units the loss is
    ``mean((x - x_hat)^2) + l1_coefficient * mean_i sum_j z_ij ||d_j|| / n_features`` [1]_.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    l1_coefficient : float or "auto", default="auto"
        Weight of the L1 penalty; more gives sparser codes. "auto" is ``0.1 *
        sqrt(n_features)``, 2 for 400 features: codes grow with the square root of the
        width, and so does what this shrinks them by. 0 leaves the criterion alone, and
        then nothing makes the codes sparse.
    target_l0 : float or None, default=None
        Mean number of active concepts per row to reach: the weight of the penalty, from
        ``l1_coefficient`` on, is steered to it during training, see `sksae.losses.TargetL0`.
    sparsity_warmup : float or int, default=0.05
        Over that share of the steps of the fit (an int: over that many steps) the penalty
        grows to its full weight.
    resample_dead : bool, default=False
        At the end of each epoch in the first half of the fit, start dead concepts anew at
        badly reconstructed rows [2]_. Without effect in `partial_fit`.
    **shared
        The parameters of `BaseSAE`.

    Attributes
    ----------
    l1_coefficient_ : float
        The weight of the penalty at the end of the fit; ``l1_coefficient`` but for a
        ``target_l0``.

    See Also
    --------
    JumpReLUSAE : Penalises the number of active concepts instead of their size.
    BaseSAE : The shared parameters, fitted attributes and methods.

    References
    ----------
    .. [1] Bricken et al. (2023), "Towards monosemanticity", Transformer Circuits Thread;
       with the norm-weighted penalty of Conerly et al. (2024), "Update on how we train
       SAEs", Transformer Circuits Thread, April 2024.
    .. [2] Bricken et al. (2023), "Towards monosemanticity", Transformer Circuits Thread,
       appendix on neuron resampling.

    Examples
    --------
    >>> from sksae import VanillaSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> sae = VanillaSAE(nb_concepts=64, l1_coefficient=0.5, random_state=0).fit(X)
    >>> sae.transform(X).shape
    (256, 64)
    """

    _parameter_constraints = {
        **BaseSAE._parameter_constraints,
        "l1_coefficient": [StrOptions({"auto"}), *COEFFICIENT],
        **PENALISED,
    }

    def __init__(
        self,
        nb_concepts=1024,
        *,
        l1_coefficient="auto",
        target_l0=None,
        sparsity_warmup=0.05,
        resample_dead=False,
        **shared,
    ):
        super().__init__(nb_concepts, **shared)
        self.l1_coefficient = l1_coefficient
        self.target_l0 = target_l0
        self.sparsity_warmup = sparsity_warmup
        self.resample_dead = resample_dead

    def _module(self):
        from ..modules import VanillaModule

        return VanillaModule, {}

    def _check_parameters(self):
        check_target_l0(self, "l1_coefficient")
        check_resampling(self)

    def _loss_terms(self):
        coefficient = self.l1_coefficient
        if coefficient == "auto":
            coefficient = _AUTO * math.sqrt(self.n_features_in_)
        return [(coefficient, vanilla_l1)]

    @property
    def l1_coefficient_(self):
        """The weight of the penalty at the end of the fit."""
        criterion = self.net_.criterion_
        return criterion.terms[0][0] * float(criterion.scale())
