"""TargetAssociation, against scipy column by column and on planted and null data."""

import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from sksae.interpretation import TargetAssociation
from sksae.metrics import _checks

NOTHING = "ignore:No features were selected:UserWarning"


@pytest.mark.filterwarnings(NOTHING)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([TargetAssociation(), TargetAssociation(k=1), TargetAssociation(alpha=1)])
def test_scikit_learn_check(estimator, check):
    check(estimator)


def codes(n=300, m=40, density=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(n, m)) * (rng.random((n, m)) < density)


def target(kind, n=300, seed=1):
    rng = np.random.default_rng(seed)
    if kind == "continuous":
        return rng.normal(size=n)
    names = np.array(["a", "b", "c", "d"][: 2 if kind == "binary" else 4])
    return names[rng.integers(len(names), size=n)]


def by_scipy(X, y, kind):
    """Give effect and p-value of each column, one at a time."""
    found = []
    for x in X.T:
        if kind == "continuous":
            found.append(tuple(stats.pearsonr(x, y)))
            continue
        groups = [x[y == c] for c in np.unique(y)]
        if kind == "binary":
            first, second = groups
            n0, n1 = len(first), len(second)
            pooled = (n0 - 1) * first.var(ddof=1) + (n1 - 1) * second.var(ddof=1)
            d = (second.mean() - first.mean()) / np.sqrt(pooled / (n0 + n1 - 2))
            found.append((d, stats.ttest_ind(second, first, equal_var=False).pvalue))
        else:
            between = sum(len(g) * (g.mean() - x.mean()) ** 2 for g in groups)
            found.append((between / (len(x) * x.var()), stats.f_oneway(*groups).pvalue))
    return np.array(found).T


@pytest.mark.parametrize("kind", ["binary", "multiclass", "continuous"])
@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csr_array])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_effects_and_p_values_are_scipy_s(kind, convert, shift, monkeypatch):
    monkeypatch.setattr(_checks, "BLOCK_VALUES", 2000)  # several blocks of rows
    X, y = codes(), target(kind)
    X[:, 0] += shift * (X[:, 0] != 0 if convert is not np.asarray else 1)
    effects, pvalues = by_scipy(X, y, kind)
    association = TargetAssociation().fit(convert(X), y)
    assert association.task_ == kind
    np.testing.assert_allclose(association.effects_, effects, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(association.pvalues_, pvalues, rtol=1e-6)
    expected = stats.false_discovery_control(pvalues)
    np.testing.assert_allclose(association.corrected_pvalues_, expected, rtol=1e-6)


def test_bonferroni_and_no_correction():
    X, y = codes(), target("binary")
    plain = TargetAssociation(correction=None).fit(X, y)
    np.testing.assert_array_equal(plain.corrected_pvalues_, plain.pvalues_)
    bonferroni = TargetAssociation(correction="bonferroni").fit(X, y)
    expected = np.minimum(plain.pvalues_ * X.shape[1], 1)
    np.testing.assert_allclose(bonferroni.corrected_pvalues_, expected)


def planted(kind, n=400, m=200):
    """Columns 3 and 7 go with y, column 11 against it (or, of classes, with the first)."""
    X, y = codes(n, m, seed=2), target(kind, n, seed=3)
    if kind == "continuous":
        signal = y
    else:
        signal = 2.0 * (y == np.unique(y)[-1]) - 1
    rng = np.random.default_rng(4)
    for column, sign in ((3, 1), (7, 1), (11, -1)):
        X[:, column] = np.maximum(sign * signal + rng.normal(size=n), 0)
    return X, y


@pytest.mark.parametrize("kind", ["binary", "multiclass", "continuous"])
@pytest.mark.parametrize("correction", ["fdr_bh", "bonferroni"])
def test_planted_associations_are_found_and_validated(kind, correction):
    X, y = planted(kind)
    association = TargetAssociation(
        correction=correction, alpha=0.01, validation_fraction=0.4, random_state=0
    ).fit(sparse.csr_matrix(X), y)
    assert association.get_support(indices=True).tolist() == [3, 7, 11]
    chosen = association.transform(sparse.csr_matrix(X))
    assert sparse.issparse(chosen) and chosen.format == "csr"
    np.testing.assert_array_equal(chosen.toarray(), X[:, [3, 7, 11]])
    table = association.to_frame()
    assert set(table.index[:3]) == {3, 7, 11}
    assert table["validated"].tolist() == [True] * 3 + [False] * 197
    assert table["pvalue"].is_monotonic_increasing
    if kind == "multiclass":
        assert table.loc[[3, 7], "class"].tolist() == ["d", "d"]
        assert (association.effects_ >= 0).all()
    else:
        assert np.sign(association.effects_[[3, 7, 11]]).tolist() == [1, 1, -1]
        assert np.sign(association.validation_effects_[[3, 7, 11]]).tolist() == [1, 1, -1]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "continuous"])
