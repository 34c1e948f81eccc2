"""Texts -> tokens -> units, without a model."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sksae.activations._rows import Rows
from sksae.activations._texts import check_texts, sentence_begins, tokenize
from sksae.activations._units import AGGREGATIONS, Pool, cut, make_plan, special_strings


def plan_of(tokenizer, X, granularity, max_length=512, long_text="truncate", **kwargs):
    texts = check_texts(X, "Extractor")
    tokens = tokenize(tokenizer, texts, want_words=granularity == "word")
    sequences = cut(tokens, max_length, long_text)
    settings = {"aggregation": "mean", "skip_first": 0, **kwargs}
    plan = make_plan(tokens, texts, sequences, granularity, **settings)
    rows = Rows(
        plan.text, plan.start, plan.end, texts.texts, special_strings(tokens, plan, tokenizer)
    )
    return tokens, plan, rows


def units(tokenizer, X, granularity, **kwargs):
    return list(plan_of(tokenizer, X, granularity, **kwargs)[2].units)


# Granularities


def test_token_leaves_out_special_tokens(bert_tokenizer):
    assert units(bert_tokenizer, ["The seas!", "Blue"], "token") == ["The", "sea", "s", "!", "Blue"]


def test_all_tokens_names_special_tokens(bert_tokenizer):
    _, _, rows = plan_of(bert_tokenizer, ["Sea", ""], "all_tokens")
    assert list(rows.units) == ["[CLS]", "Sea", "[SEP]", "[CLS]", "[SEP]"]
    assert rows.text.tolist() == [0, 0, 0, 1, 1]
    assert list(rows.specials) == ["[CLS]", None, "[SEP]", "[CLS]", "[SEP]"]
    assert rows.start.tolist() == [0, 0, 0, 0, 0]
    assert rows.end.tolist() == [0, 3, 0, 0, 0]


def test_special_token_in_the_text_counts_as_special(bert_tokenizer):
    text = "the [SEP] sea"
    assert units(bert_tokenizer, [text], "token") == ["the", "sea"]
    assert units(bert_tokenizer, [text], "word") == ["the", "sea"]
    _, _, rows = plan_of(bert_tokenizer, [text], "all_tokens")
    assert list(rows.units) == ["[CLS]", "the", "[SEP]", "sea", "[SEP]"]
    assert list(rows.specials) == ["[CLS]", None, None, None, "[SEP]"]


def test_unknown_characters_have_a_row(bert_tokenizer):
    assert units(bert_tokenizer, ["sea 😀 sea"], "token") == ["sea", "😀", "sea"]


def test_byte_level_spans_keep_the_space_and_units_do_not(byte_tokenizer):
    _, _, rows = plan_of(byte_tokenizer, ["The sea"], "word")
    assert list(rows.units) == ["The", "sea"]
    assert list(zip(rows.start.tolist(), rows.end.tolist(), strict=True)) == [(0, 3), (3, 7)]


def test_an_emoji_of_several_tokens(byte_tokenizer):
    text = "the 😀!"
    tokens, _, rows = plan_of(byte_tokenizer, [text], "token")
    emoji = [unit for unit in rows.units if unit == "😀"]
    assert len(emoji) == 4  # one per byte, their spans overlap
    assert len(rows) == len(tokens.ids)
    assert units(byte_tokenizer, [text], "word") == ["the", "😀!"]


@pytest.mark.parametrize("granularity", ["token", "word", "sentence", "sample"])
def test_texts_without_tokens_have_no_row_but_count(bert_tokenizer, byte_tokenizer, granularity):
    for tokenizer in (bert_tokenizer, byte_tokenizer):
        _, _, rows = plan_of(tokenizer, ["sea", "", "blue", ""], granularity)
        assert rows.text.tolist() == sorted(rows.text.tolist())
        assert set(rows.text.tolist()) == {0, 2}
        assert rows.n_texts == 4
        assert len(plan_of(tokenizer, ["", ""], granularity)[2]) == 0


def test_words(bert_tokenizer):
    text = "Blueing, don't\n the  sea!"
    expected = ["Blueing", ",", "don", "'", "t", "the", "sea", "!"]
    assert units(bert_tokenizer, [text], "word") == expected


def test_white_space_alone_is_no_word_and_no_sentence(byte_tokenizer):
    assert units(byte_tokenizer, ["  the \n\n sea   "], "word") == ["the", "sea"]
    assert units(byte_tokenizer, ["\n\nthe\n\n  \n\nsea"], "sentence") == ["the", "sea"]
    assert units(byte_tokenizer, ["  ", "\n"], "word") == []


def test_words_of_a_tokenizer_that_does_not_split_text():
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁", "▁the", "▁sea", "s", "t", "h", "e", "a", "b"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("s", "e"), ("se", "a"), ("▁", "sea")]
    vocabulary = {p: i for i, p in enumerate([*pieces, "th", "the", "se", "sea"])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert set(tokenizer("the seas the").word_ids()) == {0}
    assert units(tokenizer, ["the seas  the", "b sea"], "word") == [
        "the",
        "seas",
        "the",
        "b",
        "sea",
    ]


def test_words_that_are_given(bert_tokenizer, byte_tokenizer):
    words = [["don't", "stop", "the", "sea-blue", "U.S."], [], ["sea"]]
    for tokenizer in (bert_tokenizer, byte_tokenizer):
        _, plan, rows = plan_of(tokenizer, words, "word")
        assert list(rows.units) == [*words[0], *words[2]]
        assert rows.texts == ("don't stop the sea-blue U.S.", "", "sea")
        assert rows.text.tolist() == [0, 0, 0, 0, 0, 2]
        assert plan.sizes[0] >= 3


def test_given_words_without_tokens_have_no_row(bert_tokenizer):
    assert units(bert_tokenizer, [["the", "", " ", "\x00", "sea"]], "word") == ["the", "sea"]


def test_sentences(bert_tokenizer, byte_tokenizer):
    text = 'Dr. No came, e.g. by sea. "Blue!" he said... Then\nhe left? 3.5 m. I. The end'
    expected = [
        "Dr. No came, e.g. by sea.",
        '"Blue!"',
        "he said...",
        "Then",
        "he left?",
        "3.5 m.",
        "I.",
        "The end",
    ]
    assert units(bert_tokenizer, [text], "sentence") == expected
    assert units(byte_tokenizer, [text], "sentence") == expected


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", [""]),
        ("One", ["One"]),
        ("One. Two", ["One.", "Two"]),
        ("Really?! Yes… so", ["Really?!", "Yes…", "so"]),
        ("A line\nanother\r\n\r\nlast", ["A line", "another", "last"]),
        ("By J. R. Smith et al. in 2004. Then", ["By J. R. Smith et al. in 2004.", "Then"]),
        ("He said (softly.) She left.", ["He said (softly.)", "She left."]),
        ("海は青い。空も青い！そう", ["海は青い。", "空も青い！", "そう"]),
        ("v1.2.3 and a.b.c work", ["v1.2.3 and a.b.c work"]),
        ("Ends with Mr.\nNew line", ["Ends with Mr.", "New line"]),
    ],
)
def test_sentence_begins(text, sentences):
    begins = [*sentence_begins(text).tolist(), len(text)]
    pieces = [text[a:b].strip() for a, b in zip(begins[:-1], begins[1:], strict=True)]
    assert pieces == sentences


def test_sample_and_cls(bert_tokenizer):
    _, plan, rows = plan_of(bert_tokenizer, ["the sea ", "blue"], "sample")
    assert list(rows.units) == ["the sea", "blue"]
    assert plan.sizes.tolist() == [2, 1]
    _, plan, rows = plan_of(bert_tokenizer, ["the sea", ""], "cls")
    assert list(rows.units) == ["[CLS]", "[CLS]"]
    assert plan.row.tolist() == [0, -1, -1, -1, 1, -1]


def test_skip_first_counts_special_tokens(bert_tokenizer, byte_tokenizer):
    assert units(bert_tokenizer, ["the sea", "b"], "token", skip_first=1) == ["the", "sea", "b"]
    assert units(bert_tokenizer, ["the sea", "b"], "token", skip_first=2) == ["sea"]
    n = len(byte_tokenizer("The")["input_ids"])
    assert units(byte_tokenizer, ["The sea", "b"], "word", skip_first=n) == ["sea"]
    assert units(bert_tokenizer, ["seas blue"], "word", skip_first=2) == ["s", "blue"]
    assert units(bert_tokenizer, ["the sea"], "all_tokens", skip_first=3) == ["[SEP]"]
    assert units(bert_tokenizer, ["the sea"], "token", skip_first=9) == []


# Long texts


def test_truncation_keeps_the_special_tokens(bert_tokenizer):
    text = "the sea blue the sea blue"
    tokens, plan, rows = plan_of(bert_tokenizer, [text, "sea"], "all_tokens", max_length=5)
    assert list(rows.units) == ["[CLS]", "the", "sea", "blue", "[SEP]", "[CLS]", "sea", "[SEP]"]
    expected = bert_tokenizer(text, truncation=True, max_length=5)["input_ids"]
    assert tokens.ids[plan.sequences[0].at].tolist() == expected


def test_truncation_on_the_left(bert_tokenizer):
    texts = check_texts(["the sea blue a b"], "Extractor")
    tokens = tokenize(bert_tokenizer, texts)
    (sequence,) = cut(tokens, 4, "truncate", "left")
    strings = bert_tokenizer.convert_ids_to_tokens(tokens.ids[sequence.at].tolist())
    assert strings == ["[CLS]", "a", "b", "[SEP]"]
    plan = make_plan(tokens, texts, [sequence], "token", "mean", 2)
    assert [texts.texts[0][s:e] for s, e in zip(plan.start, plan.end, strict=True)] == ["b"]


@pytest.mark.parametrize("n_words", [9, 10, 11, 17, 18, 40, 101])
@pytest.mark.parametrize("max_length", [3, 4, 7, 10])
def test_windows_give_each_token_one_row(bert_tokenizer, n_words, max_length):
    words = [f"{'abcdefghij'[i % 10]}" for i in range(n_words)]
    tokens, plan, rows = plan_of(
        bert_tokenizer, [" ".join(words)], "all_tokens", max_length, "windows"
    )
    assert list(rows.units) == ["[CLS]", *words, "[SEP]"]
    room, seen = max_length - 2, np.zeros(len(tokens.ids), dtype=int)
    for at, owned in plan.sequences:
        owned = np.ones(len(at), dtype=bool) if owned is None else owned
        assert len(at) <= max_length
        assert tokens.ids[at[0]] == tokens.ids[0]
        assert tokens.ids[at[-1]] == tokens.ids[-1]
        assert (np.diff(at[1:-1]) == 1).all()
        seen[at[owned]] += 1
        for place in np.flatnonzero(owned[1:-1]):
            token = at[place + 1]
            to_edge = min(place, len(at) - 3 - place)
            at_text_end = token - 1 < room or len(tokens.ids) - 2 - token < room
            assert at_text_end or to_edge >= room // 4 - 1
    assert (seen == 1).all()


def test_windows_join_the_tokens_of_a_unit(bert_tokenizer):
    text = "abcdefghij " * 3 + "sea"
    _, plan, rows = plan_of(bert_tokenizer, [text], "word", 8, "windows")
    assert list(rows.units) == text.split()
    assert plan.sizes.tolist() == [10, 10, 10, 1]
    _, plan, rows = plan_of(bert_tokenizer, [text], "sample", 8, "windows")
    assert plan.sizes.tolist() == [31]
    assert list(rows.units) == [text]


def test_no_room_for_text(bert_tokenizer):
    message = "max_length=2 leaves no room for text beside 2 special tokens. Raise max_length."
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_of(bert_tokenizer, ["the sea"], "token", max_length=2)


def test_tokenisation_does_not_warn_or_change_the_tokenizer(bert_tokenizer, caplog):
    tokenizer = bert_tokenizer
    before = tokenizer.model_max_length
    tokenizer.model_max_length = 4
    try:
        tokenize(tokenizer, check_texts(["the sea is blue"], "Extractor"))
    finally:
        tokenizer.model_max_length = before
    assert not caplog.records


# Properties

TEXT = st.text(
    st.one_of(st.sampled_from(" \n.?!ab😀é漢"), st.characters(codec="utf-8")), max_size=30
)


@settings(deadline=None, database=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_units_are_the_spans_of_their_texts(bert_tokenizer, byte_tokenizer, texts):
    for tokenizer in (bert_tokenizer, byte_tokenizer):
        for granularity in ("token", "word", "sentence", "sample"):
            _, plan, rows = plan_of(tokenizer, texts, granularity)
            assert (np.diff(rows.text) >= 0).all()
            assert (plan.sizes > 0).all()
            assert (rows.start <= rows.end).all()
            for unit, t, s, e in zip(rows.units, rows.text, rows.start, rows.end, strict=True):
                assert unit == texts[t][s:e].strip()
            if granularity in {"word", "sentence"}:
                assert all(rows.units)


@settings(deadline=None, database=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=3), max_length=st.integers(3, 9))
def test_windows_and_one_pass_agree_on_the_rows(bert_tokenizer, texts, max_length):
    for granularity in ("token", "word", "sentence", "sample", "all_tokens"):
        whole = plan_of(bert_tokenizer, texts, granularity)
        windows = plan_of(bert_tokenizer, texts, granularity, max_length, "windows")
        assert whole[2] == windows[2]
        np.testing.assert_array_equal(whole[1].sizes, windows[1].sizes)
        np.testing.assert_array_equal(whole[1].row, windows[1].row)


# Aggregation

EXPECTED = {
    "mean": [[0, 1.5], [5, 5]],
    "max": [[3, 2], [5, 5]],
    "min": [[-4, 1], [5, 5]],
    "sum": [[0, 6], [5, 5]],
    "signed_max": [[-4, 2], [5, 5]],
}


@pytest.mark.parametrize("aggregation", EXPECTED)
@pytest.mark.parametrize(
    "batches", [[[0, 1, 2, 3, 4]], [[4, 0], [1, 2], [3]], [[0], [3, 4, 1], [2]]]
)
def test_pool(aggregation, batches):
    values = np.array([[1, 1], [-4, 2], [3, 1], [0, 2], [5, 5]], dtype=np.float32)
    row = np.array([0, 0, 0, 0, 1])
    pool = Pool(np.array([4, 1]), 2, aggregation)
    for batch in batches:
        pool.add(row[batch], values[batch])
    np.testing.assert_allclose(pool.result(), EXPECTED[aggregation])


def test_a_mean_leaves_other_rows_alone():
    signalling_nan = np.array([0x7FA00000], dtype=np.uint32).view(np.float32)
    values = np.zeros((2, 1), dtype=np.float32)
    values[0] = signalling_nan
    pool = Pool(np.array([1, 2]), 1, "mean", values)
    pool.add(np.array([1, 1]), np.float32([[1], [3]]))
    with np.errstate(all="raise"):
        assert pool.result()[1] == 2
    assert values[0].tobytes() == signalling_nan.tobytes()


def test_signed_max_prefers_the_positive_value_of_a_tie():
    pool = Pool(np.array([2]), 1, "signed_max")
    pool.add(np.array([0, 0]), np.array([[-2.0], [2.0]], dtype=np.float32))
    assert pool.result().item() == 2


def test_first_and_last_pick_one_token_of_each_unit(bert_tokenizer):
    for aggregation, expected in (("first", [-1, 0, -1, 1, -1]), ("last", [-1, -1, 0, 1, -1])):
        _, plan, rows = plan_of(bert_tokenizer, ["seas blue"], "word", aggregation=aggregation)
        assert plan.row.tolist() == expected
        assert list(rows.units) == ["seas", "blue"]
        assert plan.sizes.tolist() == [1, 1]
    assert set(EXPECTED) | {"first", "last"} == set(AGGREGATIONS)


# Input checks


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (
            "one text",
            TypeError,
            "E expects a sequence of texts. Got a single str instead: pass a list, [text].",
        ),
        (b"x", TypeError, "Got a single bytes instead"),
        (
            None,
            TypeError,
            "E expects a sequence of texts (list, array, Series or dataset column of str). "
            "Got NoneType instead.",
        ),
        (3, TypeError, "Got int instead."),
        ({"a": "b"}, TypeError, "Got dict instead."),
        ({"a", "b"}, TypeError, "Got set instead."),
        ((text for text in "ab"), TypeError, "Got generator instead."),
        (
            [],
            ValueError,
            "Found array with 0 sample(s) (shape=(0,)) while a minimum of 1 is required by E.",
        ),
        (["a", None], ValueError, "E got a missing value: X[1] is None. Drop it, or fill it"),
        (["a", float("nan")], ValueError, "E got a missing value: X[1] is nan."),
        (["a", b"b"], TypeError, "E expects texts: X[1] must be a str. Got bytes instead."),
        (["a", 3], TypeError, "E expects texts: X[1] must be a str. Got int instead."),
        (["a", ["b"]], TypeError, "E expects texts: X[1] must be a str. Got list instead."),
        ([["a"], "b"], TypeError, "X[0] is a list of words, X[1] is 'b'."),
        ([["a"], ["b", 1]], TypeError, "E expects texts: X[1][1] must be a str."),
        ([["a", None]], ValueError, "E got a missing value: X[0][1] is None."),
        ([{"text": "a"}], TypeError, "Pass one of its columns, as in dataset['text']."),
        (
            np.array([["a"], ["b"]]),
            TypeError,
            "E expects one dimension, a sequence of texts. Got ndarray of shape (2, 1) instead",
        ),
        (np.zeros(3), TypeError, "X[0] must be a str. Got float instead."),
    ],
)
def test_refused_input(X, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_texts(X, "E")


def test_frames_are_refused_and_missing_values_found():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    with pytest.raises(TypeError, match=re.escape("Got DataFrame of shape (1, 1) instead")):
        check_texts(pd.DataFrame({"text": ["a"]}), "E")
    with pytest.raises(TypeError, match=re.escape("Got DataFrame of shape (1, 1) instead")):
        check_texts(pl.DataFrame({"text": ["a"]}), "E")
    for series in (
        pd.Series(["a", None]),
        pd.Series(["a", pd.NA], dtype="string"),
        pl.Series(["a", None]),
    ):
        with pytest.raises(ValueError, match=re.escape("E got a missing value: X[1] is")):
            check_texts(series, "E")


class Column:
    """What a column of a Hugging Face dataset offers."""

    def __init__(self, texts):
        self._texts = texts

    def __len__(self):
        return len(self._texts)

    def __getitem__(self, i):
        return self._texts[i]


def test_accepted_containers():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    texts = ["a b", "", "c"]
    kinds = [
        list,
        tuple,
        np.array,
        lambda x: np.array(x, dtype=object),
        Column,
        pl.Series,
        lambda x: pd.Series(x, index=[7, 7, 9]),
        lambda x: pd.Series(x, dtype="category"),
    ]
    for kind in kinds:
        checked = check_texts(kind(texts), "E").texts
        assert checked == texts
        assert all(type(text) is str for text in checked)
    assert check_texts([np.array(["a", "b"]), ("c",)], "E").texts == ["a b", "c"]
