"""The linear models that LIME and kernel SHAP fit to what a function makes of coalitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

# Weight of the full and the empty coalition, which stands for infinity, beside the others.
_ALL = 1e6


class LeastSquares:
    """Weighted least squares with an intercept, in float64: captum's interface of a model.

    Where there are fewer samples than units, the smallest coefficients that fit are taken.

    Examples
    --------
    >>> present = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> model = LeastSquares()
    >>> model.fit([(present, torch.tensor([1.0, 3.0, 0.5]), torch.ones(3))])
    >>> [round(value, 6) for value in model.representation().tolist()]
    [2.0, -0.5]
    """

    def __init__(self) -> None:
        self._coefficients = np.zeros(0)

    def fit(self, train_data: Any, **_: Any) -> None:
        """Fit to the one batch of ``(coalitions, values, weights)`` that captum makes."""
        ((present, values, weights),) = train_data
        Z, y, w = (np.asarray(a, dtype=np.float64) for a in (present, values, weights))
        total = w.sum()
        z_mean, y_mean = (w @ Z) / total, (w @ y) / total
        root = np.sqrt(w)
        A, b = root[:, None] * (Z - z_mean), root * (y - y_mean)
        self._coefficients = np.linalg.lstsq(A, b, rcond=None)[0]

    def representation(self) -> torch.Tensor:
        """Give the coefficients, shape (n_units,), without the intercept."""
        return torch.from_numpy(self._coefficients)


def all_coalitions(_text: Any, *, num_interp_features: int, **_: Any) -> Iterator[torch.Tensor]:
    """Give every coalition of the units once, each of shape (1, n_units)."""
    for present in itertools.product((0, 1), repeat=num_interp_features):
        yield torch.tensor([present])


def shapley_kernel(
    _text: Any, _perturbed: Any, present: torch.Tensor, *, num_interp_features: int, **_: Any
) -> float:
    """Weight a coalition so that least squares over all of them give Shapley values.

    Of n units and k present ones, ``(n - 1) / (binom(n, k) k (n - k))``, and a weight that
    stands for infinity where all or none are: Lundberg and Lee (2017), theorem 2.

    Examples
    --------
    >>> shapley_kernel(None, None, torch.tensor([[1, 0, 0]]), num_interp_features=3)
    0.3333333333333333
    """
    n, k = num_interp_features, int(present.sum())
    return _ALL if k in (0, n) else (n - 1) / (math.comb(n, k) * k * (n - k))
