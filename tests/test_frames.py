"""Data frames between the steps: rows of one text stay together, those of others apart."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sksae import TopKSAE, TransformerActivationExtractor
from sksae.activations import ConceptPooler, Rows
from sksae.activations._rows import rows_frame, rows_of
from sksae.interpretation import TopKInputs
from sksae.intervention import steering_vector

TEXTS = [
    "the sea",
    "blue sea is the sea",
    "a hidden state",
    "the blue",
    "vector the sea is",
    "tokens",
]


@pytest.fixture
def extractor(tiny_bert, bert_tokenizer):
    return TransformerActivationExtractor(tiny_bert, "encoder.layer.0", tokenizer=bert_tokenizer)


def sae(**params):
    return TopKSAE(16, top_k=2, nb_epochs=1, random_state=0, device="cpu", **params)


@pytest.fixture
def pooled(extractor):
    return make_pipeline(extractor, sae(sparse_output=False), ConceptPooler())


@pytest.fixture
def shuffled():
    """Texts and their numbers, in a frame whose labels are in another order."""
    return pd.DataFrame({"body": TEXTS, "n": np.arange(6.0)}).sample(frac=1, random_state=0)


@pytest.mark.parametrize("index", [None, [50, 51, 52, 53, 54, 55], list("abcdef")])
def test_a_column_transformer_keeps_texts_beside_their_columns(pooled, shuffled, index):
    frame = shuffled if index is None else shuffled.set_axis(index)
    columns = ColumnTransformer([("t", pooled, "body"), ("n", "passthrough", ["n"])])
    expected = np.asarray(columns.fit_transform(frame), dtype=float)
    columns.set_output(transform="pandas")
    for out in (columns.fit_transform(frame), columns.transform(frame)):
        assert list(out.index) == list(frame.index)
        np.testing.assert_allclose(out.to_numpy(dtype=float), expected, atol=1e-6)


def test_a_union_with_other_features_of_a_series(pooled, shuffled):
    lengths = FunctionTransformer(lambda texts: texts.str.len().to_frame("length"))
    union = FeatureUnion([("t", pooled), ("n", lengths)]).set_output(transform="pandas")
    out = union.fit_transform(shuffled["body"])
    assert out.shape == (6, 17) and not out.isna().any(axis=None)
    assert list(out["n__length"]) == [len(text) for text in shuffled["body"]]


def test_texts_without_labels_are_numbered(pooled):
    pooled.set_output(transform="pandas")
    assert list(pooled.fit_transform(TEXTS).index) == [0, 1, 2, 3, 4, 5]
    assert pooled.fit_transform(TEXTS).index.name == "text"


def test_labels_survive_pickling_and_selection(extractor, shuffled):
    X = extractor.fit_transform(shuffled["body"])
    pooler = ConceptPooler().set_output(transform="pandas").fit(X)
    for rows in (X[::2], pickle.loads(pickle.dumps(X))):
        assert list(pooler.transform(rows).index) == list(shuffled.index)


def test_frames_of_several_calls_are_not_pooled_together(extractor):
    extractor.set_output(transform="pandas").fit(TEXTS)
    both = pd.concat([extractor.transform(TEXTS[:3]), extractor.transform(TEXTS[3:])])
    with pytest.raises(ValueError, match="is of several calls, whose texts have the same numbers"):
        ConceptPooler().fit_transform(both)
    at_once = extractor.transform(TEXTS)
    assert rows_of(pd.concat([at_once.iloc[:5], at_once.iloc[5:]])).n_texts == 6


def test_a_scaler_between_frames_loses_texts_but_not_their_numbers(extractor):
    X = extractor.set_output(transform="pandas").fit_transform(TEXTS)
    scaled = StandardScaler().set_output(transform="pandas").fit_transform(X)
    assert "sksae_texts" not in scaled.attrs
    assert list(rows_of(scaled).text) == list(rows_of(X).text)
    assert rows_of(scaled.sample(frac=1, random_state=0)) is None
    assert rows_of(X.sample(frac=1, random_state=0)) is not None


def test_polars_is_named_where_it_loses_the_rows(pooled):
    pytest.importorskip("polars")
    with pytest.raises(ValueError, match="A polars frame, which has no index, does not tell"):
        pooled.set_output(transform="polars").fit_transform(TEXTS)


def test_concepts_on_blank_units_are_not_called_dead():
    rows = Rows([0, 0], [0, 3], [3, 4], ["sea\n"])
    codes = rows_frame(np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), rows)
    names = TopKInputs().fit(codes).get_feature_names_out()
    assert list(names) == ["0: sea", "1: (no text)", "2: (dead)"]
    assert TopKInputs().fit(codes).interpretations_ == {0: {"sea": 1.0}, 1: {}, 2: None}


def test_a_text_without_tokens_is_classified_alone(extractor):
    steps = extractor, sae(), ConceptPooler(), LogisticRegression()
    classifier = make_pipeline(*steps).fit(TEXTS, [0, 1] * 3)
    alone, among = classifier.predict_proba([""]), classifier.predict_proba([TEXTS[0], ""])
    np.testing.assert_allclose(alone[0], among[1])
    dense = make_pipeline(extractor, sae(sparse_output=False).fit(extractor.transform(TEXTS)))
    assert dense.transform([" "]).shape == (0, 16)
    with pytest.raises(ValueError, match="Found array with 0 sample"):
        dense[-1].transform(np.empty((0, dense[-1].n_features_in_)))


def test_names_of_documents_as_groups():
    message = "Got <U1 values instead. For names of documents pass pandas.factorize"
    with pytest.raises(ValueError, match=message):
        ConceptPooler().fit_transform(np.ones((2, 2)), groups=["a", "b"])


def test_half_a_character(extractor):
    with pytest.raises(ValueError, match=r"X\[1\] holds a lone surrogate"):
        extractor.fit(["ok", "cut \ud83d"])
    extractor.fit(["whole \U0001f600"])


def test_a_pipeline_in_a_pipeline_steers_as_one(extractor):
    flat = make_pipeline(extractor, sae()).fit(TEXTS)
    nested = make_pipeline(flat, ConceptPooler())
    np.testing.assert_array_equal(steering_vector(nested, 0), steering_vector(flat, 0))
