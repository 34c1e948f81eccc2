"""JumpReLUSAE: a learnt threshold per concept under an L0 penalty."""

from __future__ import annotations

from ..losses import jumprelu_l0
from ._base import BaseSAE, _array
from ._parameters import (
    COEFFICIENT,
    PENALISED,
    POSITIVE,
    STEPS,
    TOPK_START,
    check_resampling,
    check_target_l0,
    check_topk_start,
    one_of,
)

KERNEL_NAMES = (
    "rectangle",
    "gaussian",
    "triangular",
    "cosine",
    "epanechnikov",
    "quartic",
    "silverman",
    "cauchy",
)


class JumpReLUSAE(BaseSAE):
    """Sparse autoencoder whose concepts are active above thresholds that they learn.

    The codes are ``z = a * (a > t)`` with ``a = W (x - b) + c`` and one threshold t per
    concept; in scaled units the loss is
    ``mean((x - x_hat)^2) + l0_coefficient * mean_i #{j: z_ij > 0}`` [1]_. Neither the
    jump nor the count has a gradient with respect to t, so pseudo-gradients stand in for
    them: with a kernel K that integrates to one and a bandwidth e,
    ``-(t / e) K((a - t) / e)`` for the code and ``-(1 / e) K((a - t) / e)`` for the count.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    l0_coefficient : float, default=1e-3
        Weight of the L0 penalty: the share of the input's variance that one more active
        concept has to explain. More gives sparser codes.
    bandwidth : float, default=1.0
        Width of the kernel, in scaled units (input of unit variance): pre-codes within
        about half of it from a threshold move the threshold. The paper's 0.001, for
        inputs of unit norm and billions of rows, hardly moves a threshold in a short fit.
    kernel : {"rectangle", "gaussian", "triangular", "cosine", "epanechnikov", "quartic", \
            "silverman", "cauchy"}, default="rectangle"
        Shape of the kernel; all integrate to one.
    target_l0 : float or None, default=None
        Mean number of active concepts per row to reach: the weight of the penalty, from
        ``l0_coefficient`` on, is steered to it during training, see `sksae.losses.TargetL0`,
        and at the end all thresholds are multiplied by the factor that is still missing on
        up to 8,192 training rows. While the penalty grows (``sparsity_warmup``), when it
        is too weak to keep codes from becoming active, all thresholds are multiplied after
        each step by the factor that meets the target on the batch.
    sparsity_warmup : float or int, default=0.05
        Over that share of the steps of the fit (an int: over that many steps) the penalty
        grows to its full weight; with a ``topk_start``, from its end on.
    topk_start : "auto", float or int, default="auto"
        With a ``target_l0``: over that share of the steps of the fit (an int: over that many
        steps; in `partial_fit` a share of 2,000) each sample keeps its own ``target_l0``
        largest codes, rounded to a number from 1 on, as in `TopKSAE`. There is no penalty
        meanwhile, and no threshold learns; then all start from the one that keeps
        ``target_l0`` codes on average. With 1.0 they stay there, equal for all concepts.
        "auto" is 0, unless concepts fall silent, as in `BatchTopKSAE`: more than a fifth of them
        after a fifth of the fit, at most 8,000 steps, or half of them before. See the Notes for
        when that helps and when it harms.
    relative_start : float or int, default=0.0
        Over that share of the steps of the fit, counted in the same way, the norm of a sample
        comes to count: a step sees samples whose distance from the decoder bias is divided by
        ``(norm / root mean square norm) ** p``, with ``p`` falling linearly from 1 to 0. What
        ``history_`` tells of these epochs is of such samples. See the Notes.
    resample_dead : bool, default=False
        At the end of each epoch in the first half of the fit, start dead concepts anew at
        badly reconstructed rows [2]_. Without effect in `partial_fit`.
    **shared
        The parameters of `BaseSAE`.

    Attributes
    ----------
    l0_coefficient_ : float
        The weight of the penalty at the end of the fit; ``l0_coefficient`` but for a
        ``target_l0``.
    threshold_ : ndarray of shape (nb_concepts,)
        The thresholds, in input units.
    topk_steps_ : int
        Training steps in which each sample kept its own codes, see ``topk_start``.

    See Also
    --------
    VanillaSAE : Penalises the size of the codes instead of their number.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Notes
    -----
    While a concept is dead (see ``dead_after``), and there is an auxiliary loss, the logarithm of
    its threshold falls at each step by the learning rate, at most 0.01 and down to a hundredth of
    where it started, which is what Adam does to a number whose gradient does not change. The
    auxiliary loss teaches a dead concept what the others leave over, and that is smaller than
    their thresholds, while no other gradient reaches it. Without, 37 % of the concepts were dead
    after a fit to a million rows of `sksae.datasets.make_synth_bench` (``target_l0=4``, one
    seed), with F1 of 0.53; with it none, and 0.85. Conerly et al. (2025), "Dictionary learning
    optimization techniques", Transformer Circuits Thread, have a penalty of dead concepts for
    the same reason.

    What a ``topk_start`` does depends on the data. Of the 400 features of
    `sksae.datasets.make_korznikov` in 50 dimensions, alike in frequency and independent, 21 %
    were found without (at a cosine of 0.8, 8 active, 20 epochs of 240,000 rows, one seed), as up
    to 60 % of the concepts fall silent, and 99 % with 0.8 or by default. The other figures for
    0.1, 0.8 and ``relative_start`` here are from before thresholds of dead concepts fell.
    Of 3,200 features in 100 dimensions (20 active, 20 epochs of 2 million rows, one seed) 0.8
    found 79 %, but the thresholds that learnt afterwards left 94 % of the concepts dead; 1.0
    found 89 % with none dead, and the default 89 %, too. On token activations of a small encoder
    (384 wide, 1,024 concepts, ``target_l0=32``, two seeds) 0.1 raised held-out explained
    variance from 0.871 to 0.874 after 293 steps, and from 0.898 to 0.899 after 1,172.
    But where features differ in frequency and imply each other, in
    `sksae.datasets.make_synth_bench` (60,000 rows, ``target_l0=4``, two seeds), 0.1 lowered F1
    of the codes from 0.78 to 0.61, at equal explained variance: more of it is no evidence of
    better concepts.

    A ``relative_start`` has the same two sides: large samples no longer take most of what lies
    above the thresholds, so that other concepts learn as well. With 0.5 and no ``topk_start``,
    63 and 78 % of those 400 features were found (120,000 rows, two seeds). On the token
    activations, 300 steps, it raised explained variance from 0.870 to 0.873 at 1,024 concepts and
    lowered it from 0.883 to 0.881 at 4,096; F1 on ``make_synth_bench`` fell to 0.66.

    References
    ----------
    .. [1] Rajamanoharan et al. (2024), "Jumping ahead: improving reconstruction fidelity
       with JumpReLU sparse autoencoders", section 3, arXiv:2407.14435.
    .. [2] Bricken et al. (2023), "Towards monosemanticity", Transformer Circuits Thread,
       appendix on neuron resampling.

    Examples
    --------
    >>> from sksae import JumpReLUSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> sae = JumpReLUSAE(nb_concepts=64, random_state=0).fit(X)
    >>> sae.threshold_.shape
    (64,)
    """

    _parameter_constraints = {
        **BaseSAE._parameter_constraints,
        "l0_coefficient": COEFFICIENT,
        **PENALISED,
        "topk_start": TOPK_START,
        "relative_start": STEPS,
        "bandwidth": POSITIVE,
        "kernel": one_of(KERNEL_NAMES),
    }

    def __init__(
        self,
        nb_concepts=1024,
        *,
        l0_coefficient=1e-3,
        target_l0=None,
        sparsity_warmup=0.05,
        topk_start="auto",
        relative_start=0.0,
        resample_dead=False,
        bandwidth=1.0,
        kernel="rectangle",
        **shared,
    ):
        super().__init__(nb_concepts, **shared)
        self.l0_coefficient = l0_coefficient
        self.target_l0 = target_l0
        self.sparsity_warmup = sparsity_warmup
        self.topk_start = topk_start
        self.relative_start = relative_start
        self.resample_dead = resample_dead
        self.bandwidth = bandwidth
        self.kernel = kernel

    def _module(self):
        from ..modules import JumpReLUModule

        return JumpReLUModule, {
            "kernel": self.kernel,
            "bandwidth": self.bandwidth,
            "target_l0": self.target_l0,
        }

    def _check_parameters(self):
        check_target_l0(self, "l0_coefficient")
        check_topk_start(self)
        check_resampling(self)

    def _loss_terms(self):
        return [(self.l0_coefficient, jumprelu_l0)]

    @property
    def l0_coefficient_(self):
        """The weight of the penalty at the end of the fit."""
        criterion = self.net_.criterion_
        return criterion.terms[0][0] * float(criterion.scale())

    @property
    def topk_steps_(self):
        """Steps in which each sample kept its own codes, see ``topk_start``."""
        return self.module_.n_own_steps

    @property
    def threshold_(self):
        """The thresholds in input units, shape (nb_concepts,)."""
        return _array(self.module_.thresholds.exp() * self.module_.input_scale)
