"""The extractor on tiny models: which rows, which values."""

import copy
import re

import numpy as np
import pytest
import torch

from sksae.activations import Extractor

TEXTS = [
    "The sea is blue.",
    "",
    "Don't read 😀 texts; read tokens! Café? 漢字",
    "sea",
    "The sea is blue.",
    "a b c d e f g h i j k l m n o p q r",
    "Two sentences. Or three?\nYes.",
]


def other_padding(tokenizer, **changes):
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def one_by_one(model, module, tokenizer, text):
    """Run one text to the end of the model and give the output of a module."""
    found = []
    handle = module.register_forward_hook(lambda m, a, out: found.append(out))
    with torch.no_grad():
        model(**tokenizer(text, return_tensors="pt"))
    handle.remove()
    out = found[0]
    return (out if isinstance(out, torch.Tensor) else out[0])[0].numpy()


# Values


@pytest.mark.parametrize("granularity", ["token", "all_tokens"])
def test_rows_are_the_hidden_states_of_their_tokens(pair, granularity):
    model, tokenizer = pair
    extractor = Extractor(model, -1, tokenizer=tokenizer, granularity=granularity, batch_size=3)
    X = extractor.fit_transform(TEXTS)
    module = dict(model.named_modules())[extractor.layer_names_[0]]
    for i, text in enumerate(TEXTS):
        encoded = tokenizer(text)
        rows = X.rows.text == i
        if not encoded["input_ids"]:
            assert not rows.any()
            continue
        expected = one_by_one(model, module, tokenizer, text)
        if granularity == "token":
            expected = expected[[word is not None for word in encoded.word_ids()]]
        np.testing.assert_allclose(X[rows], expected, atol=1e-4, rtol=1e-4)
    assert X.dtype == np.float32
    assert X.rows.n_texts == len(TEXTS)
    assert X.rows.texts == tuple(TEXTS)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("granularity", ["all_tokens", "word", "sentence", "sample"])
def test_padding_never_changes_a_row(pair, side, granularity):
    model, tokenizer = pair
    tokenizer = other_padding(tokenizer, padding_side=side)
    extractor = Extractor(model, [0, -1], tokenizer=tokenizer, granularity=granularity)
    X = extractor.set_params(batch_size=7).fit_transform(TEXTS)
    alone = extractor.set_params(batch_size=1).fit_transform(TEXTS)
    assert X.rows == alone.rows
    np.testing.assert_allclose(X, alone, atol=1e-4, rtol=1e-4)
    assert np.isfinite(X).all()


