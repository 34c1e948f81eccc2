"""The words around each row: what of a text is read as the document of a row.

A row is often a word piece, which says little alone, so its document is a window of words:
those that the row's span touches, and neighbours on both sides. Words are numbered once per
text, and a document is a slice of these numbers, so that rows cost no string operations.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ..activations._rows import rows_of

# Marks that end a word: ASCII's but the underscore, Latin-1's, and Unicode's blocks of
# punctuation without the two joiners that hold an emoji or a ligature together.
_MARK = (
    r"!-/:-@\[-\^`{-~\u00a1-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf"
    r"\u2010-\u206f\u3001-\u3020\uff01-\uff0f\uff1a-\uff20"
)
_LETTER = rf"[^\s{_MARK}\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
# One ideograph or kana; "'s"; a word, with apostrophes inside; one mark.
_WORD = re.compile(
    rf"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|['’]s(?!{_LETTER})"
    rf"|{_LETTER}+(?:['’](?!s(?!{_LETTER})){_LETTER}+)*|[{_MARK}]"
)
_IS_MARK = re.compile(rf"['’]s|[{_MARK}]")


def find_words(string: str) -> list[str]:
    """Give the words of a string in lower case; each mark of punctuation is a word.

    Examples
    --------
    >>> find_words("Labour's plan (2015) isn't new.")
    ['labour', "'s", 'plan', '(', '2015', ')', "isn't", 'new', '.']
    """
    return [word.lower() for word in _WORD.findall(string)]


def is_mark(word: str) -> bool:
    """Tell whether a word of `find_words` is punctuation."""
    return _IS_MARK.fullmatch(word) is not None


class Documents(NamedTuple):
    """The document of each row, as a slice of all words in all texts.

    Attributes
    ----------
    terms : list of str
        The distinct words, in order of appearance.
    counts : ndarray of shape (n_terms,)
        How often each occurs in the texts, or in the rows where these are all there is.
    words : ndarray of shape (n_words,)
        The words of all texts in a chain, as numbers in ``terms``.
    spans : ndarray of shape (2, n_words)
        First character of each word in its text, and the one after its last.
    texts : sequence of str
    text, first, last : ndarray of shape (n_rows,)
        Text of each row, and the slice of ``words`` that is its document.
    """

    terms: list[str]
    counts: np.ndarray
    words: np.ndarray
    spans: np.ndarray
    texts: Any
    text: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def strings(self, rows: np.ndarray) -> list[str]:
        """Give the documents of some rows as they stand in their texts."""
        return [self._string(row) for row in rows.tolist()]

    def _string(self, row):
        first, last = self.first[row], self.last[row]
        if first == last:
            return ""
        return self.texts[self.text[row]][self.spans[0, first] : self.spans[1, last - 1]]


class _Passages(NamedTuple):
    """Where each row stands; the texts from ``n_read`` on are one word each."""

    texts: Any
    n_read: int
    text: np.ndarray
    start: np.ndarray
    end: np.ndarray
    weighs: np.ndarray  # how often each text counts


def read_documents(X, units, given: bool, window) -> Documents:
    """Read the document of each row.

    Parameters
    ----------
    X : matrix of shape (n_rows, n_columns)
    units : ndarray of str objects, shape (n_rows,)
        The string of each row.
    given : bool
        Whether the units are all there is; else the rows of ``X`` say where they stand.
    window : int or "text"
        Words of a document; a row with fewer gets neighbours, as many on either side.
    """
    passages = _passages_of_units(units) if given else _passages_of_rows(rows_of(X), units)
    terms, words, spans, bounds = _read(passages)
    weights = np.repeat(passages.weighs, np.diff(bounds))
    counts = np.bincount(words, weights, len(terms))
    first, last = _windows(passages, spans, bounds, window)
    return Documents(terms, counts, words, spans, passages.texts, passages.text, first, last)


def _passages_of_units(units):
    numbers: dict[str, int] = {}
    text = np.array([numbers.setdefault(u, len(numbers)) for u in units], dtype=np.int64)
    texts = list(numbers)
    lengths = np.array([len(t) for t in texts], dtype=np.int64)
    weighs = np.bincount(text, minlength=len(texts))
    return _Passages(texts, len(texts), text, np.zeros_like(text), lengths[text], weighs)


def _passages_of_rows(rows, units):
    used, text = np.unique(rows.text, return_inverse=True)
    texts = [rows.texts[i] for i in used.tolist()]
    n_read, start, end = len(texts), rows.start.copy(), rows.end.copy()
    if rows.specials is not None:
        special = np.array([s is not None for s in rows.specials], dtype=bool)
        if special.all() and len(used) == len(text):  # one a text: it stands for the text
            start, end = np.zeros_like(start), np.array([len(texts[t]) for t in text], np.int64)
        else:
            strings, number = np.unique(units[special].astype(str), return_inverse=True)
            text[special] = len(texts) + number
            texts += strings.tolist()
            end[special] = [len(unit) for unit in units[special]]
    return _Passages(texts, n_read, text, start, end, np.ones(len(texts), dtype=np.int64))


def _read(passages):
    """Give terms, words, the words' spans, and where the words of each text begin and end."""
    numbers: dict[str, int] = {}
    words, spans, bounds = [], [], [0]
    for i, text in enumerate(passages.texts):
        if i < passages.n_read:
            for match in _WORD.finditer(text):
                words.append(numbers.setdefault(match[0].lower(), len(numbers)))
                spans.append(match.span())
        else:
            words.append(numbers.setdefault(text.lower(), len(numbers)))
            spans.append((0, len(text)))
        bounds.append(len(words))
    spans = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    return list(numbers), np.array(words, dtype=np.int64), spans, np.array(bounds)


