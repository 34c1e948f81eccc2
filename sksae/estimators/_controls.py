"""Controls: SAEs some of whose weights stay where chance put them, to judge the others by."""

from __future__ import annotations

from numbers import Real

import torch

from .._sklearn import Interval
from ..training._data import random_rows
from ._batchtopk import BatchTopKSAE
from ._parameters import one_of

_START_ROWS = 8192


class _Control(BatchTopKSAE):
    """A BatchTopK SAE with a random start that it is, in part, held to."""

    _is_control = True

    _parameter_constraints = {
        **BatchTopKSAE._parameter_constraints,
        "init": one_of(["random", "covariance"]),
    }

    def __init__(
        self,
        nb_concepts=1024,
        *,
        top_k=32,
        init="random",
        threshold_momentum=0.9,
        k_anneal=0.0,
        relative_start=0.2,
        topk_start=0.0,
        **shared,
    ):
        super().__init__(
            nb_concepts,
            top_k=top_k,
            threshold_momentum=threshold_momentum,
            k_anneal=k_anneal,
            relative_start=relative_start,
            topk_start=topk_start,
            **shared,
        )
        self.init = init

    def _check_parameters(self):
        super()._check_parameters()
        if self.init == "covariance" and self._dictionary_param("initializer") is not None:
            raise ValueError(
                f"init='covariance' of {type(self).__name__} draws the start, but dictionary_params"
                " holds an 'initializer' too. Set init='random', or leave the initializer out."
            )

    def _dictionary_param(self, name):
        return (self.dictionary_params or {}).get(name)

    def _refuse_multiplier(self):
        if self._dictionary_param("use_multiplier"):
            raise ValueError(
                f"The dictionary of {type(self).__name__} is held to its start, so its size is not "
                "trained. Leave 'use_multiplier' out of dictionary_params; the encoder's scale is "
                "trained."
            )

    def _train(self, data, is_chunk):
        """Train, after drawing the start of a fresh fit from the covariance, if asked to."""
        if self.net_.n_steps_ and self.init != self._started_at:
            raise ValueError(
                f"init={self.init!r}, but this {type(self).__name__} was fitted with "
                f"{self._started_at!r}. Set warm_start=False and call fit to start anew."
            )
        if not self.net_.n_steps_:
            self._started_at = self.init
            if self.init == "covariance":
                directions = covariance_directions(data, self.module_, self.net_.seed)
                self.module_.start_at(directions, self.encoder_init_norm)
        return (yield from super()._train(data, is_chunk))


@torch.no_grad()
def covariance_directions(data, module, seed):
    """Draw directions from a Gaussian with the covariance of the data.

    Parameters
    ----------
    data : RowBatches
        Up to 8,192 of its rows count; rows of extreme norm as training sees them.
    module : SAEModule
        With its units set.
    seed : int

    Returns
    -------
    Tensor of shape (nb_concepts, n_features)
        Of any norm, and zero where the data do not vary at all.
    """
    index = random_rows(len(data), _START_ROWS, seed)
    u = module.pull_in(data.take(index) / module.input_scale).double().cpu()
    centered = u - u.mean(dim=0)
    variances, axes = torch.linalg.eigh(centered.T @ centered / len(centered))
    generator = torch.Generator().manual_seed(seed)
    shape = module.nb_concepts, len(axes)
    draws = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (draws * variances.clamp(min=0).sqrt()) @ axes.T


class FrozenDecoderSAE(_Control):
    """Control: a BatchTopK SAE whose dictionary stays at its random start.

    The encoder, its biases and the decoder bias are trained as in `BatchTopKSAE`; the
    directions are chance. What such an SAE reaches, another one has not reached by finding
    the right directions: subtract it before a score is called evidence for them. In
    Korznikov et al. (2026) [1]_ it comes near to trained SAEs in interpretability, probing
    and editing, and stays below them in explained variance (0.57 against 0.85).

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Mean number of active concepts per sample, at most ``nb_concepts``.
    init : {"random", "covariance"}, default="random"
        The start: directions uniform on the sphere, as those of the other SAEs, or drawn
        from a Gaussian with the covariance of up to 8,192 training rows (in `partial_fit`
        of the first chunk), as in the paper, so that directions in which the data vary
        more are more frequent. With an ``initializer`` in ``dictionary_params`` that is
        the start, whatever it is.
    threshold_momentum : float, default=0.9
        As in `BatchTopKSAE`.
    k_anneal : float or int, default=0.0
        As in `BatchTopKSAE`.
    relative_start : float or int, default=0.2
        As in `BatchTopKSAE`.
    topk_start : "auto", float or int, default=0.0
        As in `BatchTopKSAE`.
    **shared
        The parameters of `BaseSAE`. ``use_multiplier`` in ``dictionary_params`` is refused.

    Attributes
    ----------
    threshold_ : float
        Smallest active code at evaluation, in input units.

    See Also
    --------
    SoftFrozenSAE : Directions that may move a little.
    RandomSAE : The encoder is not trained either.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Notes
    -----
    The auxiliary loss for dead concepts trains their encoder rows only.

    References
    ----------
    .. [1] Korznikov et al. (2026), "Sanity checks for sparse autoencoders: do SAEs beat
       random baselines?", arXiv:2602.14111.

    Examples
    --------
    The trained dictionary points to the features of the data, the frozen one to nothing.

    >>> from sksae import BatchTopKSAE, FrozenDecoderSAE
    >>> from sksae.datasets import make_activations
    >>> from sksae.metrics import recovered_fraction
    >>> X, features = make_activations(2000, 32, 32, n_active=2, random_state=0)
    >>> params = {"nb_concepts": 48, "top_k": 2, "batch_size": 64, "random_state": 0}
    >>> for sae in (BatchTopKSAE(**params), FrozenDecoderSAE(**params)):
    ...     recovered_fraction(sae.fit(X).components_, features) > 0.8
    True
    False
    """

    def _check_parameters(self):
        super()._check_parameters()
        self._refuse_multiplier()

    def _module(self):
        from ..modules import FrozenDecoderModule

        return FrozenDecoderModule, super()._module()[1]


