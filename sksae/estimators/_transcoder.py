"""Transcoder: sparse codes of one layer's activations that predict another's."""

from __future__ import annotations

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._sklearn import fit_context
from ..activations._rows import rows_of, with_rows
from ..training import RowBatches
from ..training._data import random_rows
from ._base import BaseSAE, _array
from ._coding import explained_share
from ._input import check_input, check_target
from ._nets import units_of
from ._parameters import STEPS, TOP_K, check_top_k

_SKIP_ROWS = 16384


class Transcoder(BaseSAE):
    """Sparse codes of one layer's activations that predict another's, such as an MLP's output.

    The codes are ``z = topk(relu(W (x - c) + e), k)`` as in `TopKSAE`, but what they are
    decoded to is not x: ``z @ components_ + decoder_bias_`` predicts y, what an MLP writes
    where x is what it reads [1]_. So its rows are what the computation between both adds
    when it sees the encoder's directions. In scaled units the loss is::

        mean((y - z D - b [- S (x - c)])^2)

    with the affine term in brackets where ``skip=True`` [2]_. Input and output are centered
    and scaled each by its own statistics. There is no transpose of the dictionary to start
    the encoder at, for the two lie in different spaces: it starts in random directions.
    (Directions that predict the output along each dictionary row, by least squares, made little
    difference: 0.770 and 0.769 of the variance of an MLP of all-MiniLM-L6-v2, one seed, and no
    more planted concepts recovered.) The skip starts as the ridge regression of y on x.

    A good score does not say that the codes compute what the model computes: it compares
    outputs only.

    Parameters
    ----------
    nb_concepts : int, default=1024
        Number of dictionary rows.
    top_k : int, default=32
        Active concepts per sample, at most ``nb_concepts``. A sample with fewer positive
        codes has fewer.
    skip : bool, default=False
        Whether the prediction has a learnt affine term of x, which leaves to the concepts
        what is not linear. It explains more, and needs ``predict``, as `inverse_transform`
        does not see x.
    k_anneal : float or int, default=0.0
        Over that share of the steps of the fit (an int: over that many steps) the number
        of active concepts falls linearly from four times ``top_k`` to ``top_k``.
    **shared
        The parameters of `BaseSAE`. An ``initializer`` in ``dictionary_params`` has the shape
        (nb_concepts, n_outputs), ``k_aux=None`` is half of ``n_outputs``, and
        ``outlier_ratio`` is applied to the rows of X and to those of y. The ``criterion``
        compares y with its prediction.

    Attributes
    ----------
    components_ : ndarray of shape (nb_concepts, n_outputs)
        What a concept adds to the prediction; rows have unit Euclidean norm.
    decoder_bias_ : ndarray of shape (n_outputs,)
        The prediction without active concepts, in units of y.
    encoder_components_ : ndarray of shape (nb_concepts, n_features)
        What a concept reads. Up to the choice of the largest, codes are ``relu(X @
        encoder_components_.T + encoder_bias_)``: in units of y per unit of X.
    encoder_bias_ : ndarray of shape (nb_concepts,)
        In units of y.
    skip_components_ : ndarray of shape (n_outputs, n_features), or None
        The affine term, in units of y per unit of X: ``predict`` adds ``(X - input_center_) @
        skip_components_.T``.
    input_center_ : ndarray of shape (n_features,)
        The geometric median of the rows of X in fit.
    n_outputs_ : int
        Width of y.

    See Also
    --------
    TopKSAE : Reconstructs its input.
    Crosscoder : Reads and writes several layers.
    BaseSAE : The shared parameters, fitted attributes and methods.

    Notes
    -----
    One pass of an extractor gives both sides, and selecting columns keeps the link from
    rows to texts::

        acts = Extractor(model, ["layer.3.attention", "layer.3.output.dense"]).fit(texts)
        both, width = acts.transform(texts), acts.layer_sizes_[0]
        transcoder = Transcoder(4096).fit(both[:, :width], both[:, width:])

    Scorers compare ``predict(X)`` with y. What compares a reconstruction with X, or puts it
    in the place of X, refuses a transcoder.

    References
    ----------
    .. [1] Dunefsky, Chlenski and Nanda (2024), "Transcoders find interpretable LLM feature
       circuits", section 3, arXiv:2406.11944. With an L1 penalty in the place of TopK.
    .. [2] Paulo, Shabalin and Belrose (2025), "Transcoders beat sparse autoencoders for
       interpretability", section 3, arXiv:2501.18823. Their skip starts at zero.

    Examples
    --------
    >>> import numpy as np
    >>> from sksae import Transcoder
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> Y = np.maximum(X, 0) @ np.ones((16, 8), dtype=X.dtype)
    >>> transcoder = Transcoder(nb_concepts=64, top_k=4, random_state=0).fit(X, Y)
    >>> transcoder.components_.shape, transcoder.encoder_components_.shape
    ((64, 8), (64, 16))
    >>> transcoder.predict(X).shape, transcoder.score(X, Y) > 0.5
    ((256, 8), True)
    """

    _parameter_constraints = {
        **BaseSAE._parameter_constraints,
        "top_k": TOP_K,
        "skip": ["boolean"],
        "k_anneal": STEPS,
    }
    _own_structure = ("skip",)
    _reconstructs_input = False

    def __init__(self, nb_concepts=1024, *, top_k=32, skip=False, k_anneal=0.0, **shared):
        super().__init__(nb_concepts, **shared)
        self.top_k = top_k
        self.skip = skip
        self.k_anneal = k_anneal

    def _check_parameters(self):
        check_top_k(self)

    def _module(self):
        from ..modules import TranscoderModule

        own = {"top_k": self.top_k, "skip": bool(self.skip), "n_outputs": self.n_outputs_}
        return TranscoderModule, own

    def _check_target(self, X, y, rows, *, reset):
        y_rows = rows_of(y)
        y, is_vector = check_target(self, y, X.shape[0], None if reset else self.n_outputs_)
        if rows is not None and y_rows is not None and rows != y_rows:
            raise ValueError(
                f"The rows of X and y in {type(self).__name__} come from different places in the "
                "texts. Take both from one pass of an extractor, with layer=[first, second]."
            )
        if reset:
            self.n_outputs_, self._predicts_vector = y.shape[1], is_vector
        return y

    def _set_units(self, module, data):
        super()._set_units(module, data)
        module.set_output_units(*units_of(data.targets, self.outlier_ratio))
        if self.skip:
            module.start_skip(*data.take_pair(random_rows(len(data), _SKIP_ROWS)))

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Learn to predict the rows of y from those of X.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
            What is encoded. float32 and half precision are trained in float32, everything
            else in float64.
        y : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_outputs)
            What is predicted. One dimension stands for one output.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data: if there is no y, or another number of rows in it,
            or if both know their rows and these differ.
        FloatingPointError
            If the loss is not finite.

        Warns
        -----
        ConvergenceWarning
            If more than 20 % of the concepts are dead.
        """
        return self._fit(X, y)

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """Train for one pass over X and y, continuing from where the last call ended.

        The first call sets the units of input and output from its rows.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
            What is encoded.
        y : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_outputs)
            What is predicted.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y)

    def predict(self, X):
        """Predict the output: ``inverse_transform(transform(X))``, and the skip if there is one.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)

        Returns
        -------
        y : ndarray of shape (n_samples, n_outputs), or (n_samples,) if y was so in fit
            In units of y, in float32 for float32 and half precision and else in float64.
            Carries the ``.rows`` of ``X``, if it has them.
        """
        check_is_fitted(self)
        rows = rows_of(X)
        coder, data = self._coder(check_input(self, X, reset=False, on_device=True))
        width = max(self._n_features_out, self.n_outputs_)
        y = np.concatenate([coder.reconstruct(x).cpu().numpy() for x in data.blocks(width)])
        return y[:, 0] if self._predicts_vector else with_rows(y, rows)

    def score(self, X, y=None):
        """Share of the variance of y that its prediction explains. Higher is better.

        ``1 - sum (y - predict(X))^2 / sum (y - mean)^2``, the mean taken per output and the
        sums over all entries; see `sksae.metrics.explained_variance`.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
        y : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_outputs)

        Returns
        -------
        float
            For constant ``y``: 1 if it is predicted exactly, else 0.

        Raises
        ------
        ValueError
            If there is no y, or if it has another number of rows, or another width than in
            fit.
        """
        check_is_fitted(self)
        X = check_input(self, X, reset=False, on_device=True)
        y, _ = check_target(self, y, X.shape[0], self.n_outputs_)
        coder, data = self._coder(X)
        return explained_share(coder, data, RowBatches(y, data.device, data.dtype))

    def inverse_transform(self, Z):
        """Decode into the output: ``Z @ components_ + decoder_bias_``.

        With ``skip=True`` this is the prediction for rows at ``input_center_``.

        Parameters
        ----------
        Z : array-like, sparse matrix or torch.Tensor of shape (n_samples, nb_concepts)

        Returns
        -------
        y : ndarray of shape (n_samples, n_outputs)
            float64 for float64 codes and else float32. Carries the ``.rows`` of ``Z``,
            if it has them.
        """
        return self._decode_rows(Z)

    # -- fitted attributes ----------------------------------------------------------

    @property
    def encoder_components_(self):
        """What the concepts read, shape (nb_concepts, n_features), in units of y per X."""
        module = self.module_
        return _array(self._linear().weight * (module.output_scale / module.input_scale))

    @property
    def encoder_bias_(self):
        """The encoder's bias for X as it is, shape (nb_concepts,), in units of y."""
        module, linear = self.module_, self._linear()
        return _array(module.output_scale * (linear.bias - linear.weight @ module.center))

    @property
    def skip_components_(self):
        """The affine term, shape (n_outputs, n_features), in units of y per X; or None."""
        module = self.module_
        if module.skip_weight is None:
            return None
        return _array(module.skip_weight * (module.output_scale / module.input_scale))

    @property
    def input_center_(self):
        """The center of the rows of X, shape (n_features,)."""
        return _array(self.module_.center * self.module_.input_scale)

    def _linear(self):
        if not self.module_.has_linear_encoder:
            raise AttributeError(
                f"This {type(self).__name__} has the encoder of its encoder_module, which has no "
                "directions to give. Fit it with encoder_module=None."
            )
        return self.module_.linear_encoder

    def __sklearn_tags__(self):
        """Give the scikit-learn tags."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags
