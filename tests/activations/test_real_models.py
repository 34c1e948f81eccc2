"""The extractor on trained weights and real texts: an encoder and a causal model."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sksae.activations._extractor import Extractor

pytestmark = pytest.mark.real

TEXTS = [
    "The government said on Tuesday that it would raise taxes on fuel next year.",
    "Don't panic 😀! Café owners, e.g. in Paris, disagree.",
    "",
    "Short.",
    "The government said on Tuesday that it would raise taxes on fuel next year.",
    "漢字とかな。" * 3,
]


@pytest.fixture(scope="module")
def minilm(minilm_path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(minilm_path).eval()
    return model, AutoTokenizer.from_pretrained(minilm_path)


@pytest.fixture(scope="module")
def smollm(smollm_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm_path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(smollm_path)


def reference(model, tokenizer, text, module):
    found = []
    handle = module.register_forward_hook(lambda m, args, out: found.append(out))
    with torch.no_grad():
        model(**tokenizer(text, return_tensors="pt"))
    handle.remove()
    return found[0][0].numpy()


def test_encoder_rows_are_its_hidden_states(minilm):
    model, tokenizer = minilm
    extractor = Extractor(model, ["layer.4", "layer.1.intermediate"], granularity="all_tokens")
    X = extractor.set_params(tokenizer=tokenizer).fit_transform(TEXTS)
    assert X.shape[1] == 384 + 1536
    for i, text in enumerate(TEXTS):
        wide = reference(model, tokenizer, text, model.encoder.layer[4])
        np.testing.assert_allclose(X[X.rows.text == i][:, :384], wide, atol=1e-4)
    alone = extractor.set_params(batch_size=1).fit_transform(TEXTS)
    np.testing.assert_allclose(X, alone, atol=1e-4)


def test_encoder_units(minilm_path):
    words = Extractor(minilm_path, -1, granularity="word").fit_transform(TEXTS[1:2]).rows
    assert list(words.units) == [
        *["Don", "'", "t", "panic", "😀", "!", "Café", "owners", ",", "e", ".", "g", "."],
        *["in", "Paris", ",", "disagree", "."],
    ]
    sentences = Extractor(minilm_path, -1, granularity="sentence").fit_transform(TEXTS[1:2]).rows
    assert list(sentences.units) == ["Don't panic 😀!", "Café owners, e.g. in Paris, disagree."]


def test_long_documents(minilm_path):
    text = " ".join(TEXTS) * 20
    extractor = Extractor(minilm_path, 2, long_text="windows", max_length=128)
    X = extractor.fit_transform([text])
    assert len(X) > 1000
    assert (np.diff(X.rows.start) >= 0).all()
    with pytest.warns(UserWarning, match="1 of 1 texts have more than max_length=512 tokens"):
        short = Extractor(minilm_path, 2).fit_transform([text])
    assert len(short) == 510
    # A token keeps most of its state although window and position differ.
    assert np.corrcoef(X[100:300].ravel(), short[100:300].ravel())[0, 1] > 0.7
    assert np.corrcoef(X[100:300].ravel(), short[101:301].ravel())[0, 1] < 0.5


def test_mean_pooled_states_tell_topics_apart(minilm_path):
    sport = ["The team won the match", "A late goal decided the final", "She ran a fast race"]
    money = ["Shares fell on Monday", "The bank raised its rates", "Profits rose last quarter"]
    pipe = make_pipeline(Extractor(minilm_path, -1, granularity="sample"), LogisticRegression())
    pipe.fit(sport + money, [0] * 3 + [1] * 3)
    assert pipe.predict(["The striker scored twice", "The market closed lower"]).tolist() == [0, 1]


def test_causal_rows_are_its_hidden_states(smollm):
    model, tokenizer = smollm
    extractor = Extractor(model, 3, tokenizer=tokenizer)
    X = extractor.fit_transform(TEXTS)
    assert extractor.layer_names_ == ["model.layers.3"]
    for i, text in enumerate(TEXTS):
        if not text:
            assert not (X.rows.text == i).any()
            continue
        expected = reference(model, tokenizer, text, model.model.layers[3])
        np.testing.assert_allclose(X[X.rows.text == i], expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_causal_padding_changes_no_row(smollm, side):
    model, tokenizer = smollm
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        extractor = Extractor(model, -1, tokenizer=tokenizer)
        X = extractor.fit_transform(TEXTS)
        alone = extractor.set_params(batch_size=1).fit_transform(TEXTS)
    finally:
        tokenizer.padding_side = before
    np.testing.assert_allclose(X, alone, rtol=1e-3, atol=1e-2)


def test_skip_first_drops_the_attention_sink(smollm_path):
    X = Extractor(smollm_path, 4).fit_transform(TEXTS)
    norms = np.linalg.norm(X, axis=1)
    first = np.diff(X.rows.text, prepend=-1) > 0
    assert norms[first].min() > 4 * np.median(norms)
    kept = Extractor(smollm_path, 4, skip_first=1).fit_transform(TEXTS)
    np.testing.assert_allclose(kept, X[~first], rtol=1e-3, atol=1e-2)
    assert np.linalg.norm(kept, axis=1).max() < norms[first].min()


def test_byte_level_words(smollm_path):
    rows = Extractor(smollm_path, 0, granularity="word").fit_transform(TEXTS[1:2]).rows
    assert list(rows.units)[:5] == ["Don", "'t", "panic", "😀!", "Café"]
