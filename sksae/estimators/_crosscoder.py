"""Crosscoder: one dictionary over several layers' activations."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .._sklearn import Interval
from ..training._data import ColumnBlock, mean_and_variance, rounding
from ._base import _array
from ._batchtopk import BatchTopKSAE
from ._coding import squared_errors
from ._input import check_input
from ._nets import units_of
from ._parameters import check_top_k


class Crosscoder(BatchTopKSAE):
    """One dictionary over several layers' activations, side by side in the columns of X.

    A concept is read from all layers at once and has a direction in each of them [1]_, so that
    one concept can be followed through layers, or compared between two models that read the
    same tokens. With ``x_l`` the block of columns of layer l, divided by its scale::

        a = relu(sum_l W_l (x_l - b_l) + c)        x_l ~ z D_l + b_l
        loss = mean((x - z D - b)^2) over all layers' columns

    where z are the codes a that rank highest in their batch, as in `BatchTopKSAE`, by ``a_j *
    sum_l ||D_lj||`` [2]_. An L1 penalty with the same weights [1]_ shrinks codes and takes
    concepts that both models have for those of one; ranked codes do so less [2]_.

    Each layer is centered at its own geometric median and divided by its own scale, the root
    mean square of its entries about it, so that all layers count alike in the loss and in
    ``layer_norms_``. In input units ``components_`` has rows whose norm over all layers
    together is one, and ``inverse_transform(Z)`` is ``Z @ components_ + decoder_bias_`` as ever.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    n_layers : int or array-like of int, default=1
        The blocks of columns of X: how many of equal width, or the width of each, such as
        ``layer_sizes_`` of the extractor. With 1 this is a `BatchTopKSAE`.
    top_k : int, default=32
        Mean number of active concepts per sample, at most ``nb_concepts``.
    threshold_momentum : float, default=0.9
        As in `BatchTopKSAE`.
    k_anneal : float or int, default=0.0
        As in `BatchTopKSAE`.
    relative_start : float or int, default=0.2
        As in `BatchTopKSAE`.
    topk_start : "auto", float or int, default="auto"
        As in `BatchTopKSAE`.
    **shared
        The parameters of `BaseSAE`. ``outlier_ratio`` is applied to each layer by itself.

    Attributes
    ----------
    layer_norms_ : ndarray of shape (nb_concepts, n_layers)
        How much of a concept lies in each layer: ``||D_lj|| / sum_l ||D_lj||``, between 0 and 1,
        rows sum to 1. Of two models, 0.5 in both is a shared concept, near 0 or 1 one of one
        model alone. That tells where a concept is written, not where it is read.
    layer_widths_ : tuple of int
        The number of columns of each layer.
    components_ : ndarray of shape (nb_concepts, n_features)
        The dictionary, layers side by side, in input units; whole rows have unit norm.
    threshold_ : ndarray of shape (nb_concepts,)
        Smallest active code of each concept at evaluation, in input units.
    topk_steps_ : int
        As in `BatchTopKSAE`.

    See Also
    --------
    Transcoder : Reads one layer and writes another.
    BatchTopKSAE : The same for a single layer.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Notes
    -----
    `score` weighs columns by their variance, so that a layer of long activations outweighs
    the others; `layer_scores` gives one number for each.

    An extractor with several layers gives the columns, from one forward pass::

        acts = Extractor(model, ["layer.2", "layer.4"]).fit(texts)
        crosscoder = Crosscoder(4096, n_layers=acts.layer_sizes_).fit(acts.transform(texts))

    References
    ----------
    .. [1] Lindsey et al. (2024), "Sparse crosscoders for cross-layer features and model
       diffing", Transformer Circuits Thread, sections "Problem setup" and "Model diffing".
    .. [2] Minder, Dumas et al. (2025), "Overcoming sparsity artifacts in crosscoders to
       interpret chat-tuning", section 2, arXiv:2504.02922.

    Examples
    --------
    >>> import numpy as np
    >>> from sksae import Crosscoder
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> both = np.hstack([X, 100 * X])  # two layers that hold the same
    >>> crosscoder = Crosscoder(64, n_layers=2, top_k=4, random_state=0).fit(both)
    >>> crosscoder.layer_norms_.shape, bool(np.ptp(crosscoder.layer_scores(both)) < 0.05)
    ((64, 2), True)
    """

    _parameter_constraints = {
        **BatchTopKSAE._parameter_constraints,
        "n_layers": [Interval(Integral, 1, None, closed="left"), "array-like"],
    }
    _own_structure = ("n_layers",)

    def __init__(
        self,
        nb_concepts=1024,
        *,
        n_layers=1,
        top_k=32,
        threshold_momentum=0.9,
        k_anneal=0.0,
        relative_start=0.2,
        topk_start="auto",
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
        self.n_layers = n_layers

    def _check_parameters(self):
        check_top_k(self)

    def _module(self):
        from ..modules import CrosscoderModule

        own = {"layer_widths": _widths(self, self.n_features_in_)}
        return CrosscoderModule, super()._module()[1] | own

    def _set_units(self, module, data):
        blocks = [ColumnBlock(data, columns) for columns in _slices(module.layer_widths)]
        units = (units_of(block, self.outlier_ratio) for block in blocks)
        centers, scales, radii = zip(*units, strict=True)
        module.set_units(torch.cat(centers), scales, radii)

    def layer_scores(self, X):
        """Share of each layer's variance that its reconstruction explains. Higher is better.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
            All layers side by side.

        Returns
        -------
        scores : ndarray of shape (n_layers,)
            As `score` would give for each block of columns alone. For a constant layer 1 if it
            is reconstructed exactly, else 0.
        """
        check_is_fitted(self)
        coder, data = self._coder(check_input(self, X, reset=False, on_device=True))
        errors, scores = squared_errors(coder, data, data), []
        for columns in _slices(self.layer_widths_):
            mean, variance = mean_and_variance(ColumnBlock(data, columns))
            error = float(errors[columns].mean()) / len(data)
            exact = float(error <= rounding(mean))
            scores.append(1 - error / variance if variance else exact)
        return np.array(scores)

    @property
    def layer_widths_(self):
        """The number of columns of each layer."""
        return self.module_.layer_widths

    @property
    def layer_norms_(self):
        """How much of a concept lies in each layer, shape (nb_concepts, n_layers)."""
        norms = _array(self.module_.layer_norms())
        return norms / norms.sum(axis=1, keepdims=True)

    @property
    def threshold_(self):
        """Smallest active code at evaluation, in input units, shape (nb_concepts,)."""
        module = self.module_
        return _array(module.running_threshold / module.weights() * module.code_scale)


def _widths(crosscoder, n_features):
    """Give the width of each layer, or refuse them."""
    given, owner = crosscoder.n_layers, type(crosscoder).__name__
    if isinstance(given, Integral):
        if n_features % given:
            raise ValueError(
                f"n_layers={given} of {owner} means blocks of equal width, but X has "
                f"{n_features} columns. Give the width of each layer, such as "
                "n_layers=extractor.layer_sizes_."
            )
        return (n_features // int(given),) * int(given)
    widths = np.asarray(given)
    if widths.ndim != 1 or widths.dtype.kind not in "iu" or not len(widths) or (widths < 1).any():
        raise ValueError(
            f"The 'n_layers' parameter of {owner} must be a number of layers or the positive width "
            f"of each of them. Got {given!r}."
        )
    if widths.sum() != n_features:
        raise ValueError(
            f"The widths n_layers={given!r} of {owner} add up to {widths.sum()}, but X has "
            f"{n_features} columns."
        )
    return tuple(widths.tolist())


def _slices(widths):
    """Give the columns of each layer."""
    ends = np.cumsum(widths).tolist()
    return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]
