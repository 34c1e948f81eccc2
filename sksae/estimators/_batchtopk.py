"""BatchTopKSAE: a budget of active concepts shared across a batch."""

from __future__ import annotations

from ._base import BaseSAE
from ._parameters import MOMENTUM, STEPS, TOP_K, TOPK_START, check_top_k


class BatchTopKSAE(BaseSAE):
    """Sparse autoencoder that keeps the ``k * n`` largest codes of a batch of n samples.

    In training, ``relu(W (x - b) + c)`` is kept where it is among the ``top_k * n``
    largest entries of its batch, so that rich samples get more concepts than poor
    ones [1]_. At evaluation it is kept where it reaches ``threshold_``, a running mean
    of the smallest kept entry: a sample's codes do not depend on its batch. When a fit
    ends, that mean is taken anew with the final weights, over batches of up to 8,192
    training rows; the one kept during training lags behind the weights.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Mean number of active concepts per sample, at most ``nb_concepts``.
    threshold_momentum : float, default=0.9
        Weight of the past in the running threshold, in [0, 1): after each batch of n rows
        it is ``w * old + (1 - w) * new`` with ``w = momentum ** (n / 1024)``.
    k_anneal : float or int, default=0.0
        Over that share of the steps of the fit (an int: over that many steps) the number
        of active concepts falls linearly from four times ``top_k`` to ``top_k``.
    relative_start : float or int, default=0.2
        Over that share of the steps of the fit (an int: over that many steps; in
        `partial_fit` a share of 2,000) the norm of a sample comes to count: at its start all
        have equal chances, and codes are ranked as if they were of samples ``r`` times as
        large, ``r = (norm / root mean square norm) ** -p``. ``p`` falls linearly from 1 to 0.
        0 is without. See the Notes.
    topk_start : "auto", float or int, default="auto"
        Over that share of the steps of the fit, counted in the same way, each sample keeps its
        own ``top_k`` largest codes, as in `TopKSAE`, and only then do samples share them. With
        1.0 they never do in training, and the threshold alone is that of a batch.
        ``early_stopping`` waits for the end. "auto" has samples share codes from the first step
        on, unless too many concepts are silent for so long that the average one fires 1,000
        times: more than 4 % after a fifth of the fit, at most 8,000 steps (in `partial_fit` 400),
        or a fifth (of `MatryoshkaSAE` two fifths) at one of the looks before. Then the weights
        start anew, and each sample keeps its own codes from there on, and in fits that go on from
        this one with "auto". ``early_stopping`` waits until that is decided. See the Notes for
        when it helps and when it harms.
    **shared
        The parameters of `BaseSAE`.

    Attributes
    ----------
    threshold_ : float
        Smallest active code at evaluation, in input units.
    topk_steps_ : int
        Training steps in which each sample kept its own codes, see ``topk_start``.

    See Also
    --------
    TopKSAE : The same number of concepts for every sample.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Notes
    -----
    Codes that are shared by their size alone go to the largest samples, and to the concepts
    that are ahead. Where features are many, alike in frequency and independent, the others fall
    silent and never learn: of the 400 features of `sksae.datasets.make_korznikov` in 50 dimensions
    44 % were found with ``relative_start=0`` (at a cosine of 0.8, 8 active, 120,000 rows, 20
    epochs, one seed), 77 % without a ``topk_start``, and 99 % with 0.8 or, in twice the rows, by
    default; F1 of the codes was 0.24, 0.39 and 0.54. Of 3,200 features in 100 dimensions (20
    active, 2 million rows, 20 epochs, one seed) none were found with ``topk_start=0``, 63 % by
    default, 86 % with 0.8 and 89 % with 1.0; explained variance fell from
    0.67 to 0.50 by default, and to 0.63 with 0.8. Where some features are far more frequent
    than others or imply each other, both starts cost something: F1 in
    `sksae.datasets.make_synth_bench` (60,000 rows, ``top_k=4``, one seed) was 0.69 with
    neither, 0.64 by default, as hardly any concept is silent there, and 0.56 with
    ``topk_start=0.8``. On token activations, where none was silent for that long either,
    ``relative_start`` explained 0.0004 to 0.002 more of the variance. Real activations resemble
    neither suite closely, so that held-out rows have to tell.

    References
    ----------
    .. [1] Bussmann, Leask and Nanda (2024), "BatchTopK sparse autoencoders", section 3,
       arXiv:2412.06410.

    Examples
    --------
    >>> from sksae import BatchTopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> sae = BatchTopKSAE(nb_concepts=64, top_k=4, random_state=0).fit(X)
    >>> sae.threshold_ > 0
    True
    """

    _parameter_constraints = {
        **BaseSAE._parameter_constraints,
        "top_k": TOP_K,
        "k_anneal": STEPS,
        "relative_start": STEPS,
        "topk_start": TOPK_START,
        "threshold_momentum": MOMENTUM,
    }

    def __init__(
        self,
        nb_concepts=1024,
        *,
        top_k=32,
        threshold_momentum=0.9,
        k_anneal=0.0,
        relative_start=0.2,
        topk_start="auto",
        **shared,
    ):
        super().__init__(nb_concepts, **shared)
        self.top_k = top_k
        self.k_anneal = k_anneal
        self.relative_start = relative_start
        self.topk_start = topk_start
        self.threshold_momentum = threshold_momentum

    def _check_parameters(self):
        check_top_k(self)

    def _module(self):
        from ..modules import BatchTopKModule

        return BatchTopKModule, {
            "top_k": self.top_k,
            "threshold_momentum": self.threshold_momentum,
        }

    @property
    def topk_steps_(self):
        """Steps in which each sample kept its own codes, see ``topk_start``."""
        return self.module_.n_own_steps

    @property
    def threshold_(self):
        """Smallest active code at evaluation, in input units."""
        return float(self.module_.running_threshold * self.module_.input_scale)
