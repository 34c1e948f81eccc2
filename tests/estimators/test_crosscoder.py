"""What Crosscoder promises: concepts of one layer told from shared ones, in any units."""

import itertools
import pickle
import re

import numpy as np
import pytest
import torch

from sksae import BatchTopKSAE, Crosscoder, Extractor, fit_many
from sksae.activations._rows import RowsCSRMatrix
from sksae.datasets import make_activations
from sksae.metrics import explained_variance

QUICK = {"nb_epochs": 2, "batch_size": 100, "random_state": 0}
SHARED, FIRST, SECOND = slice(0, 16), slice(16, 28), slice(28, 40)


def raises(message, error=ValueError):
    return pytest.raises(error, match=re.escape(message))


def make(**params):
    return Crosscoder(**({"nb_concepts": 24, "top_k": 3, "n_layers": 2} | QUICK | params))


@pytest.fixture(scope="module")
def planted():
    """Two layers of 20 features: 16 shared concepts, 12 of each layer alone; one 100 times long."""
    rng = np.random.default_rng(0)
    codes = make_activations(8000, 4, 40, n_active=3, return_codes=True, random_state=0)[2]
    layers = [rng.standard_normal((40, 20)) for _ in range(2)]
    layers = [d / np.linalg.norm(d, axis=1, keepdims=True) for d in layers]
    layers[0][SECOND] = 0
    layers[1][FIRST] = 0
    X = np.hstack([codes @ layers[0] + 1, 100 * (codes @ layers[1]) - 50])
    whole = np.hstack(layers)
    return X.astype(np.float32), whole / np.linalg.norm(whole, axis=1, keepdims=True), codes


@pytest.fixture(scope="module")
def learnt(planted):
    params = {"nb_epochs": 15, "batch_size": 200, "random_state": 0}
    return Crosscoder(40, n_layers=2, top_k=3, **params).fit(planted[0][:6000])


@pytest.fixture(scope="module")
def X(planted):
    return planted[0][:500]


def test_layer_norms_tell_shared_concepts_from_those_of_one_layer(planted, learnt):
    X, whole, codes = planted
    scaled = learnt.module_.dictionary.get_dictionary().detach().numpy()
    found = (whole @ scaled.T).max(axis=1) > 0.9
    assert found.mean() > 0.9
    matched = (whole @ scaled.T).argmax(axis=1)
    norms = learnt.layer_norms_
    assert norms.shape == (40, 2)
    np.testing.assert_allclose(norms.sum(axis=1), 1, rtol=1e-6)
    first = norms[matched, 0]
    assert np.abs(first[SHARED][found[SHARED]] - 0.5).max() < 0.15
    assert first[FIRST][found[FIRST]].min() > 0.8
    assert first[SECOND][found[SECOND]].max() < 0.2
    z = learnt.transform(X[6000:]).toarray()[:, matched]
    correlations = [np.corrcoef(z[:, j], codes[6000:, j])[0, 1] for j in np.where(found)[0]]
    assert np.median(correlations) > 0.9
    assert learnt.layer_scores(X[6000:]).min() > 0.8


def test_without_its_own_units_a_short_layer_is_ignored(planted, learnt):
    X = planted[0]
    params = {"nb_epochs": 8, "batch_size": 200, "random_state": 0}
    plain = BatchTopKSAE(40, top_k=3, **params).fit(X[:6000])
    back = plain.inverse_transform(plain.transform(X[6000:]))
    assert explained_variance(X[6000:, :20], back[:, :20]) < 0.6
    assert learnt.layer_scores(X[6000:])[0] > 0.8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_contract_of_codes_and_components(X, dtype):
    X = X.astype(dtype)
    fitted = make(nb_epochs=5, sparse_output=False).fit(X)
    np.testing.assert_allclose(np.linalg.norm(fitted.components_, axis=1), 1, rtol=1e-5)
    codes, close = fitted.transform(X), {"rtol": 1e-4, "atol": 1e-3}
    assert codes.dtype == dtype
    back = fitted.inverse_transform(codes)
    np.testing.assert_allclose(back, codes @ fitted.components_ + fitted.decoder_bias_, **close)
    assert fitted.score(X) == pytest.approx(explained_variance(X, back), abs=1e-5)
    layers = [explained_variance(X[:, c], back[:, c]) for c in (slice(20), slice(20, None))]
    np.testing.assert_allclose(fitted.layer_scores(X), layers, atol=1e-5)
    stored = fitted.set_params(sparse_output=True).transform(X)
    np.testing.assert_allclose(stored.toarray(), codes, rtol=1e-6)
    alone = np.vstack([fitted.transform(X[i : i + 1]).toarray() for i in range(50)])
    np.testing.assert_allclose(alone, codes[:50], **close)
    active = codes > 0
    assert (codes[active] >= 0.999 * fitted.threshold_[active.nonzero()[1]]).all()
    x = torch.from_numpy(X)
    np.testing.assert_allclose(fitted.encode(x).detach(), codes, **close)
    np.testing.assert_allclose(fitted.decode(torch.from_numpy(codes)).detach(), back, **close)
    np.testing.assert_allclose(fitted.net_.predict(X), back, **close)


