"""Labels as weighted terms, and the rows whose documents contain them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from ._documents import Documents, distinct_documents, find_words, is_mark

_BLOCK_ENTRIES = 2**22


class Label(NamedTuple):
    """A label as it reads, and the terms with weights that it consists of."""

    name: str
    terms: dict[str, float]


def as_label(value, concept: int) -> Label | None:
    """Read a label; None where it says nothing.

    Raises
    ------
    TypeError
        If it is no string, no list of strings and no dict of string to number.
    ValueError
        If a weight is not finite.
    """
    if isinstance(value, str):
        return Label(value, dict.fromkeys(_key_words(value), 1.0)) if value.strip() else None
    terms = _weighted(value)
    if terms is None:
        raise TypeError(
            f"The label of concept {concept} in score_labels must be a string, a list of terms, "
            f"a dict of term to weight, or None. Got {value!r} of type {type(value).__name__}."
        )
    if not all(math.isfinite(weight) for weight in terms.values()):
        raise ValueError(
            f"The weights of the terms of concept {concept} in score_labels must be finite. "
            f"Got {value!r}."
        )
    return Label(", ".join(terms), terms) if terms else None


def is_terms(value) -> bool:
    """Tell whether a value is a list of strings or a dict of string to number."""
    return _weighted(value) is not None


def _weighted(value):
    if value is None:
        return {}
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return None
    items = value.items() if isinstance(value, Mapping) else ((term, 1.0) for term in value)
    terms = list(items)
    if not all(isinstance(t, str) and isinstance(w, Real) for t, w in terms):
        return None
    return {term: float(weight) for term, weight in terms}


def _key_words(text):
    """Give the words of a text that say what it is about; all words if none does."""
    words = find_words(text)
    telling = [w for w in words if not is_mark(w) and w not in ENGLISH_STOP_WORDS]
    return telling or words


class RowScores(NamedTuple):
    """Scores of all rows for one concept: those not in ``rows`` of its documents are 0."""

    documents: np.ndarray
    scores: np.ndarray


def term_scores(documents: Documents, units, labels: list[Label]) -> tuple[Iterator, np.ndarray]:
    """Add up the weights of the terms that the document of each row contains.

    Returns
    -------
    scores : iterator of RowScores
        One for each label, over distinct documents.
    number : ndarray of shape (n_rows,)
        Document of each row.
    """
    numbers = {term: i for i, term in enumerate(documents.terms)}
    # The unit itself is a term, too: of a word piece, the document has the whole word.
    own = np.array([numbers.setdefault(u.strip().lower(), len(numbers)) for u in units], np.int64)
    contains, number = distinct_documents(documents, own)
    weights, phrases = _weights(labels, numbers)
    contains = sparse.hstack([contains, _contains_phrases(contains, phrases)], format="csr")
    return _column_scores(contains, weights.tocsc()), number


def _weights(labels, numbers):
    """Give the weights (n_terms + n_phrases, n_labels), and the words of each phrase."""
    phrases: dict[tuple[int, ...], int] = {}
    entries = []
    for column, label in enumerate(labels):
        for term, weight in label.terms.items():
            row = _row_of(term, numbers, phrases)
            if row is not None:
                entries.append((row, column, weight))
    rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
    shape = (len(numbers) + len(phrases), len(labels))
    weights = sparse.coo_array((np.array(values, float), (rows, columns)), shape=shape)
    return weights, list(phrases)


def _row_of(term, numbers, phrases):
    """Give a term's row; a term of several words is a phrase, one not seen has none."""
    words = find_words(term)
    if len(words) < 2:
        return numbers.get(term.strip().lower())
    ids = {numbers.get(word) for word in words}
    if None in ids:
        return None
    return len(numbers) + phrases.setdefault(tuple(sorted(ids)), len(phrases))


def _contains_phrases(contains, phrases):
    """Give the CSR array with a one where a document contains all words of a phrase."""
    sizes = np.array([len(words) for words in phrases], dtype=np.int64)
    columns = np.repeat(np.arange(len(phrases)), sizes)
    rows = np.array([word for words in phrases for word in words], dtype=np.int64)
    shape = (contains.shape[1], len(phrases))
    words = sparse.csc_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    width = max(1, _BLOCK_ENTRIES // max(contains.shape[0], 1))
    found = [sparse.csr_array((contains.shape[0], 0))]
    for at in range(0, len(phrases), width):
        counts = sparse.coo_array(contains @ words[:, at : at + width])
        full = counts.data == sizes[at + counts.col]
        ones = (np.ones(full.sum()), (counts.row[full], counts.col[full]))
        found.append(sparse.csr_array(ones, shape=counts.shape))
    return sparse.hstack(found, format="csr")


def _column_scores(contains, weights) -> Iterator[RowScores]:
    width = max(1, _BLOCK_ENTRIES // max(contains.shape[0], 1))
    for at in range(0, weights.shape[1], width):
        block = sparse.csc_array(contains @ weights[:, at : at + width])
        for start, end in zip(block.indptr[:-1], block.indptr[1:], strict=True):
            yield RowScores(block.indices[start:end], block.data[start:end])
