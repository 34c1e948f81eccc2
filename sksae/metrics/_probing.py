"""k-sparse probing: how well a few concepts tell classes of texts apart."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, check_cv
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets

from ..activations import ConceptPooler
from ..activations._rows import rows_of
from ._checks import check_matrix
from ._selector import MeanDifferenceSelector


def sparse_probing(
    estimator,
    X,
    y,
    *,
    k=(1, 2, 5),
    test_size=None,
    cv=None,
    per_class=False,
    random_state=None,
) -> dict[int, Any]:
    """Accuracy of classifiers that see only k concepts. Higher is better.

    The k-sparse probing of SAEBench (Karvonen et al. (2025) [1]_): the codes of a text are
    averaged over its rows; for each class, on training texts, the ``k`` concepts are chosen
    whose means in and outside the class differ most (`MeanDifferenceSelector`) and a
    logistic regression is fitted on them; the score is its accuracy on held-out texts.

    Parameters
    ----------
    estimator : fitted estimator or None
        Turns ``X`` into codes: a pipeline of extractor and SAE, an SAE, or, for a baseline,
        the extractor alone. None where ``X`` already has one row per labelled text; with
        averaged activations in it, that is the baseline too.
    X : list of str, array-like or sparse matrix
        What ``estimator`` transforms, or a matrix of shape (n_texts, n_features).
    y : array-like of shape (n_texts,)
        Class of each text. Two classes are one task, more are one task a class: the class
        against all others.
    k : int or iterable of int, default=(1, 2, 5)
        Numbers of concepts, each at most the number of columns.
    test_size : float or int, default=None
        Share or number of held-out texts in one split, stratified by ``y``. None is 0.25.
    cv : int, splitter or None, default=None
        Folds or a scikit-learn splitter in place of the single split; scores are averaged
        over its splits. Not together with ``test_size``.
    per_class : bool, default=False
        Whether to give the accuracy of each task rather than their mean.
    random_state : int, RandomState instance or None, default=None
        Seed of the split and of the balancing; an int makes the result repeatable.

    Returns
    -------
    dict of int to float
        Mean test accuracy for each ``k``, between 0 and 1; 0.5 is chance. With ``per_class``
        a dict of int to (dict of class to float); two classes have one entry, the second.

    Raises
    ------
    ValueError
        If ``y`` does not have one class for each text, if there are fewer than two classes,
        or if a ``k`` exceeds the number of columns.

    See Also
    --------
    MeanDifferenceSelector : The selection alone, for pipelines and grid searches.

    Notes
    -----
    As in SAEBench, each task is balanced: of the larger side as many texts are drawn as the
    smaller side has, in training and in test texts apart, so that 0.5 is chance and classes
    of different size count alike. Unlike there, the ``k`` columns are scaled to unit
    variance before the logistic regression (``C=1``), so that the accuracy does not depend
    on the units of the activations. The SAE itself may have seen the texts; only selection
    and classifier are held to the training texts.

    The pooling is ``ConceptPooler("mean")``: special tokens count if the extractor gives
    rows for them, which it does not by default. Where the output of ``estimator`` does not
    know its texts, it must have one row per text.

    References
    ----------
    .. [1] Karvonen et al. (2025), "SAEBench", arXiv:2503.09532.

    Examples
    --------
    The first concept fires in the texts of class "a" only; one concept is enough.

    >>> import numpy as np
    >>> codes = np.array([[1.0, 0.2], [1.0, 0.0], [0.9, 0.1], [1.1, 0.3]] + 4 * [[0.0, 0.2]])
    >>> sparse_probing(None, codes, list("aaaabbbb"), k=1, random_state=0)
    {1: 1.0}
    """
    y = np.asarray(y)
    check_classification_targets(y)
    Z = _pooled(estimator, X, y)
    sizes = _check_k(k, Z.shape[1])
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"sparse_probing needs texts of at least 2 classes. Got {len(classes)}.")
    tasks = classes[1:] if len(classes) == 2 else classes
    rng = check_random_state(random_state)
    splits = list(_splitter(test_size, cv, y, rng).split(Z, y))
    names = tasks.tolist()
    scores = np.array([[_task(Z, y == c, sizes, s, c, rng) for c in names] for s in splits])
    means = scores.mean(axis=0)  # (tasks, sizes)
    by_size = dict(zip(sizes, means.T.tolist(), strict=True))
    if per_class:
        return {n: dict(zip(names, values, strict=True)) for n, values in by_size.items()}
    return {n: float(np.mean(values)) for n, values in by_size.items()}


def _pooled(estimator, X, y):
    """Give one row per text, as ndarray or CSR matrix."""
    if estimator is not None and not hasattr(estimator, "transform"):
        raise TypeError(
            "estimator of sparse_probing must be a fitted SAE or pipeline, or None where the next "
            f"argument holds codes or activations. Got {type(estimator).__name__} instead."
        )
    Z = X if estimator is None else estimator.transform(X)
    if rows_of(Z) is not None:
        Z = ConceptPooler("mean").fit_transform(Z)
    Z = check_matrix(Z, "X" if estimator is None else "The output of estimator", "sparse_probing")
    if y.shape != (Z.shape[0],):
        raise ValueError(
            f"y of sparse_probing must have one class per text: expected {Z.shape[0]}, got shape "
            f"{y.shape}. Rows that are tokens need their texts: pass estimator and texts, or "
            "pool them with ConceptPooler('mean') and groups= first."
        )
    return Z


def _check_k(k, n_features):
    sizes = list(k) if isinstance(k, Iterable) else [k]
    for size in sizes:
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"k of sparse_probing must be ints of at least 1. Got {size!r}.")
        if size > n_features:
            raise ValueError(
                f"k={size} exceeds the {n_features} columns in sparse_probing. Lower k."
            )
    return [int(size) for size in sizes]


def _splitter(test_size, cv, y, rng):
    if cv is None:
        size = 0.25 if test_size is None else test_size
        seed = rng.randint(np.iinfo(np.int32).max)
        return StratifiedShuffleSplit(1, test_size=size, random_state=seed)
    if test_size is not None:
        raise ValueError(
            f"sparse_probing takes test_size or cv, not both. Got {test_size=} and {cv=}."
        )
    return check_cv(cv, y, classifier=True)


def _task(Z, positive, sizes, split, name, rng):
    """Accuracy of one binary task in one split, for each number of concepts."""
    train, test = (_balanced(rows, positive, name, rng) for rows in split)
    scores = []
    for size in sizes:
        selector = MeanDifferenceSelector(size).fit(Z[train], positive[train])
        columns = selector.get_support(indices=True)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(_columns(Z, train, columns), positive[train])
        scores.append(probe.score(_columns(Z, test, columns), positive[test]))
    return scores


def _columns(Z, rows, columns):
    part = Z[rows][:, columns]
    return part.toarray() if sparse.issparse(part) else part


def _balanced(rows, positive, name, rng):
    """Draw as many rows of one side as of the other."""
    sides = [rows[positive[rows]], rows[~positive[rows]]]
    n = min(map(len, sides))
    if n == 0:
        raise ValueError(
            f"sparse_probing needs texts in and outside class {name!r} on both sides of each "
            "split. Give more texts of each class, or fewer folds."
        )
    return np.sort(np.concatenate([rng.choice(side, n, replace=False) for side in sides]))
