"""scikit-learn's decompositions, as the metrics of SAEs see them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags

_MODULE = "sklearn.decomposition"


def is_decomposition(step) -> bool:
    """Tell whether an estimator writes rows as combinations of the rows of a dictionary.

    It transforms, it transforms back, and it is one of `sklearn.decomposition` or has
    ``components_``: PCA, TruncatedSVD, NMF, FastICA, DictionaryLearning and their like.
    """
    goes_back = all(hasattr(step, name) for name in ("transform", "inverse_transform"))
    known = type(step).__module__.startswith(_MODULE)
    return goes_back and (known or hasattr(step, "components_"))


def dictionary_of(model) -> np.ndarray:
    """Give the rows that a fitted SAE or decomposition sums, (n_components, n_features).

    The ``components_`` of FastICA turn rows into codes; its dictionary is the transpose of
    ``mixing_``.

    Raises
    ------
    ValueError
        If it has none, as a KernelPCA.
    """
    mixing = getattr(model, "mixing_", None)
    rows = getattr(model, "components_", None) if mixing is None else np.transpose(mixing)
    if rows is None:
        raise ValueError(
            f"{type(model).__name__} has no components_ after its fit, so metrics of dictionaries "
            "do not apply to it."
        )
    return np.asarray(rows)


def for_any_sign(estimator) -> Any:
    """Give a clone of a decomposition that takes negative input, shifted where it does not."""
    if get_tags(estimator).input_tags.positive_only:
        return Shifted(clone(estimator))
    return clone(estimator)


class Shifted(BaseEstimator):
    """A decomposition of non-negative rows, of X minus the minimum of each feature.

    What is below the minimum of the training rows counts as the minimum. Codes and
    dictionary are those of the shifted rows; reconstructions are shifted back.

    Parameters
    ----------
    estimator : estimator
        Such as NMF.
    """

    def __init__(self, estimator):
        self.estimator = estimator

    def fit(self, X, y=None):
        """Fit the decomposition to the shifted rows."""
        X = np.asarray(X)
        self.minimum_ = X.min(axis=0)
        self.estimator_ = clone(self.estimator).fit(X - self.minimum_)
        return self

    def transform(self, X):
        """Give codes of the shifted rows."""
        return self.estimator_.transform(np.maximum(np.asarray(X) - self.minimum_, 0))

    def inverse_transform(self, Z):
        """Give reconstructions in the units and at the place of X."""
        return self.estimator_.inverse_transform(Z) + self.minimum_

    @property
    def components_(self):
        """The dictionary."""
        return dictionary_of(self.estimator_)
