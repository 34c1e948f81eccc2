"""What Transcoder promises: y from the codes of X, in the units of y, and nothing else."""

import itertools
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksae import Extractor, TopKSAE, Transcoder, fit_many
from sksae.activations import Rows
from sksae.activations._rows import RowsArray, with_rows
from sksae.datasets import make_activations
from sksae.intervention import steering_vector
from sksae.metrics import combine_scorers, explained_variance, l0, make_scorer

QUICK = {"nb_epochs": 2, "batch_size": 100, "random_state": 0}


def raises(message, error=ValueError):
    return pytest.raises(error, match=re.escape(message))


def make(**params):
    return Transcoder(**({"nb_concepts": 24, "top_k": 3} | QUICK | params))


@pytest.fixture(scope="module")
def planted():
    """Codes of 3 of 32 concepts, read in 24 features and written, 50 times as long, in 16."""
    X, reads, codes = make_activations(
        6000, 24, 32, n_active=3, noise=0.02, offset=2.0, return_codes=True, random_state=0
    )
    writes = np.random.default_rng(1).standard_normal((32, 16))
    writes /= np.linalg.norm(writes, axis=1, keepdims=True)
    y = 50 * codes @ writes - 300
    return X, y.astype(np.float32), reads, writes, codes


@pytest.fixture(scope="module")
def learnt(planted):
    X, y, *_ = planted
    params = {"nb_epochs": 20, "batch_size": 200, "random_state": 0}
    return Transcoder(40, top_k=3, **params).fit(X[:5000], y[:5000])


@pytest.fixture(scope="module")
def pair(planted):
    return planted[0][:500], planted[1][:500]


def test_planted_directions_are_recovered_on_both_sides(planted, learnt):
    X, y, reads, writes, codes = planted
    cosines = writes @ learnt.components_.T
    found = cosines.max(axis=1) > 0.9
    assert found.mean() > 0.9
    matched = cosines.argmax(axis=1)
    # What a concept reads moves it more than any other concept of the 32 does.
    reach = reads @ learnt.encoder_components_[matched].T
    assert (reach.argmax(axis=0) == np.arange(32))[found].mean() > 0.9
    z = learnt.transform(X[5000:]).toarray()[:, matched]
    correlations = [np.corrcoef(z[:, j], codes[5000:, j])[0, 1] for j in np.where(found)[0]]
    assert np.median(correlations) > 0.9
    sizes = [np.median(z[:, j][z[:, j] > 0]) for j in np.where(found)[0]]
    assert np.median(sizes) == pytest.approx(50, rel=0.15)  # in units of y
    assert learnt.score(X[5000:], y[5000:]) > 0.8


def test_shuffled_targets_are_not_predicted(planted):
    X, y, *_ = planted
    shuffled = np.random.default_rng(0).permutation(y)
    fitted = Transcoder(32, top_k=3, **QUICK | {"nb_epochs": 5}).fit(X[:5000], shuffled[:5000])
    assert fitted.score(X[5000:], shuffled[5000:]) < 0.05


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_public_numbers_are_the_prediction(pair, skip, dtype):
    X, y = (a.astype(dtype) for a in pair)
    fitted = make(skip=skip).fit(X, y)
    tolerance = {"rtol": 1e-4, "atol": 1e-2} if dtype == np.float32 else {"atol": 1e-9}
    pre = X @ fitted.encoder_components_.T + fitted.encoder_bias_
    expected = np.where(pre >= np.sort(pre, axis=1)[:, [-3]], pre, 0).clip(0)
    codes = fitted.transform(X)
    np.testing.assert_allclose(codes.toarray(), expected, **tolerance)
    decoded = expected @ fitted.components_ + fitted.decoder_bias_
    np.testing.assert_allclose(fitted.inverse_transform(codes), decoded, **tolerance)
    if skip:
        decoded = decoded + (X - fitted.input_center_) @ fitted.skip_components_.T
    else:
        assert fitted.skip_components_ is None
    predicted = fitted.predict(X)
    assert predicted.dtype == dtype == codes.dtype
    np.testing.assert_allclose(predicted, decoded, **tolerance)
    np.testing.assert_allclose(np.linalg.norm(fitted.components_, axis=1), 1, rtol=1e-6)
    assert fitted.score(X, y) == pytest.approx(explained_variance(y, predicted), abs=1e-5)
    net = fitted.net_.predict(X)
    np.testing.assert_allclose(net, decoded, **tolerance)


def test_history_is_that_of_the_target(pair):
    X, y = pair
    fitted = make(lr=1e-12, validation_fraction=0.4, outlier_ratio=None, skip=True).fit(X, y)
    held_out = np.random.RandomState(fitted.net_.seed).permutation(500)[:200]
    score = fitted.score(X[held_out], y[held_out])
    assert fitted.history_[-1, "explained_variance"] == pytest.approx(score, abs=1e-4)


