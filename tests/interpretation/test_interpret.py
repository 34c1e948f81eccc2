"""interpret: sources, units run alone, the method, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sksae import KeepRows, TopKInputs, TopKSAE, TransformerActivationExtractor
from sksae.activations._rows import rows_of
from sksae.interpretation import (
    LogitLens,
    interpret,
    unique_ngrams,
    unit_codes,
    vocabulary_codes,
)

GRANULARITIES = ("token", "all_tokens", "word", "sentence", "sample", "cls")


def as_lists(found):
    """The interpretations with the order of the units, activations rounded."""
    return {
        concept: units and [(unit, round(value, 4)) for unit, value in units.items()]
        for concept, units in found.items()
    }


def by_loops(codes, units, k):
    """interpreto's rule: equal texts keep their largest, k largest, stop at zero."""
    found = {}
    for concept, column in enumerate(codes.T.tolist()):
        best = {}
        for unit, value in zip(units, column, strict=True):
            best[unit] = max(best.get(unit, value), value)
        ranked = sorted(best.items(), key=lambda item: -item[1])[:k]
        found[concept] = {unit: value for unit, value in ranked if value > 0} or None
    return found


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_all_sources_agree(bert_pipe, texts, granularity):
    pipe = bert_pipe(granularity=granularity)
    X = pipe[:1].transform(texts)
    codes = pipe.transform(texts)
    expected = by_loops(codes.toarray(), rows_of(codes).units, 3)
    assert any(expected.values())
    step = TopKInputs(k=3).fit(codes)
    assert as_lists(step.interpretations_) == as_lists(expected)
    plain, units = np.asarray(X), list(rows_of(X).units)
    sources = [
        {"inputs": texts},
        {"latent_activations": X},
        {"latent_activations": plain, "inputs": texts},
        {"latent_activations": torch.from_numpy(plain), "units": units},
        {"concepts_activations": codes},
        {"concepts_activations": codes.toarray(), "inputs": texts},
        {"concepts_activations": sparse.coo_matrix(codes), "units": units},
        {"concepts_activations": torch.from_numpy(codes.toarray()), "inputs": texts},
    ]
    for source in sources:
        assert as_lists(interpret(pipe, k=3, **source)) == as_lists(expected), source


def test_the_source_nearest_to_the_concepts_is_used(bert_pipe, texts):
    pipe = bert_pipe()
    X, codes = pipe[:1].transform(texts), pipe.transform(texts)
    only = codes.copy()
    only.data[:] = 0
    assert set(interpret(pipe, inputs=texts, concepts_activations=only).values()) == {None}
    few = interpret(pipe, TopKInputs, "all", ["no such word"], X[:1], codes[:2])
    assert few == TopKInputs().fit(codes[:2]).interpretations_
    latents = interpret(pipe, inputs=["no such word"], latent_activations=X[:2])
    assert latents == TopKInputs().fit(pipe[1].transform(X[:2])).interpretations_


def test_only_some_concepts(bert_pipe, texts):
    pipe = bert_pipe()
    everything = interpret(pipe, inputs=texts)
    assert list(everything) == list(range(24))
    assert interpret(pipe, TopKInputs, [5, 2], texts) == {i: everything[i] for i in (5, 2)}
    assert interpret(pipe, concepts_indices=7, inputs=texts) == {7: everything[7]}


def test_an_sae_alone_takes_activations_and_codes(bert_pipe, texts):
    pipe = bert_pipe()
    X, codes, sae = pipe[:1].transform(texts), pipe.transform(texts), pipe["sae"]
    expected = as_lists(interpret(pipe, inputs=texts))
    assert as_lists(interpret(sae, latent_activations=X)) == expected
    assert as_lists(interpret(sae, concepts_activations=codes)) == expected
    units = [f"u{i}" for i in range(codes.shape[0])]
    named = interpret(sae, concepts_activations=codes, units=units)
    assert named == TopKInputs().fit(codes, units=units).interpretations_


def test_a_lens_reads_the_dictionary_of_the_sae(tiny_llama, byte_tokenizer, texts):
    acts = TransformerActivationExtractor(tiny_llama, "layers.0", tokenizer=byte_tokenizer)
    sae = TopKSAE(12, top_k=2, nb_epochs=1, device="cpu", random_state=0)
    pipe, lens = make_pipeline(acts, sae).fit(texts), LogitLens(tiny_llama, sae.components_, k=2)
    lens.set_params(tokenizer=byte_tokenizer)
    expected = clone(lens).fit(pipe.transform(texts)).interpretations_
    assert any(found is not None for found in expected.values())
    assert interpret(pipe, lens.set_params(components=None), inputs=texts) == expected
    assert interpret(pipe, lens.set_params(components=sae), inputs=texts) == expected
    params = {"model": tiny_llama, "tokenizer": byte_tokenizer, "k": 2}
    assert interpret(pipe, LogitLens, inputs=texts, **params) == expected
    scaled = make_pipeline(acts, KeepRows(StandardScaler()), clone(sae)).fit(texts)
    with pytest.raises(ValueError, match="^LogitLens needs a dictionary. Pass components="):
        interpret(scaled, LogitLens, inputs=texts, **params)
    turned = interpret(scaled, LogitLens, inputs=texts, components=-sae.components_, **params)
    both = [c for c in turned if turned[c] and expected[c]]
    assert [turned[c].promoted[0].id for c in both] == [expected[c].suppressed[0].id for c in both]


