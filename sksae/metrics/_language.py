"""What a language model loses when reconstructions take the place of its activations.

The functions take losses and predictions, whatever model and hooks they come from.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.special import log_softmax

from ._checks import check_matrix, check_number, row_slices

_MODEL_NAMES = ("log_probs", "log_probs_spliced")


def loss_recovered(ce, ce_spliced, ce_ablated) -> float:
    """Share of the loss of an ablation that reconstructions win back. Higher is better.

    ``(ce_ablated - ce_spliced) / (ce_ablated - ce)``, the loss recovered of SAEBench
    (Karvonen et al. (2025) [1]_, section on core metrics) with the sign of both differences
    changed.

    Parameters
    ----------
    ce : float
        Mean cross-entropy of the model as it is, in nats or bits per token.
    ce_spliced : float
        The same with the reconstructions in the place of the activations.
    ce_ablated : float
        The same with the activations replaced by zeros, or by another baseline.

    Returns
    -------
    float
        1 where the reconstructions cost nothing, 0 where they are as bad as the ablation;
        it may lie outside.

    Raises
    ------
    TypeError
        If one is not a number.
    ValueError
        If one is not finite, or if ``ce_ablated`` equals ``ce``: where the ablation changes
        nothing there is nothing to win back.

    Notes
    -----
    A share of a large number: at most layers zeros are a catastrophe, and even poor
    reconstructions recover over 90 %. Report ``ce_spliced - ce`` too.

    References
    ----------
    .. [1] Karvonen et al. (2025), "SAEBench", arXiv:2503.09532.

    Examples
    --------
    Of the 4 nats that the ablation costs, the reconstructions cost 1.

    >>> loss_recovered(ce=3.0, ce_spliced=4.0, ce_ablated=7.0)
    0.75
    """
    values = {"ce": ce, "ce_spliced": ce_spliced, "ce_ablated": ce_ablated}
    return _recovered(values, "loss_recovered")


def accuracy_recovered(accuracy, accuracy_spliced, accuracy_ablated) -> float:
    """Share of the accuracy lost by an ablation that reconstructions win back. Higher is better.

    ``(accuracy_spliced - accuracy_ablated) / (accuracy - accuracy_ablated)``: `loss_recovered`
    for a classifier.

    Parameters
    ----------
    accuracy : float
        Accuracy of the model as it is, or any other score that is higher when better.
    accuracy_spliced : float
        The same with the reconstructions in the place of the activations.
    accuracy_ablated : float
        The same with the activations replaced by zeros, or by another baseline.

    Returns
    -------
    float
        1 where the reconstructions cost nothing, 0 where they are as bad as the ablation;
        it may lie outside.

    Raises
    ------
    TypeError
        If one is not a number.
    ValueError
        If one is not finite, or if ``accuracy_ablated`` equals ``accuracy``.

    Examples
    --------
    The ablation costs 40 points, the reconstructions 10.

    >>> round(accuracy_recovered(0.9, 0.8, 0.5), 6)
    0.75
    """
    values = {
        "accuracy": accuracy,
        "accuracy_spliced": accuracy_spliced,
        "accuracy_ablated": accuracy_ablated,
    }
    return _recovered(values, "accuracy_recovered")


def kl_divergence(log_probs, log_probs_spliced) -> float:
    """Mean divergence of a model's predictions under reconstructions. Lower is better.

    ``mean over tokens of sum_v p_v (log p_v - log q_v)`` in nats, ``p`` being the model's
    prediction as it is and ``q`` the one with the reconstructions in the place of the
    activations. SAEBench (Karvonen et al. (2025), arXiv:2503.09532) reports it next to the
    loss recovered; it sees changes that leave the loss on the true token alone.

    Parameters
    ----------
    log_probs, log_probs_spliced : array-like of shape (n_tokens, n_vocabulary)
        Logits or log-probabilities of the next token: a log-softmax is taken, which leaves
        log-probabilities as they are. -inf stands for a probability of zero.

    Returns
    -------
    float
        At least 0; 0 for the same predictions, infinite where something possible becomes
        impossible.

    Raises
    ------
    ValueError
        If the shapes differ, or for NaN, +inf, or a row without any finite value.

    Examples
    --------
    From (1/2, 1/2) to (1/4, 3/4): (log 2 + log (2/3)) / 2.

    >>> import numpy as np
    >>> round(kl_divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])), 4)
    0.1438
    """
    p, q = (
        _check_logits(X, name)
        for X, name in zip((log_probs, log_probs_spliced), _MODEL_NAMES, strict=True)
    )
    if p.shape != q.shape:
        raise ValueError(
            f"{_MODEL_NAMES[0]} and {_MODEL_NAMES[1]} of kl_divergence must have the same shape. "
            f"Got {p.shape} and {q.shape}."
        )
    total = sum(_kl_sum(p[rows], q[rows]) for rows in row_slices(*p.shape))
    # Rounding can leave a tiny negative sum between equal predictions.
    return max(0.0, total / len(p))


def _recovered(values, metric) -> float:
    names = list(values)
    full, spliced, ablated = (check_number(v, name, metric) for name, v in values.items())
    if full == ablated:
        raise ValueError(
            f"{names[2]} of {metric} must differ from {names[0]}: both are {full}, so the "
            "ablation changes nothing and there is nothing to recover. Ablate a layer that the "
            "model needs."
        )
    return (ablated - spliced) / (ablated - full)


def _check_logits(X, name):
    X = check_matrix(X, name, "kl_divergence", finite=False)
    if sparse.issparse(X):
        raise TypeError(f"{name} of kl_divergence must be dense. Got {type(X).__name__}.")
    largest = X.max(axis=1)  # NaN where there is one
    if not np.isfinite(largest).all():
        raise ValueError(
            f"{name} of kl_divergence must hold logits or log-probabilities: at least one finite "
            f"value a row, neither NaN nor +inf. Row {int(np.argmin(np.isfinite(largest)))} "
            "does not."
        )
    return X


def _kl_sum(p, q) -> float:
    p = log_softmax(np.asarray(p, dtype=np.float64), axis=1)
    q = log_softmax(np.asarray(q, dtype=np.float64), axis=1)
    possible = p > -np.inf
    difference = np.subtract(p, q, where=possible, out=np.zeros_like(p))
    return float((np.exp(p) * difference).sum())
