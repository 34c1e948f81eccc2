"""TermLabels, against its formulas written out and on planted names."""

import math
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sksae.activations import KeepRows, Rows
from sksae.activations._rows import rows_frame, with_rows
from sksae.interpretation import TermLabels, _term_scores
from sksae.interpretation._documents import find_words, read_documents

UNITS = ["red sea", "the sea", "the red tree", "Sea", "a red sea", "tree"]
CODES = np.array([[1, 0, 0], [2, 0, 0], [0, 0, 1], [3, 0, 0], [0.5, 0, 1], [0, 0, 1.0]])


def by_loops(units, codes, *, method="log_odds", prior=1.0, min_count=1):
    """Score every term of every concept, one by one."""
    documents = [set(find_words(unit)) for unit in units]
    counts = Counter(word for unit in units for word in find_words(unit))
    documents = [{w for w in words if counts[w] >= min_count} for words in documents]
    inside = [
        Counter(w for words, a in zip(documents, column, strict=True) if a > 0 for w in words)
        for column in codes.T
    ]
    everywhere = Counter(w for words in documents for w in words)
    found = {}
    for concept, column in enumerate(codes.T):
        if not (column > 0).any():
            found[concept] = None
        elif method == "ctfidf":
            classes = [y for y, c in zip(inside, codes.T, strict=True) if (c > 0).any()]
            mean = sum(y.total() for y in classes) / len(classes)
            found[concept] = {
                w: n * math.log(1 + mean / sum(y[w] for y in inside))
                for w, n in inside[concept].items()
            }
        else:
            found[concept] = _log_odds(inside[concept], everywhere, prior)
    return found


def _log_odds(inside, everywhere, prior):
    n, total, scores = inside.total(), everywhere.total(), {}
    for w, y in inside.items():
        rest, alpha, alpha_0 = everywhere[w] - y, prior * everywhere[w], prior * total
        if total == everywhere[w]:
            continue
        delta = math.log((y + alpha) / (n + alpha_0 - y - alpha))
        delta -= math.log((rest + alpha) / (total - n + alpha_0 - rest - alpha))
        z = delta / math.sqrt(1 / (y + alpha) + 1 / (rest + alpha))
        if z > 1e-9:
            scores[w] = z
    return scores


@pytest.mark.parametrize("method", ["log_odds", "ctfidf"])
@settings(max_examples=60, deadline=None, database=None)
@given(
    units=st.lists(
        st.text(alphabet="ab c.", max_size=8) | st.sampled_from(["sea", "é 🌊"]),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 1000),
    prior=st.sampled_from([0.1, 1.0, 5.0]),
    min_count=st.sampled_from([1, 2]),
)
def test_scores_are_what_loops_give(method, units, seed, prior, min_count):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 3, size=(len(units), 4)) * (rng.random((len(units), 4)) < 0.5)
    codes = codes.astype(np.float32)
    expected = by_loops(units, codes, method=method, prior=prior, min_count=min_count)
    labels = TermLabels(100, method=method, prior=prior, min_count=min_count)
    for X in (codes, sparse.csr_matrix(codes), sparse.csr_array(codes)):
        found = labels.fit(X, units=units).interpretations_
        assert found.keys() == expected.keys()
        for concept, scores in expected.items():
            assert found[concept] == (None if scores is None else pytest.approx(scores))
            ranked = list((found[concept] or {}).values())
            assert ranked == sorted(ranked, reverse=True)


def test_blocks_of_concepts_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    codes = sparse.csr_matrix(rng.random((50, 30)) * (rng.random((50, 30)) < 0.2))
    units = [" ".join(rng.choice(list("abcdefgh"), 4)) for _ in range(50)]
    whole = TermLabels().fit(codes, units=units).interpretations_
    monkeypatch.setattr(_term_scores, "_BLOCK_ENTRIES", 20)
    assert TermLabels().fit(codes, units=units).interpretations_ == whole