def test_units_of_a_layer_do_not_change_the_fit(X):
    X = X.astype(np.float64)
    other = np.hstack([X[:, :20], 1e-3 * X[:, 20:] + 5])
    one, two = make().fit(X), make().fit(other)
    np.testing.assert_allclose(two.layer_norms_, one.layer_norms_, rtol=1e-5)
    np.testing.assert_allclose(two.layer_scores(other), one.layer_scores(X), atol=1e-6)
    support = [fit.transform(rows).toarray() > 0 for fit, rows in ((one, X), (two, other))]
    np.testing.assert_array_equal(*support)


def test_one_layer_is_a_batchtopk(X):
    one = make(n_layers=1).fit(X)
    plain = BatchTopKSAE(24, top_k=3, **QUICK).fit(X)
    np.testing.assert_allclose(one.components_, plain.components_, atol=1e-4)
    np.testing.assert_allclose(one.threshold_, plain.threshold_, rtol=1e-3)
    np.testing.assert_array_equal(one.layer_norms_, 1)
    assert one.layer_scores(X)[0] == pytest.approx(one.score(X), abs=1e-6)


def test_an_outlier_in_one_layer_does_not_outweigh_the_others(planted):
    X = planted[0][:2000].copy()
    X[:5, :20] += 1e4
    params = {"nb_concepts": 40, "nb_epochs": 8}
    kept, spoilt = (make(**params, outlier_ratio=r).fit(X) for r in (5.0, None))
    assert kept.layer_scores(X[5:])[0] > spoilt.layer_scores(X[5:])[0] + 0.2


def test_constant_layer(X):
    X = X.copy()
    X[:, 20:] = 3.0
    fitted = make().fit(X)
    assert np.isfinite(fitted.layer_scores(X)).all() and np.isfinite(fitted.layer_norms_).all()


def test_training_goes_on_and_survives_a_pickle(X):
    fitted = make(warm_start=True, n_layers=[15, 25]).fit(X)
    twin = pickle.loads(pickle.dumps(fitted))
    for one in (fitted, twin):
        one.partial_fit(X)
    np.testing.assert_array_equal(twin.components_, fitted.components_)
    np.testing.assert_array_equal(twin.threshold_, fitted.threshold_)
    assert fitted.layer_widths_ == (15, 25)
    assert fitted.fit(X).n_iter_ == 5
    with raises("n_layers=2, but this Crosscoder was fitted with [15, 25]. Set warm_start=False"):
        fitted.set_params(n_layers=2).fit(X)


def test_beside_others_over_one_pass(X):
    alone = [make().fit(X), make(n_layers=[5, 35]).fit(X)]
    together = fit_many([make(), make(n_layers=[5, 35])], X)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.components_, other.components_)


@pytest.mark.parametrize("params", [{"use_amp": "bf16"}, {"encoder_module": "mlp_ln_1"}])
def test_other_ways_to_compute(X, params):
    fitted = make(**params).fit(X)
    assert np.isfinite(fitted.layer_scores(X)).all()
    assert fitted.backend_.startswith("reference")


@pytest.mark.parametrize(
    ("n_layers", "message"),
    [
        (3, "n_layers=3 of Crosscoder means blocks of equal width, but X has 40 columns. Give the"),
        (0, "The 'n_layers' parameter of Crosscoder must be an int in the range [1, inf) or an"),
        ([10, 20], "The widths n_layers=[10, 20] of Crosscoder add up to 30, but X has 40 columns"),
        ([40, 0], "must be a number of layers or the positive width of each of them. Got [40, 0]."),
        ([0.5, 0.5], "The 'n_layers' parameter of Crosscoder must be a number of layers or the"),
    ],
)
def test_wrong_layers(X, n_layers, message):
    with raises(message):
        make(n_layers=n_layers).fit(X)


def test_layers_of_a_tiny_model(tiny_llama, byte_tokenizer):
    texts = ["The sea is blue, and the sky above it.", "Models read tokens! 🙂", "", "A vector."]
    acts = Extractor(tiny_llama, [0, 2, "layers.1.mlp"], tokenizer=byte_tokenizer, device="cpu")
    rows = acts.fit_transform(texts)
    fitted = make(n_layers=acts.layer_sizes_, nb_epochs=10, batch_size=20).fit(rows)
    assert fitted.layer_scores(rows).shape == (3,)
    codes = fitted.transform(rows)
    assert isinstance(codes, RowsCSRMatrix) and codes.rows == rows.rows


@pytest.mark.real
def test_neighbouring_layers_of_a_real_model_share_concepts(minilm_path):
    words = ("cat", "dog", "ship"), ("ran", "flew"), ("sea", "bank", "hill", "moon")
    texts = ["The {} {} over the {}.".format(*chosen) for chosen in itertools.product(*words)]
    acts = Extractor(minilm_path, ["encoder.layer.3", "encoder.layer.4"], device="cpu")
    rows = acts.fit_transform(texts)
    held_out = rows.rows.groups % 4 == 0
    params = {"nb_epochs": 40, "batch_size": 32, "random_state": 0, "dead_after": 10**6}
    fitted = Crosscoder(128, n_layers=acts.layer_sizes_, top_k=8, **params).fit(rows[~held_out])
    assert fitted.layer_scores(rows[held_out]).min() > 0.5
    used = np.asarray((fitted.transform(rows) != 0).sum(axis=0)).ravel() > 20
    first = fitted.layer_norms_[used, 0]
    assert np.median(np.abs(first - 0.5)) < 0.15
    cosines = (fitted.components_[used, :384] * fitted.components_[used, 384:]).sum(axis=1)
    assert np.median(cosines) > 0.1  # a shared concept is written alike in both
