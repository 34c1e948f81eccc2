"""How over-represented each term is where each concept activates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse

_BLOCK_ENTRIES = 2**22
# A difference of logarithms below this is rounding.
_ROUNDING = 1e-9


class TermCounts(NamedTuple):
    """What the scores of terms are computed from.

    Attributes
    ----------
    contains : CSR array of shape (n_documents, n_terms)
        One where a document contains a term.
    active : CSR array of shape (n_concepts, n_documents)
        Rows with that document that activate the concept.
    n_rows : ndarray of shape (n_documents,)
        Rows with that document, activating or not.
    """

    contains: sparse.csr_array
    active: sparse.csr_array
    n_rows: np.ndarray


def count_terms(contains, number, active) -> TermCounts:
    """Count rows by their documents.

    Parameters
    ----------
    contains : CSR array of shape (n_documents, n_terms)
    number : ndarray of shape (n_rows,)
        Document of each row.
    active : CSR array of shape (n_rows, n_concepts)
        Ones.
    """
    n_documents = contains.shape[0]
    ones = np.ones(len(number))
    shape = (n_documents, len(number))
    members = sparse.csr_array((ones, (number, np.arange(len(number)))), shape=shape)
    by_concept = sparse.csr_array((members @ active).T)
    return TermCounts(contains, by_concept, np.bincount(number, minlength=n_documents))


def log_odds(concepts, counts: TermCounts, prior: float) -> Iterator[tuple]:
    """Give terms and z-scores of each concept: Monroe, Colaresi and Quinn (2008), eq. 16-22.

    Parameters
    ----------
    concepts : ndarray of int
        Rows of ``counts.active``.
    counts : TermCounts
    prior : float
        Pseudo-counts of a term, relative to its count in all rows.

    Yields
    ------
    terms : ndarray of int
        Those over-represented in activating rows, ascending.
    scores : ndarray of float
    """
    total = counts.contains.T @ counts.n_rows.astype(np.float64)
    everything = total.sum()
    for inside in _blocks(concepts, counts):
        y, alpha = inside.data, prior * total[inside.indices]
        n = np.repeat(_row_sums(inside), np.diff(inside.indptr))
        rest, n_rest = total[inside.indices] - y, everything - n
        others = prior * everything - alpha
        with np.errstate(divide="ignore", invalid="ignore"):  # a single term has no others
            difference = np.log((y + alpha) / (n - y + others))
            difference -= np.log((rest + alpha) / (n_rest - rest + others))
        difference[~(difference > _ROUNDING) | (others <= 0)] = 0
        inside.data = difference / np.sqrt(1 / (y + alpha) + 1 / (rest + alpha))
        yield from _rows(inside)


def class_tf_idf(concepts, counts: TermCounts) -> Iterator[tuple]:
    """Give terms and class-based tf-idf of each concept: Grootendorst (2022), section 3.3.

    Parameters
    ----------
    concepts : ndarray of int
        Rows of ``counts.active``.
    counts : TermCounts

    Yields
    ------
    terms : ndarray of int
        Those in documents of activating rows, ascending.
    scores : ndarray of float
    """
    over_classes = counts.contains.T @ counts.active.sum(axis=0)
    n_classes = np.count_nonzero(np.diff(counts.active.indptr))
    mean_size = over_classes.sum() / max(n_classes, 1)
    for inside in _blocks(concepts, counts):
        inside.data *= np.log1p(mean_size / over_classes[inside.indices])
        yield from _rows(inside)


def best_terms(terms, scores, n_terms: int, floor: float):
    """Give the terms with the highest scores above a floor; of equal ones the first."""
    if len(terms) > n_terms:
        cut = np.partition(scores, len(scores) - n_terms)[len(scores) - n_terms]
        terms, scores = terms[scores >= cut], scores[scores >= cut]
    order = np.argsort(-scores, kind="stable")[:n_terms]
    order = order[scores[order] > floor]
    return terms[order], scores[order]


def _blocks(concepts, counts) -> Iterator[sparse.csr_array]:
    """Count, for some concepts at a time, the activating rows whose documents have a term."""
    lengths = np.diff(counts.contains.indptr)
    sizes = _row_sums(counts.active, lengths[counts.active.indices])[concepts]
    block = np.cumsum(sizes) // _BLOCK_ENTRIES
    for members in np.split(concepts, np.flatnonzero(np.diff(block)) + 1) if len(concepts) else []:
        inside = counts.active[members] @ counts.contains
        inside.sort_indices()
        yield inside


def _row_sums(matrix, values=None):
    values = matrix.data if values is None else values
    ends = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])[matrix.indptr]
    return np.diff(ends)


def _rows(matrix):
    for start, end in zip(matrix.indptr[:-1].tolist(), matrix.indptr[1:].tolist(), strict=True):
        yield matrix.indices[start:end], matrix.data[start:end]
