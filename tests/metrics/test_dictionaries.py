"""Dictionaries against themselves, against known features and between seeds."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import sparse

from sksae.metrics import (
    best_matches,
    concept_f1,
    concept_scores,
    dictionary_coherence,
    mcc,
    mean_max_cosine,
    pw_mcc,
    recovered_fraction,
    stability,
    uniqueness,
)

PAIRS = [mean_max_cosine, recovered_fraction, mcc, uniqueness]


@pytest.fixture
def two():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 3)), rng.standard_normal((5, 3))


def cosines(a, b):
    return [[x @ y / np.sqrt((x @ x) * (y @ y)) for y in b] for x in a]


def best_assignment(table, value):
    """Best mean over all one-to-one assignments of the rows, tried one after the other."""
    table = np.array([[value(c) for c in row] for row in table])
    if len(table) > len(table[0]):
        table = table.T
    columns = permutations(range(table.shape[1]), len(table))
    return max(np.mean([table[i, j] for i, j in enumerate(chosen)]) for chosen in columns)


def test_coherence_is_the_written_formula(two):
    _, dictionary = two
    table = np.abs(cosines(dictionary, dictionary))
    others = [[table[i][j] for j in range(5) if j != i] for i in range(5)]
    assert dictionary_coherence(dictionary) == pytest.approx(max(map(max, others)))
    average = np.mean([max(row) for row in others])
    assert dictionary_coherence(dictionary, average=True) == pytest.approx(average)


def test_coherence_in_blocks(monkeypatch):
    dictionary = np.random.default_rng(0).standard_normal((41, 7))
    whole = [dictionary_coherence(dictionary, average=a) for a in (False, True)]
    monkeypatch.setattr("sksae.metrics._checks.BLOCK_VALUES", 41 * 6)
    blocks = [dictionary_coherence(dictionary, average=a) for a in (False, True)]
    np.testing.assert_allclose(blocks, whole)


def test_coherence_at_its_anchors():
    assert dictionary_coherence(np.eye(4)) == 0
    assert dictionary_coherence([[1.0, 2.0]]) == 0
    assert dictionary_coherence([[1.0, 2.0], [-3.0, -6.0], [2.0, -1.0]]) == pytest.approx(1)
    assert dictionary_coherence([[0.0, 0.0], [1.0, 1.0]]) == 0


def test_scores_against_features_are_the_written_formulas(two):
    for components, features in (two, two[::-1]):
        table = np.array(cosines(components, features))
        assert mean_max_cosine(components, features) == pytest.approx(table.max(axis=0).mean())
        for threshold in (0.2, 0.8, 0.95):
            expected = np.mean([max(column) >= threshold for column in table.T])
            assert recovered_fraction(components, features, threshold) == expected
        assert mcc(components, features) == pytest.approx(best_assignment(table, abs))
        nearest = [max(range(len(row)), key=lambda j, r=row: abs(r[j])) for row in table]
        assert best_matches(components, features).tolist() == nearest
        assert uniqueness(components, features) == len(set(nearest)) / len(components)


@pytest.mark.parametrize("metric", PAIRS)
def test_order_and_length_of_rows_do_not_matter(metric, two):
    components, features = two
    scales = np.array([[1e-200], [3.0], [1e200], [0.5]])
    assert metric(components[[2, 0, 3, 1]] * scales, features[::-1]) == pytest.approx(
        metric(components, features)
    )
    assert metric(torch.tensor(components), sparse.csr_matrix(features)) == pytest.approx(
        metric(components, features)
    )


@pytest.mark.parametrize("metric", PAIRS)
def test_the_features_themselves_score_one(metric, two, monkeypatch):
    monkeypatch.setattr("sksae.metrics._checks.BLOCK_VALUES", 5)
    features = two[1]
    assert metric(features[[3, 1, 0, 2, 4]], features) == pytest.approx(1)
    assert type(metric(features, features)) is float


def test_sign_counts_where_it_is_documented(two):
    features = two[1]
    assert mcc(-features, features) == pytest.approx(1)
    assert uniqueness(-features, features) == 1
    assert mean_max_cosine(-features, features) < 1
    assert mean_max_cosine([[-1.0]], [[1.0]]) == -1
    assert recovered_fraction([[-1.0]], [[1.0]]) == 0


def test_a_cosine_at_the_threshold_recovers():
    assert recovered_fraction([[0.6, 0.8]], [[0.0, 3.0]], threshold=0.8) == 1
    with pytest.raises(ValueError, match="threshold of recovered_fraction must be between -1"):
        recovered_fraction([[1.0]], [[1.0]], threshold=80)


@pytest.mark.parametrize("metric", [*PAIRS, best_matches])
def test_what_the_scores_refuse(metric):
    name = metric.__name__
    with pytest.raises(ValueError, match=rf"components and features of {name} must have as many"):
        metric(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=rf"features of {name} must be finite"):
        metric(np.ones((2, 3)), np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match=rf"components of {name} must have two dimensions"):
        metric(np.ones(3), np.ones((2, 3)))


def test_concept_scores_are_the_written_formulas(monkeypatch):
    rng = np.random.default_rng(0)
    codes = rng.random((50, 6)) * (rng.random((50, 6)) < 0.3)
    truth = rng.random((50, 4)) * (rng.random((50, 4)) < 0.4)
    codes[:, 2], truth[:, 3] = 0, 0
    match = np.array([0, 1, 1, 3, 2, 0])
    expected = {"precision": [], "recall": [], "f1": []}
    for j in range(6):
        fires, there = codes[:, j] != 0, truth[:, match[j]] != 0
        tp, fp, fn = (fires & there).sum(), (fires & ~there).sum(), (~fires & there).sum()
        precision = tp / (tp + fp) if tp + fp else 0
        recall = tp / (tp + fn) if tp + fn else 0
        total = precision + recall
        expected["precision"].append(precision)
        expected["recall"].append(recall)
        expected["f1"].append(2 * precision * recall / total if total else 0)
    stored_zeros = sparse.csr_matrix(np.where(codes == 0, 9.0, codes))
    stored_zeros.data[stored_zeros.data == 9.0] = 0
    for block in (2**22, 18):
        monkeypatch.setattr("sksae.metrics._checks.BLOCK_VALUES", block)
        for c in (codes, sparse.csr_matrix(codes), stored_zeros):
            for t in (truth, sparse.csr_array(truth)):
                found = concept_scores(c, t, match=match)
                for name, values in expected.items():
                    np.testing.assert_allclose(found[name], values)
                assert concept_f1(c, t, match=match) == pytest.approx(np.mean(expected["f1"]))


def test_true_codes_score_one(planted):
    X, features, codes = planted
    match = best_matches(features, features)
    assert concept_f1(codes, codes, match=match) == 1
    assert concept_f1(-codes, 3 * codes, match=match.tolist()) == 1


@pytest.mark.parametrize("match", [[0], [0, 3], [0, -1], [0.0, 1.0], [[0, 1]]])
def test_a_match_is_one_feature_a_concept(match):
    message = r"match of concept_f1 must hold the index of a true feature, from 0 to 2, for each"
    with pytest.raises(ValueError, match=message):
        concept_f1(np.ones((5, 2)), np.ones((5, 3)), match=match)


def test_codes_and_activations_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="must have one row per sample both: codes has shape"):
        concept_scores(np.ones((5, 2)), np.ones((4, 3)), match=[0, 1])


def test_agreement_of_seeds_is_the_written_formula(two):
    rng = np.random.default_rng(1)
    three = [rng.standard_normal((4, 3)) for _ in range(3)]
    tables = [cosines(three[i], three[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert pw_mcc(three) == pytest.approx(np.mean([best_assignment(t, abs) for t in tables]))
    signed = np.mean([best_assignment(t, float) for t in tables])
    assert stability(three) == pytest.approx(signed)
    assert stability(three) <= pw_mcc(three)
    assert pw_mcc(two) == pytest.approx(mcc(*two))


def test_agreement_ignores_order_length_and_in_one_case_sign(two):
    a = two[1]
    for metric in (pw_mcc, stability):
        assert metric([a, 3 * a[::-1], a]) == pytest.approx(1)
        assert metric(iter([a, a])) == pytest.approx(1)
    flipped = a * np.array([[1], [-1], [1], [1], [1]])
    assert pw_mcc([a, flipped]) == pytest.approx(1)
    assert stability([a, flipped]) < 1


@pytest.mark.parametrize("metric", [pw_mcc, stability])
def test_what_agreement_refuses(metric):
    with pytest.raises(ValueError, match=f"{metric.__name__} compares dictionaries, so it needs"):
        metric([np.eye(2)])
    with pytest.raises(ValueError, match=r"dictionaries\[0\] has shape \(2, 2\)"):
        metric([np.eye(2), np.eye(2), np.eye(3)])
    with pytest.raises(ValueError, match=r"dictionaries\[1\] of \w+ must be finite"):
        metric([np.eye(2), np.full((2, 2), np.nan)])
