"""What StableConcepts keeps, and that it and ShuffledActivations stand in for an SAE."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline

from sksae import (
    BaseSAE,
    ConceptPooler,
    Extractor,
    ShuffledActivations,
    StableConcepts,
    TopKInputs,
    TopKSAE,
    fit_many,
)
from sksae.attribution import concept_output_attribution
from sksae.datasets import make_activations
from sksae.estimators._stable import (
    gaussian_rows,
    largest_cosines,
    matched_cosines,
    normalized,
)
from sksae.interpretation import interpret
from sksae.intervention import intervene, spliced_loss
from sksae.metrics import explained_variance, get_scorer, pw_mcc, stability

WIDE = {"top_k": 2, "nb_epochs": 10, "batch_size": 100}


@pytest.fixture(scope="module")
def planted():
    """2,000 rows of 20 features, 2 of 20 planted concepts active in each."""
    return make_activations(2000, 20, 20, n_active=2, noise=0.05, random_state=0)


@pytest.fixture(scope="module")
def stable(planted):
    """The stable ones of 56 concepts."""
    return StableConcepts(TopKSAE(56, **WIDE), n_seeds=3, random_state=0).fit(planted[0])


@pytest.fixture(scope="module")
def given(planted):
    """Two seeds of a small SAE, with a threshold of one's own."""
    sae = TopKSAE(24, top_k=3, nb_epochs=3, batch_size=100)
    return StableConcepts(sae, 2, threshold=0.6, random_state=0).fit(planted[0])


def test_kept_concepts_are_the_planted_ones(stable, planted):
    best = (stable.estimator_.components_ @ planted[1].T).max(axis=1)
    kept, left = best[stable.support_], best[~stable.support_]
    assert (kept > 0.9).mean() > 0.8
    assert (left > 0.9).mean() < 0.3  # second copies
    found = (planted[1] @ stable.components_.T).max(axis=1)
    assert (found > 0.9).mean() > 0.9
    assert stable.support_.sum() < 40


@pytest.mark.filterwarnings("ignore:.* are stable over:sklearn.exceptions.ConvergenceWarning")
def test_of_noise_almost_nothing_is_kept():
    X = np.random.default_rng(0).standard_normal((1500, 20)).astype(np.float32)
    sae = StableConcepts(TopKSAE(60, **WIDE), n_seeds=3, random_state=1).fit(X)
    assert sae.support_.mean() < 0.15


def test_stabilities_are_mean_matched_cosines(given, planted):
    rng = np.random.RandomState(0)
    seeds = rng.randint(np.iinfo(np.int32).max, size=2)
    ones = [given.estimator.__class__(**_own(given, seed)).fit(planted[0]) for seed in seeds]
    np.testing.assert_array_equal(given.estimator_.components_, ones[0].components_)
    dictionaries = [sae.components_ for sae in ones]
    assert given.stabilities_.mean() == pytest.approx(stability(dictionaries), abs=1e-9)
    assert given.stabilities_.mean() <= pw_mcc(dictionaries)
    np.testing.assert_array_equal(given.support_, given.stabilities_ >= 0.6)
    assert given.stability_threshold_ == 0.6 and given.control_stabilities_ is None


def _own(wrapper, seed):
    return wrapper.estimator.get_params() | {"random_state": int(seed)}


def test_matching_by_hand():
    one = normalized([[2.0, 0.0], [0.8, 0.6]])
    other = normalized([[3.0, 0.0], [0.0, 0.5]])
    # One to one, the second row has to take what the first leaves.
    np.testing.assert_allclose(matched_cosines(one, other), [1, 0.6])
    np.testing.assert_allclose(largest_cosines(one, other), [1, 0.8])


def test_the_threshold_is_a_quantile_of_the_control(stable):
    control = stable.control_stabilities_
    assert (control > stable.stability_threshold_).mean() <= 0.05
    assert (control >= stable.stability_threshold_).mean() >= 0.04
    assert (stable.stability_ > stable.stability_threshold_).all()


@pytest.mark.parametrize("control", ["shuffled", "random"])
def test_other_controls(control, planted):
    X, features = planted
    kept = StableConcepts(TopKSAE(56, **WIDE), 2, control=control, random_state=0).fit(X)
    found = (features @ kept.components_.T).max(axis=1)
    assert (found > 0.9).mean() > 0.8
    assert kept.support_.sum() < 45