def test_skip_is_the_linear_part(planted):
    X = planted[0]
    slope = np.random.default_rng(2).standard_normal((24, 16))
    y = X @ slope + 0.1 * np.maximum(X, 2).sum(axis=1, keepdims=True)
    linear = X @ slope - 1
    params = QUICK | {"nb_epochs": 5}
    with_skip, without = (
        Transcoder(32, top_k=2, skip=s, **params).fit(X[:5000], y[:5000]) for s in (True, False)
    )
    assert with_skip.score(X[5000:], y[5000:]) > 0.98 > without.score(X[5000:], y[5000:]) + 0.2
    start = Transcoder(32, top_k=2, skip=True, lr=1e-12, **QUICK).fit(X[:5000], linear[:5000])
    codes = start.transform(X)
    affine = start.predict(X) - codes @ start.components_  # the codes are random at the start
    assert explained_variance(linear[5000:], affine[5000:]) > 0.99


def test_the_units_of_both_sides_do_not_change_the_fit(pair):
    X, y = (a.astype(np.float64) for a in pair)
    params = {"skip": True, "encoder_module": None, "dead_after": 100}
    one, other = make(**params).fit(X, y), make(**params).fit(1e3 * X - 7, 1e-4 * y + 9)
    np.testing.assert_allclose(other.components_, one.components_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        other.predict(1e3 * X - 7), 1e-4 * one.predict(X) + 9, rtol=1e-4, atol=1e-5
    )


def test_an_outlier_on_either_side_does_not_outweigh_the_others(planted):
    X, y = planted[0][:2000].copy(), planted[1][:2000].copy()
    params = {"nb_concepts": 48, "nb_epochs": 8}
    clean = make(**params).fit(X, y).score(X[5:], y[5:])
    X[:5] += 1e4
    y[:5] -= 1e6
    assert make(**params).fit(X, y).score(X[5:], y[5:]) > clean - 0.1
    spoilt = make(**params, outlier_ratio=None).fit(X, y)
    assert spoilt.score(X[5:], y[5:]) < clean - 0.3


# -- data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        pd.DataFrame,
        sparse.csr_matrix,
        torch.from_numpy,
        np.asfortranarray,
        lambda a: a.tolist(),
    ],
    ids="pandas csr torch fortran list".split(),
)
def test_containers_of_both_sides(pair, convert):
    X, y = (a.astype(np.float64) for a in pair)
    expected, fitted = make().fit(X, y), make().fit(convert(X), convert(y))
    np.testing.assert_allclose(fitted.components_, expected.components_, atol=1e-6)
    score = expected.score(X, y)
    assert fitted.score(convert(X), convert(y)) == pytest.approx(score, abs=1e-6)


def test_one_dimension_is_one_output(pair):
    X, y = pair
    fitted, column = make().fit(X, y[:, 0]), make().fit(X, y[:, :1])
    assert fitted.predict(X).shape == (500,)
    np.testing.assert_array_equal(fitted.predict(X), column.predict(X)[:, 0])
    assert fitted.components_.shape == (24, 1)
    assert fitted.score(X, y[:, 0]) == column.score(X, y[:, :1]) > 0


def test_half_precision_and_mixed_precision(pair):
    X, y = (torch.from_numpy(a) for a in pair)
    fitted = make(use_amp="bf16").fit(X.bfloat16(), y.bfloat16())
    assert np.isfinite(fitted.score(X.half(), y))
    assert fitted.score(X.double(), y) == pytest.approx(fitted.score(X, y), abs=1e-4)


def test_constant_targets(pair):
    X = pair[0]
    y = np.full((500, 4), 3.3, dtype=np.float32)
    fitted = make(nb_epochs=20).fit(X, y)
    np.testing.assert_allclose(fitted.predict(X), 3.3, atol=0.5)
    assert fitted.score(X, y) == fitted.score(X, y + 1) == 0.0  # it is not exact
    assert make(nb_epochs=20).fit(np.ones_like(X), y).score(np.ones_like(X), y) == 1.0
    assert np.isfinite(make(skip=True).fit(np.ones_like(X), y).predict(X)).all()


def test_two_rows_and_one(pair):
    X, y = pair
    fitted = make(skip=True).fit(X[:2], y[:2])
    assert fitted.predict(X[:1]).shape == (1, 16)
    assert np.isfinite(fitted.predict(X)).all()
    with raises("Found array with 1 sample(s)"):
        make().fit(X[:1], y[:1])
    with raises("Found array with 0 sample(s)"):
        make().fit(X[:0], y[:0])