def test_n_terms_min_score_and_ties():
    everything = TermLabels(100, min_count=1).fit(CODES, units=UNITS).interpretations_
    two = TermLabels(2, min_count=1).fit(CODES, units=UNITS).interpretations_
    assert list(two[0].items()) == list(everything[0].items())[:2]
    floor = list(everything[0].values())[1]
    above = TermLabels(100, min_count=1, min_score=floor).fit(CODES, units=UNITS)
    assert list(above.interpretations_[0]) == list(everything[0])[:1]
    # "b" and "a" are alike in every way; "b" occurs first.
    tied = TermLabels(1, min_count=1).fit([[1.0], [0.0]], units=["b a", "c"])
    assert list(tied.interpretations_[0]) == ["b"]


def test_an_exclusive_term_outranks_one_that_also_occurs_elsewhere():
    units = ["sea ship"] * 15 + ["ship rock"] * 5 + ["rock old"] * 200
    codes = np.array([[1.0]] * 15 + [[0.0]] * 205)
    assert list(TermLabels().fit(codes, units=units).interpretations_[0]) == ["sea", "ship"]


def test_stop_words():
    units = ["the sea", "The Sea", "a tree"]
    codes = np.array([[1.0], [1.0], [0.0]])

    def terms(stop_words):
        labels = TermLabels(stop_words=stop_words, min_count=1).fit(codes, units=units)
        return list(labels.interpretations_[0])

    assert terms(None) == ["the", "sea"]
    assert "the" in ENGLISH_STOP_WORDS
    assert terms("english") == ["sea"]
    assert terms(["SEA"]) == terms({"sea"}) == ["the"]
    with pytest.raises(TypeError) as error:
        terms(["sea", 3])
    assert str(error.value) == (
        "The 'stop_words' parameter of TermLabels must be 'english' or a list of str. "
        "Got 3 of type int in it."
    )


# -- documents --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Labour's plan isn’t “new”.", ["labour", "'s", "plan", "isn’t", "“", "new", "”", "."]),
        ("£5m (2015-16), 3.5%", "£ 5m ( 2015 - 16 ) , 3 . 5 %".split()),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("go 👩‍🚀! 👍🏽", ["go", "👩‍🚀", "!", "👍🏽"]),
        ("海と山。", ["海", "と", "山", "。"]),
        ("Straße ÉTÉ snake_case", ["straße", "été", "snake_case"]),
        (" \n\t", []),
    ],
)
def test_words(text, words):
    assert find_words(text) == words


TEXT = "Old Fergus sails, the red sea shines today"
#       0   4      11    16  18  22  26  30     37


def documents(spans, window, specials=None, texts=(TEXT, "", "Two words")):
    text, start, end = zip(*spans, strict=True)
    rows = Rows(text, start, end, texts, specials)
    X = with_rows(np.zeros((len(rows), 1)), rows)
    found = read_documents(X, rows.units, False, window)
    words = [
        [found.terms[i] for i in found.words[first:last]]
        for first, last in zip(found.first, found.last, strict=True)
    ]
    return words, found.strings(np.arange(len(rows)))


def test_a_document_is_a_window_of_whole_words():
    spans = [(0, 4, 7), (0, 7, 10), (0, 0, 3), (2, 4, 9), (0, 10, 22)]
    words, strings = documents(spans, 1)
    assert words == [["fergus"], ["fergus"], ["old"], ["words"], ["sails", ",", "the"]]
    assert strings == ["Fergus", "Fergus", "Old", "words", "sails, the"]
    words, strings = documents(spans, 3)
    assert words == [
        *[["old", "fergus", "sails"]] * 2,
        ["old", "fergus"],
        ["two", "words"],
        ["sails", ",", "the"],
    ]
    assert strings[0] == "Old Fergus sails"
    words, _ = documents(spans, 5)
    assert words[-1] == ["fergus", "sails", ",", "the", "red"]
    words, strings = documents(spans, "text")
    assert strings == [TEXT, TEXT, TEXT, "Two words", TEXT]


