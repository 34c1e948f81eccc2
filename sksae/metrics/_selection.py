"""The sparsest SAE among those that a search cannot tell apart."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

_PENALTIES = ("l1_coefficient", "l0_coefficient")
_L0_METRICS = ("neg_l0", "l0")


class OneStandardError:
    """Refit rule of searches: the sparsest candidate within one standard error of the best.

    ``GridSearchCV(..., refit=OneStandardError())`` refits, in place of the candidate with
    the best mean score, the sparsest among those whose mean score is at least the best mean
    minus its standard error over the splits (Breiman et al. (1984) [1]_, section 3.4.3). The
    scores of reconstruction rise with every further active concept, so the best of them is
    often the densest by a hair.

    Parameters
    ----------
    metric : str or None, default=None
        Name of the score to compare, higher is better. None is "score" in a search with a
        single metric, and else "explained_variance", or the only metric that is not L0.
    sparsity : str or None, default=None
        What makes a candidate sparse. A metric of the search: the smaller value is sparser,
        or, with a name that starts in "neg_", the larger. Or a parameter such as
        "sae__top_k": the smaller value is sparser, or, with a name that ends in
        "l1_coefficient" or "l0_coefficient", the larger. None is the metric "neg_l0" or "l0"
        if the search has it, and else the candidates' parameters called ``top_k``,
        ``l1_coefficient``, ``l0_coefficient`` and ``nb_concepts``, in this order: the later
        ones decide where the former are equal.

    See Also
    --------
    select_sparsest : ``OneStandardError()``, ready to use.

    Notes
    -----
    Of equally sparse candidates the one with the better mean score is taken. The standard
    error of the best candidate is ``std(scores, ddof=1) / sqrt(n_splits)``; with one split
    it is taken as zero. Candidates with a NaN score are left out.

    With a callable ``refit``, scikit-learn sets ``best_index_``, ``best_params_`` and
    ``best_estimator_`` by the rule, and does not set ``best_score_``: read
    ``cv_results_["mean_test_score"][best_index_]``. With several metrics the search's own
    ``score`` does not know which one to give: call ``best_estimator_.score``.

    References
    ----------
    .. [1] Breiman, Friedman, Olshen and Stone (1984), "Classification and regression trees".

    Examples
    --------
    The best mean is 0.85 with a standard error of 0.05. 0.81 with 16 active concepts is
    within it, 0.5 with 8 is not.

    >>> import numpy as np
    >>> results = {
    ...     "params": [{"top_k": 8}, {"top_k": 16}, {"top_k": 32}],
    ...     "split0_test_score": np.array([0.5, 0.81, 0.8]),
    ...     "split1_test_score": np.array([0.5, 0.81, 0.9]),
    ...     "mean_test_score": np.array([0.5, 0.81, 0.85]),
    ... }
    >>> rule = OneStandardError()
    >>> results["params"][rule(results)]
    {'top_k': 16}
    """

    def __init__(self, metric=None, sparsity=None):
        self.metric = metric
        self.sparsity = sparsity

    def __call__(self, cv_results) -> int:
        """Choose a candidate.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search.

        Returns
        -------
        int
            Its ``best_index_``.

        Raises
        ------
        ValueError
            If the search has no such metric, no measure of sparsity, or no finite score.
        """
        metric = _check_metric(self.metric, cv_results)
        means = np.asarray(cv_results[f"mean_test_{metric}"], dtype=float)
        if not np.isfinite(means).any():
            raise ValueError(f"No candidate has a finite mean of {metric!r} to select by.")
        best = int(np.nanargmax(np.where(np.isfinite(means), means, np.nan)))
        floor = means[best] - _standard_error(cv_results, metric, best)
        within = np.flatnonzero(means >= floor)
        keys = [*_sparsity_keys(self.sparsity, cv_results), -means]
        return int(min(within, key=lambda i: tuple(float(key[i]) for key in keys)))

    def __repr__(self) -> str:
        given = {"metric": self.metric, "sparsity": self.sparsity}
        arguments = ", ".join(f"{k}={v!r}" for k, v in given.items() if v is not None)
        return f"OneStandardError({arguments})"


select_sparsest = OneStandardError()


def _metrics(cv_results) -> list[str]:
    start = "mean_test_"
    return [name.removeprefix(start) for name in cv_results if name.startswith(start)]


def _check_metric(metric, cv_results) -> str:
    found = _metrics(cv_results)
    if metric is not None:
        if metric not in found:
            raise ValueError(
                f"The 'metric' of OneStandardError must be one of the search: "
                f"{', '.join(found)}. Got {metric!r}."
            )
        return metric
    for usual in ("score", "explained_variance"):
        if usual in found:
            return usual
    others = [name for name in found if name not in _L0_METRICS]
    if len(others) != 1:
        raise ValueError(
            f"OneStandardError cannot tell which metric of {', '.join(found)} to compare. Name "
            "it: refit=OneStandardError(metric=...)."
        )
    return others[0]


def _standard_error(cv_results, metric, candidate) -> float:
    pattern = re.compile(rf"split\d+_test_{re.escape(metric)}")
    columns = [name for name in cv_results if pattern.fullmatch(name)]
    scores = np.array([cv_results[name][candidate] for name in columns], dtype=float)
    return float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0


def _sparsity_keys(sparsity, cv_results) -> list[np.ndarray]:
    """Give arrays over the candidates, the smaller the sparser, the first decides."""
    metrics, params = _metrics(cv_results), cv_results["params"]
    if sparsity is None:
        usual = [name for name in _L0_METRICS if name in metrics][:1] or _usual_parameters(params)
    else:
        usual = [sparsity]
    if not usual:
        raise ValueError(
            "OneStandardError finds no measure of sparsity: neither a metric 'neg_l0' nor a "
            "parameter top_k, l1_coefficient, l0_coefficient or nb_concepts. Add "
            "get_scorer('neg_l0') to scoring, or name one: OneStandardError(sparsity=...)."
        )
    return [_sparsity_key(name, metrics, cv_results) for name in usual]


def _usual_parameters(params) -> list[str]:
    wanted = ("top_k", *_PENALTIES, "nb_concepts")
    names = sorted({name for candidate in params for name in candidate})
    return [name for short in wanted for name in names if name.split("__")[-1] == short]


def _sparsity_key(name, metrics, cv_results) -> np.ndarray:
    if name in metrics:
        values = np.asarray(cv_results[f"mean_test_{name}"], dtype=float)
        return -values if name.startswith("neg_") else values
    values = np.array([_number(name, candidate) for candidate in cv_results["params"]])
    return -values if name.endswith(_PENALTIES) else values


def _number(name: str, candidate: dict[str, Any]) -> float:
    try:
        return float(candidate[name])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"OneStandardError compares sparsity by {name!r}, but a candidate has "
            f"{candidate.get(name, 'no value')!r} for it: {candidate}. Add "
            "get_scorer('neg_l0') to scoring, which every candidate has."
        ) from None
