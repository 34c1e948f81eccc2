"""Scorers on SAEs, in pipelines and in searches."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import sksae.metrics as metrics
from sksae import ConceptPooler, Extractor, KeepRows, TopKInputs, TopKSAE
from sksae.metrics import combine_scorers, get_scorer, get_scorer_names, make_scorer

TEXTS = [
    f"{subject} {verb} the {thing}"
    for subject in ("a dog", "the cat", "no bird")
    for verb in ("sees", "eats")
    for thing in ("red house", "old tree")
]
QUICK = {"top_k": 4, "nb_epochs": 3, "batch_size": 64, "random_state": 0}


def test_each_name_is_the_metric_with_its_sign(sae, X):
    codes = sae.transform(X)
    inputs = {"explained_variance": (X, sae.inverse_transform(codes)), "l0": (codes,)}
    inputs |= dict.fromkeys(["fvu", "normalized_mse", "mean_cosine"], inputs["explained_variance"])
    inputs |= dict.fromkeys(["dead_fraction", "dense_fraction"], (codes,))
    inputs["dictionary_coherence"] = (sae.components_,)
    assert {name.removeprefix("neg_") for name in get_scorer_names()} == set(inputs)
    for name in get_scorer_names():
        metric = name.removeprefix("neg_")
        expected = getattr(metrics, metric)(*inputs[metric])
        value = get_scorer(name)(sae, X)
        assert type(value) is float
        assert value == (-expected if name.startswith("neg_") else expected)
    assert get_scorer("explained_variance")(sae, X) == pytest.approx(sae.score(X), rel=1e-5)


def test_scorers_pickle_and_name_themselves(sae, X):
    for name in get_scorer_names():
        scorer = get_scorer(name)
        twin = pickle.loads(pickle.dumps(scorer))
        assert twin(sae, X) == scorer(sae, X)
        assert name.removeprefix("neg_") in repr(twin) == repr(scorer)


def test_metrics_with_arguments(sae, planted):
    X, features, _ = planted
    scorer = make_scorer(metrics.mcc, needs="components", features=features)
    assert scorer(sae, X) == metrics.mcc(sae.components_, features)
    dense = make_scorer(
        metrics.dense_fraction, greater_is_better=False, needs="codes", threshold=0.05
    )
    assert dense(sae, X) == -metrics.dense_fraction(sae.transform(X), 0.05)


def test_what_the_makers_refuse():
    with pytest.raises(ValueError, match="No scorer of SAEs named 'l0'; did you mean 'neg_l0'?"):
        get_scorer("l0")
    with pytest.raises(ValueError, match="No scorer of SAEs named 'xyz'; there are explained_var"):
        get_scorer("xyz")
    with pytest.raises(ValueError, match="'needs' of make_scorer must be one of 'reconstruction'"):
        make_scorer(metrics.l0, needs="code")
    with pytest.raises(TypeError, match="'metric' of make_scorer must be callable. Got 'l0'"):
        make_scorer("l0")
    with pytest.raises(TypeError, match="combine_scorers takes a list or a dict"):
        combine_scorers("neg_l0")
    with pytest.raises(TypeError, match="takes names and results of sksae.metrics.make_scorer"):
        combine_scorers({"mine": len})
    with pytest.raises(ValueError, match="combine_scorers needs at least one scorer"):
        combine_scorers([])


# -- where the SAE stands ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaled(X):
    """A scaler, an SAE behind it, and what the SAE sees."""
    scaler = StandardScaler().fit(X)
    Z = scaler.transform(X)
    return scaler, TopKSAE(24, **QUICK).fit(Z), Z


@pytest.mark.parametrize("name", get_scorer_names())
def test_x_passes_through_the_steps_before(name, scaled, X):
    scaler, sae, Z = scaled
    expected = get_scorer(name)(sae, Z)
    later = TopKInputs(k=2).fit(sae.transform(Z), units=["u"] * len(Z))
    for pipe in (
        make_pipeline(scaler, sae),
        make_pipeline(scaler, "passthrough", sae, "passthrough"),
        Pipeline([("none", None), ("scaler", scaler), ("sae", sae), ("later", later)]),
        make_pipeline(make_pipeline(scaler, "passthrough"), make_pipeline(sae, later)),
        make_pipeline(make_pipeline(make_pipeline(scaler, sae))),
        make_pipeline(scaler, sae, ConceptPooler()),  # not fitted, and not asked
    ):
        assert get_scorer(name)(pipe, X) == expected
        assert combine_scorers([name])(pipe, X) == {name: expected}


def test_pipelines_without_a_single_sae_are_refused(scaled, X):
    scaler, sae, _ = scaled
    scorer = get_scorer("neg_l0")
    start = r"needs an SAE, or a pipeline that holds exactly one. "
    with pytest.raises(ValueError, match=start + "This pipeline holds none: put one among"):
        scorer(make_pipeline(scaler, "passthrough"), X)
    with pytest.raises(ValueError, match=start + "Got StandardScaler"):
        scorer(scaler, X)
    inner = Pipeline([("deep", sae)])
    with pytest.raises(ValueError, match=start + "This pipeline holds 2: 'sae', 'inner__deep'"):
        scorer(Pipeline([("sae", sae), ("inner", inner)]), X)
    for unfitted in (clone(sae), make_pipeline(clone(sae))):
        for name in ("neg_l0", "neg_dictionary_coherence"):
            with pytest.raises(NotFittedError):
                get_scorer(name)(unfitted, X)


@pytest.mark.parametrize("container", ["default", "pandas", "polars"])
def test_dense_codes_and_frames(container, sae, X):
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(X.shape[1])])
    dense = TopKSAE(**(sae.get_params() | {"sparse_output": False}))
    pipe = make_pipeline(StandardScaler(with_std=False), dense).set_output(transform=container)
    pipe.fit(frame)
    plain = make_pipeline(clone(pipe[0]), TopKSAE(**sae.get_params())).fit(X)
    for name in get_scorer_names():
        assert get_scorer(name)(pipe, frame) == pytest.approx(get_scorer(name)(plain, X), rel=1e-4)


# -- searches ---------------------------------------------------------------------------------


def test_grid_search_in_two_processes(X):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), TopKSAE(24, **QUICK)),
        {"topksae__top_k": [2, 6]},
        scoring=get_scorer("neg_l0"),
        cv=2,
        n_jobs=2,
    ).fit(X)
    assert search.best_params_ == {"topksae__top_k": 2}
    assert search.best_score_ == pytest.approx(-2, abs=0.1)
    assert search.score(X) == get_scorer("neg_l0")(search.best_estimator_, X)


def test_several_metrics_together_or_apart(X):
    names = ["explained_variance", "neg_l0", "neg_dead_fraction"]
    sae = TopKSAE(24, **QUICK)
    apart = cross_validate(sae, X, cv=3, scoring={name: get_scorer(name) for name in names})
    together = cross_validate(sae, X, cv=3, scoring=combine_scorers(names))
    for name in names:
        np.testing.assert_array_equal(apart[f"test_{name}"], together[f"test_{name}"])
    search = GridSearchCV(
        sae, {"top_k": [2, 6]}, cv=2, scoring=combine_scorers(names), refit="explained_variance"
    ).fit(X)
    assert search.best_params_ == {"top_k": 6}
    assert search.cv_results_["mean_test_neg_l0"] == pytest.approx([-2, -6], abs=0.2)


def test_combined_scorers_transform_once(sae, X, monkeypatch):
    calls = []
    transform = TopKSAE.transform
    monkeypatch.setattr(TopKSAE, "transform", lambda *a: calls.append(1) or transform(*a))
    combine_scorers(get_scorer_names())(sae, X)
    assert len(calls) == 1
    combine_scorers(["neg_dictionary_coherence"])(sae, X)
    assert len(calls) == 1
    mine = {"ev": "explained_variance", "cosine": make_scorer(metrics.mean_cosine)}
    assert list(combine_scorers(mine)(sae, X)) == ["ev", "cosine"]
    assert repr(combine_scorers(mine)) == "combine_scorers(ev, cosine)"
    assert pickle.loads(pickle.dumps(combine_scorers(mine)))(sae, X)["ev"] > 0


def test_rows_and_groups_pass(tiny_bert, bert_tokenizer):
    extractor = Extractor(tiny_bert, "layer.1", tokenizer=bert_tokenizer)
    acts = extractor.fit_transform(TEXTS)
    scoring = combine_scorers(["explained_variance", "neg_l0"])
    by_rows = cross_validate(
        TopKSAE(24, **QUICK), acts, groups=acts.rows.groups, cv=GroupKFold(3), scoring=scoring
    )
    assert by_rows["test_explained_variance"].min() > 0.1
    pipe = make_pipeline(extractor, KeepRows(StandardScaler()), TopKSAE(24, **QUICK), TopKInputs())
    by_texts = cross_validate(pipe, TEXTS, cv=KFold(3), scoring=scoring)
    assert by_texts["test_neg_l0"] == pytest.approx([-4] * 3, abs=0.5)


def test_a_step_that_changes_the_width(X):
    pipe = make_pipeline(PCA(6), TopKSAE(16, **QUICK)).fit(X)
    reduced = pipe[0].transform(X)
    assert get_scorer("neg_fvu")(pipe, X) == get_scorer("neg_fvu")(pipe[1], reduced)
