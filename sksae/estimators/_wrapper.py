"""What the estimators share that fit an SAE in their own way and then stand in for it."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

import numpy as np
import torch
from sklearn.base import BaseEstimator, MetaEstimatorMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from .._sklearn import HasMethods, fit_context, output_container
from ..activations._rows import rows_frame, rows_of, with_rows
from ..training._data import mean_and_variance, rounding
from ._base import BaseSAE
from ._coding import decode_rows
from ._input import check_codes, check_input, check_tensor


class SAEWrapper(MetaEstimatorMixin, TransformerMixin, BaseEstimator, metaclass=ABCMeta):
    """Base class of meta-estimators over one SAE.

    It encodes and decodes with ``estimator_``, a fitted clone, restricted to the concepts
    of `_kept`. It is a virtual subclass of `BaseSAE`: what looks for the SAE of a pipeline
    finds it.
    """

    _reconstructs_input = True
    has_differentiable_concept_encoder = True
    has_differentiable_concept_decoder = True

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "transform", "inverse_transform"])],
        "random_state": ["random_state"],
    }

    @abstractmethod
    def _fit_estimator(self, X, rows):
        """Set ``estimator_`` and what else is learnt from X, whose ``.rows`` are ``rows``."""

    @property
    def _kept(self):
        """The concepts that count: an index or slice of those of ``estimator_``."""
        return slice(None)

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit clones of ``estimator``.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
            The rows.
        y : object
            Ignored, whatever its length.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If ``estimator`` is no SAE.
        ValueError
            For invalid parameters or data.
        """
        self._check_estimator()
        rows = rows_of(X)
        self._fit_estimator(check_input(self, X, reset=True, min_samples=2), rows)
        return self

    def _check_estimator(self):
        if not isinstance(self.estimator, BaseSAE) or isinstance(self.estimator, SAEWrapper):
            raise TypeError(
                f"The 'estimator' parameter of {type(self).__name__} must be an SAE such as "
                f"TopKSAE(). Got {type(self.estimator).__name__}. What comes before the SAE stands "
                f"before {type(self).__name__} in a pipeline."
            )

    def _clone(self, random_state=None):
        twin = clone(self.estimator).set_output(transform="default")
        return twin if random_state is None else twin.set_params(random_state=random_state)

    # -- codes ----------------------------------------------------------------------

    def transform(self, X):
        """Encode: give the activation of every concept in every row.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
            The rows.

        Returns
        -------
        codes : CSR matrix or ndarray of shape (n_samples, n_concepts)
            As `BaseSAE.transform` gives them; CSR unless the estimator has
            ``sparse_output=False``. Carries the ``.rows`` of ``X``, if it has them.
        """
        check_is_fitted(self)
        rows, container = rows_of(X), output_container(self)
        if container != "default" and self.estimator_.sparse_output:
            raise ValueError(
                f"{type(self).__name__} gives sparse codes, which {container} output does not "
                "take. Set estimator__sparse_output=False, or set_output(transform='default')."
            )
        X = check_input(self, X, reset=False, on_device=True)
        codes = self.estimator_._encode_rows(X)[:, self._kept]
        if container == "pandas" and rows is not None:
            return rows_frame(codes, rows)
        return with_rows(codes, rows)

    def inverse_transform(self, Z):
        """Decode: ``Z @ components_ + decoder_bias_``.

        Parameters
        ----------
        Z : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_concepts)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            float64 for float64 codes and else float32. Carries the ``.rows`` of ``Z``,
            if it has them.
        """
        check_is_fitted(self)
        rows, components = rows_of(Z), self.components_
        if len(components):
            Z = check_codes(self, Z, len(components))
            X = decode_rows(Z, components.astype(Z.dtype, copy=False))
        else:
            X = np.zeros((Z.shape[0], self.n_features_in_), dtype=Z.dtype)
        X += self.decoder_bias_.astype(X.dtype, copy=False)
        return with_rows(X, rows)

    def score(self, X, y=None):
        """Share of the variance of X that its reconstruction explains. Higher is better.

        Parameters
        ----------
        X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
            The rows.
        y : object
            Ignored.

        Returns
        -------
        float
            As `BaseSAE.score`, of the reconstruction by the concepts that `transform` gives.
        """
        check_is_fitted(self)
        X = check_input(self, X, reset=False, on_device=True)
        coder, data = self.estimator_._coder(X)
        mean, variance = mean_and_variance(data)
        directions = self.get_dictionary().to(data.dtype)
        bias = torch.as_tensor(self.decoder_bias_).to(directions)
        error = 0.0
        for x in data.blocks(self.estimator_._n_features_out):
            codes = coder.encode_dense(x)[:, self._kept]
            error += float((x - codes @ directions - bias).double().square().sum())
        if variance == 0:
            return float(error <= rounding(mean) * X.shape[0] * X.shape[1])
        return 1 - error / (variance * X.shape[0] * X.shape[1])

    # -- tensors --------------------------------------------------------------------

    def encode(self, x):
        """Encode a tensor, with gradients.

        Parameters
        ----------
        x : torch.Tensor of shape (n, n_features)
            On any device and of any float dtype.

        Returns
        -------
        torch.Tensor of shape (n, n_concepts)
            Codes in input units, on the device of ``x``.
        """
        check_is_fitted(self)
        return self.estimator_.encode(x)[..., self._kept]

    def decode(self, z):
        """Decode a tensor of codes, with gradients.

        Parameters
        ----------
        z : torch.Tensor of shape (n, n_concepts)
            Codes.

        Returns
        -------
        torch.Tensor of shape (n, n_features)
            On the device of ``z``.
        """
        check_is_fitted(self)
        check_tensor(z, "z", self._n_features_out, type(self).__name__)
        directions, module = self.get_dictionary(), self.estimator_.module_
        bias = (module.decoder_bias * module.input_scale).detach()
        return (z.to(directions) @ directions + bias).to(z.device)

    def get_dictionary(self):
        """Give the dictionary as a tensor.

        Returns
        -------
        torch.Tensor of shape (n_concepts, n_features)
            On the module's device; ``components_`` is the same as an array.
        """
        check_is_fitted(self)
        return self.estimator_.get_dictionary()[self._kept]

    # -- fitted attributes ----------------------------------------------------------

    @property
    def components_(self):
        """The dictionary, shape (n_concepts, n_features)."""
        return self.estimator_.components_[self._kept]

    @property
    def decoder_bias_(self):
        """The decoder bias in input units, shape (n_features,)."""
        return self.estimator_.decoder_bias_

    @property
    def _n_features_out(self):
        return len(self.components_)

    def get_feature_names_out(self, input_features=None):
        """Give the names that the concepts have in the SAE.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Not used but for validation with ``feature_names_in_``.

        Returns
        -------
        ndarray of str objects
            Such as "topksae12" for concept 12 of a TopKSAE.
        """
        check_is_fitted(self)
        return self.estimator_.get_feature_names_out(input_features)[self._kept]

    def __sklearn_is_fitted__(self):
        """Tell whether there is a fitted SAE."""
        return "estimator_" in vars(self)

    def __sklearn_tags__(self):
        """Give the scikit-learn tags."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


BaseSAE.register(SAEWrapper)  # type: ignore[type-abstract]
