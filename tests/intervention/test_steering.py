"""The direction of a concept, in the units of the hidden state."""

import numpy as np
import pytest
import torch
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, StandardScaler

from sksae import Extractor, KeepRows, TopKInputs, TopKSAE
from sksae.intervention import Add, intervene, steering_vector
from sksae.intervention._hooks import replacing

TEXTS = ["the sea is blue and a token is a vector", "models do not read", "", "no 🌊"]


def test_it_is_the_dictionary_row(sae, pipe):
    vector = steering_vector(sae, 7)
    assert torch.equal(vector, sae.get_dictionary()[7])
    assert float(vector.norm()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(steering_vector(pipe, "topksae7", scale=-2), -2 * vector)
    assert not vector.requires_grad


@pytest.mark.parametrize("scaler", [None, StandardScaler(), MinMaxScaler((-1, 1))])
def test_adding_it_is_to_add_to_the_code(tiny_llama, byte_tokenizer, ids, scaler):
    steps = [] if scaler is None else [KeepRows(scaler)]
    acts = Extractor(tiny_llama, 1, tokenizer=byte_tokenizer)
    sae = TopKSAE(40, top_k=5, nb_epochs=1, device="cpu", random_state=0)
    pipe = make_pipeline(acts, *steps, sae).fit(TEXTS)
    vector = steering_vector(pipe, 7)
    with torch.no_grad():
        with intervene(None, None, pipe, {7: Add(3.0)}):
            expected = tiny_llama(ids).logits
        with replacing(tiny_llama, 1, lambda x: x + 3.0 * vector):
            torch.testing.assert_close(tiny_llama(ids).logits, expected, atol=2e-4, rtol=1e-4)


def test_the_code_grows_by_the_length_where_the_concept_stays_in_place():
    from sksae.datasets import make_activations

    X, _ = make_activations(
        n_samples=512, n_features=16, nb_concepts=16, n_active=2, random_state=0
    )
    sae = TopKSAE(16, top_k=2, nb_epochs=40, batch_size=64, device="cpu", random_state=0).fit(X)
    codes = sae.transform(X).toarray()
    j = int(codes.sum(axis=0).argmax())
    active = codes[:, j] > 0.5
    again = sae.transform(X + steering_vector(sae, j, scale=0.5).numpy()).toarray()
    assert active.sum() > 20
    assert np.median((again - codes)[active, j]) == pytest.approx(0.5, abs=0.1)


def test_scales_from_data(pipe, sae):
    codes = pipe.transform(TEXTS).toarray()
    j = int((codes > 0).sum(axis=0).argmax())
    values = codes[:, j][codes[:, j] > 0]
    assert len(set(values)) > 1
    X = pipe[0].transform(TEXTS)
    for given, data in ((pipe, TEXTS), (sae, X), (sae, np.asarray(X))):
        largest = steering_vector(given, j, scale="max", X=data)
        assert float(largest.norm()) == pytest.approx(values.max(), rel=1e-5)
        mean = steering_vector(given, j, scale="mean", X=data)
        assert float(mean.norm()) == pytest.approx(values.mean(), rel=1e-5)
    dead = int(np.flatnonzero(~codes.any(axis=0))[0])
    with pytest.raises(ValueError, match=f"Concept {dead} is active in no row of X, so that its"):
        steering_vector(pipe, dead, scale="mean", X=TEXTS)


def test_what_does_not_fit_is_refused(pipe, tiny_llama, byte_tokenizer):
    with pytest.raises(ValueError, match="steering_vector knows no concept 99"):
        steering_vector(pipe, 99)
    with pytest.raises(ValueError, match="must be a number, 'max' or 'mean'. Got 'median'"):
        steering_vector(pipe, 1, scale="median")
    with pytest.raises(ValueError, match="scale='max' of steering_vector is taken from data. Pass"):
        steering_vector(pipe, 1, scale="max")
    with pytest.raises(TypeError, match="'scale' parameter of steering_vector must be a number"):
        steering_vector(pipe, 1, scale=None)
    with pytest.raises(ValueError, match="'scale' parameter of steering_vector must be finite"):
        steering_vector(pipe, 1, scale=np.inf)
    with pytest.raises(ValueError, match="needs a pipeline with one SAE"):
        steering_vector(Pipeline([("names", TopKInputs())]), 1)
    acts = Extractor(tiny_llama, 1, tokenizer=byte_tokenizer)
    bent = KeepRows(QuantileTransformer(n_quantiles=10, output_distribution="normal"))
    sae = TopKSAE(40, top_k=5, nb_epochs=1, device="cpu", random_state=0)
    bent_pipe = make_pipeline(acts, bent, sae).fit(TEXTS)
    with pytest.raises(ValueError, match="'keeprows'.* are not affine, so that concept 1 has no"):
        steering_vector(bent_pipe, 1)
    with intervene(None, None, bent_pipe, {1: 0.5}):  # but this works
        tiny_llama(torch.tensor([[4, 5]]))
