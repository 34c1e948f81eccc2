"""TopKInputs: names concepts by the units that activate them most."""

from numbers import Integral

import numpy as np
from scipy import sparse
from sklearn.utils.validation import check_is_fitted, validate_data

from .._sklearn import Interval, StrOptions, fit_context
from ..activations._pooler import pool_rows
from ._base import ConceptInterpreter
from ._columns import Columns

_BLOCK_VALUES = 2**24


class TopKInputs(ConceptInterpreter):
    """Name each concept by the k units that activate it most.

    A unit is the string of a row: a token, a word, a sentence. Rows with the same string
    are merged, keeping their maximum activation; the ``k`` units with the largest
    activations stand for the concept. The codes themselves pass unchanged, under the names
    of their concepts.

    Parameters
    ----------
    k : int, default=5
        Largest number of units per concept.
    concepts_indices : "all", int or array-like of int, default="all"
        Columns to interpret.
    fold_case : bool, default=False
        Whether to merge units that differ only by case, as "Sea" and "sea". Each concept
        shows them in the form that activates it most.

    Attributes
    ----------
    interpretations_ : dict of int to dict of str to float, or to None
        The units of each interpreted concept with their activations, largest first. None
        for a dead concept; empty for one that is active on blank units alone, such as line
        breaks.
    n_features_in_ : int
        Number of columns (concepts) seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    unit_codes : The codes of units that are run alone, to fit this on.
    vocabulary_codes : Those of all tokens of a vocabulary.
    interpret : Interprets concepts from texts, activations or codes in one call.
    sksae.activations.ConceptPooler : Pools the codes of each text into one row.

    Notes
    -----
    The list of a concept ends at ``k`` units or at the first unit whose activation is 0,
    whichever comes first. Codes are never negative; in raw activations a negative value is
    listed only where no unit of its column is at 0. Of equal activations the unit that
    occurs first in the rows comes first. Units that are empty or white space make no
    readable name and are left out.

    The units come from the input (the output of an extractor or an SAE, or a pandas frame
    made from one), or from ``units``.

    Examples
    --------
    >>> import numpy as np
    >>> codes = np.array([[0.5, 0.0, 0.0], [2.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    >>> concepts = TopKInputs(k=2).fit(codes, units=["sea", "ship", "sea"])
    >>> concepts.interpretations_
    {0: {'ship': 2.0, 'sea': 1.0}, 1: None, 2: {'ship': 1.0}}
    >>> list(concepts.get_feature_names_out())
    ['0: ship, sea', '1: (dead)', '2: ship']

    Units that differ only by case, merged:

    >>> units = ["sea", "ship", "Sea"]
    >>> TopKInputs(concepts_indices=0, fold_case=True).fit(codes, units=units).interpretations_
    {0: {'ship': 2.0, 'Sea': 1.0}}
    """

    _parameter_constraints: dict = {
        "k": [Interval(Integral, 1, None, closed="left")],
        "concepts_indices": [StrOptions({"all"}), Integral, "array-like"],
        "fold_case": ["boolean"],
    }

    def __init__(self, k=5, concepts_indices="all", fold_case=False):
        self.k = k
        self.concepts_indices = concepts_indices
        self.fold_case = fold_case

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, units=None):
        """Find the units of each concept.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Codes or activations.
        y : None
            Ignored, whatever its length.
        units : array-like of str, shape (n_rows,), default=None
            The string of each row; needed where ``X`` does not carry its rows.

        Returns
        -------
        self : TopKInputs
            The fitted transformer.
        """
        units = self._checked_units(X, units)
        codes = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32])
        concepts = self._concepts()
        strings, row_ids = _number(units, self.fold_case)
        named = row_ids >= 0
        on_blanks = np.zeros(codes.shape[1], dtype=bool)
        if not named.all():
            on_blanks = np.asarray((codes[~named] > 0).sum(axis=0)).ravel() > 0
            codes, row_ids, units = codes[named], row_ids[named], units[named]
        position, number, activation = _top_units(codes, concepts, row_ids, len(strings), self.k)
        shown = np.asarray(strings, dtype=object)[number]
        if self.fold_case:
            shown = units[_first_rows(codes, concepts, row_ids, position, number, activation)]
        self.interpretations_ = _interpretations(concepts, position, shown, activation)
        for concept in concepts[on_blanks[concepts]].tolist():
            if self.interpretations_[concept] is None:
                self.interpretations_[concept] = {}
        return self

    def _name(self, interpretation):
        return ", ".join(interpretation) or "(no text)"

    def to_frame(self):
        """Give the interpretations as a table, one line per concept and unit.

        Returns
        -------
        table : pandas.DataFrame
            Columns concept, rank (from 1), unit and activation. Dead concepts have no line.
        """
        check_is_fitted(self)
        import pandas as pd

        lines = [
            (concept, rank, unit, activation)
            for concept, units in self.interpretations_.items()
            for rank, (unit, activation) in enumerate((units or {}).items(), start=1)
        ]
        return pd.DataFrame(lines, columns=["concept", "rank", "unit", "activation"])


