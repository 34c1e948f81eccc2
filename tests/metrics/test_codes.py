"""Counts of codes against loops; dense and CSR, with stored zeros."""

import numpy as np
import pytest
import torch
from scipy import sparse

from sksae.metrics import dead_fraction, dense_fraction, density_histogram, firing_density, l0

ALL = [l0, dead_fraction, dense_fraction, firing_density, density_histogram]


@pytest.fixture
def codes():
    rng = np.random.default_rng(0)
    codes = rng.exponential(size=(40, 12)) * (rng.random((40, 12)) < np.linspace(0, 0.9, 12))
    codes[:, 5] = 0
    return codes


def forms(codes):
    stored = sparse.csr_matrix(np.where(codes == 0, 7.0, codes))
    stored.data[stored.data == 7.0] = 0
    assert stored.nnz == codes.size
    twice = sparse.csr_matrix(codes + 0.0)
    data, indices = np.repeat(twice.data, 2) / 2, np.repeat(twice.indices, 2)
    twice = sparse.csr_array((data, indices, 2 * twice.indptr), shape=codes.shape)
    yield from (sparse.csr_matrix(codes), sparse.csr_array(codes), sparse.csc_matrix(codes))
    yield from (codes.astype(np.float32), codes > 0, torch.tensor(codes), stored, twice)


def test_the_written_formulas(codes):
    n, m = codes.shape
    counts = [sum(codes[i, j] != 0 for i in range(n)) for j in range(m)]
    assert l0(codes) == pytest.approx(sum(counts) / n)
    assert dead_fraction(codes) == sum(c == 0 for c in counts) / m
    assert dense_fraction(codes) == sum(c / n > 0.1 for c in counts) / m
    assert dense_fraction(codes, 0.5) == sum(c / n > 0.5 for c in counts) / m
    np.testing.assert_allclose(firing_density(codes), np.array(counts) / n)
    assert firing_density(codes).sum() == pytest.approx(l0(codes))


def test_all_forms_agree(codes):
    for form in forms(codes):
        before = form.copy() if sparse.issparse(form) else None
        for metric in (l0, dead_fraction, dense_fraction):
            assert metric(form) == metric(codes)
        np.testing.assert_array_equal(firing_density(form), firing_density(codes))
        if before is not None:
            assert form.nnz == before.nnz  # not cleaned up behind the caller's back


def test_order_and_scale_do_not_matter(codes):
    shuffled = 1e-30 * codes[:, np.random.default_rng(1).permutation(12)]
    for metric in (l0, dead_fraction, dense_fraction):
        assert metric(shuffled) == metric(codes)


def test_a_threshold_is_exceeded_not_reached():
    codes = np.zeros((30, 2))
    codes[:3, 0] = codes[:4, 1] = 1
    assert dense_fraction(codes, 0.1) == 0.5
    assert dense_fraction(codes, 1) == 0
    with pytest.raises(ValueError, match="threshold of dense_fraction must be between 0 and 1"):
        dense_fraction(codes, 10)


def test_the_histogram_counts_every_concept_once(codes):
    counts, edges, n_dead = density_histogram(codes, bins=7)
    densities = [d for d in firing_density(codes) if d > 0]
    for i, count in enumerate(counts):
        last = i == len(counts) - 1
        inside = [
            edges[i] <= np.log10(d) < edges[i + 1] or (last and np.isclose(d, 1)) for d in densities
        ]
        assert count == sum(inside)
    assert counts.sum() + n_dead == 12
    assert n_dead == 12 * dead_fraction(codes)
    assert (edges[0], edges[-1], len(edges)) == (pytest.approx(np.log10(1 / 40)), 0, 8)


def test_the_histogram_takes_edges_and_keeps_rare_and_full_concepts():
    for n in (1, 3, 7, 10, 49, 1000):
        codes = np.zeros((n, 3))
        codes[0, 0] = codes[:, 1] = 1
        assert density_histogram(codes).counts.sum() == 2
        assert density_histogram(codes).n_dead == 1
    found = density_histogram(codes, bins=[-4, -1, 0])
    assert found.counts.tolist() == [1, 1]


def test_one_row_one_concept():
    assert (l0([[2.0]]), dead_fraction([[0.0]]), dense_fraction([[1.0]])) == (1, 1, 1)
    assert l0(sparse.csr_matrix((3, 4))) == 0
    assert dead_fraction(sparse.csr_matrix((3, 4))) == 1


def test_wide_codes_stay_sparse():
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 16384, size=(20_000, 8))
    data, indptr = np.ones(columns.size, dtype=np.float32), np.arange(20_001) * 8
    codes = sparse.csr_matrix((data, columns.ravel(), indptr), shape=(20_000, 16384))
    distinct = [len(set(row)) for row in columns.tolist()]
    assert l0(codes) == pytest.approx(np.mean(distinct))
    assert dead_fraction(codes) == pytest.approx(1 - len(np.unique(columns)) / 16384)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix])
def test_what_is_refused(metric, make):
    name = metric.__name__
    with pytest.raises(ValueError, match=rf"codes of {name} must be finite"):
        metric(make([[1.0, np.inf]]))
    with pytest.raises(ValueError, match=rf"codes of {name} must have at least one row"):
        metric(make(np.zeros((0, 3))))
    with pytest.raises(ValueError, match=rf"codes of {name} must have two dimensions"):
        metric([1.0, 2.0])
