"""steering_vector: the direction of a concept, in the units of the hidden state."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ..metrics._observed import Observed
from ._edits import Editor, _check_number, concept_index
from ._site import Parts


def steering_vector(pipe_or_sae, concept, *, scale=1.0, X=None):
    """Give the direction in which hidden states move when a concept is turned up.

    Parameters
    ----------
    pipe_or_sae : BaseSAE or Pipeline
        A fitted SAE, or a fitted pipeline that holds one. Steps between extractor and SAE
        are undone: a ``StandardScaler`` before the SAE gives the row its scale back.
    concept : int or str
        Its number, or its name as the SAE or a later step of the pipeline gives it.
    scale : float, "max" or "mean", default=1.0
        The length in units of the code: adding the vector adds so much to the code, as far
        as the SAE finds it there again. "max" is the largest code of the concept in ``X``,
        "mean" the mean over the rows in which it is active.
    X : object, default=None
        What ``pipe_or_sae`` takes, texts or rows; only for "max" and "mean".

    Returns
    -------
    torch.Tensor of shape (n_features,)
        On the device and in the dtype of the SAE's weights. Without steps before the SAE its
        Euclidean norm is ``scale``: dictionary rows have unit norm.

    Raises
    ------
    ValueError
        If there is no such concept, if it is nowhere active in ``X``, or if a step before
        the SAE is not affine, so that the direction depends on the place.

    See Also
    --------
    intervene : Adds it while the model runs: ``{concept: Add(amount)}``.

    Notes
    -----
    ``intervene(model, layer, sae, {j: Add(a)})`` adds ``a * steering_vector(sae, j)`` to every
    hidden state. Setting the code instead, ``{j: a}``, first takes away what is there: the
    same where the concept is not active. The SAE need not agree: encoded again, the code of the
    sum is not exactly a larger, as encoder and dictionary rows differ and concepts compete.

    Examples
    --------
    >>> import numpy as np
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=64, n_features=8, random_state=0)
    >>> sae = TopKSAE(16, top_k=2, nb_epochs=1, device="cpu", random_state=0).fit(X)
    >>> vector = steering_vector(sae, 5, scale=3.0)
    >>> np.allclose(vector, 3 * sae.components_[5])
    True
    """
    parts = Parts.of(pipe_or_sae, "steering_vector")
    index = concept_index(pipe_or_sae, concept, "steering_vector")
    length = _length(pipe_or_sae, index, scale, X)
    direction = parts.sae.get_dictionary()[index]
    if parts.between:
        direction = _undone(parts, index).to(direction)
    return length * direction


def _length(pipe_or_sae: Any, index: int, scale: Any, X: Any) -> float:
    if isinstance(scale, str):
        if scale not in ("max", "mean"):
            raise ValueError(
                "The 'scale' parameter of steering_vector must be a number, 'max' or 'mean'. Got "
                f"{scale!r} instead."
            )
        return _typical(pipe_or_sae, index, scale, X)
    _check_number(scale, "The 'scale' parameter of steering_vector")
    assert isinstance(scale, Real)
    return float(scale)


def _typical(pipe_or_sae: Any, index: int, scale: str, X: Any) -> float:
    """Give the largest or the mean code of a concept, of those that are not 0."""
    if X is None:
        raise ValueError(
            f"scale={scale!r} of steering_vector is taken from data. Pass X, what the pipeline or "
            "SAE takes."
        )
    codes = Observed(pipe_or_sae, X, "steering_vector").codes[:, [index]]
    codes = codes.toarray() if sparse.issparse(codes) else np.asarray(codes)
    active = codes[codes != 0]
    if not active.size:
        raise ValueError(
            f"Concept {index} is active in no row of X, so that its codes have no {scale}. Pass "
            "other data, or a number as scale."
        )
    return float(active.max() if scale == "max" else active.mean(dtype=np.float64))


def _undone(parts: Parts, index: int) -> torch.Tensor:
    """Give what a code of 1 adds to the input of the steps before the SAE."""
    editor = Editor(parts, {})
    if editor.affine is not None:
        row = parts.sae.get_dictionary()[index].double().cpu()
        return row * editor.affine[1]
    codes = torch.zeros(3, parts.sae._n_features_out)
    codes[1, index], codes[2, index] = 1, 100
    origin, one, hundred = editor.decode(codes).detach().double()
    direction, again = one - origin, (hundred - origin) / 100
    if (direction - again).norm() > 1e-2 * again.norm():
        names = ", ".join(f"'{name}'" for name, _ in parts.between)
        raise ValueError(
            f"The steps before the SAE ({names}) are not affine, so that concept {index} has no "
            "single direction in their input. Use intervene, which undoes them in place."
        )
    return again
