"""The extractor as a scikit-learn estimator, by name and by object."""

import copy
import gc
import pickle
import re
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import estimator_html_repr

from sksae.activations import Extractor, TransformerActivationExtractor, _loading

TEXTS = [
    "The sea is blue.",
    "",
    "Don't read 😀 texts; read tokens! Café? 漢字",
    "sea",
    "The sea is blue.",
    "a b c d e f g h i j k l m n o p q r",
    "Two sentences. Or three?\nYes.",
]


# scikit-learn's habits


def test_not_fitted(bert):
    for call in (lambda e: e.transform(["a"]), lambda e: e.get_feature_names_out()):
        with pytest.raises(NotFittedError):
            call(bert())


def test_parameters_are_stored_as_given_and_never_changed(bert, tiny_bert):
    layer, tokenizer_params = [0, "layer.1"], {"a": 1}
    extractor = bert(layer, tokenizer_params=tokenizer_params)
    before = {**extractor.get_params()}
    extractor.fit_transform(["a"])
    assert extractor.get_params().keys() == before.keys()
    assert all(extractor.get_params()[name] is value for name, value in before.items())
    assert extractor.layer == [0, "layer.1"]
    assert extractor.model is tiny_bert


def test_defaults_follow_the_documented_signature():
    import inspect

    signature = inspect.signature(TransformerActivationExtractor)
    assert Extractor is TransformerActivationExtractor
    assert str(signature) == (
        "(model, layer, *, tokenizer=None, granularity='token', aggregation='mean', "
        "batch_size='auto', max_length=None, long_text='truncate', skip_first=0, device='auto', "
        "dtype='float32', revision=None, model_params=None, tokenizer_params=None, "
        "cache='memory', cache_size=2000000000, progress=False)"
    )


def test_clone_shares_model_and_tokenizer(bert, tiny_bert, bert_tokenizer):
    original = bert([0, 1]).set_output(transform="pandas").fit(["a"])
    for copied in (clone(original), clone(make_pipeline(original))[0]):
        assert copied.model is tiny_bert
        assert copied.tokenizer is bert_tokenizer
        assert copied.layer == [0, 1]
        assert copied.layer is not original.layer
        assert not hasattr(copied, "layer_names_")
        assert hasattr(copied.fit_transform(["a"]), "iloc")


def test_a_search_holds_one_copy_of_the_weights(bert, tiny_bert):
    def n_models():
        gc.collect()
        return sum(type(x) is type(tiny_bert) for x in gc.get_objects())

    before = n_models()
    pipe = Pipeline([("acts", bert(0)), ("svd", Tokens(2, random_state=0))])
    search = GridSearchCV(pipe, {"svd__n_components": [2, 3]}, cv=2).fit(TEXTS)
    clones = [clone(search.best_estimator_) for _ in range(5)]
    assert n_models() == before
    assert all(c["acts"].model is tiny_bert for c in clones)


def test_deepcopy_is_independent_and_works(bert, tiny_bert):
    original = bert().fit(["a"])
    copied = copy.deepcopy(original)
    assert copied.model is not tiny_bert
    np.testing.assert_array_equal(copied.transform(TEXTS), original.transform(TEXTS))


def test_pickle_carries_the_weights_of_an_object(bert, tmp_path):
    original = bert().fit(["a"])
    X = original.transform(TEXTS)
    joblib.dump(original, tmp_path / "extractor.joblib")
    for again in (pickle.loads(pickle.dumps(original)), joblib.load(tmp_path / "extractor.joblib")):
        Y = again.transform(TEXTS)
        np.testing.assert_array_equal(Y, X)
        assert Y.rows == X.rows


def test_a_heavy_pickle_warns_once(bert, monkeypatch):
    monkeypatch.setattr(_loading, "_HEAVY", 1000)
    monkeypatch.setattr(_loading, "_warned_heavy", False)
    with pytest.warns(UserWarning, match="BertModel is pickled with 0 MB of weights, as happens"):
        pickle.dumps(bert())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.dumps(bert())


