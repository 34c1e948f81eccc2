"""compare, and scorers of scikit-learn's decompositions."""

import builtins

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF, PCA, FastICA, MiniBatchDictionaryLearning
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sksae.metrics as metrics
from sksae import (
    BatchTopKSAE,
    Extractor,
    FrozenDecoderSAE,
    ShuffledActivations,
    StableConcepts,
    TopKSAE,
)
from sksae.activations import Rows
from sksae.activations._rows import with_rows
from sksae.metrics import compare, get_scorer

QUICK = {"nb_concepts": 32, "top_k": 3, "nb_epochs": 8, "batch_size": 64}


def value(table, estimator, metric, column="mean"):
    found = table[(table.estimator == estimator) & (table.metric == metric)]
    assert len(found) == 1
    return found[column].item()


@pytest.fixture(scope="module")
def decompositions():
    return [
        PCA(6, random_state=0),
        FastICA(6, random_state=0, max_iter=1000, tol=1e-2),
        NMF(6, init="random", max_iter=400, tol=1e-2, random_state=0),
        MiniBatchDictionaryLearning(12, max_iter=2, transform_algorithm="omp", random_state=0),
    ]


@pytest.fixture(scope="module")
def table(planted, decompositions):
    X, features, codes = planted
    estimators = [
        TopKSAE(**QUICK),
        FrozenDecoderSAE(**QUICK),
        ShuffledActivations(TopKSAE(**QUICK)),
        *decompositions,
    ]
    known = {"features": features, "activations": codes}
    return compare(estimators, X, **known, n_seeds=3, random_state=0)


def test_a_tidy_frame_of_every_metric(table):
    assert list(table.columns) == "estimator kind metric mean ci_low ci_high n_seeds".split()
    assert not table.duplicated(["estimator", "metric"]).any()
    counts = table.groupby("estimator").size()
    assert (counts == counts.iloc[0]).all() and len(counts) == 7
    kinds = dict(zip(table.estimator, table.kind, strict=True))
    assert kinds["TopKSAE"] == "sae" and kinds["PCA"] == kinds["NMF"] == "baseline"
    assert kinds["FrozenDecoderSAE"] == kinds["ShuffledActivations"] == "control"
    functions = set(table.metric)
    assert all(callable(getattr(metrics, name)) for name in functions)
    assert {"explained_variance", "l0", "concept_f1", "uniqueness", "pw_mcc"} < functions
    assert np.isfinite(table["mean"]).all()
    between = table.metric.isin(["pw_mcc", "stability"])
    assert table[between].ci_low.isna().all() and table[~between].ci_low.notna().all()
    assert (table[~between].ci_low <= table[~between]["mean"]).all()


def test_trained_saes_beat_their_controls_on_planted_features(table):
    for metric in ("recovered_fraction", "mcc", "explained_variance", "concept_f1", "stability"):
        best = value(table, "TopKSAE", metric)
        for control in ("FrozenDecoderSAE", "ShuffledActivations"):
            assert best > value(table, control, metric), (metric, control)
    assert value(table, "FrozenDecoderSAE", "recovered_fraction") < 0.3
    assert value(table, "PCA", "pw_mcc") == pytest.approx(1)  # nothing random is left in it


def test_numbers_and_intervals_are_those_of_separate_fits(planted):
    X, X_test = planted[0][:400], planted[0][400:]
    sae = BatchTopKSAE(16, top_k=2, nb_epochs=2, batch_size=64)
    table = compare({"mine": sae}, X, X_test=X_test, confidence=0.9, random_state=4)
    seeds = np.random.RandomState(4).randint(np.iinfo(np.int32).max, size=3)
    fits = [clone(sae).set_params(random_state=int(seed)).fit(X) for seed in seeds]
    scores = [get_scorer("explained_variance")(fit, X_test) for fit in fits]
    low, high = stats.t.interval(0.9, 2, np.mean(scores), stats.sem(scores))
    for column, expected in {"mean": np.mean(scores), "ci_low": low, "ci_high": high}.items():
        got = value(table, "mine", "explained_variance", column)
        assert got == pytest.approx(expected, rel=1e-5)
    assert value(table, "mine", "pw_mcc") == pytest.approx(
        metrics.pw_mcc([fit.components_ for fit in fits])
    )
    again = compare({"mine": sae}, X, X_test=X_test, confidence=0.9, random_state=4)
    pd.testing.assert_frame_equal(table, again)


def test_whole_texts_are_held_out_and_probed():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((240, 8)).astype(np.float32)
    text = np.repeat(np.arange(60), 4)
    y = np.arange(60) % 2
    X[:, 0] += 6 * y[text]
    rows = Rows(text, np.tile(np.arange(4), 60), np.tile(np.arange(1, 5), 60), ["abcd"] * 60)
    sae = TopKSAE(8, top_k=2, nb_epochs=8, batch_size=32)
    table = compare(
        [sae, PCA(3)], with_rows(X, rows), y=y, k=(1, 5), n_seeds=2, test_size=0.2, random_state=0
    )
    assert value(table, "TopKSAE", "probing_top5") > 0.9
    assert value(table, "PCA", "probing_top1") > 0.9
    assert not ((table.estimator == "PCA") & (table.metric == "probing_top5")).any()


