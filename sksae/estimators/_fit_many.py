"""Several SAEs over one pass of the data."""

from __future__ import annotations

import contextlib

import numpy as np

from ..activations._rows import rows_of, with_rows
from ._base import BaseSAE, own_torch_context
from ._input import stays_on_device, to_array
from ._nets import draws_while_training
from ._parameters import check_shared

_ENDED = object()


def fit_many(estimators, X, y=None):
    """Fit several SAEs to the same rows, in step with each other.

    Each is fitted as ``estimator.fit(X, y)`` would. The rows are converted, measured and
    moved to the device once; SAEs of equal ``batch_size`` and ``random_state`` read each
    batch once. All of them are in memory at the same time.

    Parameters
    ----------
    estimators : iterable of BaseSAE
        Different objects, of any variants and parameters.
    X : array-like, sparse matrix or torch.Tensor of shape (n_samples, n_features)
        The rows.
    y : object
        What a `Transcoder` among them is to predict; the others ignore it.

    Returns
    -------
    list of BaseSAE
        The estimators, fitted.

    Raises
    ------
    TypeError
        If one of them is not an SAE.
    ValueError
        If one of them is given twice, or for invalid parameters or data. Like any failed
        fit, it leaves the estimators that were in training as they were.

    Notes
    -----
    Ctrl-C leaves those that had begun usable, as far as they came. SAEs that may draw
    random numbers while training (with ``encoder_module``, ``callbacks`` or a criterion of
    the caller's) are fitted one after the other, after the others.

    Examples
    --------
    >>> from sksae import TopKSAE, fit_many
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=256, n_features=16, random_state=0)
    >>> saes = fit_many([TopKSAE(64, top_k=k, random_state=0) for k in (2, 4, 8)], X)
    >>> [round(sae.l0_) for sae in saes]
    [2, 4, 8]
    """
    estimators = list(estimators)
    _check(estimators)
    X = _converted(X)
    shared: dict = {}
    in_step = [sae for sae in estimators if not draws_while_training(sae)]
    with own_torch_context():
        _run_in_step([sae._fit_steps(X, y, shared) for sae in in_step])
    for sae in estimators:
        if draws_while_training(sae):
            sae.fit(X, y)
    for sae in in_step:
        sae._warn_of_what_failed(stacklevel=3)
    return estimators


def _check(estimators):
    for estimator in estimators:
        if not isinstance(estimator, BaseSAE) or not hasattr(estimator, "_fit_steps"):
            raise TypeError(
                f"fit_many takes SAEs, got {type(estimator).__name__}. For a pipeline, "
                "transform X with the steps before its SAE first."
            )
        estimator._validate_params()
        estimator._check_parameters()
        check_shared(estimator)
    if len({id(estimator) for estimator in estimators}) < len(estimators):
        raise ValueError("fit_many got the same estimator twice. Use sklearn.base.clone.")


def _converted(X):
    """Do once what each fit would do for itself: give floats of 32 or 64 bits."""
    X = X if stays_on_device(X) else to_array(X, "fit_many")
    if isinstance(X, np.ndarray) and X.dtype.kind in "biu":
        X = with_rows(X.astype(np.float64), rows_of(X))
    return X


def _run_in_step(fits):
    """Take one step of each fit in turn, until all have ended."""
    try:
        while fits:
            fits = [fit for fit in fits if next(fit, _ENDED) is not _ENDED]
    except KeyboardInterrupt:
        for fit in fits:
            with contextlib.suppress(KeyboardInterrupt):
                fit.throw(KeyboardInterrupt)
        raise
    finally:
        for fit in fits:
            fit.close()
