"""The cache: which texts run, which rows come back, what a folder survives."""

import copy
import gc
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import time
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import TruncatedSVD
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline
from transformers import BertModel

from sksae.activations import (
    Extractor,
    _cache,
    _cache_folder,
    _fingerprint,
    _forward,
    _loading,
    _run,
)

TEXTS = [
    "The sea is blue.",
    "",
    "Don't read 😀 texts; read tokens! Café? 漢字",
    "sea",
    "The sea is blue.",
    "a b c d e f g h i j k l m n o p q r",
    "Two sentences. Or three?\nYes.",
]


@pytest.fixture(autouse=True)
def empty_memory():
    """Begin without what estimators of other tests, not yet collected, hold."""
    memory = _loading.shared("memory cache", (), _cache.Memory)
    memory._kept.clear()
    memory.n_bytes = 0
    return memory


@pytest.fixture
def model(tiny_bert):
    """A model of its own, to be changed."""
    return copy.deepcopy(tiny_bert)


@pytest.fixture
def ran(monkeypatch):
    """Record the token ids of each sequence that runs, probes apart."""
    seen = []
    batch = _forward.Forward.batch

    def recording(self, ids, types, wanted):
        seen.extend(tuple(x.tolist()) for x in ids)
        return batch(self, ids, types, wanted)

    monkeypatch.setattr(_forward.Forward, "batch", recording)
    return seen


@pytest.fixture(params=["memory", "folder"])
def cache(request, tmp_path):
    """Both kinds of cache."""
    if request.param == "folder":
        pytest.importorskip("zarr")
        return tmp_path / "rows"
    return "memory"


WITH_ROWS = set(TEXTS) - {""}  # the tiny BERT has no row for "", so it is not run


def same(X, Y):
    np.testing.assert_array_equal(np.asarray(X), np.asarray(Y))
    assert X.rows == Y.rows


def segments(folder):
    return sorted(Path(folder).glob("*/segment-*"))


# The same rows, and each text once


def test_a_second_call_runs_nothing_and_gives_the_same_bits(pair, cache, ran):
    model, tokenizer = pair
    for granularity in ("token", "all_tokens", "word", "sentence", "sample"):
        extractor = Extractor(
            model, [0, -1], tokenizer=tokenizer, granularity=granularity, cache=cache
        )
        plain = clone(extractor).set_params(cache=None).fit_transform(TEXTS)
        ran.clear()
        first = extractor.fit_transform(TEXTS)
        assert len(ran) == len(set(ran)) > 0
        ran.clear()
        same(first, extractor.transform(TEXTS))
        same(first, clone(extractor).fit_transform(TEXTS))
        assert not ran
        assert first.rows == plain.rows
        np.testing.assert_allclose(first, plain, atol=1e-4, rtol=1e-4)


def test_without_repetition_a_first_run_equals_the_run_without_a_cache(bert, cache):
    texts = list(dict.fromkeys(TEXTS))
    for params in ({}, {"granularity": "sample"}, {"granularity": "cls"}):
        plain = bert(cache=None, **params).fit_transform(texts)
        same(bert(cache=cache, **params).fit_transform(texts), plain)


def test_any_subset_order_and_repetition_hits(bert, cache, ran):
    rng = np.random.default_rng(0)
    texts = [f"{a} sea {b}." for a in "abcdefg" for b in "xyz"] + ["", " "]
    extractor = bert(cache=cache).fit(texts)
    whole = extractor.transform(texts)
    ran.clear()
    for _ in range(5):
        chosen = rng.integers(len(texts), size=30)
        X = extractor.transform([texts[i] for i in chosen])
        expected = np.concatenate([whole[whole.rows.text == i] for i in chosen])
        np.testing.assert_array_equal(X, expected)
        units = [u for i in chosen for u in whole.rows[whole.rows.text == i].units]
        assert list(X.rows.units) == units
        assert X.rows.n_texts == 30
    assert not ran
    X = extractor.transform(["new", *texts[::-1], "new", "c sea z."])
    assert len(ran) == 1
    np.testing.assert_array_equal(X[X.rows.text == 0], X[X.rows.text == len(texts) + 1])
    again = X[np.isin(X.rows.text, np.arange(1, len(texts) + 1))]
    np.testing.assert_array_equal(again[:4], whole[whole.rows.text == len(texts) - 3])