def test_pipelines_names_tensors_and_one_seed(planted):
    X = torch.tensor(planted[0][:300])
    sae = TopKSAE(12, top_k=2, nb_epochs=1)
    estimators = [
        make_pipeline(StandardScaler(), sae),
        ("scaled pca", make_pipeline(StandardScaler(), PCA(4))),
        sae,
        StableConcepts(sae, 2, threshold=-1),
    ]
    table = compare(estimators, X, n_seeds=1, random_state=0)
    names = ["TopKSAE-1", "scaled pca", "TopKSAE-2", "StableConcepts"]
    assert list(table.estimator.unique()) == names
    assert table.ci_low.isna().all() and (table.n_seeds == 1).all()
    assert "pw_mcc" not in set(table.metric)


def test_texts(tiny_bert, bert_tokenizer):
    extractor = Extractor(tiny_bert, "layer.1", tokenizer=bert_tokenizer)
    texts = [f"the sea is {word}" for word in ("blue", "big", "red", "wet", "old", "new")]
    sae = TopKSAE(12, top_k=2, nb_epochs=1)
    y = [0, 1, 0, 1, 0, 1]
    table = compare([make_pipeline(extractor, sae)], texts, y=y * 1, k=1, n_seeds=2, random_state=0)
    assert np.isfinite(value(table, "TopKSAE", "probing_top1"))


# -- decompositions ---------------------------------------------------------------------------


def test_nmf_is_about_the_same_rows_as_the_others(planted, table):
    X = planted[0]
    low = X.min(axis=0)
    nmf = NMF(6, init="random", max_iter=400, tol=1e-2, random_state=0).fit(X - low)
    back = nmf.inverse_transform(nmf.transform(X - low)) + low
    assert metrics.explained_variance(X, back) == pytest.approx(
        value(table, "NMF", "explained_variance"), abs=0.05
    )


def test_scorers_take_decompositions(planted, decompositions):
    X = planted[0]
    for estimator in decompositions:
        data = X - X.min(axis=0) if isinstance(estimator, NMF) else X
        fitted = clone(estimator).fit(data)
        back = fitted.inverse_transform(fitted.transform(data))
        expected = metrics.explained_variance(data, back)
        assert get_scorer("explained_variance")(fitted, data) == expected > 0
        pipe = make_pipeline(StandardScaler(with_mean=False, with_std=False), fitted)
        pipe[0].fit(data)
        assert get_scorer("explained_variance")(pipe, data) == pytest.approx(expected)
        assert 0 <= -get_scorer("neg_dictionary_coherence")(fitted, data) <= 1
    ica = clone(decompositions[1]).fit(X)
    scorer = metrics.make_scorer(metrics.mcc, needs="components", features=ica.mixing_.T)
    assert scorer(ica, X) == pytest.approx(1)


def test_an_sae_behind_a_decomposition_is_what_counts(planted):
    X = planted[0]
    pipe = make_pipeline(PCA(6), TopKSAE(12, top_k=2, nb_epochs=1)).fit(X)
    assert get_scorer("neg_l0")(pipe, X) == pytest.approx(-2, abs=0.3)
    with pytest.raises(NotFittedError):
        get_scorer("neg_l0")(PCA(), X)


# -- what it refuses --------------------------------------------------------------------------


def test_what_is_refused(planted, monkeypatch):
    X, sae = planted[0], TopKSAE(8, top_k=2)
    with pytest.raises(TypeError, match="compare takes a list or a dict of estimators. Got TopKSA"):
        compare(sae, X)
    with pytest.raises(TypeError, match="compare takes estimators. Got 'TopKSAE' among them"):
        compare(["TopKSAE"], X)
    with pytest.raises(ValueError, match="compare needs at least one estimator"):
        compare([], X)
    with pytest.raises(ValueError, match="compare needs an SAE, or a pipeline that holds exactly"):
        compare([KMeans(3)], X)
    with pytest.raises(ValueError, match="compare got the name 'a' twice"):
        compare([("a", sae), ("a", PCA())], X)
    for wrong in (0, True, 2.5):
        with pytest.raises(ValueError, match="n_seeds of compare must be an int of at least 1"):
            compare([sae], X, n_seeds=wrong)
    with pytest.raises(ValueError, match="confidence of compare must lie between 0 and 1"):
        compare([sae], X, confidence=1)
    with pytest.raises(ValueError, match="top_k=2 exceeds nb_concepts=1") as caught:
        compare({"small": TopKSAE(1, top_k=2)}, X)
    assert caught.value.__notes__ == ["This was 'small' in sksae.metrics.compare."]
    real = builtins.__import__

    def without_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match="Missing optional dependency 'pandas', needed by sksae"):
        compare([sae], X)