def test_what_is_wrong_with_y(pair):
    X, y = pair
    with raises(
        "Transcoder requires y to be passed, but the target y is None. Pass the activations to "
        "predict, one row for each row of X; of an extractor with two layers these are the "
        "columns of the second one."
    ):
        make().fit(X)
    with raises("Got 500 rows of X and 499 rows of y. Take both from one pass of an extractor"):
        make().fit(X, y[:-1])
    with raises("Input y contains NaN."):
        make().fit(X, np.where(y == y[3, 3], np.nan, y))
    with raises("expects y of shape (n_samples, n_outputs), got shape (5, 100, 16). Flatten it"):
        make().fit(X, torch.from_numpy(y).reshape(5, 100, 16))
    fitted = make().fit(X, y)
    before = fitted.predict(X)
    with raises("y has 5 columns, but this Transcoder was fitted to predict 16. Pass the"):
        fitted.score(X, y[:, :5])
    with raises("y has 5 columns, but this Transcoder was fitted to predict 16."):
        fitted.partial_fit(X, y[:, :5])
    with raises("Transcoder requires y to be passed"):
        fitted.score(X)
    with raises("Got 500 rows of X and 2 rows of y."):
        fitted.score(X, y[:2])
    with raises("x must have 24 columns for this Transcoder, got shape (2, 16)."):
        fitted.encode(torch.zeros(2, 16))
    np.testing.assert_array_equal(fitted.predict(X), before)


def test_rows_travel_and_must_agree(pair):
    X, y = pair
    text = np.repeat(np.arange(250), 2)
    rows = Rows(text, np.tile([0, 3], 250), np.tile([2, 5], 250), ["ab cd"] * 250)
    fitted = make(validation_fraction=0.2).fit(with_rows(X, rows), with_rows(y, rows))
    codes = fitted.transform(with_rows(X, rows))
    assert codes.rows == rows
    assert fitted.predict(with_rows(X, rows)[3:9]).rows == rows[3:9]
    assert isinstance(fitted.inverse_transform(codes), RowsArray)
    with raises("The rows of X and y in Transcoder come from different places in the texts. Take"):
        make().fit(with_rows(X, rows), with_rows(y, rows)[::-1])


# -- the estimator --------------------------------------------------------------------------


def test_training_goes_on_and_survives_a_pickle(pair):
    X, y = pair
    fitted = make(warm_start=True, skip=True).fit(X, y)
    twin = pickle.loads(pickle.dumps(fitted))
    for one in (fitted, twin):
        one.partial_fit(X, y)
    np.testing.assert_array_equal(twin.predict(X), fitted.predict(X))
    assert fitted.fit(X, y).n_iter_ == 5
    with raises("skip=False, but this Transcoder was fitted with True. Set warm_start=False and"):
        fitted.set_params(skip=False).fit(X, y)
    assert make().partial_fit(X, y).partial_fit(X[:1], y[:1]).n_iter_ == 2


def test_in_pipelines_searches_and_beside_others(pair):
    X, y = pair
    pipe = make_pipeline(StandardScaler(), make()).fit(X, y)
    assert pipe.score(X, y) == pytest.approx(explained_variance(y, pipe.predict(X)), abs=1e-5)
    search = GridSearchCV(pipe, {"transcoder__lr": [1e-6, 1e-2]}, cv=KFold(2)).fit(X, y)
    assert search.best_params_ == {"transcoder__lr": 1e-2}
    alone = [make().fit(X, y), TopKSAE(24, top_k=3, **QUICK).fit(X), make(top_k=2).fit(X, y)]
    together = fit_many([clone(one) for one in alone], X, y)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.components_, other.components_)
    with raises("Transcoder requires y to be passed"):
        fit_many([make()], X)


def test_frames_name_the_concepts(pair):
    X, y = pair
    fitted = make(sparse_output=False).set_output(transform="pandas").fit(pd.DataFrame(X), y)
    frame = fitted.transform(pd.DataFrame(X))
    assert list(frame.columns[:2]) == ["transcoder0", "transcoder1"]


def test_structure_parameters_reach_their_sides(pair):
    X, y = pair
    start = np.random.default_rng(0).standard_normal((24, 16))
    fitted = make(dictionary_params={"initializer": start}, lr=1e-12).fit(X, y)
    expected = start / np.linalg.norm(start, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.components_, expected, atol=1e-5)
    norms = make(encoder_init_norm=0.7, lr=1e-12).fit(X, y).module_.linear_encoder.weight
    np.testing.assert_allclose(norms.detach().norm(dim=1), 0.7, rtol=1e-5)
    with raises("'initializer' of shape (nb_concepts, n_outputs) = (24, 16). Got shape (24, 24)"):
        make(dictionary_params={"initializer": np.eye(24)}).fit(X, y)
    other = make(encoder_module="mlp_ln_1").fit(X, y)
    assert np.isfinite(other.score(X, y))
    with raises("has the encoder of its encoder_module, which has no directions", AttributeError):
        other.encoder_components_  # noqa: B018
    squared = make(criterion=lambda v, v_hat, *_: (v - v_hat).square().mean()).fit(X, y)
    np.testing.assert_allclose(squared.components_, make().fit(X, y).components_, atol=1e-5)


