"""The codes of one concept at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse


class Columns:
    """Where each concept is active, and how much.

    Parameters
    ----------
    codes : ndarray or CSR matrix of shape (n_rows, n_concepts)
    counted : ndarray of bool, shape (n_rows,), default=None
        The rows that count; in the others no concept is active. None counts all.
    """

    def __init__(self, codes: Any, counted: np.ndarray | None = None):
        self._codes, self._counted = codes, counted
        if sparse.issparse(codes):
            self._codes = sparse.csc_array(codes)
            self._codes.sum_duplicates()

    def __getitem__(self, concept: int) -> tuple[np.ndarray, np.ndarray]:
        """Give the rows in which a concept is above 0, ascending, and its codes there."""
        rows, values = self.stored(concept)
        active = values > 0
        if self._counted is not None:
            active &= self._counted[rows]
        return rows[active], values[active]

    def stored(self, concept: int) -> tuple[np.ndarray, np.ndarray]:
        """Give rows, ascending, and codes of a concept, among them all that are not 0."""
        if not sparse.issparse(self._codes):
            return np.arange(len(self._codes)), self._codes[:, concept]
        part = slice(*self._codes.indptr[concept : concept + 2])
        return self._codes.indices[part], self._codes.data[part]

    def counts(self) -> np.ndarray:
        """Give the number of rows in which each concept is above 0."""
        if not sparse.issparse(self._codes):
            active = self._codes > 0
            return np.count_nonzero(active if self._counted is None else active[self._counted], 0)
        active = self._codes.data > 0
        if self._counted is not None:
            active &= self._counted[self._codes.indices]
        return np.diff(np.concatenate([[0], np.cumsum(active)])[self._codes.indptr])
