"""The selector and k-sparse probing, against the protocol written out."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from sksae import ConceptPooler, Extractor, TopKSAE
from sksae.metrics import MeanDifferenceSelector, sparse_probing

TEXTS = [
    f"{subject} {verb} the {thing}{end}"
    for subject in ("a dog", "the cat", "no bird")
    for verb in ("sees", "eats")
    for thing in ("red house", "old tree")
    for end in (".", " today, and then leaves.")
]
SUBJECTS = [text.split()[1] for text in TEXTS]


@parametrize_with_checks([MeanDifferenceSelector()])
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.fixture
def labelled():
    """120 rows of 30 sparse columns; column 7 tells "b" from the rest, column 3 "c"."""
    rng = np.random.default_rng(0)
    X = rng.exponential(size=(120, 30)) * (rng.random((120, 30)) < 0.2)
    y = np.array(["a", "b", "c"])[np.arange(120) % 3]
    X[:, 7] = np.where(y == "b", 3, 0) + 0.01 * rng.random(120)
    X[:, 3] = np.where(y == "c", 2, 0) + 0.01 * rng.random(120)
    return X, y


# -- the selector -----------------------------------------------------------------------------


def test_scores_of_two_classes_are_mean_differences(labelled):
    X, y = labelled
    expected = np.abs(X[y == "b"].mean(axis=0) - X[y != "b"].mean(axis=0))
    for target in (y == "b", np.where(y == "b", 1, -1), np.where(y == "b", "yes", "no")):
        selector = MeanDifferenceSelector(k=2).fit(X, target)
        np.testing.assert_allclose(selector.scores_, expected)
    assert set(selector.get_support(indices=True)) == set(np.argsort(-expected)[:2])


def test_scores_of_more_classes_are_the_largest_against_the_rest(labelled):
    X, y = labelled
    one_vs_rest = [np.abs(X[y == c].mean(0) - X[y != c].mean(0)) for c in "abc"]
    selector = MeanDifferenceSelector(k=2).fit(X, y)
    np.testing.assert_allclose(selector.scores_, np.max(one_vs_rest, axis=0))
    assert selector.get_support(indices=True).tolist() == [3, 7]
    assert selector.classes_.tolist() == ["a", "b", "c"]


def test_csr_in_csr_out_and_names(labelled):
    X, y = labelled
    dense = MeanDifferenceSelector(k=4).fit(X, y)
    stored = sparse.csr_matrix(np.where(X == 0, 9.0, X))
    stored.data[stored.data == 9.0] = 0
    for form in (sparse.csr_matrix(X), sparse.csr_array(X), stored):
        selector = MeanDifferenceSelector(k=4).fit(form, y)
        np.testing.assert_allclose(selector.scores_, dense.scores_)
        out = selector.transform(form)
        assert sparse.issparse(out) and out.format == "csr"
        np.testing.assert_array_equal(out.toarray(), dense.transform(X))
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(30)])
    named = MeanDifferenceSelector(k=2).set_output(transform="pandas").fit(frame, y)
    assert list(named.transform(frame).columns) == ["c3", "c7"]
    back = named.inverse_transform(X[:, [3, 7]])
    assert back.shape == X.shape and not back[:, 0].any()


def test_equal_scores_go_to_the_first_columns():
    X = np.array([[0.0, 0, 0, 5], [1, 1, 1, 5]])
    assert MeanDifferenceSelector(k=2).fit(X, [0, 1]).get_support(indices=True).tolist() == [0, 1]


def test_what_the_selector_refuses(labelled):
    X, y = labelled
    with pytest.raises(ValueError, match="k=31 exceeds n_features=30 in MeanDifferenceSelector. L"):
        MeanDifferenceSelector(k=31).fit(X, y)
    with pytest.raises(ValueError, match="needs samples of at least 2 classes in y. Got 1 class"):
        MeanDifferenceSelector().fit(X, np.zeros(120))
    with pytest.raises(ValueError, match="'k' parameter of MeanDifferenceSelector must be an int"):
        MeanDifferenceSelector(k=0).fit(X, y)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        MeanDifferenceSelector().fit(X, np.linspace(0, 1, 120))


def test_the_selector_behind_a_pooler(tiny_bert, bert_tokenizer):
    sae = TopKSAE(24, top_k=4, nb_epochs=3, batch_size=64, random_state=0)
    extractor = Extractor(tiny_bert, "layer.1", tokenizer=bert_tokenizer)
    codes = make_pipeline(extractor, sae).fit_transform(TEXTS)
    pipe = make_pipeline(
        ConceptPooler("mean"), MeanDifferenceSelector(), LogisticRegression(max_iter=1000)
    ).fit(codes, SUBJECTS)
    assert pipe[:-1].transform(codes).shape == (len(TEXTS), 1)
    pooled = ConceptPooler("mean").fit_transform(codes)
    probe = make_pipeline(MeanDifferenceSelector(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(probe, {"meandifferenceselector__k": [1, 8]}, cv=3)
    assert search.fit(pooled, SUBJECTS).best_params_ == {"meandifferenceselector__k": 8}


# -- probing ----------------------------------------------------------------------------------


def test_the_planted_columns_are_found(labelled):
    X, y = labelled
    for form in (X, sparse.csr_matrix(X)):
        found = sparse_probing(None, form, y, k=(1, 2), per_class=True, random_state=0)
        assert list(found) == [1, 2]
        assert set(found[1]) == {"a", "b", "c"}
        assert found[1]["b"] == found[1]["c"] == 1
        assert found[1]["a"] < found[2]["a"] == 1
        means = sparse_probing(None, form, y, k=(1, 2), random_state=0)
        assert means == {k: pytest.approx(np.mean(list(v.values()))) for k, v in found.items()}


def test_two_classes_are_one_task(labelled):
    X, y = labelled
    found = sparse_probing(None, X, y == "b", k=1, per_class=True, random_state=0)
    assert found == {1: {True: 1.0}}


def test_chance_is_a_half_whatever_the_sizes_of_the_classes():
    rng = np.random.default_rng(0)
    X, y = rng.random((1000, 20)), rng.random(1000) < 0.2
    assert sparse_probing(None, X, y, cv=5, random_state=0)[5] == pytest.approx(0.5, abs=0.08)


@pytest.fixture
def weak():
    """400 rows of 20 columns, of which five tell a little about y."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((400, 20)), np.arange(400) % 2
    X[:, :5] += 0.6 * y[:, None]
    return X, y