def test_the_vocabulary(bert_pipe, texts):
    pipe = bert_pipe()
    expected = TopKInputs(k=4).fit(vocabulary_codes(pipe)).interpretations_
    assert interpret(pipe, use_vocab=True, k=4) == expected
    assert interpret(pipe, inputs=texts, use_vocab=True, k=4) == expected
    assert any("##ing" in (units or ()) for units in interpret(pipe, use_vocab=True, k=99).values())


def test_unique_words(bert_pipe, texts):
    pipe = bert_pipe(granularity="word")
    expected = TopKInputs().fit(unit_codes(pipe, list(unique_ngrams(texts)))).interpretations_
    assert interpret(pipe, inputs=texts, use_unique_words=True) == expected
    rules = {"count_min_threshold": 2, "words_to_ignore": ["the"]}
    pairs = unique_ngrams(texts, 2)
    found = interpret(pipe, inputs=texts, use_unique_words=2, k=99)
    assert {unit for units in found.values() for unit in units or ()} == set(pairs)
    found = interpret(pipe, inputs=texts, use_unique_words=1, unique_words_kwargs=rules, k=99)
    assert {unit for units in found.values() for unit in units or ()} == {"blue", "sea", "sing"}


def test_instances_are_cloned_and_keep_what_they_have(bert_pipe, texts):
    pipe, method = bert_pipe(), TopKInputs(k=2, concepts_indices=[3, 4])
    found = interpret(pipe, method, inputs=texts)
    assert list(found) == [3, 4]
    assert not hasattr(method, "interpretations_")
    assert list(interpret(pipe, method, 6, texts, k=1)) == [6]
    assert method.get_params() == {"k": 2, "concepts_indices": [3, 4], "fold_case": False}
    folded = interpret(pipe, TopKInputs, inputs=texts, fold_case=True, k=99)
    assert all(len({u.lower() for u in units}) == len(units) for units in folded.values() if units)


class Recorder(BaseEstimator):
    """An interpreter of somebody else's, which keeps what it is fitted on."""

    def __init__(self, concepts_indices="all"):
        self.concepts_indices = concepts_indices

    def fit(self, X, y=None, *, units=None):
        self.interpretations_ = {"rows": rows_of(X), "units": units}
        return self


def test_the_method_sees_the_rows(bert_pipe, texts):
    pipe = bert_pipe()
    X, codes = pipe[:1].transform(texts), pipe.transform(texts)
    sources = [
        {"inputs": texts},
        {"latent_activations": np.asarray(X), "inputs": texts},
        {"concepts_activations": codes.toarray(), "inputs": texts},
        {"concepts_activations": codes},
    ]
    for source in sources:
        seen = interpret(pipe, Recorder, **source)
        assert seen["rows"] == X.rows
        assert seen["units"] is None
    units = ["u"] * len(X)
    seen = interpret(pipe, Recorder(), concepts_activations=codes, units=units)
    assert seen == {"rows": X.rows, "units": units}


@pytest.mark.parametrize("scaler", [StandardScaler(), KeepRows(StandardScaler())])
def test_steps_around_the_extractor_take_part(bert_pipe, texts, scaler):
    lower = FunctionTransformer(lambda given: [text.replace("sky", "sea") for text in given])
    sae = TopKSAE(8, top_k=2, nb_epochs=1, device="cpu", random_state=0)
    steps = [("clean", lower), ("acts", bert_pipe()["acts"]), ("scale", scaler), ("sae", sae)]
    pipe = Pipeline([*steps, ("names", TopKInputs())])
    pipe[:4].fit(texts)
    X = pipe[:2].transform(texts)
    expected = TopKInputs().fit(pipe[:4].transform(texts), units=X.rows.units).interpretations_
    assert as_lists(interpret(pipe, inputs=texts)) == as_lists(expected)
    assert as_lists(interpret(pipe, latent_activations=X)) == as_lists(expected)
    plain = interpret(pipe, latent_activations=np.asarray(X), inputs=texts)
    assert as_lists(plain) == as_lists(expected)
    assert not any("sky" in (units or ()) for units in plain.values())


