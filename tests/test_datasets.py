import numpy as np
import pytest
import torch
from scipy import sparse

from sksae.datasets import (
    make_activations,
    make_korznikov,
    make_oneill,
    make_saelens_toy,
    make_sharkey,
    make_synth_bench,
)
from sksae.datasets._orthogonal import _gradient


def test_activations_are_sums_of_their_concepts():
    X, dictionary, codes = make_activations(
        50, 8, 20, n_active=3, offset=np.arange(8), return_codes=True, random_state=0
    )
    np.testing.assert_allclose(X, codes @ dictionary + np.arange(8), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(dictionary, axis=1), 1, rtol=1e-5)
    assert (np.count_nonzero(codes, axis=1) == 3).all()
    assert 0.5 <= codes[codes > 0].min() < codes.max() <= 1.5
    assert X.dtype == dictionary.dtype == codes.dtype == np.float32


def test_noise_and_seeds():
    clean, noisy = (make_activations(2000, 8, noise=s, random_state=0)[0] for s in (0, 0.1))
    assert (noisy - clean).std() == pytest.approx(0.1, rel=0.05)
    np.testing.assert_array_equal(noisy, make_activations(2000, 8, noise=0.1, random_state=0)[0])


def test_every_concept_active():
    codes = make_activations(5, 4, 3, n_active=3, return_codes=True)[2]
    assert (codes > 0).all()


def test_more_active_than_there_are():
    with pytest.raises(ValueError, match="n_active=5 must be between 1 and nb_concepts=3. Lower"):
        make_activations(nb_concepts=3, n_active=5)


SUITES = {
    "korznikov": (make_korznikov, {"n_features": 20, "nb_concepts": 200, "n_active": 5}),
    "variable": (make_korznikov, {"n_features": 20, "nb_concepts": 200, "law": "variable"}),
    "synth_bench": (make_synth_bench, {"n_features": 16, "nb_concepts": 200, "n_trees": 2}),
    "sharkey": (make_sharkey, {"n_features": 20, "nb_concepts": 200}),
    "correlated": (make_sharkey, {"n_features": 20, "nb_concepts": 200, "correlated": True}),
    "oneill": (make_oneill, {}),
    "saelens": (make_saelens_toy, {}),
}


@pytest.mark.parametrize("name", SUITES)
def test_suites_keep_the_contract(name):
    make, sizes = SUITES[name]
    X, dictionary, p, codes = make(300, return_codes=True, random_state=0, **sizes)
    source = make(None, random_state=0, **sizes)
    assert X.dtype == dictionary.dtype == codes.dtype == np.float32
    assert isinstance(codes, sparse.csr_matrix) and codes.has_canonical_format
    assert codes.nnz == np.count_nonzero(codes.data)
    assert p.shape == (len(dictionary),) and ((p > 0) & (p <= 1)).all()
    np.testing.assert_allclose(np.linalg.norm(dictionary, axis=1), 1, rtol=1e-5)
    expected = codes.astype(np.float64) @ dictionary.astype(np.float64) + source.bias
    np.testing.assert_allclose(X, expected, rtol=1e-3, atol=1e-4)
    # A seed gives the same rows, whatever is asked for beside them; the source gives others next.
    np.testing.assert_array_equal(make(300, random_state=0, **sizes)[0], X)
    np.testing.assert_array_equal(source.sample(300), X)
    assert not np.array_equal(source.sample(300), X)
    assert not np.array_equal(make(300, random_state=1, **sizes)[0], X)


@pytest.mark.parametrize("name", SUITES)
def test_features_are_as_frequent_as_told(name):
    make, sizes = SUITES[name]
    more = {"correlation_scale": 0} if name == "synth_bench" else {}
    n = 40_000
    _, _, p, codes = make(n, return_codes=True, random_state=0, **sizes, **more)
    frequent = p * n > 20
    z = (np.diff(codes.tocsc().indptr) - p * n)[frequent] / np.sqrt(n * p * (1 - p))[frequent]
    assert abs(z).max() < 4.5
    assert 0.5 < (z**2).mean() < 1.5


