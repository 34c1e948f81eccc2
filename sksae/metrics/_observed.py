"""An SAE, wherever it stands in a pipeline, at work on given input."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ..activations._rows import rows_of, with_rows
from ._decomposition import dictionary_of, is_decomposition


def split_at_sae(estimator, owner: str) -> tuple[list[Any], Any]:
    """Give the steps before the only SAE of an estimator, and that SAE.

    Parameters
    ----------
    estimator : SAE or Pipeline
        Pipelines may be nested; steps that are "passthrough" or None are left out.
    owner : str
        What needs the SAE, for the message.

    Raises
    ------
    ValueError
        If there is no SAE or more than one.
    """
    from ..estimators import BaseSAE

    steps = flat_steps([("", estimator)])
    found = [i for i, (_, step) in enumerate(steps) if isinstance(step, BaseSAE)]
    if len(found) != 1:
        raise ValueError(
            f"{owner} needs an SAE, or a pipeline that holds exactly one. "
            f"{_description(estimator, [steps[i][0] for i in found])}"
        )
    return [step for _, step in steps[: found[0]]], steps[found[0]][1]


def split_at_model(estimator, owner: str) -> tuple[list[Any], Any]:
    """Give the steps before the only SAE, or else the only decomposition, and that one.

    Raises
    ------
    ValueError
        If there is neither, or more than one.
    """
    from ..estimators import BaseSAE

    steps = [step for _, step in flat_steps([("", estimator)])]
    found = [i for i, step in enumerate(steps) if is_decomposition(step)]
    if len(found) != 1 or any(isinstance(step, BaseSAE) for step in steps):
        return split_at_sae(estimator, owner)
    return steps[: found[0]], steps[found[0]]


class Observed:
    """What a fitted SAE does with ``X``; each part is computed once, when asked for.

    Parameters
    ----------
    estimator : SAE or Pipeline that holds exactly one
        Steps after the SAE are ignored. Without an SAE, one of scikit-learn's decompositions
        is taken for it, see `is_decomposition`.
    X : object
        What the estimator takes. The steps before the SAE transform it.
    owner : str
        What needs the SAE, for the message.
    y : array-like or None
        What an SAE that predicts another layer is to predict.
    """

    def __init__(self, estimator, X, owner: str, y=None) -> None:
        self._before, self.sae = split_at_model(estimator, owner)
        check_is_fitted(self.sae)
        self._X, self._y = X, y

    @cached_property
    def _input(self):
        X = self._X
        for step in self._before:
            X = step.transform(X)
        return X

    @cached_property
    def _output(self):
        return self.sae.transform(self._input)

    @property
    def activations(self):
        """What the SAE sees, (n_samples, n_features)."""
        return _plain(self._input)

    @property
    def codes_of_rows(self):
        """Its codes, with the ``.rows`` of what it sees, if that has them."""
        return with_rows(self.codes, rows_of(self._input))

    @property
    def codes(self):
        """Its codes, (n_samples, nb_concepts)."""
        return _plain(self._output)

    @property
    def _predicts(self) -> bool:
        predicts = not getattr(self.sae, "_reconstructs_input", True)
        if predicts and self._y is None:
            owner = type(self.sae).__name__
            raise ValueError(
                f"{owner} has no reconstruction of X to compare with: it predicts another "
                "layer. Pass the activations of that layer as y, to the scorer or to "
                f"{owner}.score(X, y), or use a metric of predict(X) and y."
            )
        return predicts

    @property
    def target(self):
        """What the reconstruction is compared with: what the SAE sees, or else y."""
        return _matrix(self._y) if self._predicts else self.activations

    @cached_property
    def reconstruction(self):
        """The activations that its codes stand for, (n_samples, n_features or n_outputs)."""
        if self._predicts:
            return _matrix(self.sae.predict(self._input))
        return _plain(self.sae.inverse_transform(self._output))

    @property
    def components(self) -> np.ndarray:
        """Its dictionary, (nb_concepts, n_features)."""
        return dictionary_of(self.sae)


def flat_steps(steps, prefix=""):
    """Give the (name, step) of nested pipelines, those left out that are None or "passthrough"."""
    flat = []
    for name, step in steps:
        if step is None or (isinstance(step, str) and step == "passthrough"):
            continue
        if isinstance(step, Pipeline):
            flat += flat_steps(step.steps, f"{prefix}{name}__" if name else "")
        else:
            flat.append((prefix + name, step))
    return flat


def _description(estimator, names):
    if not isinstance(estimator, Pipeline):
        return f"Got {type(estimator).__name__}."
    if not names:
        return "This pipeline holds none: put one among its steps, not inside a wrapper."
    listed = ", ".join(repr(name) for name in names)
    return f"This pipeline holds {len(names)}: {listed}. Take the slice that ends in one of them."


def _matrix(y):
    """Take one output, as a vector, for a column."""
    y = _plain(y)
    return y[:, None] if y.ndim == 1 else y


def _plain(X):
    """Take a frame or tensor as it is handed to the metrics, which read arrays and CSR."""
    return X if sparse.issparse(X) or hasattr(X, "detach") else np.asarray(X)