def test_repr_is_short(bert):
    extractor = bert()
    assert repr(extractor).startswith("TransformerActivationExtractor(layer='layer.1',")
    for shown in (repr(extractor), repr(Pipeline([("acts", extractor), ("svd", TruncatedSVD())]))):
        assert re.search(r"model=<BertModel, \d+\.\dK parameters>", shown)
        assert re.search(r"tokenizer=<\w+>", shown)
        assert "Embedding(" not in shown
    for shown in (
        estimator_html_repr(extractor),
        estimator_html_repr(make_pipeline(extractor, TruncatedSVD())),
    ):
        assert re.search(r"&lt;BertModel, \d+\.\dK parameters&gt;", shown)
        assert "Embedding(" not in shown
    assert extractor.get_params()["model"] is extractor.model


def test_feature_names_and_output_containers(bert):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    texts = pd.Series(["the sea", "", "blue"], index=[5, 6, 7])
    plain = bert().fit_transform(texts)
    extractor = bert().set_output(transform="pandas")
    for frame in (extractor.fit_transform(texts), extractor.transform(texts)):
        assert isinstance(frame, pd.DataFrame)
        assert frame.index.names == ["text", "start", "end"]
        assert frame.index.tolist() == [(0, 0, 3), (0, 4, 7), (2, 0, 4)]
        assert frame.columns.tolist() == [f"encoder.layer.1_{i}" for i in range(32)]
        np.testing.assert_array_equal(frame.to_numpy(), plain)
    frame = bert().set_output(transform="polars").fit_transform(texts)
    assert isinstance(frame, pl.DataFrame)
    assert frame.columns == extractor.get_feature_names_out().tolist()
    np.testing.assert_array_equal(frame.to_numpy(), plain)


def test_tags(bert):
    tags = bert().__sklearn_tags__()
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert tags.requires_fit


def test_progress_bar(bert, capsys):
    bert().fit_transform(["the sea"])
    assert capsys.readouterr().err == ""
    bert(progress=True).fit_transform(["the sea", "a"])
    assert "7.00/7.00" in capsys.readouterr().err


# Models given by name


@pytest.fixture
def loads(monkeypatch):
    """Count how often AutoModel and AutoTokenizer load."""
    from transformers import AutoModel, AutoTokenizer

    counts = {"model": 0, "tokenizer": 0}
    for kind, auto in (("model", AutoModel), ("tokenizer", AutoTokenizer)):
        original = auto.from_pretrained.__func__

        def load(cls, *args, kind=kind, original=original, **kwargs):
            counts[kind] += 1
            return original(cls, *args, **kwargs)

        monkeypatch.setattr(auto, "from_pretrained", classmethod(load))
    return counts


def test_by_name_equals_by_object(tiny_bert_path, bert, capsys):
    X = Extractor(tiny_bert_path, "layer.1").fit_transform(TEXTS)
    expected = bert().fit_transform(TEXTS)
    np.testing.assert_allclose(X, expected, atol=1e-6)
    assert X.rows == expected.rows
    assert capsys.readouterr().err == ""  # no bar of transformers


def test_by_path_object(tiny_bert_path):
    from pathlib import Path

    assert Extractor(Path(tiny_bert_path), 0).fit_transform(["a"]).shape == (1, 32)


def test_an_object_finds_the_tokenizer_of_its_folder(tiny_bert_path, bert):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_bert_path)
    X = Extractor(model, "layer.1").fit_transform(TEXTS)
    np.testing.assert_allclose(X, bert().fit_transform(TEXTS), atol=1e-6)


def test_by_name_a_pickle_is_small_and_reloads(tiny_bert_path):
    extractor = Extractor(tiny_bert_path, 0).fit(["a"])
    X = extractor.transform(TEXTS)
    stored = pickle.dumps(extractor)
    assert len(stored) < 2000
    np.testing.assert_array_equal(pickle.loads(stored).transform(TEXTS), X)
    np.testing.assert_array_equal(copy.deepcopy(extractor).transform(TEXTS), X)