def test_rows_in_chunks_and_as_tensor():
    source = make_korznikov(None, n_features=4, nb_concepts=2**19, n_active=2, random_state=0)
    assert [len(X) for X in source.chunks(7, chunk_size=3)] == [3, 3, 1]
    X = source.tensor(5)
    assert X.shape == (5, 4) and X.dtype is torch.float32


def test_laws_of_korznikov():
    _, _, p, codes = make_korznikov(
        20_000, n_features=10, nb_concepts=100, n_active=8, return_codes=True, random_state=0
    )
    assert set(p) == {0.08}
    logarithms = np.log(codes.data)
    assert logarithms.mean() == pytest.approx(0, abs=0.005)
    assert logarithms.std() == pytest.approx(0.25, rel=0.02)
    together = codes[:, 0].multiply(codes[:, 1]).count_nonzero() / 20_000
    assert together == pytest.approx(0.08**2, abs=0.003)
    p = make_korznikov(1, nb_concepts=20_000, law="variable", random_state=0)[2]
    exponents = np.sort((np.log10(p) + 5.5) / 4.3)
    assert abs(exponents - (np.arange(20_000) + 0.5) / 20_000).max() < 0.015  # Kolmogorov-Smirnov


def test_directions_are_uniform():
    dictionary = make_korznikov(1, n_features=50, nb_concepts=2000, random_state=0)[1]
    squared = (dictionary @ dictionary.T)[np.triu_indices(2000, 1)] ** 2
    assert squared.mean() == pytest.approx(1 / 50, rel=0.02)
    assert np.linalg.norm(dictionary.mean(axis=0)) < 0.05


def test_sharkey():
    p = make_sharkey(1, random_state=0)[2]
    np.testing.assert_allclose(p, 0.99 ** np.arange(512) * 5 / 512)
    sizes = {"n_features": 10, "nb_concepts": 20, "decay": 1.0, "return_codes": True}
    codes = make_sharkey(40_000, n_active=5, random_state=0, **sizes)[3]
    assert codes.data.mean() == pytest.approx(0.5, abs=0.01) and codes.data.max() < 1
    assert codes.nnz / 40_000 == pytest.approx(5, rel=0.02)
    apart, tied = (
        np.corrcoef(
            (make_sharkey(40_000, random_state=0, correlated=c, **sizes)[3] > 0).toarray().T
        )
        for c in (False, True)
    )
    pairs = np.triu_indices(20, 1)
    assert abs(apart[pairs]).max() < 0.025 < tied[pairs].mean()


def test_sharkey_with_probabilities_cut_at_one():
    p = make_sharkey(1, n_features=4, nb_concepts=4, n_active=4, correlated=True, decay=1.0)[2]
    np.testing.assert_allclose(p, 0.75)  # the mean of min(1, 2 U)


def test_oneill():
    _, _, p, codes = make_oneill(5000, return_codes=True, random_state=0)
    assert (np.diff(codes.indptr) == 3).all() and set(p) == {3 / 16}
    assert codes.data.mean() == pytest.approx(np.sqrt(2 / np.pi), rel=0.02)


def test_saelens_toy_is_orthogonal():
    _, dictionary, _, codes = make_saelens_toy(100, return_codes=True, random_state=0)
    np.testing.assert_allclose(dictionary @ dictionary.T, np.eye(16), atol=0.01)
    assert set(codes.data) == {1.0}


@pytest.fixture(scope="module")
def world():
    source = make_synth_bench(None, n_features=32, nb_concepts=200, n_trees=2, random_state=0)
    return source, source.sample(40_000, return_codes=True)[1].toarray()


def family(parent):
    """Children, of two trees with four children each: 0 and 1, then 2 to 9, 10 to 41, ..."""
    start, n = 0, 2
    while parent >= start + n:
        start, n = start + n, 4 * n
    first = start + n + 4 * (parent - start)
    return slice(first, first + 4)


def test_children_need_parents_and_bear_no_siblings(world):
    codes = world[1] > 0
    assert family(0) == slice(2, 6) and family(2) == slice(10, 14) and family(9).stop == 42
    for parent in range(42):
        n_children = codes[:, family(parent)].sum(axis=1)
        assert n_children.max() == 1
        assert not (n_children > codes[:, parent]).any()
    assert (codes[:, 170:].sum(axis=1) > 1).any()  # outside of the trees nothing is excluded


