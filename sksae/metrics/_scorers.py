"""Scorers: metrics of a fitted SAE as scikit-learn's searches call them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from ._codes import dead_fraction, dense_fraction, l0
from ._dictionary import dictionary_coherence
from ._observed import Observed
from ._reconstruction import explained_variance, fvu, mean_cosine, normalized_mse

_NEEDS = ("reconstruction", "codes", "components")


class _Scorer:
    """A metric as ``scorer(estimator, X, y=None)``; see `make_scorer`."""

    def __init__(self, metric, greater_is_better, needs, kwargs):
        self._metric = metric
        self._greater_is_better = greater_is_better
        self._needs = needs
        self._kwargs = kwargs

    def __call__(self, estimator, X, y=None) -> float:
        """Score the SAE in ``estimator`` on ``X``, or a `Transcoder` on ``X`` and ``y``."""
        return self.of(Observed(estimator, X, repr(self), y))

    def of(self, observed: Observed) -> float:
        """Score an SAE that has been given its input."""
        value = self._metric(*self._arguments(observed), **self._kwargs)
        return float(value) if self._greater_is_better else -float(value)

    def _arguments(self, observed):
        if self._needs == "reconstruction":
            return observed.target, observed.reconstruction
        return (getattr(observed, self._needs),)

    def __repr__(self) -> str:
        name = getattr(self._metric, "__name__", repr(self._metric))
        sign = "" if self._greater_is_better else ", greater_is_better=False"
        extra = "".join(f", {key}=..." for key in self._kwargs)
        return f"make_scorer({name}{sign}, needs={self._needs!r}{extra})"


class _ScorerGroup:
    """Several scorers that share one pass over the data; see `combine_scorers`."""

    def __init__(self, scorers: Mapping[str, _Scorer]) -> None:
        self._scorers = dict(scorers)

    def __call__(self, estimator, X, y=None) -> dict[str, float]:
        """Score the SAE in ``estimator`` on ``X``, or a `Transcoder` on ``X`` and ``y``."""
        observed = Observed(estimator, X, repr(self), y)
        return {name: scorer.of(observed) for name, scorer in self._scorers.items()}

    def __repr__(self) -> str:
        return f"combine_scorers({', '.join(self._scorers)})"


def make_scorer(
    metric: Callable[..., Any],
    *,
    greater_is_better: bool = True,
    needs: str = "reconstruction",
    **kwargs,
) -> _Scorer:
    """Make a scorer of SAEs from a metric.

    The scorer takes an SAE, or a pipeline that holds exactly one: ``X`` passes through the
    steps before the SAE, the steps after it are ignored. It serves as ``scoring`` of
    ``GridSearchCV``, ``cross_validate`` and the like.

    Parameters
    ----------
    metric : callable
        A function of this module, or any other that gives a number. A scorer can be pickled
        if it can.
    greater_is_better : bool, default=True
        False changes the sign, so that higher scores are always better.
    needs : {"reconstruction", "codes", "components"}, default="reconstruction"
        What the metric is called with: ``(X, X_hat)``, the activations that the SAE sees and
        their reconstruction, for a `Transcoder` ``(y, predict(X))``; ``(codes,)``; or
        ``(components,)``, the dictionary.
    **kwargs : dict
        Further arguments of the metric.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y=None)`` gives a float; ``y`` serves a `Transcoder` alone. It
        raises ValueError for a pipeline with no SAE or several, or for a Transcoder without
        the y that it needs, and NotFittedError before fit.

    Raises
    ------
    TypeError
        If ``metric`` is not callable.
    ValueError
        If ``needs`` is none of the three.

    See Also
    --------
    get_scorer : Ready-made scorers by name.
    combine_scorers : Several scorers in one pass.

    Examples
    --------
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> from sksae.metrics import make_scorer, mcc
    >>> X, features = make_activations(256, 16, 8, n_active=2, random_state=0)
    >>> sae = TopKSAE(8, top_k=2, batch_size=64, random_state=0).fit(X)
    >>> scorer = make_scorer(mcc, needs="components", features=features)
    >>> scorer
    make_scorer(mcc, needs='components', features=...)
    >>> 0 < scorer(sae, X) <= 1
    True
    """
    if not callable(metric):
        raise TypeError(
            f"The 'metric' of make_scorer must be callable. Got {metric!r}. For a name use "
            "get_scorer."
        )
    if needs not in _NEEDS:
        raise ValueError(
            f"The 'needs' of make_scorer must be one of {', '.join(map(repr, _NEEDS))}. "
            f"Got {needs!r}."
        )
    return _Scorer(metric, greater_is_better, needs, kwargs)


_SCORERS = {
    "explained_variance": make_scorer(explained_variance),
    "mean_cosine": make_scorer(mean_cosine),
    "neg_dead_fraction": make_scorer(dead_fraction, greater_is_better=False, needs="codes"),
    "neg_dense_fraction": make_scorer(dense_fraction, greater_is_better=False, needs="codes"),
    "neg_dictionary_coherence": make_scorer(
        dictionary_coherence, greater_is_better=False, needs="components"
    ),
    "neg_fvu": make_scorer(fvu, greater_is_better=False),
    "neg_l0": make_scorer(l0, greater_is_better=False, needs="codes"),
    "neg_normalized_mse": make_scorer(normalized_mse, greater_is_better=False),
}


def get_scorer(name) -> Any:
    """Give a ready-made scorer of SAEs.

    Parameters
    ----------
    name : str or callable
        One of `get_scorer_names`: a metric of this module, with "neg_" in front where the
        metric is lower when better. A callable is given back.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y=None)`` gives a float; see `make_scorer`.

    Raises
    ------
    ValueError
        If there is no scorer of this name.

    Examples
    --------
    >>> get_scorer("neg_l0")
    make_scorer(l0, greater_is_better=False, needs='codes')
    """
    if callable(name):
        return name
    if name not in _SCORERS:
        near = difflib.get_close_matches(str(name), _SCORERS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_SCORERS)}."
        raise ValueError(f"No scorer of SAEs named {name!r}; {hint}")
    return _SCORERS[name]


def get_scorer_names() -> list[str]:
    """Name the ready-made scorers of SAEs.

    Returns
    -------
    list of str
        In alphabetical order.

    Examples
    --------
    >>> get_scorer_names()[:2]
    ['explained_variance', 'mean_cosine']
    """
    return sorted(_SCORERS)


def combine_scorers(scorers) -> _ScorerGroup:
    """Score several metrics in one pass over the data.

    A dict of scorers is ``scoring`` to scikit-learn too, but there each of them transforms
    the data again, through the language model if the pipeline holds one.

    Parameters
    ----------
    scorers : list of str, or dict of str to str or scorer
        Names of ready-made scorers, or names of one's own with a ready-made name or a result
        of `make_scorer`.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y=None)`` gives a dict of name to float. As ``scoring`` of a
        search it needs ``refit`` to name one of them, or to be `select_sparsest`.

    Raises
    ------
    TypeError
        If one is neither a name nor a result of `make_scorer`.
    ValueError
        If there is no scorer of a name, or none at all.

    Examples
    --------
    >>> combine_scorers(["explained_variance", "neg_l0"])
    combine_scorers(explained_variance, neg_l0)
    """
    if isinstance(scorers, str):
        raise TypeError(f"combine_scorers takes a list or a dict of scorers. Got {scorers!r}.")
    named = dict(scorers) if isinstance(scorers, Mapping) else {name: name for name in scorers}
    if not named:
        raise ValueError("combine_scorers needs at least one scorer. Got none.")
    found = {name: get_scorer(scorer) for name, scorer in named.items()}
    for name, scorer in found.items():
        if not isinstance(scorer, _Scorer):
            raise TypeError(
                f"combine_scorers takes names and results of sksae.metrics.make_scorer. Got "
                f"{scorer!r} for {name!r}."
            )
    return _ScorerGroup(found)
