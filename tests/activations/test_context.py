"""The text around a row: cut at word borders, in any script, at the ends of the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sksae.activations import Rows, TransformerActivationExtractor
from sksae.activations._rows import rows_frame, rows_of

TEXT = "An apple is green, and so are limes."


def at(text, unit):
    start = text.index(unit)
    return Rows([0], [start], [start + len(unit)], [text])


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (0, ("", "green", "")),
        (1, ("", "green", ",")),  # the space on the left is at the end of the context
        (2, ("", "green", ",")),  # of " is" only "s " would be there
        (3, ("is ", "green", ",")),
        (5, ("is ", "green", ", and")),
        (7, ("is ", "green", ", and")),
        (8, ("is ", "green", ", and so")),
        (9, ("apple is ", "green", ", and so")),
        (99, ("An apple is ", "green", ", and so are limes.")),
    ],
)
def test_the_context_is_cut_between_words(width, expected):
    assert at(TEXT, "green").context(0, width) == expected


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("An", ("", "An", " apple")), ("limes.", ("so are ", "limes.", ""))],
)
def test_windows_at_the_ends_of_the_text(unit, expected):
    assert at(TEXT, unit).context(0, 7) == expected


def test_a_piece_of_a_word_keeps_the_rest_of_its_word():
    rows = at("so unbelievably blue", "believ")
    assert rows.context(0, 4) == ("un", "believ", "ably")
    assert rows.context(0, 5) == ("so un", "believ", "ably")
    assert rows.context(0, 1) == ("n", "believ", "a")  # the word is longer than the window


@pytest.mark.parametrize(
    ("text", "unit", "width", "expected"),
    [
        ("我喜欢大海和天空", "大海", 2, ("喜欢", "大海", "和天")),
        ("un été à la mer, l’eau bleue", "mer", 7, ("à la ", "mer", ", l’eau")),
        ("the 🌊 waves 🏖️ shine", "waves", 4, ("🌊 ", "waves", " 🏖️")),
        ("море\u00a0синее и небо", "синее", 6, ("море\u00a0", "синее", " и")),
        ("one\n\n two  three", "two", 6, ("one\n\n ", "two", "")),
    ],
)
def test_any_script_and_any_white_space(text, unit, width, expected):
    assert at(text, unit).context(0, width) == expected


def test_the_white_space_of_a_span_belongs_to_the_sides():
    text = "the deep  sea \n is blue"
    rows = Rows([0, 0], [8, 13], [15, 16], [text])
    assert rows.context(0, 99) == ("the deep  ", "sea", " \n is blue")
    assert rows.context(1, 99)[1] == rows.units[1] == ""
    assert "".join(rows.context(1, 99)) == text


def test_special_tokens_have_no_context():
    rows = Rows([0, 0], [0, 0], [0, 3], ["sea"], ["[CLS]", None])
    assert rows.context(0, 10) == ("", "[CLS]", "")
    assert rows.context(1, 10) == ("", "sea", "")
    assert rows_of(rows_frame(np.zeros((2, 1)), rows)).context(0, 10) == ("", "", "")


def test_each_row_has_the_context_of_its_own_text():
    rows = Rows([1, 0], [0, 4], [3, 7], ["the sea", "one two"])
    assert rows.context(0, 5) == ("", "one", " two")
    assert rows.context(-1, 5) == rows[1].context(0, 5) == ("the ", "sea", "")
    assert rows.context(np.int64(1), np.int64(5)) == ("the ", "sea", "")


def test_what_is_refused():
    rows = at(TEXT, "green")
    for width in (-1, 2.5, True, None):
        with pytest.raises(ValueError) as error:
            rows.context(0, width)
        assert str(error.value) == (
            "The 'width' of Rows.context must be a number of characters, an int of at least 0. "
            f"Got {width!r} instead."
        )
    with pytest.raises(IndexError):
        rows.context(1, 5)
    with pytest.raises(ValueError, match="^These rows know the numbers of their texts but not"):
        Rows([0], [0], [1], None).context(0, 5)


def left_by_loops(text, start, width):
    """The longest piece before ``start`` that begins with a word."""
    window = text[max(0, start - width) : start]
    if not any(c.isspace() for c in window):
        return window
    for begin in range(start - len(window), start):
        if not text[begin].isspace() and (begin == 0 or text[begin - 1].isspace()):
            return text[begin:start]
    return ""


@settings(max_examples=200, deadline=None, database=None)
@given(
    text=st.text(alphabet="ab é🌊大\n\t ", min_size=1, max_size=30),
    span=st.tuples(st.integers(0, 30), st.integers(1, 30)),
    width=st.integers(0, 12),
)
def test_sides_and_unit_are_a_piece_of_the_text(text, span, width):
    start = min(span[0], len(text) - 1)
    end = min(start + span[1], len(text))
    rows = Rows([0], [start], [end], [text])
    left, unit, right = rows.context(0, width)
    assert unit == rows.units[0]
    assert left + unit + right in text
    assert max(len(left), len(right)) <= width
    assert left == left.lstrip()
    assert right == right.rstrip()
    assert left == left_by_loops(text, end - len(text[start:end].lstrip()), width)


def test_the_rows_of_an_extractor(tiny_bert, bert_tokenizer):
    extractor = TransformerActivationExtractor(
        tiny_bert, "layer.0", tokenizer=bert_tokenizer, granularity="all_tokens"
    )
    rows = extractor.fit_transform(["the seas, blue"]).rows
    expected = [
        ("", "[CLS]", ""),
        ("", "the", " seas, blue"),
        ("the ", "sea", "s, blue"),
        ("the sea", "s", ", blue"),
        ("the seas", ",", " blue"),
        ("the seas, ", "blue", ""),
        ("", "[SEP]", ""),
    ]
    assert [rows.context(i, 20) for i in range(len(rows))] == expected
