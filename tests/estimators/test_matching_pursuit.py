"""What MatchingPursuitSAE promises beyond the shared contract."""

import re

import numpy as np
import pytest

from sksae import MatchingPursuitSAE
from sksae.datasets import make_activations

QUICK = {"nb_epochs": 3, "batch_size": 128, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    """2,000 rows of 16 features, 4 of 32 planted concepts active in each."""
    return make_activations(2000, 16, 32, n_active=4, noise=0.05, offset=1.0, random_state=0)[0]


def test_codes_are_matching_pursuit_on_the_public_dictionary(rows):
    X = 7 * rows.astype(np.float64) + 3
    sae = MatchingPursuitSAE(32, top_k=5, **QUICK).fit(X)
    residual, codes = X - sae.decoder_bias_, np.zeros((len(X), 32))
    for _ in range(5):
        products = residual @ sae.components_.T
        best = products.argmax(axis=1)
        values = products[range(len(X)), best].clip(min=0)
        codes[range(len(X)), best] += values
        residual -= values[:, None] * sae.components_[best]
    np.testing.assert_allclose(sae.transform(X).toarray(), codes, atol=1e-5)
    np.testing.assert_allclose(X - sae.inverse_transform(codes), residual, atol=1e-5)
    assert sae.transform(X).getnnz(axis=1).max() <= 5


def test_each_step_explains_more(rows):
    sae = MatchingPursuitSAE(32, top_k=8, **QUICK).fit(rows)
    scores = []
    for k in (1, 2, 4, 8):
        sae.module_.k = k
        scores.append(sae.score(rows))
    assert (np.diff(scores) > 0.01).all()


def test_a_fit_goes_on_with_more_steps(rows):
    sae = MatchingPursuitSAE(32, top_k=2, warm_start=True, **QUICK).fit(rows)
    sae.set_params(top_k=4).fit(rows)
    assert sae.transform(rows).getnnz(axis=1).max() == 4


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_the_backend_is_named(backend, rows):
    sae = MatchingPursuitSAE(512, top_k=3, device="cpu", backend=backend, **QUICK).fit(rows)
    assert sae.backend_ == (
        "reference (plain torch on cpu: matching pursuit chooses codes one after the other)"
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"encoder_module": "linear"},
            "encoder_module='linear' has nothing to act on in MatchingPursuitSAE: it has no "
            "encoder: its codes come from the dictionary by matching pursuit. Leave encoder_module "
            "at its default, None.",
        ),
        ({"encoder_init_norm": 1.0}, "Leave encoder_init_norm at its default, 0.3."),
        (
            {"dictionary_params": {"normalization": "l1", "initializer": None}},
            "'dictionary_params' can hold an 'initializer' only. Got ['normalization'] too; leave",
        ),
        ({"dictionary_params": {"use_multiplier": True}}, "Got ['use_multiplier'] too"),
        ({"top_k": 64}, "top_k=64 exceeds nb_concepts=32 in MatchingPursuitSAE. Lower top_k or"),
    ],
)
def test_wrong_parameters(params, message, rows):
    with pytest.raises(ValueError, match=re.escape(message)):
        MatchingPursuitSAE(32, **params).fit(rows)


def test_an_initializer_is_where_it_starts(rows):
    start = np.random.RandomState(0).randn(32, 16)
    params = {"dictionary_params": {"initializer": start}, "lr": 1e-12}
    sae = MatchingPursuitSAE(32, top_k=2, **QUICK, **params).fit(rows)
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    np.testing.assert_allclose(sae.components_, start, atol=1e-6)