def test_units_do_not_matter(weak):
    X, y = weak
    found = sparse_probing(None, X, y, cv=4, random_state=0)
    assert 0.55 < found[1] < found[5] < 0.9
    for scale in (1e-6, 1e6):
        assert sparse_probing(None, scale * X, y, cv=4, random_state=0) == found


def test_selection_sees_the_training_texts_only():
    """With more columns than texts, selection on all texts would look far above chance."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 4000)), np.arange(60) % 2
    assert sparse_probing(None, X, y, k=5, cv=10, random_state=0)[5] < 0.65


def test_splits_and_seeds(weak):
    X, y = weak
    by_seed = [sparse_probing(None, X, y, k=1, random_state=s) for s in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]
    folds = sparse_probing(None, X, y, k=1, cv=4, random_state=0)
    splitter = StratifiedKFold(4)
    assert sparse_probing(None, X, y, k=1, cv=splitter, random_state=0) == folds
    assert sparse_probing(None, X, y, k=1, test_size=0.5, random_state=0) != by_seed[0]


def test_from_texts(tiny_bert, bert_tokenizer):
    extractor = Extractor(tiny_bert, "layer.1", tokenizer=bert_tokenizer)
    for output in ({"sparse_output": True}, {"sparse_output": False}):
        sae = TopKSAE(24, top_k=4, nb_epochs=3, batch_size=64, random_state=0, **output)
        pipe = make_pipeline(extractor, sae).fit(TEXTS)
        found = sparse_probing(pipe, TEXTS, SUBJECTS, random_state=0)
        pooled = ConceptPooler("mean").fit_transform(pipe.transform(TEXTS))
        assert found == sparse_probing(None, pooled, SUBJECTS, random_state=0)
        assert found == sparse_probing(sae, extractor.transform(TEXTS), SUBJECTS, random_state=0)
    baseline = sparse_probing(pipe[:1], TEXTS, SUBJECTS, random_state=0)
    assert baseline != found
    with_frames = make_pipeline(extractor, sae).set_output(transform="pandas").fit(TEXTS)
    assert sparse_probing(with_frames, TEXTS, SUBJECTS, random_state=0) == found


def test_what_probing_refuses(labelled):
    X, y = labelled
    with pytest.raises(ValueError, match=r"k=31 exceeds the 30 columns in sparse_probing. Lower k"):
        sparse_probing(None, X, y, k=(1, 31))
    with pytest.raises(ValueError, match="k of sparse_probing must be ints of at least 1. Got 0"):
        sparse_probing(None, X, y, k=0)
    with pytest.raises(ValueError, match="one class per text: expected 120, got shape"):
        sparse_probing(None, X, y[:7])
    with pytest.raises(ValueError, match="needs texts of at least 2 classes. Got 1"):
        sparse_probing(None, X, np.zeros(120))
    with pytest.raises(ValueError, match="takes test_size or cv, not both"):
        sparse_probing(None, X, y, test_size=0.5, cv=3)
    with pytest.raises(ValueError, match="X of sparse_probing must be finite"):
        sparse_probing(None, X * np.nan, y)
    with pytest.raises(ValueError, match="needs texts in and outside class 'a' on both sides"):
        split = [(np.arange(60), np.flatnonzero(y != "a"))]
        sparse_probing(None, X, y, cv=split)