def test_repeated_texts_run_once(bert, cache, ran):
    X = bert(cache=cache).fit_transform(["a sea", "b", "a sea", "", "a sea", "b", ""])
    assert len(ran) == 2
    assert X.rows.text.tolist() == [0, 0, 1, 2, 2, 4, 4, 5]
    np.testing.assert_array_equal(X[:2], X[3:5])


def test_many_chunks_are_one_result(bert, cache, ran, monkeypatch):
    texts = [f"{'sea ' * (i % 7)}{i}" for i in range(60)]
    expected = bert(cache=None).fit_transform(texts)
    monkeypatch.setattr(_run, "_CHARACTERS", 50)
    ran.clear()
    some = bert(cache=cache).fit(texts)
    some.transform(texts[10:20] + texts[5:7])
    X = some.transform(texts + texts[::9])
    assert len(ran) == len(set(ran)) == 60
    np.testing.assert_allclose(X[: len(expected)], expected, atol=1e-5)
    np.testing.assert_array_equal(X.rows.text[: len(expected)], expected.rows.text)
    same(some.transform(texts), some.transform(texts))
    np.testing.assert_allclose(bert(cache=None).fit_transform(texts), expected, atol=1e-5)


def test_tokens_of_the_next_chunk_are_made_in_a_thread(bert, monkeypatch):
    import threading

    monkeypatch.setattr(_run, "_CHARACTERS", 10)
    extractor = bert(cache=None).fit(["a"])
    threads, tokenize = [], extractor._tokenize
    extractor._tokenize = lambda texts: threads.append(threading.get_ident()) or tokenize(texts)
    extractor.transform(["the blue sea", "a b c d e f", "blue sea, blue"])
    assert len(threads) == 3
    assert set(threads) != {threading.get_ident()}


def test_words_given_are_told_from_the_text_they_make(bert, cache):
    extractor = bert(granularity="word", cache=cache)
    split = [["the blue", "sea"], ["don't"]]
    for _ in range(2):
        assert extractor.fit_transform(split).shape[0] == 3
        assert extractor.transform(["the blue sea", "don't"]).shape[0] == 6
        assert extractor.transform([["the", "blue", "sea"]]).shape[0] == 3


def test_the_warning_of_long_texts_comes_again(bert, cache):
    extractor = bert(cache=cache, max_length=6).fit(["a"])
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 3 texts have more than max_length=6 tokens"):
            extractor.transform(["a b c d e f g", "a", "a b c d e f g"])


def test_frames_and_special_tokens(bert, cache):
    pytest.importorskip("pandas")
    extractor = bert(granularity="all_tokens", cache=cache).fit(TEXTS)
    first = extractor.transform(TEXTS)
    assert first.rows.units[0] == "[CLS]"
    same(first, extractor.transform(TEXTS))
    frame = extractor.set_output(transform="pandas").transform(TEXTS)
    np.testing.assert_array_equal(frame.to_numpy(), first)


def test_what_a_user_does_to_the_output_stays_there(bert, cache):
    extractor = bert(cache=cache).fit(TEXTS)
    first = extractor.transform(TEXTS)
    kept = np.array(first)
    first *= 0
    second = extractor.transform(TEXTS)
    np.testing.assert_array_equal(second, kept)
    second += 1
    np.testing.assert_array_equal(extractor.transform(TEXTS), kept)


# What makes other rows is another entry


