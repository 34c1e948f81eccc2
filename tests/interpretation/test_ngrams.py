import pytest

from sksae.interpretation import unique_ngrams

TEXTS = ["The sea is blue. The  sea!", "the blue sea\nand the sky-line, don't"]


def test_words_are_counted_in_order_of_appearance():
    found = unique_ngrams(TEXTS)
    assert list(found.items()) == [
        ("The", 2),
        ("sea", 3),
        ("is", 1),
        ("blue", 2),
        ("the", 2),
        ("and", 1),
        ("sky-line", 1),
        ("don't", 1),
    ]


def test_the_words_of_an_ngram_have_only_white_space_between_them():
    found = unique_ngrams(TEXTS, 2)
    assert "The sea" in found
    assert found["The sea"] == 2  # two spaces in one of them
    assert "sea and" in found  # a line break
    assert "blue The" not in found
    assert "sky-line don't" not in found
    assert unique_ngrams(TEXTS, 4) == {
        "The sea is blue": 1,
        "the blue sea and": 1,
        "blue sea and the": 1,
        "sea and the sky-line": 1,
    }
    assert unique_ngrams(TEXTS, 99) == {}


def test_count_threshold():
    assert unique_ngrams(TEXTS, count_min_threshold=3) == {"sea": 3}
    assert unique_ngrams(TEXTS, count_min_threshold=4) == {}


def test_stop_words_do_not_begin_or_end_an_ngram():
    found = unique_ngrams(TEXTS, words_to_ignore=["THE", "is"])
    assert list(found) == ["sea", "blue", "and", "sky-line", "don't"]
    assert list(unique_ngrams(["state of the art"], 4, words_to_ignore="english")) == [
        "state of the art"
    ]
    assert unique_ngrams(["of the art"], 2, words_to_ignore="english") == {}


def test_any_script():
    found = unique_ngrams(["Où l’été? 大海 море_café x² 🌊 3D"])
    assert list(found) == ["Où", "l’été", "大海", "море", "café", "x²", "3D"]
    assert list(unique_ngrams([["new", "york"], ["sea"]], 2)) == ["new york"]


@pytest.mark.parametrize(("name", "wrong"), [("n", 0), ("n", True), ("count_min_threshold", 1.5)])
def test_numbers_that_are_refused(name, wrong):
    with pytest.raises(ValueError) as error:
        unique_ngrams(TEXTS, **{name: wrong})
    assert str(error.value) == (
        f"The '{name}' parameter of unique_ngrams must be an int of at least 1. "
        f"Got {wrong!r} instead."
    )


def test_strings_that_are_refused():
    with pytest.raises(TypeError) as error:
        unique_ngrams(TEXTS, words_to_ignore="the")
    assert str(error.value) == (
        "The 'words_to_ignore' parameter of unique_ngrams must be 'english' or a collection of "
        "words. Got the string 'the' instead: pass a list."
    )
    with pytest.raises(TypeError, match=r"^unique_ngrams expects a sequence of texts\. Got a sin"):
        unique_ngrams("the sea")