def test_what_compares_with_the_input_refuses(pair):
    X, y = pair
    fitted = make().fit(X, y)
    with raises("Transcoder has no reconstruction of X to compare with: it predicts another"):
        make_scorer(explained_variance)(fitted, X)
    with raises("steering_vector needs an SAE whose reconstruction can stand for the layer that"):
        steering_vector(fitted, 0)


@pytest.mark.parametrize("one_output", [False, True])
def test_scorers_compare_the_prediction_with_y(pair, one_output):
    X, y = pair
    y = y[:, 0] if one_output else y
    scoring = combine_scorers(["explained_variance", "neg_l0"])
    pipe = make_pipeline(StandardScaler(), make())
    found = cross_validate(pipe, X, y, cv=3, scoring=scoring, return_estimator=True)
    for i, (_, test) in enumerate(KFold(3).split(X)):
        fitted = found["estimator"][i]
        expected = fitted.score(X[test], y[test])
        assert found["test_explained_variance"][i] == pytest.approx(expected, abs=1e-5)
        assert found["test_neg_l0"][i] == pytest.approx(-l0(fitted.transform(X[test])))
    search = GridSearchCV(
        make(), {"top_k": [1, 3]}, scoring=scoring, refit="explained_variance", cv=2
    )
    assert search.fit(X, y).best_params_ == {"top_k": 3}
    fitted, scorer = make().fit(X, pair[1]), make_scorer(explained_variance)
    for form in (sparse.csr_matrix, pd.DataFrame, torch.from_numpy):
        value = scorer(fitted, X, form(pair[1]))
        assert value == pytest.approx(fitted.score(X, pair[1]), abs=1e-5)


def test_tensors_have_gradients(pair):
    X, y = pair
    fitted = make().fit(X, y)
    x = torch.from_numpy(X[:5]).requires_grad_()
    fitted.decode(fitted.encode(x)).sum().backward()
    assert x.grad.abs().sum() > 0
    np.testing.assert_allclose(
        fitted.decode(fitted.encode(x)).detach(), fitted.predict(X[:5]), rtol=1e-4, atol=1e-2
    )


# -- models ---------------------------------------------------------------------------------

TEXTS = ["The sea is blue, and the sky above it.", "Models read tokens! 🙂", "A vector.", ""]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_an_mlp_of_a_tiny_model(kind, request):
    model = request.getfixturevalue(f"tiny_{kind}")
    tokenizer = request.getfixturevalue("bert_tokenizer" if kind == "bert" else "byte_tokenizer")
    layers = {"bert": ["layer.0.attention", "layer.0.intermediate"], "llama": [0, "layers.1.mlp"]}
    acts = Extractor(model, layers[kind], tokenizer=tokenizer, device="cpu").fit(TEXTS)
    both, width = acts.transform(TEXTS), acts.layer_sizes_[0]
    X, y = both[:, :width], both[:, width:]
    assert y.shape[1] == {"bert": 48, "llama": 32}[kind]
    fitted = make(nb_epochs=20).fit(X, y)
    assert fitted.predict(X).rows == both.rows == fitted.transform(X).rows
    assert fitted.score(X, y) > 0.2


@pytest.mark.real
def test_an_mlp_of_a_real_model(minilm_path):
    words = ("cat", "dog", "ship"), ("ran", "flew"), ("sea", "bank", "hill", "moon")
    texts = ["The {} {} over the {}.".format(*chosen) for chosen in itertools.product(*words)]
    layers = ["encoder.layer.2.attention", "encoder.layer.2.output.dense"]
    acts = Extractor(minilm_path, layers, device="cpu").fit_transform(texts)
    X, y = acts[:, :384], acts[:, 384:]
    held_out = X.rows.groups % 4 == 0
    params = {"nb_epochs": 40, "batch_size": 32, "random_state": 0, "dead_after": 10**6}
    scores = [
        Transcoder(128, top_k=8, skip=skip, **params).fit(X[~held_out], y[~held_out])
        for skip in (False, True)
    ]
    plain, skipping = (t.score(X[held_out], y[held_out]) for t in scores)
    assert plain > 0.5 and skipping > 0.5
    swapped = scores[0].score(X[held_out], np.asarray(y[held_out])[::-1])
    assert swapped < plain - 0.3
