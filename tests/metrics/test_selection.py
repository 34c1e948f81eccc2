"""The one-standard-error rule, on written results and in real searches."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksae import TopKSAE
from sksae.metrics import OneStandardError, combine_scorers, get_scorer, select_sparsest


def results(params, **scores):
    """Write the part of cv_results_ that the rule reads; scores of shape (candidate, split)."""
    written = {"params": params}
    for name, values in scores.items():
        values = np.array(values, dtype=float)
        written |= {f"split{i}_test_{name}": column for i, column in enumerate(values.T)}
        written[f"mean_test_{name}"] = values.mean(axis=1)
        written[f"std_test_{name}"] = values.std(axis=1)
    return written


def spread(*means, width=0.1):
    return [[m - width, m, m + width] for m in means]


ONE_ERROR = 0.1 / np.sqrt(3)  # of three scores at distance 0.1


def test_the_floor_is_one_standard_error_of_the_best():
    params = [{"top_k": k} for k in (4, 8, 16)]
    for gap, chosen in ((0.99 * ONE_ERROR, 0), (1.01 * ONE_ERROR, 1)):
        found = results(params, score=spread(0.8 - gap, 0.8 - ONE_ERROR / 2, 0.8))
        assert select_sparsest(found) == chosen
    alone = results(params, score=[[0.7], [0.79], [0.8]])
    assert select_sparsest(alone) == 2


def test_what_is_sparse():
    scores = spread(0.80, 0.81, 0.82, 0.79)

    def chosen(params, **kwargs):
        return OneStandardError(**kwargs)(results(params, score=scores))

    assert chosen([{"sae__top_k": k, "sae__nb_concepts": 9 - k} for k in (5, 2, 3, 4)]) == 1
    assert chosen([{"l1_coefficient": c} for c in (1, 2, 4, 3)]) == 2
    assert chosen([{"sae__l0_coefficient": c} for c in (1, 2, 0.5, 3)]) == 3
    assert chosen([{"nb_concepts": c, "lr": 0.1} for c in (8, 4, 16, 32)]) == 1
    ties = [{"top_k": 4, "nb_concepts": n} for n in (8, 8, 16, 16)]
    assert chosen(ties) == 1  # of two with 4 of 8 the better one
    assert chosen([{"alpha": a, "top_k": 1} for a in (2, 4, 3, 1)], sparsity="alpha") == 3
    with pytest.raises(ValueError, match="finds no measure of sparsity: neither a metric"):
        chosen([{"lr": r, "auxk_coefficient": r} for r in (1, 2, 3, 4)])
    mixed = [{"top_k": 4}, {"top_k": 8}, {"l1_coefficient": 1.0}, {"l1_coefficient": 2.0}]
    with pytest.raises(ValueError, match="by 'top_k', but a candidate has 'no value' for it"):
        chosen(mixed)
    with pytest.raises(ValueError, match="by 'sae', but a candidate has 'wide' for it"):
        chosen([{"sae": "wide"}] * 4, sparsity="sae")


def test_l0_of_the_search_comes_first():
    params = [{"top_k": k} for k in (1, 2, 3)]
    ev = spread(0.80, 0.81, 0.82)
    l0 = np.array(spread(9, 7, 8))
    assert select_sparsest(results(params, explained_variance=ev, neg_l0=-l0)) == 1
    assert select_sparsest(results(params, explained_variance=ev, l0=l0)) == 1
    by_parameter = OneStandardError(sparsity="top_k")
    assert by_parameter(results(params, explained_variance=ev, neg_l0=-l0)) == 0


def test_which_metric_is_compared():
    params = [{"top_k": k} for k in (1, 2)]
    good, bad = spread(0.5, 0.5), spread(0.1, 0.9)
    assert select_sparsest(results(params, explained_variance=bad, other=good)) == 1
    assert select_sparsest(results(params, mean_cosine=good, neg_l0=[[-1] * 3, [-2] * 3])) == 0
    named = OneStandardError(metric="other")
    assert named(results(params, explained_variance=bad, other=good)) == 0
    with pytest.raises(ValueError, match="cannot tell which metric of a, b to compare. Name it"):
        select_sparsest(results(params, a=good, b=bad))
    with pytest.raises(ValueError, match="must be one of the search: a, b. Got 'score'"):
        OneStandardError(metric="score")(results(params, a=good, b=bad))


def test_failed_candidates_are_left_out():
    params = [{"top_k": k} for k in (1, 2, 3)]
    found = results(params, score=[[np.nan] * 3, [0.8, 0.81, 0.82], [0.8, 0.81, 0.82]])
    assert select_sparsest(found) == 1
    with pytest.raises(ValueError, match="No candidate has a finite mean of 'score'"):
        select_sparsest(results(params, score=np.full((3, 3), np.nan)))


def test_the_rule_copies_and_names_itself():
    rule = OneStandardError(metric="mean_cosine", sparsity="neg_l0")
    assert repr(rule) == "OneStandardError(metric='mean_cosine', sparsity='neg_l0')"
    assert repr(pickle.loads(pickle.dumps(rule))) == repr(rule)
    assert repr(select_sparsest) == "OneStandardError()"


@pytest.mark.parametrize(
    "scoring", [None, get_scorer("explained_variance"), ["explained_variance", "neg_l0"]]
)
def test_in_a_search(scoring, X):
    if isinstance(scoring, list):
        scoring = combine_scorers(scoring)
    pipe = make_pipeline(StandardScaler(), TopKSAE(24, nb_epochs=3, batch_size=64, random_state=0))
    grid = {"topksae__top_k": [2, 8, 12], "topksae__lr": [1e-5, 5e-3]}
    search = GridSearchCV(pipe, grid, cv=3, scoring=scoring, refit=select_sparsest)
    search = clone(search).fit(X)
    name = "score" if "mean_test_score" in search.cv_results_ else "explained_variance"
    means = search.cv_results_[f"mean_test_{name}"]
    splits = np.array([search.cv_results_[f"split{i}_test_{name}"] for i in range(3)])
    floor = means.max() - splits[:, means.argmax()].std(ddof=1) / np.sqrt(3)
    within = np.flatnonzero(means >= floor)
    assert search.best_index_ in within
    assert search.best_params_ == search.cv_results_["params"][search.best_index_]
    top_k = [search.cv_results_["params"][i]["topksae__top_k"] for i in within]
    assert search.best_params_["topksae__top_k"] == min(top_k)
    assert search.best_estimator_[-1].top_k == min(top_k)
    assert not hasattr(search, "best_score_")
    assert search.best_estimator_.transform(X[:2]).shape == (2, 24)
