"""Units run alone: the codes are those of the model on that unit and nothing else."""

import copy

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sksae import KeepRows, TopKInputs, TopKSAE, TransformerActivationExtractor
from sksae.activations._rows import rows_of
from sksae.interpretation import _unit_codes as module
from sksae.interpretation import unit_codes, vocabulary_codes

GRANULARITIES = ("token", "all_tokens", "word", "sentence", "sample", "cls")
UNITS = ["sea", "The seas", "blueing. The sky", "x", "the", "sea"]


def alone(pipe, unit):
    """The largest codes over the rows of one text, those of special tokens left out."""
    codes = pipe.transform([unit])
    rows = rows_of(codes)
    counted = np.array([pipe[0].granularity == "cls" or end > 0 for end in rows.end])
    return codes.toarray()[counted].max(axis=0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_codes_are_those_of_each_unit_alone(bert_pipe, granularity, monkeypatch):
    pipe = bert_pipe(granularity=granularity)
    monkeypatch.setattr(module, "_CHUNK", 4)
    codes = unit_codes(pipe, UNITS, batch_size=2)
    assert sparse.issparse(codes)
    assert codes.indices.dtype == np.int32
    assert codes.dtype == np.float32
    assert list(rows_of(codes).units) == UNITS
    expected = np.array([alone(pipe, unit) for unit in UNITS])
    np.testing.assert_allclose(codes.toarray(), expected, rtol=1e-4, atol=1e-5)
    assert (expected > 0).any(axis=1).all()


def hidden(model, ids):
    """Hidden states after the first block, one forward pass for each sequence."""
    model = copy.deepcopy(model)  # transformers leaves hooks on it that cannot be pickled
    with torch.inference_mode():
        outputs = [model(torch.tensor([row]), output_hidden_states=True) for row in ids]
    return [o.hidden_states[1][0].numpy() for o in outputs]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_token_of_the_vocabulary_is_run_between_special_tokens(
    bert_pipe, tiny_bert, bert_tokenizer, granularity
):
    pipe = bert_pipe(granularity=granularity)
    codes = vocabulary_codes(pipe, batch_size=50)
    pieces = [p for p in bert_tokenizer.get_vocab() if p not in bert_tokenizer.all_special_tokens]
    pieces.sort(key=bert_tokenizer.get_vocab().get)
    assert bert_tokenizer.get_vocab()[pieces.pop()] == tiny_bert.config.vocab_size  # one too many
    assert list(rows_of(codes).units) == pieces  # "##ing" too, as one token
    cls, sep = bert_tokenizer.cls_token_id, bert_tokenizer.sep_token_id
    ids = [[cls, bert_tokenizer.get_vocab()[piece], sep] for piece in pieces]
    states = hidden(tiny_bert, ids)
    at = 0 if granularity == "cls" else 1
    expected = pipe[1].transform(np.array([s[at] for s in states]))
    np.testing.assert_allclose(codes.toarray(), expected.toarray(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip_first", [0, 1, 3])
def test_a_token_follows_the_leading_ones_that_are_left_out(tiny_gpt2, byte_tokenizer, skip_first):
    acts = TransformerActivationExtractor(
        tiny_gpt2, "h.0", tokenizer=byte_tokenizer, skip_first=skip_first
    )
    sae = TopKSAE(24, top_k=4, nb_epochs=1, device="cpu", random_state=0)
    pipe = Pipeline([("acts", acts), ("sae", sae)]).fit(["The sea is blue, the sky too."] * 4)
    codes = vocabulary_codes(pipe)
    eos = [byte_tokenizer.eos_token_id] * skip_first
    ids, strings = module.vocabulary(byte_tokenizer)
    assert list(rows_of(codes).units) == strings
    states = hidden(tiny_gpt2, [[*eos, token] for token in ids])
    expected = pipe[1].transform(np.array([s[-1] for s in states])).toarray()
    np.testing.assert_allclose(codes.toarray(), expected, rtol=1e-4, atol=1e-5)
    whole = [i for i, s in enumerate(strings) if byte_tokenizer(s)["input_ids"] == [ids[i]]]
    assert len(whole) > 90
    units = unit_codes(pipe, [strings[i] for i in whole]).toarray()
    np.testing.assert_allclose(units, expected[whole], rtol=1e-4, atol=1e-5)


def words_extractor(vocabulary, **params):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=8, num_attention_heads=2)
    model = BertModel(config)
    return TransformerActivationExtractor(model, "layer.0", tokenizer=tokenizer, **params)


def small_sae():
    return TopKSAE(4, top_k=2, nb_epochs=1, device="cpu", random_state=0)


def test_tokens_that_nobody_can_read_are_left_out():
    unreadable = ["[UNK]", "[unused7]", "<unused1>", "<extra_id_3>", "<|reserved_special_token_1|>"]
    unreadable += ["", " ", "\n", "\ufffd", "\x00", "\u200b"]
    readable = ["sea", "[", "<", "unused", "大海", "🌊", "reserved"]
    acts = words_extractor([*unreadable, *readable])
    pipe = Pipeline([("acts", acts), ("sae", small_sae())]).fit(["sea unused"])
    assert list(rows_of(vocabulary_codes(pipe)).units) == readable


def test_without_a_token_to_stand_before_the_unit():
    acts = words_extractor(["[UNK]", "blue", "sea"], skip_first=1)
    pipe = Pipeline([("acts", acts), ("sae", small_sae())]).fit(["blue sea sea blue"])
    for run in (vocabulary_codes, lambda pipe: unit_codes(pipe, ["sea"])):
        with pytest.raises(ValueError) as error:
            run(pipe)
        name = type(acts.tokenizer).__name__
        assert str(error.value) == (
            "skip_first=1 leaves out the unit itself where it is run alone, and "
            f"{name} has no special token to stand before it. Give the tokenizer a "
            "bos_token, or use skip_first=0."
        )


def test_units_without_tokens_have_zero_codes(bert_pipe):
    codes = unit_codes(bert_pipe(), ["", "sea", " \n"])
    assert codes.getnnz(axis=1).tolist() == [0, 4, 0]
    assert unit_codes(bert_pipe(granularity="all_tokens"), [""]).nnz == 0
    concepts = TopKInputs().fit(codes).interpretations_
    assert {unit for found in concepts.values() for unit in found or ()} == {"sea"}


def test_steps_around_the_extractor_take_part(bert_pipe, texts):
    acts, sae = bert_pipe().steps[0][1], small_sae()
    lower = FunctionTransformer(lambda units: [unit.replace("X", "sea") for unit in units])
    for scaler in (StandardScaler(), KeepRows(StandardScaler())):
        pipe = Pipeline([("clean", lower), ("acts", acts), ("scale", scaler), ("sae", sae)])
        pipe.fit(texts)
        codes = unit_codes(pipe, ["X", "blue"])
        assert list(rows_of(codes).units) == ["X", "blue"]
        scaled = pipe[2].transform(pipe[1].transform(["sea", "blue"]))
        expected = pipe[3].transform(scaled).toarray()
        np.testing.assert_allclose(codes.toarray(), expected, rtol=1e-4, atol=1e-5)


def test_frames_and_dense_codes_become_csr(bert_pipe, texts):
    sae = TopKSAE(24, top_k=4, nb_epochs=1, device="cpu", random_state=0, sparse_output=False)
    pipe = bert_pipe(sae=sae)
    plain = unit_codes(pipe, UNITS)
    frames = unit_codes(pipe.set_output(transform="pandas"), UNITS)
    on_frames = unit_codes(clone(pipe).fit(texts * 3), UNITS)  # no warning of missing names
    assert sparse.issparse(plain) and sparse.issparse(frames)
    np.testing.assert_allclose(plain.toarray(), on_frames.toarray(), rtol=1e-4)
    np.testing.assert_array_equal(plain.toarray(), frames.toarray())
    np.testing.assert_allclose(plain.toarray(), unit_codes(bert_pipe(), UNITS).toarray())


@pytest.mark.parametrize("run", [unit_codes, vocabulary_codes])
def test_what_is_refused(bert_pipe, run):
    pipe, units = bert_pipe(), [["sea"]] if run is unit_codes else []
    with pytest.raises(ValueError) as error:
        run(pipe["sae"], *units)
    assert str(error.value) == (
        f"{run.__name__} needs an extractor to run texts. Pass a pipeline of a "
        "TransformerActivationExtractor and an SAE, not the SAE alone."
    )
    with pytest.raises(ValueError, match=rf"^{run.__name__} needs an SAE, or a pipeline that hol"):
        run(pipe[:1], *units)
    with pytest.raises(ValueError) as error:
        run(pipe, *units, batch_size=0)
    assert str(error.value) == (
        f"The 'batch_size' parameter of {run.__name__} must be an int of at least 1. Got 0 instead."
    )


def test_units_that_are_refused(bert_pipe):
    with pytest.raises(TypeError, match=r"^unit_codes expects a sequence of texts\. Got a single "):
        unit_codes(bert_pipe(), "sea")
    with pytest.raises(TypeError, match=r"^unit_codes expects texts: X\[1\] must be a str\. Got i"):
        unit_codes(bert_pipe(), ["sea", 3])
    with pytest.raises(ValueError, match="a minimum of 1 is required by unit_codes"):
        unit_codes(bert_pipe(), [])


def planted(states, groups):
    """An untrained SAE with one concept for the mean direction of each group of rows."""
    center = np.median(states, axis=0)
    means = np.array([states[rows].mean(axis=0) - center for rows in groups])
    start = torch.from_numpy(means / np.linalg.norm(means, axis=1, keepdims=True))
    sae = TopKSAE(
        len(groups),
        top_k=1,
        dictionary_params={"initializer": start},
        nb_epochs=1,
        lr=1e-12,
        auxk_coefficient=0,
        device="cpu",
        random_state=0,
    )
    return sae.fit(states)


SEEDS = {"day": "monday tuesday saturday", "number": "three seven ten", "city": "paris rome berlin"}
HELD_OUT = {
    "day": {"wednesday", "thursday", "friday", "sunday"},
    "number": {"four", "five", "six", "eight", "nine"},
    "city": {"london", "vienna", "madrid", "moscow"},
}


@pytest.mark.real
def test_the_vocabulary_of_a_real_encoder_names_planted_concepts(minilm_path):
    """Concepts made of three words each are named by words of their kind that they never saw."""
    acts = TransformerActivationExtractor(minilm_path, "embeddings").fit(["a"])
    words = " ".join(SEEDS.values()).split()
    common = "the of and house red run water over quickly music law green eat dog blue".split()
    states = np.asarray(acts.transform(words + common))
    sae = planted(states, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    pipe = Pipeline([("acts", acts), ("sae", sae)])
    codes = vocabulary_codes(pipe)
    assert codes.shape[0] > 29_000
    names = TopKInputs(k=30, fold_case=True).fit(codes).interpretations_
    for found, kind in zip(names.values(), SEEDS, strict=True):
        assert set(SEEDS[kind].split()) <= set(list(found)[:10])
        assert len(HELD_OUT[kind] & set(found)) >= len(HELD_OUT[kind]) - 1
    units = rows_of(codes).units.tolist()
    at = [units.index(word) for word in words]
    np.testing.assert_allclose(
        codes[at].toarray(), unit_codes(pipe, words).toarray(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.real
def test_units_of_a_real_causal_model_are_not_taken_for_the_first_position(smollm_path):
    acts = TransformerActivationExtractor(smollm_path, "layers.4", skip_first=1)
    others = "house water quickly music green dog law run eat bread stone".split()
    words = [w.title() for w in (*SEEDS["day"].split(), *HELD_OUT["day"], *others)]
    states = np.asarray(acts.fit_transform([f"a {word}" for word in words]))
    rows = acts.transform([f"a {word}" for word in words]).rows
    last = np.flatnonzero(np.append(np.diff(rows.text) != 0, True))
    sae = planted(states[last], [[0, 1, 2], list(range(7, len(words)))])
    pipe = Pipeline([("acts", acts), ("sae", sae)])
    codes = unit_codes(pipe, [f" {word}" for word in words])
    days = TopKInputs(k=7).fit(codes).interpretations_[0]
    assert set(days) == {w.title() for w in (*SEEDS["day"].split(), *HELD_OUT["day"])}
    norms = np.linalg.norm(acts.set_params(skip_first=0).transform(["Monday"]), axis=1)
    assert codes.max() < norms[0] / 4  # the first position's norm is many times larger