def test_null_data_gives_alpha_before_and_nothing_after_correction(kind):
    X, y = codes(500, 2000, seed=5), target(kind, 500, seed=6)
    association = TargetAssociation().fit(X, y)
    false_positives = np.mean(association.pvalues_ <= 0.05)
    # Three standard errors of 2,000 tests.
    assert abs(false_positives - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert association.get_support().sum() == 0
    with pytest.warns(UserWarning, match="No features were selected"):
        assert association.transform(X).shape == (500, 0)


def test_what_only_the_first_part_shows_is_not_validated():
    X, y = planted("binary")
    splitter = StratifiedShuffleSplit(1, test_size=0.5, random_state=0)
    _, held_out = next(splitter.split(X, y))
    rng = np.random.default_rng(7)
    X[held_out, 3] = rng.exponential(size=len(held_out))  # no association there
    X[held_out, 7] = np.where(y[held_out] == "a", 3, 0) + rng.random(len(held_out))  # the reverse
    association = TargetAssociation(validation_fraction=0.5, random_state=0).fit(X, y)
    assert (association.corrected_pvalues_[[3, 7, 11]] < 1e-6).all()
    assert association.validated_[[3, 7, 11]].tolist() == [False, False, True]
    assert association.validation_pvalues_[7] < 1e-6
    assert association.get_support(indices=True).tolist() == [11]
    best = TargetAssociation(k=3, validation_fraction=0.5, random_state=0).fit(X, y)
    assert best.get_support(indices=True).tolist() == [3, 7, 11]
    one = TargetAssociation(k=1, validation_fraction=0.5, random_state=0).fit(X, y)
    assert one.get_support(indices=True).tolist() == [11]


def test_constant_columns_are_not_tested():
    X, y = codes(60, 12), target("binary", 60)
    padded = np.hstack([X, np.zeros((60, 50)), np.full((60, 1), 0.1)])
    association = TargetAssociation().fit(padded, y)
    alone = TargetAssociation().fit(X, y)
    np.testing.assert_allclose(association.corrected_pvalues_[:12], alone.corrected_pvalues_)
    np.testing.assert_array_equal(association.pvalues_[12:], 1)
    np.testing.assert_array_equal(association.effects_[12:], 0)
    assert not association.get_support()[12:].any()
    dead = TargetAssociation().fit(np.zeros((60, 3)), y)
    assert dead.corrected_pvalues_.tolist() == [1, 1, 1]


def test_constants_that_differ_between_classes():
    y = np.array([0, 0, 0, 1, 1, 1])
    association = TargetAssociation().fit(np.column_stack([0.1 * y, -0.1 * y]), y)
    assert association.effects_.tolist() == [np.inf, -np.inf]
    assert association.pvalues_.tolist() == [0, 0]
    three = TargetAssociation().fit(np.array([[0.0], [0], [1], [1], [2], [2]]), list("aabbcc"))
    assert (three.effects_.tolist(), three.pvalues_.tolist()) == ([1], [0])
    line = TargetAssociation("continuous").fit(np.arange(5.0)[:, None], -np.arange(5.0))
    np.testing.assert_allclose(line.effects_, -1)
    assert line.pvalues_[0] < 1e-12


def test_k_keeps_the_best_significant_or_not():
    X, y = codes(), target("binary")
    association = TargetAssociation(k=4, alpha=0.0).fit(X, y)
    assert set(association.get_support(indices=True)) == set(
        np.argsort(association.pvalues_, kind="stable")[:4]
    )
    with pytest.raises(ValueError) as error:
        TargetAssociation(k=41).fit(X, y)
    assert str(error.value) == "k=41 exceeds n_features=40 in TargetAssociation. Lower k."


def test_table_and_names():
    X, y = planted("binary")
    frame = pd.DataFrame(X[:, [0, 3, 11]], columns=["zero", "three", "eleven"])
    association = TargetAssociation().fit(frame, y)
    table = association.to_frame()
    assert list(table.columns) == [
        *("name", "effect", "mean_difference", "pvalue", "corrected_pvalue", "selected")
    ]
    assert set(table["name"][:2]) == {"three", "eleven"}
    means = frame[y == "b"].mean() - frame[y == "a"].mean()
    np.testing.assert_allclose(table.sort_index()["mean_difference"], means)
    assert set(association.get_feature_names_out()) == {"three", "eleven"}
    plain = TargetAssociation().fit(X[:, [0, 3, 11]], y)
    names = ["0: the", "1: sea", "2: tree"]
    assert plain.to_frame(names).loc[1, "name"] == "1: sea"
    assert list(plain.get_feature_names_out(names)) == ["1: sea", "2: tree"]


def test_in_a_pipeline_that_is_searched():
    X, y = planted("multiclass")
    pipe = make_pipeline(TargetAssociation(k=1), LogisticRegression())
    search = GridSearchCV(pipe, {"targetassociation__k": [1, 3, None]}, cv=3)
    search.fit(sparse.csr_matrix(X), y)
    assert search.best_params_["targetassociation__k"] in (3, None)


def test_repeatable_clone_and_pickle():
    X, y = planted("binary")
    first = TargetAssociation(validation_fraction=0.5, random_state=3).fit(X, y)
    for again in (clone(first).fit(X, y), pickle.loads(pickle.dumps(first))):
        pd.testing.assert_frame_equal(first.to_frame(), again.to_frame())
    other = TargetAssociation(validation_fraction=0.5, random_state=4).fit(X, y)
    assert not np.array_equal(first.pvalues_, other.pvalues_)


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        (
            {"task": "binary"},
            list("abcabc"),
            "task='binary' of TargetAssociation needs 2 classes in y. Got 3 classes.",
        ),
        (
            {},
            list("aaaaaa"),
            "task='binary' of TargetAssociation needs 2 classes in y. Got 1 class.",
        ),
        (
            {"task": "continuous"},
            list("aabbcc"),
            "task='continuous' of TargetAssociation needs numbers in y. "
            "For classes, set task='auto'.",
        ),
        (
            {},
            list("abbbbb"),
            "TargetAssociation needs at least 2 sample(s) of each class, and more samples than "
            "classes. Got {'a': 1, 'b': 5}.",
        ),
        (
            {"validation_fraction": 0.4},
            list("aabbbb"),
            "TargetAssociation needs at least 2 sample(s) of each class, and more samples than "
            "classes. Got {'a': 1, 'b': 2}.",
        ),
        (
            {"task": "continuous"},
            [1, 1, 1, 1, 1, 1],
            "TargetAssociation needs at least 3 samples with different y to correlate. Got "
            "n_samples=6 with 1 value(s) of y.",
        ),
    ],
)
def test_targets_that_cannot_be_tested(options, y, message):
    with pytest.raises(ValueError) as error:
        TargetAssociation(**options).fit(codes(6, 3, 1.0), y)
    assert str(error.value) == message


def test_the_held_out_part_is_named_when_it_is_too_small():
    with pytest.raises(ValueError, match=r"on the held-out part \(validation_fraction=0.25\)\. "):
        TargetAssociation(validation_fraction=0.25).fit(codes(8, 3, 1.0), list("aaaabbbb"))


def test_wide_sparse_codes_stay_sparse():
    rng = np.random.default_rng(0)
    n, m, active = 20_000, 16_384, 32  # dense, they were 2.6 GB
    blocks = np.arange(0, m, m // active)
    indices = rng.integers(m // active, size=(n, active)) + blocks
    indices[::2, 0] = 77
    indices = indices.ravel()
    y = rng.integers(2, size=n)
    data = rng.exponential(size=n * active) + (indices == 77) * np.repeat(y, active)
    X = sparse.csr_matrix((data, indices, np.arange(0, n * active + 1, active)), shape=(n, m))
    tracemalloc.start()
    association = TargetAssociation(alpha=0.001).fit(X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e8
    assert association.get_support(indices=True).tolist() == [77]