def _windows(passages, spans, bounds, window):
    text = passages.text
    if window == "text":
        return bounds[text], bounds[text + 1]
    # Positions in the chain of all texts, so that one search serves every row.
    lengths = np.array([len(t) + 1 for t in passages.texts], dtype=np.int64)
    base = np.cumsum(lengths) - lengths
    chained = spans + np.repeat(base, np.diff(bounds))
    first = np.searchsorted(chained[1], base[text] + passages.start, side="right")
    last = np.searchsorted(chained[0], base[text] + passages.end, side="left")
    last = np.maximum(first, last)
    missing = np.maximum(window - (last - first), 0) // 2
    return np.maximum(first - missing, bounds[text]), np.minimum(last + missing, bounds[text + 1])


def distinct_documents(documents: Documents, extra: np.ndarray | None = None):
    """Give the distinct documents as a matrix, and which one each row has.

    Parameters
    ----------
    documents : Documents
    extra : ndarray of int, shape (n_rows,), optional
        Number of a further term that belongs to the document of each row.

    Returns
    -------
    contains : CSR array of shape (n_documents, n_terms)
        One where a document contains a term.
    number : ndarray of shape (n_rows,)
    """
    further = np.full(len(documents.first), -1) if extra is None else extra
    keys = np.column_stack([documents.first, documents.last, further])
    keys, number = np.unique(keys, axis=0, return_inverse=True)
    first, lengths = keys[:, 0], keys[:, 1] - keys[:, 0]
    starts = np.cumsum(lengths) - lengths
    at = np.repeat(first - starts, lengths) + np.arange(lengths.sum())
    indptr = np.append(starts, lengths.sum())
    n_terms = max(len(documents.terms), 1 + int(further.max(initial=-1)))
    shape = (len(keys), n_terms)
    contains = _ones(documents.words[at], indptr, shape)
    if extra is not None:
        contains = contains + _ones(keys[:, 2], np.arange(len(keys) + 1), shape)
    contains.data[:] = 1
    return contains, number.ravel()


def _ones(indices, indptr, shape):
    """Give the CSR array with ones there; an index may come twice in a row."""
    ones = np.ones(len(indices), dtype=np.float64)
    matrix = sparse.csr_array((ones, indices, indptr), shape=shape)
    matrix.sum_duplicates()
    return matrix


def activating(codes) -> sparse.csr_array:
    """Give a CSR array of ones where a code is above zero."""
    if not sparse.issparse(codes):
        return sparse.csr_array(codes > 0, dtype=np.float64)
    active = sparse.csr_array(codes, copy=True)
    active.sum_duplicates()
    active.data = (active.data > 0).astype(np.float64)
    active.eliminate_zeros()
    return active