def test_gaussian_rows_have_mean_and_covariance_of_the_data():
    rng = np.random.default_rng(0)
    X = rng.exponential(size=(20_000, 3)) @ np.array([[1.0, 0.5, 0.0], [0, 2, 0], [0, 0, 0.1]]) + 5
    for data in (X, sparse.csr_matrix(X), X.astype(np.float32)):
        rows = gaussian_rows(data, 0)
        assert rows.dtype == data.dtype and rows.shape == data.shape
        np.testing.assert_allclose(rows.mean(axis=0), X.mean(axis=0), atol=0.06)
        np.testing.assert_allclose(np.cov(rows.T), np.cov(X.T), atol=0.15)


def test_dead_concepts_are_not_kept_however_much_alike(planted):
    start = np.random.default_rng(0).standard_normal((64, 20)).astype(np.float32)
    sae = TopKSAE(64, top_k=1, nb_epochs=2, auxk_coefficient=0, batch_size=100)
    sae.set_params(dictionary_params={"initializer": start})
    X = np.tile(planted[0][:40], (10, 1))  # too few different rows for 64 concepts
    fitted = StableConcepts(sae, 2, threshold=0.5, random_state=0).fit(X)
    dead = fitted.estimator_.module_.samples_since_fired.numpy() >= len(X)
    assert dead.sum() > 5
    assert fitted.stabilities_[dead].min() > 0.99  # all fits left them at their common start
    assert not fitted.support_[dead].any()


# -- standing in for an SAE -------------------------------------------------------------------


def test_codes_are_columns_of_the_first_fit(given, planted):
    X, kept = planted[0], given.get_support(indices=True)
    codes = given.transform(X)
    assert sparse.issparse(codes) and 0 < len(kept) < 24
    np.testing.assert_array_equal(codes.toarray(), given.estimator_.transform(X).toarray()[:, kept])
    np.testing.assert_array_equal(given.get_support(), given.support_)
    assert list(given.get_feature_names_out()) == [f"topksae{i}" for i in kept]
    back = given.inverse_transform(codes)
    np.testing.assert_allclose(
        back, codes @ given.components_ + given.decoder_bias_, rtol=1e-5, atol=1e-6
    )
    assert given.score(X) == pytest.approx(explained_variance(X, back), abs=1e-6)
    assert get_scorer("explained_variance")(given, X) == pytest.approx(given.score(X), abs=1e-6)
    assert isinstance(given, BaseSAE)
    np.testing.assert_array_equal(given.get_dictionary().numpy(), given.components_)


def test_tensors_and_gradients(given, planted):
    x = torch.tensor(planted[0][:5], requires_grad=True)
    z = given.encode(x)
    np.testing.assert_allclose(z.detach(), given.transform(planted[0][:5]).toarray(), atol=1e-6)
    x_hat = given.decode(z)
    np.testing.assert_allclose(x_hat.detach(), given.inverse_transform(z), atol=1e-5)
    x_hat.sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="z must have .* columns for this StableConcepts"):
        given.decode(torch.zeros(2, 24))
    assert given.transform(x.detach().double()).dtype == np.float64


def test_repeatable_and_pickled(planted):
    X = planted[0][:500]
    sae = TopKSAE(16, top_k=2, nb_epochs=2, batch_size=100)
    for wrapper in (
        StableConcepts(sae, 2, threshold=0.3, random_state=3),
        ShuffledActivations(sae, random_state=3),
    ):
        one = wrapper.fit(X).transform(X).toarray()
        np.testing.assert_array_equal(wrapper.fit(X).transform(X).toarray(), one)
        twin = pickle.loads(pickle.dumps(wrapper))
        np.testing.assert_array_equal(twin.transform(X).toarray(), one)
        assert sae.get_params()["random_state"] is None and not hasattr(sae, "net_")


def test_none_stable(planted):
    sae = TopKSAE(16, top_k=2, nb_epochs=1, batch_size=100)
    with pytest.warns(
        ConvergenceWarning, match="None of the 16 concepts of this TopKSAE are st"
    ) as caught:
        none = StableConcepts(sae, 2, threshold=1, random_state=0).fit(planted[0])
    assert caught[-1].filename == __file__
    codes = none.transform(planted[0])
    assert codes.shape == (2000, 0) and none.components_.shape == (0, 20)
    expected = np.tile(none.decoder_bias_, (2000, 1))
    np.testing.assert_array_equal(none.inverse_transform(codes), expected)
    assert none.score(planted[0]) == pytest.approx(explained_variance(planted[0], expected))
    assert list(none.get_feature_names_out()) == []


