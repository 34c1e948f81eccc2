"""Metrics against sums written out, dense and CSR."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import r2_score

from sksae.metrics import dead_fraction, explained_variance, l0


@pytest.fixture
def X():
    return np.random.default_rng(0).standard_normal((20, 3)) * [1, 5, 0.1] + [3, 0, -2]


def test_explained_variance_is_the_written_formula(X):
    X_hat = X + 0.1
    expected = 1 - ((X - X_hat) ** 2).sum() / ((X - X.mean(0)) ** 2).sum()
    assert explained_variance(X, X_hat) == pytest.approx(expected)
    assert explained_variance(X, X_hat) == pytest.approx(
        r2_score(X, X_hat, multioutput="variance_weighted")
    )
    assert explained_variance(sparse.csr_matrix(X), X_hat) == pytest.approx(expected)


def test_explained_variance_at_its_anchors(X):
    assert explained_variance(X, X) == 1
    assert explained_variance(X, np.tile(X.mean(0), (20, 1))) == pytest.approx(0)
    constant = np.ones((4, 2))
    assert explained_variance(constant, constant) == 1
    assert explained_variance(constant, constant + 1) == 0


def test_explained_variance_refuses_another_shape(X):
    with pytest.raises(ValueError, match=r"X has shape \(20, 3\) but X_hat has \(3, 3\)"):
        explained_variance(X, X[:3])


def test_counts_agree_between_dense_and_csr():
    codes = np.array([[1.0, 0.0, 0.0], [2.0, -1.0, 0.0]])
    stored_zero = sparse.csr_matrix(codes)
    stored_zero.data[0] = 0
    for form in (codes, sparse.csr_matrix(codes), sparse.csr_array(codes)):
        assert l0(form) == 1.5
        assert dead_fraction(form) == pytest.approx(1 / 3)
    assert l0(stored_zero) == 1.0