def test_children_are_scaled_by_their_parent(world):
    codes = world[1]
    for parent in (0, 1, 2):
        for child in range(family(parent).start, family(parent).stop):
            rows = codes[:, child] > 0
            expected = np.corrcoef(codes[rows, parent], codes[rows, child])[0, 1]
            assert rows.sum() < 500 or expected > 0.1
    root = codes[codes[:, 0] > 0, 0]
    assert root.mean() == pytest.approx(5, rel=0.02)
    last = codes[codes[:, -1] > 0, -1]
    assert len(last) < 500 or last.mean() == pytest.approx(4, rel=0.05)


def test_correlations_of_the_world():
    sizes = {"n_features": 4, "nb_concepts": 40, "n_trees": 0, "p_min": 0.2, "p_max": 0.3}
    pairs = np.triu_indices(40, 1)
    strong, none = (
        np.corrcoef(
            (make_synth_bench(40_000, correlation_rank=2, correlation_scale=scale,
                              return_codes=True, random_state=0, **sizes)[3] > 0).toarray().T
        )[pairs]
        for scale in (0.5, 0)
    )  # fmt: skip
    assert abs(none).max() < 0.025
    assert strong.max() > 0.3 and strong.min() < -0.1


def test_frequencies_follow_zipf():
    p = make_synth_bench(1, n_trees=0, orthogonal_steps=0, std_strength=1e-3)[2]
    assert p[0] == pytest.approx(0.4) and p[-1] == pytest.approx(5e-4)
    raw = np.arange(1, 1025) ** -0.5
    np.testing.assert_allclose(np.corrcoef(p, raw)[0, 1], 1, rtol=1e-9)


def test_full_world_is_the_published_one():
    """The paper tells 34 active features, 25 of them among the first 4,096."""
    p = make_synth_bench(
        1, n_features=8, nb_concepts=16384, n_trees=128, orthogonal_steps=0, random_state=0
    )[2]
    assert p.sum() == pytest.approx(34.5, abs=0.5)
    assert p[:4096].sum() == pytest.approx(25, abs=0.5)


def test_directions_are_pushed_apart():
    def overlap(steps):
        dictionary = make_synth_bench(1, n_features=64, nb_concepts=200, n_trees=0, random_state=0,
                                      orthogonal_steps=steps)[1]  # fmt: skip
        return ((dictionary @ dictionary.T) ** 2).sum()

    assert overlap(100) < 0.97 * overlap(0)


def test_gradient_of_the_overlap_is_that_of_the_formula():
    vectors = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gram = vectors @ vectors.T
    diagonal = gram.diagonal()
    loss = (gram - torch.diag(diagonal)).square().sum() + 7 * (diagonal - 1).square().sum()
    (expected,) = torch.autograd.grad(loss, vectors)
    torch.testing.assert_close(_gradient(vectors.detach()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "wrong", "sentence"),
    [
        (make_korznikov, {"n_samples": 0}, "The 'n_samples' parameter of make_korznikov must be an "
         "int of 1 or more. Got 0."),
        (make_korznikov, {"law": "zipf"}, r"'law' parameter of make_korznikov must be one of "
         r"\('constant', 'variable'\). Got 'zipf'."),
        (make_korznikov, {"nb_concepts": 4, "n_active": 5}, "'n_active' parameter of "
         "make_korznikov must be a number from 0 to 4. Got 5."),
        (make_oneill, {"n_active": 17}, "n_active=17 of make_oneill exceeds nb_concepts=16. Lower "
         "n_active or raise nb_concepts."),
        (make_saelens_toy, {"probability": 2}, "'probability' .* a number from 0 to 1. Got 2."),
        (make_sharkey, {"decay": "x"}, "'decay' .* must be a number from 0 to 1. Got 'x'."),
        (make_synth_bench, {"n_trees": 13}, "n_trees=13 of branching=4 and depth=3 hold 1105 "
         "features in make_synth_bench, but nb_concepts is 1024. Lower one of the three"),
        (make_synth_bench, {"bias": -1}, "'bias' .* must be a number of 0 or more. Got -1."),
    ],
)  # fmt: skip
def test_bad_sizes_are_refused(make, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**wrong)