def test_frames(planted):
    frame = pd.DataFrame(planted[0][:300], columns=[f"f{i}" for i in range(20)])
    sae = TopKSAE(12, top_k=2, nb_epochs=1, sparse_output=False)
    fitted = StableConcepts(sae, 2, threshold=-1, random_state=0).set_output(transform="pandas")
    codes = fitted.fit_transform(frame)
    assert list(codes.columns) == list(fitted.get_feature_names_out())
    assert list(fitted.feature_names_in_) == list(frame.columns)
    fitted.set_params(estimator__sparse_output=True).fit(frame)
    with pytest.raises(ValueError, match="Set estimator__sparse_output=False, or set_output"):
        fitted.transform(frame)


TEXTS = ["the sea is blue", "a hidden state", "models read tokens", "the sky is big too"] * 2


@pytest.mark.parametrize("cls", [StableConcepts, ShuffledActivations])
def test_in_a_pipeline_on_texts_it_is_the_sae(cls, tiny_llama, byte_tokenizer):
    own = {"n_seeds": 2, "threshold": 0.1} if cls is StableConcepts else {}
    sae = cls(TopKSAE(24, top_k=6, nb_epochs=3, batch_size=16), random_state=0, **own)
    pipe = make_pipeline(Extractor(tiny_llama, 1, tokenizer=byte_tokenizer), sae).fit(TEXTS)
    codes = pipe.transform(TEXTS)
    n = codes.shape[1]
    assert codes.rows.n_texts == len(TEXTS) and pipe[:1].transform(TEXTS).rows is not None
    pooled = ConceptPooler("max").fit_transform(codes)
    assert pooled.shape == (8, n)
    inputs = TopKInputs(k=2).fit(codes)
    assert len(inputs.interpretations_) == n
    assert interpret(pipe, TopKInputs, inputs=TEXTS, k=2)
    assert np.isfinite(spliced_loss(pipe, TEXTS[:2]).loss_recovered)
    assert get_scorer("neg_l0")(pipe, TEXTS) < 0
    with intervene(tiny_llama, 1, pipe, {0: 2.0}):
        tiny_llama(torch.tensor([[5, 80, 60]]))
    result = concept_output_attribution(pipe, TEXTS[:2], tokenizer=byte_tokenizer)
    assert np.isfinite(result.scores.data).all()


# -- what they refuse -------------------------------------------------------------------------


def test_what_is_refused(planted):
    X = planted[0]
    with pytest.raises(ValueError, match="n_seeds=1: StableConcepts compares fits"):
        StableConcepts(TopKSAE(8, top_k=2), 1).fit(X)
    for inner in (make_pipeline(TopKSAE(8)), ShuffledActivations(TopKSAE(8))):
        with pytest.raises(TypeError, match="'estimator' parameter of StableConcepts must be an S"):
            StableConcepts(inner).fit(X)
    with pytest.raises(ValueError, match="'estimator' parameter of ShuffledActivations must be"):
        ShuffledActivations("sae").fit(X)
    with pytest.raises(ValueError, match="'control' parameter of StableConcepts must be a str am"):
        StableConcepts(TopKSAE(8), control="noise").fit(X)
    with pytest.raises(ValueError, match="top_k=32 exceeds nb_concepts=8"):
        StableConcepts(TopKSAE(8)).fit(X)
    with pytest.raises(TypeError, match="fit_many takes SAEs, got StableConcepts"):
        fit_many([StableConcepts(TopKSAE(8))], X)
    with pytest.raises(NotFittedError):
        StableConcepts(TopKSAE(8)).get_support()


# -- shuffled activations ---------------------------------------------------------------------


def test_shuffling_keeps_columns_and_loses_what_they_share(planted):
    from sksae.estimators._shuffled import shuffled_columns

    X = planted[0].astype(np.float64)
    for data in (X, sparse.csr_matrix(X)):
        rows = shuffled_columns(data, 0)
        np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(X, axis=0))
        assert np.abs(np.corrcoef(rows.T) - np.eye(20)).max() < 0.1
    np.testing.assert_array_equal(X, planted[0])


def test_an_sae_of_shuffled_activations_misses_the_planted_features(planted):
    X, features = planted
    sae = TopKSAE(32, top_k=2, nb_epochs=10, batch_size=100, random_state=0)
    control = ShuffledActivations(sae, random_state=0).fit(X)
    assert control.score(X) < sae.fit(X).score(X) - 0.2
    found = (features @ control.components_.T).max(axis=1)
    assert (found > 0.9).mean() < 0.1