def test_left_padding_is_used_where_the_model_takes_positions(tiny_gpt2, byte_tokenizer):
    seen = []
    handle = tiny_gpt2.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    try:
        tokenizer = other_padding(byte_tokenizer, padding_side="left")
        Extractor(tiny_gpt2, 0, tokenizer=tokenizer).fit_transform(["aa", "a"])
    finally:
        handle.remove()
    assert seen[-1]["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert seen[-1]["position_ids"].tolist() == [[0, 1], [0, 0]]
    assert seen[-1]["use_cache"] is False


def test_models_that_number_positions_by_their_padding(bert_tokenizer):
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=len(bert_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
        pad_token_id=0,
    )
    model = RobertaModel(config).eval()
    for side in ("left", "right"):
        tokenizer = other_padding(bert_tokenizer, padding_side=side)
        extractor = Extractor(model, 0, tokenizer=tokenizer)
        X = extractor.fit_transform(["the sea", "a b c d e f"])
        alone = extractor.set_params(batch_size=1).fit_transform(["the sea", "a b c d e f"])
        np.testing.assert_allclose(X, alone, atol=1e-5)
        assert extractor.max_length_ == 19


def test_an_encoder_in_front_of_a_decoder(byte_tokenizer):
    from transformers import T5Config, T5Model

    config = T5Config(
        vocab_size=len(byte_tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2
    )
    model = T5Model(config).eval()
    X = Extractor(model, "encoder.block.1", tokenizer=byte_tokenizer).fit_transform(TEXTS)
    assert X.shape == (sum(len(byte_tokenizer(t)["input_ids"]) for t in TEXTS), 16)


def test_order_is_restored_and_duplicates_agree(bert):
    texts = ["sea", "the sea is blue", "b", "the sea is blue", "b c"] * 5
    X = bert(granularity="sample", batch_size=4).fit_transform(texts)
    assert X.rows.text.tolist() == list(range(25))
    for i in range(5):
        np.testing.assert_allclose(X[i::5], np.tile(X[i], (5, 1)), atol=1e-5)
    permuted = np.random.default_rng(0).permutation(25)
    again = bert(granularity="sample", batch_size=4).fit_transform([texts[i] for i in permuted])
    np.testing.assert_allclose(again, X[permuted], atol=1e-5)


AGGREGATE = {
    "mean": lambda x: x.mean(axis=0),
    "max": lambda x: x.max(axis=0),
    "min": lambda x: x.min(axis=0),
    "sum": lambda x: x.sum(axis=0),
    "signed_max": lambda x: x[np.abs(x).argmax(axis=0), np.arange(x.shape[1])],
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
}


@pytest.mark.parametrize("aggregation", AGGREGATE)
@pytest.mark.parametrize("granularity", ["word", "sentence", "sample"])
def test_units_aggregate_their_tokens(bert, granularity, aggregation):
    tokens = bert().fit_transform(TEXTS)
    units = bert(granularity=granularity, aggregation=aggregation).fit_transform(TEXTS)
    assert units.rows.n_texts == len(TEXTS)
    taken = 0
    for i in range(len(units)):
        rows, of = tokens.rows, units.rows
        inside = (rows.text == of.text[i]) & (rows.start >= of.start[i]) & (rows.end <= of.end[i])
        expected = AGGREGATE[aggregation](np.asarray(tokens)[inside])
        np.testing.assert_allclose(units[i], expected, atol=1e-4, rtol=1e-4)
        taken += inside.sum()
    assert taken == len(tokens)


def test_cls_is_position_zero(bert):
    X = bert(granularity="cls").fit_transform(TEXTS)
    every = bert(granularity="all_tokens").fit_transform(TEXTS)
    heads = np.flatnonzero(every.rows.units == "[CLS]")
    np.testing.assert_allclose(X, every[heads], atol=1e-5)
    assert X.rows.text.tolist() == list(range(len(TEXTS)))
    assert list(X.rows.units) == ["[CLS]"] * len(TEXTS)


def test_skip_first_removes_rows_and_changes_no_other(pair):
    model, tokenizer = pair
    whole = Extractor(model, 0, tokenizer=tokenizer, granularity="all_tokens").fit_transform(TEXTS)
    for n in (1, 3, 30, 100):
        extractor = Extractor(model, 0, tokenizer=tokenizer, granularity="all_tokens", skip_first=n)
        X = extractor.fit_transform(TEXTS)
        position = np.concatenate([np.arange((whole.rows.text == i).sum()) for i in range(7)])
        assert list(X.rows.units) == list(whole.rows.units[position >= n])
        np.testing.assert_allclose(X, np.asarray(whole)[position >= n], atol=1e-5)


def test_several_layers_are_one_pass_side_by_side(bert, tiny_bert):
    several = bert([1, "embeddings", "0.intermediate"])
    calls = []
    handle = tiny_bert.register_forward_pre_hook(lambda m, a: calls.append(1))
    X = several.fit_transform(["the sea"])
    handle.remove()
    assert len(calls) == 2  # one tiny pass in fit, one batch
    assert several.layer_names_ == [
        "encoder.layer.1",
        "embeddings",
        "encoder.layer.0.intermediate",
    ]
    assert several.layer_sizes_ == [32, 32, 48]
    at = 0
    for name, size in zip(several.layer_names_, several.layer_sizes_, strict=True):
        alone = bert(name).fit_transform(["the sea"])
        np.testing.assert_allclose(X[:, at : at + size], alone, atol=1e-6)
        at += size
    names = several.get_feature_names_out()
    assert names[[0, 32, 64]].tolist() == [
        "encoder.layer.1_0",
        "embeddings_0",
        "encoder.layer.0.intermediate_0",
    ]
    assert len(set(names)) == X.shape[1] == several.n_features_out_ == 112


def test_tuple_outputs(bert):
    assert bert("encoder.layer.0.attention").fit_transform(["the sea"]).shape == (2, 32)


def test_later_layers_do_not_run(tiny_llama, byte_tokenizer):
    extractor = Extractor(tiny_llama, 0, tokenizer=byte_tokenizer, batch_size=2).fit(TEXTS)
    counts = [0, 0, 0]
    handles = []
    for i, block in enumerate(tiny_llama.model.layers):
        handles.append(
            block.register_forward_hook(lambda *a, i=i: counts.__setitem__(i, counts[i] + 1))
        )
    extractor.transform(TEXTS)
    for handle in handles:
        handle.remove()
    assert counts == [3, 0, 0]


def test_fit_does_not_run_the_texts(bert, tiny_bert):
    shapes = []
    handle = tiny_bert.register_forward_pre_hook(
        lambda m, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    bert().fit(["a b c d e f"] * 1000)
    handle.remove()
    assert shapes == [(1, 8)]


def test_non_finite_activations_pass_through(bert, tiny_bert):
    def spoil(module, args, output):
        output = output.clone()
        output[:, 1, 0] = float("inf")
        output[:, 2, 1] = float("nan")
        return output

    handle = tiny_bert.encoder.layer[1].register_forward_hook(spoil)
    try:
        for aggregation in AGGREGATE:
            X = bert(granularity="sample", aggregation=aggregation).fit_transform(["a b c"])
            assert X.shape == (1, 32)
        X = bert().fit_transform(["a b c"])
    finally:
        handle.remove()
    assert np.isinf(X[0, 0])
    assert np.isnan(X[1, 1])


# Long texts

LONG = "the sea is blue and a b c d e f g h " * 20


def test_truncation_warns_once_and_says_how_many(bert):
    message = (
        "2 of 3 texts have more than max_length=64 tokens and were truncated. Raise max_length, "
        "or use long_text='windows'."
    )
    extractor = bert(batch_size=1).fit(["sea"])
    with pytest.warns(UserWarning) as caught:
        X = extractor.transform([LONG, "sea", LONG])
    assert [str(w.message) for w in caught] == [message]
    assert np.bincount(X.rows.text).tolist() == [62, 1, 62]


def test_truncated_rows_are_those_of_the_shorter_text(bert, bert_tokenizer):
    spans = bert_tokenizer(LONG, return_offsets_mapping=True)["offset_mapping"]
    with pytest.warns(UserWarning, match="1 of 1 texts have more than max_length=10 tokens"):
        X = bert(max_length=10).fit_transform([LONG])
    short = bert().fit_transform([LONG[: spans[8][1]]])
    np.testing.assert_allclose(X, short, atol=1e-5)


def test_windows_keep_document_wide_spans(pair):
    model, tokenizer = pair
    extractor = Extractor(
        model, 1, tokenizer=tokenizer, max_length=16, long_text="windows", batch_size=3
    )
    texts = ["sea", LONG, "", "the sea " * 9]
    X = extractor.fit_transform(texts)
    encoded = tokenizer(texts, return_offsets_mapping=True, verbose=False)
    spans = [
        (i, *span)
        for i, text in enumerate(encoded["offset_mapping"])
        for j, span in enumerate(text)
        if encoded.word_ids(i)[j] is not None
    ]
    rows = X.rows
    assert list(zip(rows.text, rows.start, rows.end, strict=True)) == spans
    alone = extractor.fit_transform([texts[3]])
    np.testing.assert_allclose(X[rows.text == 3], alone, atol=1e-4)


def test_windows_change_no_short_text(bert):
    X = bert(long_text="windows").fit_transform(TEXTS)
    np.testing.assert_array_equal(X, bert().fit_transform(TEXTS))


def test_a_window_is_run_as_a_text_of_its_own(bert):
    """20 one-token words in windows of 8: the third one begins at word 8."""
    words = list("abcdefghijklmnopqrst")
    X = bert(max_length=10, long_text="windows").fit_transform([" ".join(words)])
    window = bert().fit_transform([" ".join(words[8:16])])
    np.testing.assert_allclose(X[10:14], window[2:6], atol=1e-5)


def test_units_across_windows(bert):
    text = "abcdefghij " * 12
    for aggregation, pool in AGGREGATE.items():
        tokens = bert(max_length=16, long_text="windows", batch_size=2).fit_transform([text])
        X = bert(
            max_length=16,
            long_text="windows",
            granularity="word",
            aggregation=aggregation,
            batch_size=2,
        ).fit_transform([text])
        assert list(X.rows.units) == text.split()
        expected = [pool(np.asarray(tokens)[i * 10 : i * 10 + 10]) for i in range(12)]
        np.testing.assert_allclose(X, expected, atol=1e-4)


def test_max_length_by_default(tiny_bert, bert_tokenizer, tiny_llama, byte_tokenizer):
    fit = {"tokenizer": bert_tokenizer}
    assert Extractor(tiny_bert, 0, **fit).fit(["a"]).max_length_ == 64
    short = other_padding(bert_tokenizer, model_max_length=20)
    assert Extractor(tiny_bert, 0, tokenizer=short).fit(["a"]).max_length_ == 20
    assert Extractor(tiny_llama, 0, tokenizer=byte_tokenizer).fit(["a"]).max_length_ == 128
    message = (
        "max_length=65 exceeds the 64 positions of BertModel. Lower it, or use long_text='windows'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Extractor(tiny_bert, 0, max_length=65, **fit).fit(["a"])
    extractor = Extractor(tiny_llama, 0, tokenizer=byte_tokenizer, max_length=200)
    assert extractor.fit(["a"]).max_length_ == 200


# Input


def test_empty_and_single_texts(pair):
    model, tokenizer = pair
    extractor = Extractor(model, 0, tokenizer=tokenizer).fit(["a"])
    X = extractor.transform(["", ""])
    assert X.shape == (0, 32)
    assert X.rows.n_texts == 2
    assert extractor.transform(["a"]).shape == (1, 32)
    assert extractor.fit_transform([""]).shape == (0, 32)


@pytest.mark.parametrize("granularity", ["token", "word", "sentence", "sample"])
def test_units_are_spans_of_unicode_texts(pair, granularity):
    model, tokenizer = pair
    texts = ["naïve café 😀👩‍👩‍👧 ok", "漢字かな交じり文。次の文。", "a\u0301 \u200bb\tc", "🇫🇷"]
    X = Extractor(model, 0, tokenizer=tokenizer, granularity=granularity).fit_transform(texts)
    rows = X.rows
    assert set(rows.text) == {0, 1, 2, 3}
    for unit, t, s, e in zip(rows.units, rows.text, rows.start, rows.end, strict=True):
        assert unit == texts[t][s:e].strip()


def test_texts_given_as_words(bert):
    X = bert(granularity="word").fit_transform([["don't", "stop"], ["sea"]])
    assert list(X.rows.units) == ["don't", "stop", "sea"]
    tokens = bert().fit_transform(["don't stop", "sea"])
    np.testing.assert_allclose(
        X[0], np.asarray(tokens)[tokens.rows.end <= 5][:-1].mean(axis=0), atol=1e-4
    )
    same = bert().fit_transform([["don't", "stop"], ["sea"]])
    np.testing.assert_array_equal(same, tokens)


def test_series_and_arrays(bert):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    expected = bert().fit_transform(TEXTS)
    for kind in (tuple, np.array, pl.Series, lambda x: pd.Series(x, index=range(7, 0, -1))):
        X = bert().fit_transform(kind(TEXTS))
        np.testing.assert_array_equal(X, expected)
        assert X.rows == expected.rows


@pytest.mark.parametrize("method", ["fit", "transform", "fit_transform"])
def test_wrong_input_is_refused_everywhere(bert, method):
    call = getattr(bert().fit(["a"]), method)
    with pytest.raises(TypeError, match="TransformerActivationExtractor expects a sequence"):
        call("text")
    with pytest.raises(ValueError, match=re.escape("Found array with 0 sample(s)")):
        call([])
    with pytest.raises(ValueError, match=re.escape("X[1] is None")):
        call(["a", None])
