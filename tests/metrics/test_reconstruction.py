"""Reconstruction metrics against loops in float64."""

import math

import numpy as np
import pytest
import torch
from scipy import sparse

from sksae.metrics import (
    explained_variance,
    fvu,
    mean_cosine,
    normalized_mse,
    relative_reconstruction_bias,
)

ALL = [explained_variance, fvu, normalized_mse, mean_cosine, relative_reconstruction_bias]


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 4)) * [1, 5, 0.1, 2] + [3, 0, -2, 0]
    return X, 0.8 * X + 0.3 * rng.standard_normal(X.shape)


def by_loops(X, X_hat):
    n, d = X.shape
    means = [sum(X[i, j] for i in range(n)) / n for j in range(d)]
    entries = [(i, j) for i in range(n) for j in range(d)]
    sse = sum((X[i, j] - X_hat[i, j]) ** 2 for i, j in entries)
    sst = sum((X[i, j] - means[j]) ** 2 for i, j in entries)
    dots = [sum(X[i, j] * X_hat[i, j] for j in range(d)) for i in range(n)]
    squares = [sum(X[i, j] ** 2 for j in range(d)) for i in range(n)]
    squares_hat = [sum(X_hat[i, j] ** 2 for j in range(d)) for i in range(n)]
    cosines = [a / math.sqrt(b * c) for a, b, c in zip(dots, squares, squares_hat, strict=True)]
    return {
        explained_variance: 1 - sse / sst,
        fvu: sse / sst,
        normalized_mse: sse / sum(squares),
        mean_cosine: sum(cosines) / n,
        relative_reconstruction_bias: sum(squares_hat) / sum(dots),
    }


@pytest.mark.parametrize("metric", ALL)
def test_the_written_formula(metric, pair):
    X, X_hat = pair
    expected = by_loops(X, X_hat)[metric]
    csr = [make(X) for make in (sparse.csr_matrix, sparse.csr_array, sparse.coo_array)]
    for form in (X, *csr, X.tolist(), torch.tensor(X, requires_grad=True)):
        value = metric(form, X_hat)
        assert type(value) is float
        assert value == pytest.approx(expected, rel=1e-12)
    assert metric(X, sparse.csr_matrix(X_hat)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_blocks_add_up(metric, pair, monkeypatch):
    monkeypatch.setattr("sksae.metrics._checks.BLOCK_VALUES", 12)
    assert metric(*pair) == pytest.approx(by_loops(*pair)[metric], rel=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_order_and_units_do_not_matter(metric, pair):
    X, X_hat = pair
    rows, columns = np.random.default_rng(1).permutation(30), [2, 0, 3, 1]
    for scale in (1e-3, 1e6):
        shuffled = [scale * M[rows][:, columns] for M in pair]
        assert metric(*shuffled) == pytest.approx(metric(X, X_hat), rel=1e-9)


def test_float32_is_summed_in_float64():
    X = (1000 + np.random.default_rng(0).standard_normal((5000, 2))).astype(np.float32)
    noise = np.float32(0.5) * np.random.default_rng(1).standard_normal(X.shape).astype(np.float32)
    expected = by_loops(X.astype(float), (X + noise).astype(float))[fvu]
    assert fvu(X, X + noise) == pytest.approx(expected, rel=1e-10)


def test_half_precision_tensors_are_read():
    X = torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=torch.bfloat16)
    assert explained_variance(X, X) == 1


@pytest.mark.parametrize("metric", ALL)
def test_anchors(metric, pair):
    X, _ = pair
    mean, zeros = np.tile(X.mean(axis=0), (30, 1)), np.zeros_like(X)
    perfect, of_mean, of_zeros = {
        explained_variance: (1, 0, None),
        fvu: (0, 1, None),
        normalized_mse: (0, None, 1),
        mean_cosine: (1, None, 0),
        relative_reconstruction_bias: (1, 1, 0),
    }[metric]
    assert metric(X, X) == pytest.approx(perfect, abs=1e-12)
    if of_mean is not None:
        assert metric(X, mean) == pytest.approx(of_mean, abs=1e-12)
    if of_zeros is not None:
        assert metric(X, zeros) == of_zeros


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.25])
def test_the_bias_is_the_factor_of_shrinkage(factor, pair):
    X, _ = pair
    assert relative_reconstruction_bias(X, factor * X) == pytest.approx(factor)
    assert mean_cosine(X, factor * X) == pytest.approx(1)
    assert relative_reconstruction_bias(X, -X) == pytest.approx(-1)


def test_what_has_no_direction_or_variance():
    ones, zeros = np.ones((3, 2)), np.zeros((3, 2))
    assert (explained_variance(ones, ones), explained_variance(ones, zeros)) == (1, 0)
    assert (fvu(ones, ones), fvu(ones, zeros)) == (0, 1)
    assert (normalized_mse(zeros, zeros), normalized_mse(zeros, ones)) == (0, math.inf)
    assert (mean_cosine(zeros, zeros), mean_cosine(zeros, ones)) == (1, 0)
    assert relative_reconstruction_bias([[1.0, 0.0]], [[0.0, 1.0]]) == math.inf


def test_cosines_of_tiny_and_huge_rows():
    for scale in (1e-200, 1e150):
        assert mean_cosine([[scale, scale]], [[scale, 0.0]]) == pytest.approx(math.sqrt(0.5))


def test_one_row_and_one_column():
    assert fvu([[2.0]], [[2.0]]) == 0
    assert normalized_mse([[2.0]], [[1.0]]) == 0.25
    assert mean_cosine([[2.0]], [[-1.0]]) == -1


@pytest.mark.parametrize("metric", ALL)
def test_what_is_refused(metric):
    name, X = metric.__name__, np.ones((3, 2))
    with pytest.raises(ValueError, match=rf"{name} must have the same shape: X has shape \(3, 2\)"):
        metric(X, X[:2])
    with pytest.raises(ValueError, match=rf"X_hat of {name} must be finite, but 1 of 6 values"):
        metric(X, [[1.0, np.nan], [1, 1], [1, 1]])
    with pytest.raises(ValueError, match=rf"X of {name} must have two dimensions"):
        metric(X[0], X[0])
    with pytest.raises(ValueError, match=rf"X of {name} must have at least one row"):
        metric(X[:0], X[:0])
    with pytest.raises(TypeError, match=rf"X of {name} must hold real numbers. Got dtype <U1"):
        metric([["a", "b"]], [["a", "b"]])


def test_a_large_finite_sum_is_no_nan():
    X = np.full((3, 2), np.finfo(np.float64).max)
    X[0] = 0
    with np.errstate(over="ignore"):
        assert fvu(X / 1e200, X / 1e200) == 0
    with pytest.raises(ValueError, match="1 of 6 values are NaN or infinite"):
        fvu(np.where([[True, False]] + [[False] * 2] * 2, np.inf, 1.0), X)
