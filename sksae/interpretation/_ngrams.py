"""The distinct words and n-grams of texts."""

import re
from collections import Counter
from numbers import Integral

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from ..activations._texts import check_texts

# Letters, digits and their marks, with apostrophes and hyphens inside.
_WORD = re.compile(r"[^\W_]+(?:['’‑-][^\W_]+)*")


def unique_ngrams(texts, n=1, *, count_min_threshold=1, words_to_ignore=None) -> dict[str, int]:
    """Count the distinct n-grams of texts.

    Parameters
    ----------
    texts : sequence of str, or of lists of str
        Texts, or texts split into words, which are joined by spaces.
    n : int, default=1
        Words in an n-gram. A word is a run of letters and digits, in which hyphens and
        apostrophes may stand. The words of an n-gram have nothing but white space between
        them.
    count_min_threshold : int, default=1
        How often an n-gram must occur in all texts together.
    words_to_ignore : "english" or iterable of str, default=None
        Stop words, whatever their case. N-grams that begin or end with one are left out.
        "english" is the list of scikit-learn.

    Returns
    -------
    dict of str to int
        The n-grams, in order of first appearance, with how often they occur. The words of
        one are joined by single spaces; case is kept.

    Raises
    ------
    ValueError
        If ``n`` or ``count_min_threshold`` is no int of at least 1, or if there are no texts.
    TypeError
        If ``texts`` or ``words_to_ignore`` is a single string.

    See Also
    --------
    unit_codes : Runs each of them alone.

    Examples
    --------
    >>> texts = ["The sea is blue. The sea!", "A blue sea"]
    >>> unique_ngrams(texts, count_min_threshold=2)
    {'The': 2, 'sea': 3, 'blue': 2}
    >>> unique_ngrams(texts, 2, words_to_ignore=["a", "is"])
    {'The sea': 2, 'blue sea': 1}
    """
    for name, value in (("n", n), ("count_min_threshold", count_min_threshold)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"The '{name}' parameter of unique_ngrams must be an int of at least 1. "
                f"Got {value!r} instead."
            )
    ignored = _ignored(words_to_ignore)
    counts: Counter[str] = Counter()
    for text in check_texts(texts, "unique_ngrams").texts:
        counts.update(_ngrams(text, int(n), ignored))
    return {ngram: count for ngram, count in counts.items() if count >= count_min_threshold}


def _ngrams(text, n, ignored):
    words = list(_WORD.finditer(text))
    joined = [text[a.end() : b.start()].isspace() for a, b in zip(words, words[1:], strict=False)]
    for i in range(len(words) - n + 1):
        ends = {words[i].group().casefold(), words[i + n - 1].group().casefold()}
        if all(joined[i : i + n - 1]) and ignored.isdisjoint(ends):
            yield " ".join(word.group() for word in words[i : i + n])


def _ignored(words):
    if words is None:
        return frozenset()
    if isinstance(words, str):
        if words != "english":
            raise TypeError(
                "The 'words_to_ignore' parameter of unique_ngrams must be 'english' or a "
                f"collection of words. Got the string {words!r} instead: pass a list."
            )
        words = ENGLISH_STOP_WORDS
    return frozenset(word.casefold() for word in words)
