"""interpreto's metric names, against the formulas of their docstrings."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksae import ConceptPooler, Extractor, TopKSAE
from sksae.metrics import (
    FID,
    MSE,
    ConceptMatchingAlgorithm,
    Sparsity,
    SparsityRatio,
    Stability,
    l0,
    stability,
)


@pytest.fixture(scope="module")
def X_hat(sae, X):
    return sae.inverse_transform(sae.transform(X)).astype(float)


def test_mse_is_a_mean_of_squares(sae, X, X_hat):
    expected = ((X - X_hat) ** 2).mean()
    assert MSE(sae).compute(X) == pytest.approx(expected)
    frobenius = np.linalg.norm(X - X_hat)
    assert frobenius == pytest.approx(np.sqrt(X.size * MSE(sae).compute(X)))
    assert MSE(sae).compute(np.tile(X, (2, 1))) == pytest.approx(expected)


def test_fid_is_a_mean_of_wasserstein_distances(sae, X, X_hat):
    expected = np.mean([wasserstein_distance(X[:, j], X_hat[:, j]) for j in range(X.shape[1])])
    assert FID(sae).compute(X) == pytest.approx(expected)
    assert FID(sae).compute(X[::-1].copy()) == pytest.approx(expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1e9])
def test_sparsity_and_its_ratio(sae, X, epsilon):
    active = np.abs(sae.transform(X).toarray()) > epsilon
    in_use = active.any(axis=0).sum()
    assert Sparsity(sae, epsilon=epsilon).compute(X) == active.mean()
    ratio = active.sum() / (len(X) * in_use) if in_use else 0
    assert SparsityRatio(sae, epsilon=epsilon).compute(X) == pytest.approx(ratio)


def test_sparsity_is_l0_and_dead_concepts_change_the_ratio(sae, X):
    assert Sparsity(sae).compute(X) == pytest.approx(l0(sae.transform(X)) / 24)
    some = X[:3]
    assert SparsityRatio(sae).compute(some) > Sparsity(sae).compute(some)
    for cls in (Sparsity, SparsityRatio):
        with pytest.raises(ValueError, match="epsilon of Sparsity.* must be at least 0. Got -1"):
            cls(sae, epsilon=-1).compute(X)


def test_dense_codes_give_the_same(sae, X):
    dense = TopKSAE(**(sae.get_params() | {"sparse_output": False})).fit(X)
    for cls in (MSE, FID, Sparsity, SparsityRatio):
        assert cls(dense).compute(X) == pytest.approx(cls(sae).compute(X))


def test_stability_mixes_kinds_and_counts_signs(sae, X):
    other = TopKSAE(**(sae.get_params() | {"random_state": 1})).fit(X)
    pipe = make_pipeline(StandardScaler(), other)
    expected = stability([sae.components_, other.components_])
    for kind in (other, other.components_, other.get_dictionary(), pipe):
        assert Stability(sae, kind).compute() == pytest.approx(expected)
    assert Stability(sae).compute() == pytest.approx(1)
    assert Stability(sae, sae.components_[::-1]).compute() == pytest.approx(1)
    three = [sae, other, sae.components_[::-1]]
    assert Stability(*three).compute() == pytest.approx((1 + 2 * expected) / 3)
    assert Stability([[1.0]], [[-1.0]]).compute() == -1


@pytest.mark.parametrize("name", [ConceptMatchingAlgorithm.COSINE_MAXIMUM, "cosine_maximum"])
def test_matching_by_the_maximum_may_share_concepts(name):
    a, b = np.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = (1 + np.sqrt(0.5)) / 2
    assert Stability(a, b, matching_algorithm=name).compute() == pytest.approx(expected)


def test_what_stability_refuses():
    with pytest.raises(ValueError, match="Stability needs at least one fitted SAE"):
        Stability()
    with pytest.raises(ValueError, match="dictionary 0 has 2, dictionary 1 has 3"):
        Stability(np.eye(2), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"Dictionary 0 has shape \(2, 2\)"):
        Stability(np.eye(2), np.eye(3))
    with pytest.raises(ValueError, match="'cosine' is not a valid ConceptMatchingAlgorithm"):
        Stability(np.eye(2), matching_algorithm="cosine")


def test_pipelines_from_texts(tiny_bert, bert_tokenizer):
    texts = [f"the sea is {colour} and {kind}" for colour in "abc" for kind in ("still", "wild")]
    extractor = Extractor(tiny_bert, "layer.1", tokenizer=bert_tokenizer)
    sae = TopKSAE(16, top_k=4, nb_epochs=3, batch_size=32, random_state=0)
    pipe = make_pipeline(extractor, sae, ConceptPooler()).fit(texts)
    acts = extractor.transform(texts)
    for cls in (MSE, FID, Sparsity, SparsityRatio):
        assert cls(pipe).compute(texts) == cls(sae).compute(acts)
    with pytest.raises(ValueError, match="MSE needs an SAE, or a pipeline that holds exactly one"):
        MSE(pipe[:1]).compute(texts)
