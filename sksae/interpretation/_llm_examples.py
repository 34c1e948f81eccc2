"""The examples of a concept: which of its activations are shown, and in what context."""

from enum import StrEnum
from itertools import islice

import numpy as np

from ..activations._pooler import pool_rows
from ._llm_prompts import example_in_context, plain_example
from ._reading import without_space


class SamplingMethod(StrEnum):
    """How the examples of a concept are chosen among its activations."""

    TOP = "top"
    QUANTILE = "quantile"
    RANDOM = "random"


def sample(values, method, k_examples, k_quantile, rng):
    """Choose examples among the activations of a concept.

    Parameters
    ----------
    values : ndarray of shape (n_candidates,)
        Activations, all above zero.
    method : SamplingMethod
    k_examples, k_quantile : int
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int, shape (n_examples,)
        Positions in ``values``, in the order in which they are shown.
    """
    if method == SamplingMethod.RANDOM:
        return rng.permutation(len(values))[:k_examples]
    ranked = np.argsort(-values, kind="stable")
    if method == SamplingMethod.TOP:
        return ranked[:k_examples]
    size, drawn = len(values) // k_quantile, k_examples // k_quantile
    if size == 0:
        return ranked
    slices = np.split(ranked, size * np.arange(1, k_quantile))
    return np.concatenate([rng.permutation(part)[:drawn] for part in slices])


def one_row_per_unit(codes, units, rows):
    """Merge rows of the same characters, such as the bytes of one emoji, by their maximum.

    Parameters
    ----------
    codes : ndarray or CSR matrix of shape (n_rows, n_concepts)
    units : ndarray of str objects, shape (n_rows,)
    rows : Rows

    Returns
    -------
    codes, units, rows
        Of the first row of each unit, in the order of the rows.
    """
    start, end = without_space(rows)
    alone = np.where(start < end, 0, np.arange(len(rows)))  # special tokens, white space
    keys = np.column_stack([rows.text, start, end, alone])
    _, first, number = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return codes, units, rows
    kept = np.sort(first)
    position = np.searchsorted(kept, first[number.ravel()])
    return pool_rows(codes, position, len(kept), "max"), units[kept], rows[kept]


def written(rows, values, chosen, units, neighbours, k_context):
    """Write the chosen examples of a concept as text.

    The importance of a unit is its activation on a scale on which the largest of the concept
    is 10, rounded.

    Parameters
    ----------
    rows, values : ndarray of shape (n_candidates,)
        Where the concept is active, ascending, and how much.
    chosen : ndarray of int
        Positions in ``rows`` of the examples.
    units : list of str
        The string of each row of the codes, in one line.
    neighbours : Neighbours, or None
        None where ``k_context`` is 0.
    k_context : int

    Returns
    -------
    list of str
    """
    wanted = rows[chosen].tolist()
    if neighbours is None:
        importances = _importances(rows, values, wanted)
        return [plain_example(units[r], i) for r, i in zip(wanted, importances, strict=True)]
    windows = [neighbours.around(row, k_context) for row in wanted]
    importances = iter(_importances(rows, values, [row for window in windows for row in window]))
    examples = []
    for row, window in zip(wanted, windows, strict=True):
        around = [units[other] for other in window]
        text = neighbours.marked(window, around, row)
        examples.append(example_in_context(text, around, list(islice(importances, len(window)))))
    return examples


def _importances(rows, values, wanted):
    """Give the importance of some rows, 0 where the concept is not active."""
    at = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
    scaled = np.where(rows[at] == wanted, 10 * values[at] / values.max(), 0)
    return np.rint(scaled).astype(int).tolist()


class Neighbours:
    """The units that stand around a unit in its text.

    Parameters
    ----------
    text : ndarray of int, shape (n_rows,)
        Index of the text of each row.
    place : ndarray of int, shape (n_rows,)
        What orders the rows of a text.
    glued : ndarray of bool, shape (n_rows,)
        Whether a row follows the one before it in this order without a space.
    named : ndarray of bool, shape (n_rows,)
        Whether a row has a readable string; the others are left out.
    """

    def __init__(self, text, place, glued, named):
        order = np.lexsort((place, text))
        self._text = text
        self._order = order[named[order]]
        self._rank = np.zeros(len(text), dtype=np.int64)
        self._rank[self._order] = np.arange(len(self._order))
        self._glued = glued

    @classmethod
    def of_groups(cls, groups, named):
        """Take the rows of a text in the order in which they come."""
        return cls(groups, np.arange(len(groups)), np.zeros(len(groups), dtype=bool), named)

    @classmethod
    def of_rows(cls, rows, named):
        """Take the rows of a text in the order in which they stand there."""
        start, end = without_space(rows)
        place = _places(rows.text, start, end)
        order = np.lexsort((place, rows.text))
        before, after = order[:-1], order[1:]
        glued = np.zeros(len(rows), dtype=bool)
        touches = (rows.text[before] == rows.text[after]) & (start[after] <= end[before])
        glued[after] = touches & (start < end)[before] & (start < end)[after]
        return cls(rows.text, place, glued, named)

    def around(self, row, k):
        """List a row and up to k rows on either side of it in its text, in order."""
        rank = self._rank[row]
        window = self._order[max(rank - k, 0) : rank + k + 1]
        return window[self._text[window] == self._text[row]].tolist()

    def marked(self, window, units, row):
        """Join the units of a window, the one of ``row`` between << and >>."""
        pieces = []
        for other, unit in zip(window, units, strict=True):
            pieces.append("" if self._glued[other] or not pieces else " ")
            pieces.append(f"<<{unit}>>" if other == row else unit)
        return "".join(pieces)


def _places(text, start, end):
    """Give what orders rows in their texts; a special token stands behind the row before it."""
    by_text = np.argsort(text, kind="stable")
    special = (start >= end)[by_text]
    # Adding a text's number times more than any place keeps the running maximum in the text.
    offset = text[by_text] * (int(end.max(initial=0)) + 1)
    reached = np.maximum.accumulate(offset + np.where(special, 0, end[by_text])) - offset
    places = np.empty_like(start)
    places[by_text] = np.where(special, reached, start[by_text])
    return places