class SoftFrozenSAE(_Control):
    """Control: a BatchTopK SAE whose dictionary rows stay near their random start.

    After each step a row whose cosine to its start has fallen below ``min_cosine`` is
    replaced by the nearest unit vector that has that cosine [1]_::

        c s + sqrt(1 - c^2) a

    with the start s and the unit vector a along what of the row is at a right angle to s.
    It tells how much of a score small corrections of random directions are enough for: in
    the paper, at cosines of 0.8, an explained variance of 0.79 where a trained SAE has 0.85.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Mean number of active concepts per sample, at most ``nb_concepts``.
    min_cosine : float, default=0.8
        Smallest cosine of a dictionary row to its start, up to rounding, above 0 and at
        most 1, with which the rows move by no more than rounding. A changed value holds
        from the next training step on.
    init : {"random", "covariance"}, default="random"
        The start, as in `FrozenDecoderSAE`.
    threshold_momentum : float, default=0.9
        As in `BatchTopKSAE`.
    k_anneal : float or int, default=0.0
        As in `BatchTopKSAE`.
    relative_start : float or int, default=0.2
        As in `BatchTopKSAE`.
    topk_start : "auto", float or int, default=0.0
        As in `BatchTopKSAE`.
    **shared
        The parameters of `BaseSAE`. Rows have unit norm: another ``normalization`` and
        ``use_multiplier`` in ``dictionary_params`` are refused.

    Attributes
    ----------
    threshold_ : float
        Smallest active code at evaluation, in input units.

    See Also
    --------
    FrozenDecoderSAE : Directions that do not move.
    BaseSAE : The shared parameters, fitted attributes and methods.

    References
    ----------
    .. [1] Korznikov et al. (2026), "Sanity checks for sparse autoencoders: do SAEs beat
       random baselines?", arXiv:2602.14111.

    Examples
    --------
    >>> import numpy as np
    >>> from sksae import SoftFrozenSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> start = np.random.default_rng(0).standard_normal((64, 16))
    >>> start /= np.linalg.norm(start, axis=1, keepdims=True)
    >>> params = {"dictionary_params": {"initializer": start}, "random_state": 0}
    >>> sae = SoftFrozenSAE(64, top_k=4, min_cosine=0.99, **params).fit(X)
    >>> cosines = (sae.components_ * start).sum(axis=1)
    >>> round(float(cosines.min()), 3)
    0.99
    """

    _parameter_constraints = {
        **_Control._parameter_constraints,
        "min_cosine": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(
        self,
        nb_concepts=1024,
        *,
        top_k=32,
        min_cosine=0.8,
        init="random",
        threshold_momentum=0.9,
        k_anneal=0.0,
        relative_start=0.2,
        topk_start=0.0,
        **shared,
    ):
        super().__init__(
            nb_concepts,
            top_k=top_k,
            init=init,
            threshold_momentum=threshold_momentum,
            k_anneal=k_anneal,
            relative_start=relative_start,
            topk_start=topk_start,
            **shared,
        )
        self.min_cosine = min_cosine

    def _check_parameters(self):
        super()._check_parameters()
        self._refuse_multiplier()
        normalization = self._dictionary_param("normalization")
        if normalization not in (None, "l2"):
            raise ValueError(
                f"{type(self).__name__} needs dictionary rows of unit norm, whose cosines to their "
                f"start it limits. Got normalization={normalization!r} in dictionary_params; leave "
                "it out."
            )

    def _module(self):
        from ..modules import SoftFrozenModule

        return SoftFrozenModule, super()._module()[1] | {"min_cosine": self.min_cosine}


class _FrozenEncoder(_Control):
    """A control whose encoder is not trained, and which cannot revive dead concepts."""

    def __init__(
        self,
        nb_concepts=1024,
        *,
        top_k=32,
        init="random",
        threshold_momentum=0.9,
        k_anneal=0.0,
        relative_start=0.2,
        topk_start=0.0,
        auxk_coefficient=0.0,
        **shared,
    ):
        super().__init__(
            nb_concepts,
            top_k=top_k,
            init=init,
            threshold_momentum=threshold_momentum,
            k_anneal=k_anneal,
            relative_start=relative_start,
            topk_start=topk_start,
            auxk_coefficient=auxk_coefficient,
            **shared,
        )

    def _check_parameters(self):
        super()._check_parameters()
        owner = type(self).__name__
        if self.encoder_module is not None:
            raise ValueError(
                f"{owner} holds the linear encoder at its start; it takes no encoder_module. Set "
                "encoder_module=None."
            )
        if self.auxk_coefficient or self.k_aux is not None:
            raise ValueError(
                f"{owner} cannot revive dead concepts: whether one fires is for its encoder to "
                f"say, which is not trained. Got auxk_coefficient={self.auxk_coefficient} and "
                f"k_aux={self.k_aux}; leave them at 0 and None."
            )

    def _warn_of_what_failed(self, stacklevel):
        """Give no warning: concepts that never fire are to be expected of random encoders."""


class FrozenEncoderSAE(_FrozenEncoder):
    """Control: a BatchTopK SAE whose encoder stays at its random start.

    Which concepts fire is decided by random directions; the dictionary and the decoder bias
    are trained to make the best of it [1]_. In the paper it explains 0.48 of the variance
    where a trained SAE explains 0.85, with probing accuracies of 0.64 and 0.72.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Mean number of active concepts per sample, at most ``nb_concepts``.
    init : {"random", "covariance"}, default="random"
        The start, as in `FrozenDecoderSAE`; dictionary and encoder start at the same
        directions.
    threshold_momentum : float, default=0.9
        As in `BatchTopKSAE`.
    k_anneal : float or int, default=0.0
        As in `BatchTopKSAE`.
    relative_start : float or int, default=0.2
        As in `BatchTopKSAE`.
    topk_start : "auto", float or int, default=0.0
        As in `BatchTopKSAE`.
    auxk_coefficient : float, default=0.0
        0; there is nothing by which a dead concept could be revived.
    **shared
        The parameters of `BaseSAE`. ``encoder_module`` and ``k_aux`` are refused.

    Attributes
    ----------
    threshold_ : float
        Smallest active code at evaluation, in input units.

    See Also
    --------
    FrozenDecoderSAE : The other way round.
    RandomSAE : The dictionary is not trained either.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Notes
    -----
    Pre-codes are ``g W (x - c)`` with the random rows W and the center c of the training
    rows; one factor g for all concepts, which starts at ``encoder_init_norm``, is trained,
    because dictionary rows have unit norm and codes could otherwise not have the size that
    reconstructs best. Many concepts may never fire; no warning says so, ``dead_fraction_``
    does.

    References
    ----------
    .. [1] Korznikov et al. (2026), "Sanity checks for sparse autoencoders: do SAEs beat
       random baselines?", arXiv:2602.14111.

    Examples
    --------
    >>> from sksae import FrozenEncoderSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> sae = FrozenEncoderSAE(nb_concepts=64, top_k=4, random_state=0).fit(X)
    >>> sae.module_.linear_encoder.weight.requires_grad
    False
    """

    def _module(self):
        from ..modules import FrozenEncoderModule

        return FrozenEncoderModule, super()._module()[1]


class RandomSAE(_FrozenEncoder):
    """Control: random directions, with codes by the rule of `BatchTopKSAE`.

    Dictionary and encoder are the same random directions and stay so. Fitted are the
    decoder bias, the threshold and one factor that gives all codes their size: what a score
    is worth that needs no learning at all.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Mean number of active concepts per sample, at most ``nb_concepts``.
    init : {"random", "covariance"}, default="random"
        The directions, as in `FrozenDecoderSAE`.
    threshold_momentum : float, default=0.9
        As in `BatchTopKSAE`.
    k_anneal : float or int, default=0.0
        As in `BatchTopKSAE`.
    relative_start : float or int, default=0.2
        As in `BatchTopKSAE`.
    topk_start : "auto", float or int, default=0.0
        As in `BatchTopKSAE`.
    auxk_coefficient : float, default=0.0
        0; there is nothing by which a dead concept could be revived.
    **shared
        The parameters of `BaseSAE`. ``encoder_module``, ``k_aux`` and ``use_multiplier``
        in ``dictionary_params`` are refused.

    Attributes
    ----------
    threshold_ : float
        Smallest active code at evaluation, in input units.

    See Also
    --------
    FrozenDecoderSAE : The encoder is trained.
    FrozenEncoderSAE : The dictionary is trained; its notes on codes hold here too.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Examples
    --------
    >>> import numpy as np
    >>> from sksae import RandomSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> sae = RandomSAE(nb_concepts=64, top_k=4, random_state=0).fit(X)
    >>> encoder = sae.module_.linear_encoder.weight.numpy()
    >>> bool(np.allclose(encoder / np.linalg.norm(encoder[0]), sae.components_, atol=1e-6))
    True
    """

    def _check_parameters(self):
        super()._check_parameters()
        self._refuse_multiplier()

    def _module(self):
        from ..modules import RandomModule

        return RandomModule, super()._module()[1]