def test_spans_between_words_and_special_tokens():
    words, strings = documents([(0, 3, 4), (0, 0, 0)], 1, [None, "[CLS]"])
    assert words == [[], ["[cls]"]]
    assert strings == ["", "[CLS]"]
    # Alone in its text, a special token stands for the text.
    words, strings = documents([(0, 0, 0), (2, 0, 0)], 1, ["[CLS]", "[CLS]"])
    assert strings == [TEXT, "Two words"]
    assert words[1] == ["two", "words"]


def test_word_pieces_name_their_words():
    texts = ["Ferguson protest", "Ferguson police", "calm sea", "calm police"]
    starts = [0, 3, 9, 0, 3, 9, 0, 5, 0, 5]
    ends = [3, 8, 16, 3, 8, 15, 4, 8, 4, 11]
    rows = Rows([0, 0, 0, 1, 1, 1, 2, 2, 3, 3], starts, ends, texts)
    codes = np.zeros((10, 2))
    codes[[1, 4], 0] = 1.0  # "guson"
    codes[[6, 8], 1] = 1.0
    X = with_rows(sparse.csr_matrix(codes), rows)
    labels = TermLabels(1, window=1).fit(X)
    assert list(labels.get_feature_names_out()) == ["0: ferguson", "1: calm"]
    pieces = TermLabels(1, window=1).fit(X, units=rows.units)
    assert list(pieces.get_feature_names_out()) == ["0: guson", "1: calm"]


# -- the contract -----------------------------------------------------------------------------


def test_names_and_table():
    labels = TermLabels(2, min_count=1, concepts_indices=[2, 1]).fit(CODES, units=UNITS)
    assert list(labels.interpretations_) == [2, 1]
    names = labels.get_feature_names_out()
    assert names[:2].tolist() == ["0", "1: (dead)"]
    assert names[2].startswith("2: tree")
    table = labels.to_frame()
    assert list(table.columns) == ["concept", "rank", "term", "score"]
    assert table["rank"].tolist() == [1, 2] and set(table["concept"]) == {2}
    assert all(type(s) is float for s in labels.interpretations_[2].values())
    everything = TermLabels(2, min_count=1).fit(CODES, units=UNITS).interpretations_
    assert labels.interpretations_ == {i: everything[i] for i in (2, 1)}
    for method in ("log_odds", "ctfidf"):  # the classes are those of all concepts
        some = TermLabels(method=method, concepts_indices=0).fit(CODES, units=UNITS)
        whole = TermLabels(method=method).fit(CODES, units=UNITS)
        assert some.interpretations_[0] == whole.interpretations_[0]


@pytest.mark.parametrize(
    ("codes", "units"),
    [
        (np.ones((1, 2)), ["sea"]),  # nothing to compare with
        (np.ones((3, 2)), ["a", "b", "c"]),
        (np.array([[1.0, 1.0], [0.0, 0.0]]), ["", " \n"]),
        (np.array([[1.0, 1.0], [0.0, 0.0]]), ["sea", "sea"]),
    ],
)
def test_live_concepts_without_terms(codes, units):
    labels = TermLabels(min_count=1).fit(codes, units=units)
    assert labels.interpretations_ == {0: {}, 1: {}}
    assert list(labels.get_feature_names_out()) == ["0: (no terms)", "1: (no terms)"]
    assert len(labels.to_frame()) == 0


def test_all_dead_and_no_concept_asked():
    for codes in (np.zeros((3, 2)), -np.ones((3, 2)), sparse.csr_matrix((3, 2))):
        found = TermLabels().fit(codes, units=["a", "b", "c"])
        assert found.interpretations_ == {0: None, 1: None}
        assert list(found.get_feature_names_out()) == ["0: (dead)", "1: (dead)"]
    assert TermLabels(concepts_indices=[]).fit(CODES, units=UNITS).interpretations_ == {}