def test_frames(bert_pipe, texts):
    sae = TopKSAE(8, top_k=2, nb_epochs=1, device="cpu", random_state=0, sparse_output=False)
    pipe = bert_pipe(sae=sae)
    expected = as_lists(interpret(pipe, inputs=texts))
    pipe = clone(pipe).set_output(transform="pandas").fit(texts * 3)
    frame, codes = pipe[:1].transform(texts), pipe.transform(texts)
    assert isinstance(codes, pd.DataFrame)
    assert as_lists(interpret(pipe, inputs=texts)) == expected
    assert as_lists(interpret(pipe, latent_activations=frame)) == expected
    assert as_lists(interpret(pipe, concepts_activations=codes)) == expected
    assert interpret(pipe, use_vocab=True).keys() == expected.keys()


def refused(kind, *args, **kwargs):
    with pytest.raises(kind) as error:
        interpret(*args, **kwargs)
    return str(error.value)


def test_something_to_interpret_is_needed(bert_pipe):
    assert refused(ValueError, bert_pipe()) == (
        "interpret needs something to interpret: inputs (texts), latent_activations, "
        "concepts_activations, or use_vocab=True."
    )
    assert refused(ValueError, bert_pipe(), use_unique_words=True) == (
        "use_unique_words of interpret needs texts to take words from: inputs."
    )
    assert refused(ValueError, bert_pipe(), inputs=["a sea"], use_unique_words=3) == (
        "The inputs of interpret hold no unit of 3 word(s) to run. Lower count_min_threshold, or "
        "ignore fewer words."
    )


def test_an_sae_alone_refuses_texts(bert_pipe, texts):
    sae, codes = bert_pipe()["sae"], bert_pipe().transform(texts).toarray()
    for source in (
        {"inputs": texts},
        {"inputs": texts, "concepts_activations": codes},
        {"use_vocab": True},
        {"inputs": texts, "use_unique_words": True},
    ):
        assert refused(ValueError, sae, **source) == (
            "interpret needs an extractor to run texts. Pass a pipeline of a "
            "TransformerActivationExtractor and an SAE, not the SAE alone."
        )


def test_lengths_that_do_not_match(bert_pipe, texts):
    pipe = bert_pipe()
    codes = pipe.transform(texts)
    n = codes.shape[0]
    assert refused(ValueError, pipe, inputs=texts, concepts_activations=codes.toarray()[:-1]) == (
        f"inputs of interpret make {n} rows (granularity='token'), but there are activations of "
        f"{n - 1}. Pass the texts that the activations come from, or units= (one string per row)."
    )
    assert refused(ValueError, pipe, concepts_activations=codes, units=["a"]) == (
        f"The 'units' of interpret must have one entry per row: expected {n}, got shape (1,)."
    )
    assert refused(ValueError, pipe, concepts_activations=codes.toarray()).startswith(
        "interpret needs to know the string of each row."
    )
    assert refused(ValueError, pipe, concepts_activations=codes[:, :5]) == (
        "concepts_activations of interpret has 5 columns, but TopKSAE has 24 concepts. "
        "Activations that are not encoded yet are latent_activations."
    )


def test_sources_that_do_not_go_together(bert_pipe, texts):
    pipe = bert_pipe()
    codes = pipe.transform(texts)
    assert refused(ValueError, pipe, use_vocab=True, concepts_activations=codes) == (
        "use_vocab of interpret runs its own units, for which concepts_activations says nothing. "
        "Leave out concepts_activations or use_vocab."
    )
    assert refused(ValueError, pipe, inputs=texts, use_unique_words=2, units=["a"]) == (
        "use_unique_words of interpret runs its own units, for which units says nothing. "
        "Leave out units or use_unique_words."
    )
    assert refused(ValueError, pipe, inputs=texts, use_unique_words=2, use_vocab=True) == (
        "interpret takes use_vocab or use_unique_words, not both."
    )
    assert refused(ValueError, pipe, inputs=texts, unique_words_kwargs={}) == (
        "interpret takes unique_words_kwargs only with use_unique_words."
    )
    for wrong in ("yes", -1, 1.5, None):
        assert refused(ValueError, pipe, inputs=texts, use_unique_words=wrong) == (
            "The 'use_unique_words' parameter of interpret must be a bool or the number of words "
            f"in a unit. Got {wrong!r} instead."
        )


def test_methods_that_are_refused(bert_pipe, texts):
    assert refused(TypeError, bert_pipe(), "TopKInputs", inputs=texts) == (
        "The 'interpretation_method' of interpret must be an interpreter of "
        "sksae.interpretation, a class or an instance. Got 'TopKInputs' instead."
    )
    assert refused(TypeError, bert_pipe(), inputs=texts, activation_granularity="word") == (
        "interpret takes no activation_granularity: a row is what the extractor makes of the "
        "texts. Set granularity= of the TransformerActivationExtractor instead."
    )
    assert "unexpected keyword argument 'kk'" in refused(TypeError, bert_pipe(), inputs=texts, kk=2)
    assert refused(ValueError, bert_pipe()[:1], inputs=texts).startswith(
        "interpret needs an SAE, or a pipeline that holds exactly one."
    )