def _number(units, fold_case):
    """Give the distinct strings in order of appearance, and each row's number among them.

    Rows without a readable string have the number -1.
    """
    numbers: dict[str, int] = {}
    keys = [unit.casefold() for unit in units] if fold_case else units
    ids = [numbers.setdefault(key, len(numbers)) if key.strip() else -1 for key in keys]
    return list(numbers), np.asarray(ids, dtype=np.int64)


def _top_units(codes, concepts, row_ids, n_units, k):
    """Give position in ``concepts``, unit number and activation of what is listed, in order."""
    if not n_units or not len(concepts):
        return np.arange(0), np.arange(0), np.zeros(0)
    if sparse.issparse(codes):
        if len(concepts) < codes.shape[1]:
            codes = codes[:, concepts]
        return _ranked(*_sparse_candidates(pool_rows(codes, row_ids, n_units, "max")), k)
    width = max(1, _BLOCK_VALUES // len(row_ids))
    blocks = [
        _dense_candidates(codes[:, concepts[at : at + width]], row_ids, n_units, k, at)
        for at in range(0, len(concepts), width)
    ]
    return _ranked(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)), k)


def _sparse_candidates(pooled):
    by_concept = pooled.tocsc()
    counts = np.diff(by_concept.indptr)
    concept = np.repeat(np.arange(len(counts)), counts)
    listed = (by_concept.data > 0) | (counts == pooled.shape[0])[concept]
    return concept[listed], by_concept.indices[listed], by_concept.data[listed]


def _dense_candidates(codes, row_ids, n_units, k, offset):
    pooled = pool_rows(codes, row_ids, n_units, "max").T
    listed = (pooled > 0) | ((pooled != 0).all(axis=1, keepdims=True))
    if k < n_units:
        listed &= pooled >= np.partition(pooled, n_units - k, axis=1)[:, [n_units - k]]
    concept, unit = np.nonzero(listed)
    return concept + offset, unit, pooled[listed]


def _ranked(concept, unit, activation, k):
    """Sort by concept, then activation downwards, and keep k of each concept.

    The entries of a concept come with ascending unit numbers, and the sort is stable.
    """
    order = np.lexsort((-activation, concept))
    concept, unit, activation = concept[order], unit[order], activation[order]
    rank = np.arange(len(concept)) - np.searchsorted(concept, concept)
    return concept[rank < k], unit[rank < k], activation[rank < k]


def _first_rows(codes, concepts, row_ids, position, number, activation):
    """Give for each listed unit the first row in which it has the activation listed."""
    columns = Columns(codes)
    # Of the concept at hand: activation and row of each unit that is listed.
    wanted = np.full(row_ids.max(initial=-1) + 1, np.nan)
    first = np.zeros(len(wanted), dtype=np.int64)
    rows = np.empty(len(number), dtype=np.int64)
    bounds = np.searchsorted(position, np.arange(len(concepts) + 1))
    for concept, at, stop in zip(concepts, bounds[:-1], bounds[1:], strict=True):
        units = number[at:stop]
        wanted[units] = activation[at:stop]
        entries, values = columns.stored(concept)
        hits = entries[values == wanted[row_ids[entries]]][::-1]
        first[row_ids[hits]] = hits  # of several rows the last one written stays
        rows[at:stop] = first[units]
        wanted[units] = np.nan
    return rows


def _interpretations(concepts, position, shown, activation):
    found: dict = dict.fromkeys(concepts.tolist())
    listed = zip(concepts[position].tolist(), shown.tolist(), activation.tolist(), strict=True)
    for concept, unit, value in listed:
        if found[concept] is None:
            found[concept] = {}
        found[concept][unit] = value
    return found
