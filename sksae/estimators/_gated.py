"""GatedSAE: which concepts are active, and how much, learnt apart."""

from __future__ import annotations

import math

from .._sklearn import StrOptions
from ..losses import gate_l1, gate_reconstruction
from ._base import BaseSAE, _array
from ._parameters import COEFFICIENT, PENALISED, check_resampling, check_target_l0

_AUTO = 0.2


class GatedSAE(BaseSAE):
    """Sparse autoencoder whose sparsity penalty does not shrink its codes.

    With ``a = W (x - b)``, a concept's gate is ``g = a + b_gate`` and its code is
    ``z = relu(exp(r_mag) * a + b_mag)`` where ``g > 0``, else 0 [1]_. The gates alone are
    penalised, and learn from reconstructing by themselves; in scaled units the loss is::

        mean((x - z D - b)^2) + mean((x - relu(g) D' - b')^2)
            + l1_coefficient * mean_i sum_j relu(g_ij) / n_features

    where D' and b' are the dictionary D and the bias b, taken as constants. (Where rows of
    the dictionary may have other norms than one, these weigh the penalty, as constants.)

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    l1_coefficient : float or "auto", default="auto"
        Weight of the L1 penalty; more gives sparser codes. "auto" is ``0.2 *
        sqrt(n_features)``, twice that of `VanillaSAE`: codes that do not shrink pay for
        being active at a higher weight only. With 0 nothing makes the codes sparse.
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
        The parameters of `BaseSAE`. ``criterion`` is the first term of the loss only.

    Attributes
    ----------
    l1_coefficient_ : float
        The weight of the penalty at the end of the fit; ``l1_coefficient`` but for a
        ``target_l0``.
    threshold_ : ndarray of shape (nb_concepts,)
        What every active code of a concept exceeds, in input units: its magnitude where the
        gate opens, or 0 if that is negative. With it the codes are those of a JumpReLU.

    See Also
    --------
    VanillaSAE : The same penalty, on the codes themselves.
    JumpReLUSAE : Learns its thresholds under a penalty on the number of active concepts.
    BaseSAE : The shared parameters, fitted attributes and methods.

    References
    ----------
    .. [1] Rajamanoharan et al. (2024), "Improving dictionary learning with gated sparse
       autoencoders", section 3.2, arXiv:2404.16014.
    .. [2] Bricken et al. (2023), "Towards monosemanticity", Transformer Circuits Thread,
       appendix on neuron resampling.

    Examples
    --------
    >>> from sksae import GatedSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> sae = GatedSAE(nb_concepts=64, random_state=0).fit(X)
    >>> codes = sae.transform(X).toarray()
    >>> bool((codes[codes > 0] > 0.999 * sae.threshold_[codes.nonzero()[1]]).all())
    True
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
        from ..modules import GatedModule

        return GatedModule, {}

    def _check_parameters(self):
        check_target_l0(self, "l1_coefficient")
        check_resampling(self)

    def _loss_terms(self):
        coefficient = self.l1_coefficient
        if coefficient == "auto":
            coefficient = _AUTO * math.sqrt(self.n_features_in_)
        return [(coefficient, gate_l1)]

    def _reconstruction_terms(self):
        return [(1.0, gate_reconstruction)]

    @property
    def l1_coefficient_(self):
        """The weight of the penalty at the end of the fit."""
        criterion = self.net_.criterion_
        return criterion.terms[0][0] * float(criterion.scale())

    @property
    def threshold_(self):
        """What every active code of a concept exceeds, in input units, shape (nb_concepts,)."""
        return _array(self.module_.thresholds() * self.module_.input_scale)