def test_stored_zeros_and_duplicates_of_csr():
    indices, indptr = [0, 0, 1, 0, 0], [0, 2, 3, 5]
    X = sparse.csr_matrix(([1.0, 1.0, 0.0, 1.0, -1.0], indices, indptr), shape=(3, 2))
    labels = TermLabels(min_count=1).fit(X, units=["sea", "tree", "old"])
    assert labels.interpretations_[1] is None
    assert list(labels.interpretations_[0]) == ["sea"]


def test_pipeline_pickle_clone_and_frames():
    rows = Rows(np.arange(6), [0] * 6, [len(u) for u in UNITS], UNITS)
    X = with_rows(CODES, rows)
    pipe = Pipeline([("scale", KeepRows(StandardScaler())), ("labels", TermLabels(min_count=1))])
    pipe.fit(X, [0])
    labels = TermLabels(min_count=1).fit(X)
    for again in (clone(labels).fit(X), pickle.loads(pickle.dumps(labels))):
        assert again.interpretations_ == labels.interpretations_
    assert labels.fit_transform(X) is X
    frame = rows_frame(CODES, rows)
    out = clone(labels).set_output(transform="pandas").fit_transform(frame)
    assert list(out.columns) == list(labels.get_feature_names_out())
    pd.testing.assert_index_equal(out.index, frame.index)


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        *[("n_terms", 0), ("method", "tfidf"), ("window", 0), ("window", "unit")],
        *[("min_count", 0), ("min_score", -1.0), ("prior", 0.0), ("stop_words", "french")],
    ],
)
def test_parameters_of_the_wrong_kind_are_refused(parameter, wrong):
    with pytest.raises(ValueError, match=rf"^The '{parameter}' parameter of TermLabels must be"):
        TermLabels(**{parameter: wrong}).fit(CODES, units=UNITS)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match=r"^TermLabels needs to know the string of each row"):
        TermLabels().fit(CODES)
    with pytest.raises(TypeError, match=r"^The 'units' of TermLabels must be strings"):
        TermLabels().fit(CODES, units=[1, *UNITS[1:]])
    with pytest.raises(ValueError, match="Input X contains NaN"):
        TermLabels().fit(np.full((6, 3), np.nan), units=UNITS)
    with pytest.raises(ValueError, match="know the numbers of their texts but not the texts"):
        TermLabels().fit(with_rows(CODES, Rows([0] * 6, [0] * 6, [1] * 6, None)))


def test_wide_codes_take_little_memory():
    rng = np.random.default_rng(0)
    n, m, active = 20_000, 16_384, 16
    words = np.array([f"w{i}" for i in range(3000)])
    texts = [" ".join(words[(3000 * rng.random(100) ** 2).astype(int)]) for _ in range(n // 100)]
    spans = [(t, i) for t, text in enumerate(texts) for i in _word_spans(text)]
    text, starts, ends = zip(*((t, *span) for t, span in spans), strict=True)
    data, indices = np.ones(n * active, np.float32), rng.integers(1, m, size=n * active)
    X = sparse.csr_matrix((data, indices, np.arange(0, n * active + 1, active)), shape=(n, m))
    rows = Rows(text, starts, ends, texts)
    planted = (rows.units == "w7").astype(np.float32)[:, None]
    X = sparse.hstack([planted, X[:, 1:]], format="csr")
    tracemalloc.start()
    labels = TermLabels(window=3).fit(with_rows(X, rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert next(iter(labels.interpretations_[0])) == "w7"
    assert peak < 3e8  # a dense table of concepts and terms were 390 MB


def _word_spans(text):
    at = 0
    for word in text.split(" "):
        yield at, at + len(word)
        at += len(word) + 1