@pytest.mark.parametrize(
    "change",
    [
        {"layer": "layer.0"},
        {"layer": ["layer.1", "layer.0"]},
        {"granularity": "word"},
        {"granularity": "sample"},
        {"granularity": "sample", "aggregation": "max"},
        {"max_length": 9},
        {"skip_first": 2},
        {"long_text": "windows", "max_length": 9},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.* texts have more than max_length=9 tokens")
def test_settings_never_share_rows(bert, cache, change):
    extractor = bert(cache=cache)
    extractor.fit_transform(TEXTS)
    extractor.set_params(granularity="sample").fit_transform(TEXTS)
    extractor.set_params(**{"granularity": "token", **change})
    X = extractor.fit_transform(TEXTS)
    plain = clone(extractor).set_params(cache=None).fit_transform(TEXTS)
    assert X.rows == plain.rows
    np.testing.assert_allclose(X, plain, atol=1e-5)


def _by_version(model):
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[3, 4] += 0.5


def _by_data(model):
    model.encoder.layer[1].output.dense.bias.data[2] -= 0.5


def _by_numpy(model):
    model.embeddings.word_embeddings.weight.detach().numpy()[7] *= 1.5


def _by_new_data(model):
    model.embeddings.LayerNorm.weight.data = model.embeddings.LayerNorm.weight.data * 1.5


def _by_state_dict(model):
    state = {name: value * 1.1 for name, value in model.state_dict().items()}
    model.load_state_dict(state)


def _by_training(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    model(input_ids=torch.arange(8)[None]).last_hidden_state.square().sum().backward()
    optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None


def _by_attribute(model):
    model.encoder.layer[0].attention.self.scaling *= 3


def _by_module(model):
    model.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.ReLU()


@pytest.mark.parametrize(
    "change",
    [
        _by_version,
        _by_data,
        _by_numpy,
        _by_new_data,
        _by_state_dict,
        _by_training,
        _by_attribute,
        _by_module,
    ],
)
def test_a_changed_model_is_another_model(model, bert_tokenizer, cache, change):
    if change is _by_attribute and not hasattr(model.encoder.layer[0].attention.self, "scaling"):
        pytest.skip("this transformers keeps no scaling")
    extractor = Extractor(model, "layer.1", tokenizer=bert_tokenizer, cache=cache)
    before = extractor.fit_transform(TEXTS)
    original = copy.deepcopy(model)
    change(model)
    after = extractor.transform(TEXTS)
    plain = clone(extractor).set_params(cache=None).fit_transform(TEXTS)
    np.testing.assert_allclose(after, plain, atol=1e-5)
    assert not np.allclose(after, before, atol=1e-3)
    # The model as it was is known still.
    same(Extractor(original, 1, tokenizer=bert_tokenizer, cache=cache).fit_transform(TEXTS), before)


def test_a_small_change_of_a_large_model_is_seen(model, monkeypatch):
    monkeypatch.setattr(_fingerprint, "_SUMMED", 0)
    monkeypatch.setattr(_fingerprint, "_BLOCKS", 4)
    monkeypatch.setattr(_fingerprint, "_BLOCK", 64)
    known = _fingerprint.of_model(model)
    for change in (_by_version, _by_new_data, _by_training):
        change(model)
        new = _fingerprint.of_model(model)
        assert new != known
        known = new
    model.encoder.layer[0].output.dense.weight.data += 0.5
    assert _fingerprint.of_model(model) != known


def test_equal_models_share_and_the_mode_does_not_count(model, tiny_bert, bert_tokenizer, ran):
    first = Extractor(tiny_bert, 1, tokenizer=bert_tokenizer).fit(["a"])
    X = first.transform(TEXTS)
    ran.clear()
    other = Extractor(model.train(), 1, tokenizer=copy.deepcopy(bert_tokenizer)).fit(["a"])
    same(other.transform(TEXTS), X)
    assert not ran
    assert model.training


def test_tokenizers_never_share_rows(tiny_bert, bert_tokenizer, cache):
    from tokenizers import normalizers

    tokenizer = copy.deepcopy(bert_tokenizer)
    extractor = Extractor(tiny_bert, 1, tokenizer=tokenizer, cache=cache)
    before = extractor.fit_transform(["The SEA"])
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    after = extractor.transform(["The SEA"])
    assert not np.allclose(after, before)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    same(extractor.transform(["The SEA"]), before)
    tokenizer.add_tokens(["SEA"])
    with pytest.raises(ValueError, match="they do not belong together"):
        extractor.transform(["The SEA"])


def test_types_of_weights_never_share_rows(tiny_bert_path, cache):
    half = Extractor(tiny_bert_path, 1, dtype="bfloat16", cache=cache).fit_transform(TEXTS)
    single = Extractor(tiny_bert_path, 1, cache=cache).fit_transform(TEXTS)
    assert half.dtype == single.dtype == np.float32
    assert not np.array_equal(half, single)
    plain = Extractor(tiny_bert_path, 1, dtype="bfloat16", cache=None).fit_transform(TEXTS)
    np.testing.assert_allclose(half, plain, atol=0.15)


def test_autocast_never_shares_rows(bert, cache):
    extractor = bert(cache=cache)
    X = extractor.fit_transform(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not np.array_equal(extractor.transform(TEXTS), X)
    same(extractor.transform(TEXTS), X)


@pytest.mark.parametrize("kind", ["hook", "pre_hook", "global", "forward"])
def test_a_model_that_others_change_is_run(model, bert_tokenizer, cache, kind, ran, monkeypatch):
    extractor = Extractor(model, 1, tokenizer=bert_tokenizer, cache=cache)
    X = extractor.fit_transform(TEXTS)
    module, handle = model.encoder.layer[0].attention, None

    def shifted(*args):
        return tuple(x + 1 if isinstance(x, torch.Tensor) else x for x in args[-1])

    if kind == "hook":
        handle = module.register_forward_hook(shifted)
    elif kind == "pre_hook":
        handle = model.encoder.layer[0].output.dense.register_forward_pre_hook(shifted)
    elif kind == "global":
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda m, a, out: shifted(out) if m is module else None
        )
    else:
        forward = module.forward
        monkeypatch.setattr(module, "forward", lambda *a, **k: shifted(forward(*a, **k)))
    try:
        for _ in range(2):
            ran.clear()
            changed = extractor.transform(TEXTS)
            assert len(ran) == len(TEXTS) - 1  # without a cache equal texts run again
            assert not np.allclose(changed, X, atol=1e-3)
    finally:
        handle.remove() if handle else monkeypatch.undo()
    same(extractor.transform(TEXTS), X)


def test_a_class_defined_anew_is_another_model(tiny_bert, bert_tokenizer):
    def cell(factor):
        space = {"BertModel": BertModel, "__name__": "__main__"}
        exec(
            textwrap.dedent(f"""
            class Mine(BertModel):
                def forward(self, inputs_embeds=None, input_ids=None, **kwargs):
                    embeds = self.embeddings.word_embeddings(input_ids) * {factor}
                    return super().forward(inputs_embeds=embeds, **kwargs)
            """),
            space,
        )
        made = space["Mine"](tiny_bert.config).eval()
        made.load_state_dict(tiny_bert.state_dict())
        return made

    prints = [_fingerprint.of_model(cell(factor)) for factor in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_weights_that_are_elsewhere_are_not_cached(model):
    model.pooler.to("meta")
    assert _fingerprint.of_model(model) is None


# The memory


def test_eviction_keeps_to_the_size_and_to_what_was_used_last(bert, ran, empty_memory):
    n = 32 * 4 + 3 * 4 + _cache._OVERHEAD  # one token of 32 features
    extractor = bert(cache_size=3 * n).fit(["a"])
    for letter in "abc":
        extractor.transform([letter])
    extractor.transform(["a"])
    extractor.transform(["d"])  # in place of "b"
    assert empty_memory.n_bytes == 3 * n
    ran.clear()
    extractor.transform(["a", "c", "d"])
    assert not ran
    extractor.transform(["b"])
    assert len(ran) == 1
    assert len(empty_memory) == 3
    # What does not fit leaves something for the next call.
    ran.clear()
    for expected in (6, 3):
        ran.clear()
        extractor.transform(list("uvwxyz"))
        assert len(ran) == expected
    assert empty_memory.n_bytes == 3 * n
    extractor.set_params(cache_size=n).transform(["k"])
    assert empty_memory.n_bytes == n
    extractor.set_params(cache_size=0).transform(["l"])
    assert empty_memory.n_bytes == n


def test_the_memory_goes_with_the_last_extractor(bert, monkeypatch):
    monkeypatch.setattr(_loading, "_ALIVE", weakref.WeakValueDictionary())
    extractor = bert().fit(["a"])
    copied = clone(extractor)
    extractor.transform(TEXTS)
    memory = weakref.ref(_loading.shared("memory cache", (), _cache.Memory))
    del extractor
    gc.collect()
    assert len(memory()) > 0
    del copied
    gc.collect()
    assert memory() is None


def test_pickles_and_copies_carry_no_cache(tiny_bert_path, cache, ran):
    extractor = Extractor(tiny_bert_path, 1, cache=cache).fit(["a"])
    X = extractor.transform(TEXTS * 20)
    stored = pickle.dumps(extractor)
    assert len(stored) < 2000
    ran.clear()
    again = pickle.loads(stored)
    same(again.transform(TEXTS * 20), X)
    assert again.cache == cache
    assert not ran


def test_threads_run_a_text_once(bert, ran):
    from concurrent.futures import ThreadPoolExecutor

    extractor = bert(batch_size=1).fit(["a"])
    texts = [f"sea {i}" for i in range(30)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: clone(extractor).fit(["a"]).transform(texts), range(4)))
    assert len(ran) == 30
    for X in results[1:]:
        same(X, results[0])


def test_hits_are_quick(bert, monkeypatch):
    texts = [f"the sea is blue {i}. " * 3 for i in range(1000)]
    extractor = bert().fit(["a"])
    start = time.process_time()
    extractor.transform(texts)
    middle = time.process_time()
    extractor.transform(texts)
    assert time.process_time() - middle < 0.5 * (middle - start)


def test_peak_memory_is_the_output_and_a_chunk(tiny_bert, bert_tokenizer, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(_run, "_CHARACTERS", 2000)
    texts = [f"sea {i} {'blue ' * 20}" for i in range(600)]
    extractor = Extractor(tiny_bert, 1, tokenizer=bert_tokenizer, cache=None).fit(["a"])
    extractor.transform(texts[:10])
    tracemalloc.start()
    X = extractor.transform(texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.4 * X.nbytes + 2e6


# Searches


class Tokens(TruncatedSVD):
    """A step that ignores y, whose length is that of the texts."""

    def fit_transform(self, X, y=None):
        return super().fit_transform(X)

    def fit(self, X, y=None):
        super().fit_transform(X)
        return self

    def score(self, X, y=None):
        return -float(np.square(X - self.inverse_transform(self.transform(X))).mean())


class CountingBert(BertModel):
    """Writes the tokens that it runs into the file that SKSAE_RAN names."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        with open(os.environ["SKSAE_RAN"], "a") as file:
            for ids, mask in zip(input_ids.tolist(), attention_mask.bool().tolist(), strict=True):
                kept = [i for i, m in zip(ids, mask, strict=True) if m]
                file.write(" ".join(map(str, kept)) + "\n")
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_runs_each_text_once(tiny_bert, bert_tokenizer, tmp_path, monkeypatch, n_jobs):
    file = tmp_path / "ran"
    monkeypatch.setenv("SKSAE_RAN", str(file))
    model = CountingBert(tiny_bert.config).eval()
    model.load_state_dict(tiny_bert.state_dict())
    texts = [f"the sea {i} {'is blue ' * (i % 4)}" for i in range(24)] + ["the sea 3 " * 2]
    cache = "memory" if n_jobs == 1 else str(tmp_path / "rows")
    extractor = Extractor(model, 0, tokenizer=bert_tokenizer, cache=cache)
    pipe = Pipeline([("acts", extractor), ("svd", Tokens(2, random_state=0))])
    grid = {"svd__n_components": [1, 2, 3, 4], "svd__n_iter": [1, 2, 3]}
    search = GridSearchCV(pipe, grid, cv=KFold(3), n_jobs=n_jobs, error_score="raise")
    search.fit(texts)
    search.best_estimator_.score(texts)
    lines = file.read_text().splitlines()
    probe = " ".join(map(str, bert_tokenizer("A text.")["input_ids"][:8]))
    assert lines.count(probe) == 37
    run = [line for line in lines if line != probe]
    assert len(run) == len(set(run)) == len(texts)


# The folder


@pytest.fixture
def folder(tmp_path):
    """A folder for rows."""
    pytest.importorskip("zarr")
    return tmp_path / "rows"


def fresh(extractor):
    """Forget what this process knows of the folder."""
    for key in [key for key in _loading._ALIVE if key[0] == "folder cache"]:
        del _loading._ALIVE[key]
    copied = clone(extractor)
    copied._held_by_clones = {}
    return copied.fit(["a"])


def test_a_folder_is_read_anew(bert, folder, ran):
    extractor = bert(cache=folder).fit(["a"])
    X = extractor.transform(TEXTS)
    (about,) = folder.glob("*/about.json")
    assert '"granularity": "token"' in about.read_text()
    ran.clear()
    same(fresh(extractor).transform(TEXTS), X)
    assert not ran
    assert len(segments(folder)) == 1
    assert not list(folder.glob("*/partial-*"))


def test_a_large_entry_spans_chunks(bert, folder, monkeypatch):
    monkeypatch.setattr(_cache_folder, "_CHUNK_BYTES", 32 * 4 * 5)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), size=n)) for n in rng.integers(1, 30, size=40)]
    extractor = bert(cache=folder).fit(["a"])
    plain = bert(cache=None).fit(["a"]).transform(texts)
    X = extractor.transform(texts)
    np.testing.assert_allclose(X, plain, atol=1e-5)
    same(fresh(extractor).transform(texts), X)
    chosen = rng.permutation(40)
    Y = fresh(extractor).transform([texts[i] for i in chosen])
    np.testing.assert_array_equal(Y, np.concatenate([X[X.rows.text == i] for i in chosen]))


def _cut_a_chunk(segment):
    chunk = max((segment / "values" / "c").rglob("*"), key=lambda p: p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-7])


def _lose_a_chunk(segment):
    next(p for p in (segment / "values" / "c").rglob("*") if p.is_file()).unlink()


def _flip_a_bit(segment):
    chunk = next(p for p in (segment / "values" / "c").rglob("*") if p.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(bytes(content))


def _flip_a_bit_of_the_keys(segment):
    chunk = next(p for p in (segment / "texts" / "c").rglob("*") if p.is_file())
    content = bytearray(chunk.read_bytes())
    content[-6] ^= 4
    chunk.write_bytes(bytes(content))


def _empty_the_description(segment):
    (segment / "zarr.json").write_bytes(b"")


def _rename_another_group(segment):
    import zarr

    zarr.open_group(str(segment), mode="r+").attrs["group"] = "0" * 32


def _put_an_archive_there(segment):
    shutil.rmtree(segment)
    with zipfile.ZipFile(segment, "w") as archive:
        archive.writestr("values", b"1")


@pytest.mark.parametrize(
    "damage",
    [
        _cut_a_chunk,
        _lose_a_chunk,
        _flip_a_bit,
        _flip_a_bit_of_the_keys,
        _empty_the_description,
        _rename_another_group,
        _put_an_archive_there,
    ],
)
def test_damage_is_named_and_run_again(bert, folder, ran, damage):
    extractor = bert(cache=folder).fit(["a"])
    X = extractor.transform(TEXTS)
    kept = extractor.transform(["other"])
    first = min(segments(folder), key=lambda s: s.stat().st_mtime_ns)
    damage(first)
    again = fresh(extractor)
    ran.clear()
    with pytest.warns(UserWarning, match=re.escape(str(first))) as caught:
        Y = again.transform([*TEXTS, "other"])
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"'{first}' in the cache of Transformer")
    assert "its texts are run again" in str(caught[0].message)
    assert len(ran) == len(WITH_ROWS)
    np.testing.assert_allclose(Y[: len(X)], X, atol=1e-5)
    np.testing.assert_array_equal(Y[len(X) :], kept)
    ran.clear()
    same(again.transform([*TEXTS, "other"]), Y)  # known again, and no second warning
    assert not ran


def test_damage_under_an_open_index(bert, folder, ran):
    extractor = bert(cache=folder).fit(["a"])
    X = extractor.transform(TEXTS)
    _flip_a_bit(segments(folder)[0])
    with pytest.warns(UserWarning, match="is damaged, and its texts are run again"):
        np.testing.assert_allclose(extractor.transform(TEXTS), X, atol=1e-5)
    same(extractor.transform(TEXTS), extractor.transform(TEXTS))
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="is damaged, and its texts are run again"):
        np.testing.assert_allclose(extractor.transform(TEXTS), X, atol=1e-5)
    same(extractor.transform(TEXTS), fresh(extractor).transform(TEXTS))
    _lose_a_chunk(segments(folder)[0])
    with pytest.warns(UserWarning, match="No such file or directory"):
        np.testing.assert_allclose(extractor.transform(TEXTS), X, atol=1e-5)


def test_what_does_not_belong_there_is_named(bert, folder):
    extractor = bert(cache=folder).fit(["a"])
    X = extractor.transform(TEXTS)
    (group,) = folder.iterdir()
    (group / "notes.txt").write_text("mine")
    (group / ".DS_Store").write_text("")
    with pytest.warns(UserWarning, match="notes.txt' in the cache .* it is no part of the cache"):
        same(fresh(extractor).transform(TEXTS), X)


def test_a_full_disk_costs_the_entry_alone(bert, folder, monkeypatch, ran):
    extractor = bert(cache=folder).fit(["a"])
    known = extractor.transform(["known"])
    store, calls = _cache_folder._store, []

    def full(array, parts):
        calls.append(array)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        store(array, parts)

    monkeypatch.setattr(_cache_folder, "_store", full)
    with pytest.warns(UserWarning, match="is not written to: .* No space left on device"):
        X = extractor.transform(["known", *TEXTS])
    np.testing.assert_array_equal(X[: len(known)], known)
    plain = bert(cache=None).fit(["a"]).transform(TEXTS)
    np.testing.assert_allclose(X[len(known) :], plain, atol=1e-5)
    (group,) = folder.iterdir()
    assert len(segments(folder)) == 1
    assert not list(group.glob("partial-*"))
    ran.clear()
    fresh(extractor).transform(["known", *TEXTS])
    assert len(ran) == len(WITH_ROWS)
    assert len(segments(folder)) == 2


def test_an_interrupt_leaves_nothing_half_written(bert, folder, monkeypatch):
    extractor = bert(cache=folder).fit(["a"])

    def interrupt(array, parts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_cache_folder, "_store", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extractor.transform(TEXTS)
    (group,) = folder.iterdir()
    assert not list(group.glob("partial-*"))
    extractor.transform(TEXTS)
    assert len(segments(folder)) == 1


def test_a_folder_that_takes_nothing(bert, tmp_path, monkeypatch, ran):
    extractor = bert(cache=tmp_path / "rows").fit(["a"])
    (tmp_path / "rows").rmdir()
    (tmp_path / "rows").write_text("a file")
    with pytest.warns(UserWarning, match="cannot be locked or written to"):
        X = extractor.transform(TEXTS)
    np.testing.assert_allclose(X, bert(cache=None).fit_transform(TEXTS), atol=1e-5)


SCRIPT = """
import sys, time
from sksae.activations import Extractor, _cache_folder, _forward
path, folder = sys.argv[1:]
n_run, batch, store = 0, _forward.Forward.batch, _cache_folder._store
def counting(self, ids, types, wanted):
    global n_run
    n_run += len(ids)
    return batch(self, ids, types, wanted)
def stuck(array, parts):
    store(array, parts)
    print("writing", flush=True)
    time.sleep(600)
_forward.Forward.batch = counting
extractor = Extractor(path, 0, cache=folder).fit(["a"])
print("ready", flush=True)
sys.stdin.readline()
for at in range(20, 60):
    extractor.transform([f"the sea {at} is blue"])
print(n_run, flush=True)
sys.stdin.readline()
_cache_folder._store = stuck
extractor.transform(["killed in the middle"])
"""


def test_two_processes_at_once_and_one_that_is_killed(tiny_bert_path, folder, ran):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tiny_bert_path, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )

    def go():
        process.stdin.write("\n")
        process.stdin.flush()

    extractor = Extractor(tiny_bert_path, 0, cache=folder).fit(["a"])
    assert process.stdout.readline() == "ready\n"
    ran.clear()
    go()
    for at in range(40):
        extractor.transform([f"the sea {at} is blue"])
    assert len(ran) + int(process.stdout.readline()) == 60
    go()
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.communicate()
    (group,) = folder.iterdir()
    (partial,) = group.glob("partial-*")
    os.utime(partial, (0, 0))
    ran.clear()
    again = fresh(extractor)
    texts = [f"the sea {at} is blue" for at in range(60)]
    X = again.transform([*texts, "killed in the middle"])  # the lock of the dead is free
    assert len(ran) == 1
    assert not list(group.glob("partial-*"))  # swept up by the next writer
    plain = Extractor(tiny_bert_path, 0, cache=None).fit_transform(texts)
    np.testing.assert_allclose(X[: len(plain)], plain, atol=1e-5)


def test_without_zarr(bert, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    message = (
        "Missing optional dependency 'zarr', needed by TransformerActivationExtractor with "
        "cache=folder. Try: pip install 'sksae[cache]'."
    )
    with pytest.raises(ImportError, match=re.escape(message)):
        bert(cache=folder).fit(["a"])
    bert().fit(["a"])


@pytest.mark.real
def test_real_rows_come_back(minilm_path, folder, ran):
    texts = ["The cat sat on the mat.", "Inflation rose by 2% in March.", "Привет 👋🏽 мир", ""]
    for cache in ("memory", folder):
        extractor = Extractor(minilm_path, "layer.4", cache=cache).fit(["a"])
        X = extractor.transform(texts)
        ran.clear()
        same(fresh(extractor).transform(texts), X)
        assert not ran
        plain = Extractor(minilm_path, "layer.4", cache=None, batch_size=1).fit_transform(texts)
        assert X.rows == plain.rows
        np.testing.assert_allclose(X, plain, atol=1e-4)