def test_clones_load_a_model_once(tiny_bert_path, loads):
    original = Extractor(tiny_bert_path, 0)
    for _ in range(3):
        clone(clone(original)).fit_transform(["a"])
    original.fit(["a"])
    pickle.loads(pickle.dumps(original)).transform(["a"])
    assert loads == {"model": 1, "tokenizer": 1}
    clone(original).set_params(dtype="bfloat16").fit(["a"])
    assert loads == {"model": 2, "tokenizer": 1}


def test_a_loaded_model_goes_when_its_estimators_go(tiny_bert_path):
    import weakref

    extractor = Extractor(tiny_bert_path, 0).fit(["a"])
    model = weakref.ref(extractor._held[0])
    copied = clone(extractor)
    del extractor
    gc.collect()
    assert model() is not None
    del copied
    gc.collect()
    assert model() is None


def test_a_folder_with_new_weights_is_loaded_anew(tiny_bert, bert_tokenizer, tmp_path):
    changed = copy.deepcopy(tiny_bert)
    changed.save_pretrained(tmp_path)
    bert_tokenizer.save_pretrained(tmp_path)
    first = Extractor(str(tmp_path), 0).fit(["a"])
    X = first.transform(["a"])
    changed.embeddings.LayerNorm.bias.data += 1
    changed.save_pretrained(tmp_path)
    assert not np.allclose(clone(first).fit_transform(["a"]), X)
    np.testing.assert_array_equal(first.transform(["a"]), X)


def test_loading_parameters(tiny_bert_path):
    extractor = Extractor(
        tiny_bert_path,
        "layer.0",
        dtype="float16",
        model_params={"attn_implementation": "eager"},
        tokenizer_params={"model_max_length": 9},
    ).fit(["a"])
    model, tokenizer = extractor._held
    assert model.dtype == torch.float16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert tokenizer.model_max_length == extractor.max_length_ == 9
    assert extractor.transform(["a"]).dtype == np.float32


def test_names_that_do_not_load(tmp_path, tiny_bert):
    message = f"Cannot load the model '{tmp_path}'"
    with pytest.raises(OSError, match=re.escape(message)) as caught:
        Extractor(str(tmp_path), 0).fit(["a"])
    assert "Pass a folder, the name of one that can be fetched, or a loaded model." in str(
        caught.value
    )
    assert caught.value.__cause__ is not None
    with pytest.raises(OSError, match="Cannot load the tokenizer"):
        Extractor(tiny_bert, 0, tokenizer=str(tmp_path)).fit(["a"])


def test_device_that_is_not_there(tiny_bert_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message = (
        "device='cuda' was asked of TransformerActivationExtractor, but this machine has 0 CUDA "
        "devices. Use device='auto' or device='cpu'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Extractor(tiny_bert_path, 0, device="cuda").fit(["a"])


def test_memory_runs_out_with_advice(bert, tiny_bert):
    extractor = bert().fit(["a"])

    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = tiny_bert.encoder.layer[0].register_forward_hook(fail)
    message = "No memory left for a batch of 2 texts of 4 tokens. Lower batch_size or max_length."
    with pytest.raises(torch.OutOfMemoryError, match=re.escape(message)):
        extractor.transform(["the sea", "a"])
    handle.remove()


class Tokens(TruncatedSVD):
    """A step that ignores y, whose length is that of the texts."""

    def fit(self, X, y=None):
        return super().fit(X)

    def fit_transform(self, X, y=None):
        return super().fit_transform(X)

    def score(self, X, y=None):
        return -float(np.square(X - self.inverse_transform(self.transform(X))).mean())


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("by", ["name", "object"])
def test_grid_search(bert, tiny_bert_path, loads, n_jobs, by):
    extractor = Extractor(tiny_bert_path, 0) if by == "name" else bert(0)
    pipe = Pipeline([("acts", extractor), ("svd", Tokens(2, random_state=0))])
    grid = {"acts__layer": [0, [0, 1]], "svd__n_components": [2, 3]}
    search = GridSearchCV(pipe, grid, cv=2, n_jobs=n_jobs, error_score="raise")
    search.fit(TEXTS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.transform(TEXTS).shape[1] in {2, 3}
    if n_jobs == 1:
        assert loads["model"] == (1 if by == "name" else 0)
    if by == "object":
        assert search.best_estimator_["acts"].model is extractor.model
