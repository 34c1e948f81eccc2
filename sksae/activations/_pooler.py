"""ConceptPooler: from one row per token back to one row per text."""

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from .._sklearn import StrOptions, fit_context
from ._rows import check_frame_output, labels_of, resolve_groups, rows_of, with_rows


class ConceptPooler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Pool the rows of each text into one row.

    Behind an extractor and an SAE it makes a pipeline give one row per text, so that a
    classifier with one label per text can follow. Dense input gives an ndarray, CSR input
    a CSR matrix; neither is converted into the other.

    Parameters
    ----------
    pooling : {"max", "mean", "sum", "count"}, default="max"
        What stands for the rows of a text, column by column. Zeros count as values: the
        mean divides by the number of rows of the text, and the maximum of a column that
        is negative in some rows and zero in others is 0. "count" is the number of rows in
        which the column is not zero.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    sksae.interpretation.TopKInputs : Names concepts by the units that activate them most.

    Notes
    -----
    The texts of the rows come from the input (the output of an extractor or an SAE, or a
    pandas frame made from one), or from ``groups``. A text without rows gives a row of
    zeros. With ``groups``, the number of texts is ``max(groups) + 1``.

    Examples
    --------
    >>> import numpy as np
    >>> codes = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    >>> ConceptPooler("max").fit_transform(codes, groups=[0, 0, 1])
    array([[3., 0.],
           [0., 2.]])
    >>> ConceptPooler("mean").fit_transform(codes, groups=[0, 0, 2])
    array([[2., 0.],
           [0., 0.],
           [0., 2.]])
    """

    _parameter_constraints: dict = {"pooling": [StrOptions({"max", "mean", "sum", "count"})]}

    def __init__(self, pooling="max"):
        self.pooling = pooling

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, groups=None):
        """Learn the number and the names of the columns.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Activations or codes.
        y : None
            Ignored, whatever its length.
        groups : array-like of int, shape (n_rows,), default=None
            Index of the text of each row; needed where ``X`` does not carry its rows.

        Returns
        -------
        self : ConceptPooler
            The fitted transformer.
        """
        resolve_groups(X, groups, type(self).__name__)
        self._validated(X, reset=True)
        return self

    def transform(self, X, *, groups=None):
        """Pool the rows of each text.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Activations or codes.
        groups : array-like of int, shape (n_rows,), default=None
            Index of the text of each row; needed where ``X`` does not carry its rows.

        Returns
        -------
        X_pooled : ndarray or CSR matrix of shape (n_texts, n_features)
            One row per text. Under ``set_output(transform="pandas")`` a frame with the index of
            the Series that the texts came in, or else their numbers.
        """
        check_is_fitted(self)
        container = check_frame_output(X, self)
        text, n_texts = resolve_groups(X, groups, type(self).__name__)
        pooled = pool_rows(self._validated(X, reset=False), text, n_texts, self.pooling)
        if container != "pandas":
            return pooled
        return _text_frame(pooled, labels_of(rows_of(X)) if groups is None else None)

    def fit_transform(self, X, y=None, *, groups=None):
        """Fit, then pool the same rows.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Activations or codes.
        y : None
            Ignored, whatever its length.
        groups : array-like of int, shape (n_rows,), default=None
            Index of the text of each row; needed where ``X`` does not carry its rows.

        Returns
        -------
        X_pooled : ndarray or CSR matrix of shape (n_texts, n_features)
            One row per text.
        """
        return self.fit(X, y, groups=groups).transform(X, groups=groups)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _validated(self, X, reset):
        return validate_data(
            self,
            X,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            reset=reset,
            # Texts without any token have no rows, but a row of zeros each in the output.
            ensure_min_samples=1 if rows_of(X) is None else 0,
        )


def pool_rows(X, groups, n_groups, pooling):
    """Pool the rows of each group.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_rows, n_columns)
    groups : ndarray of int64, shape (n_rows,)
        From 0 to ``n_groups - 1``, in any order.
    n_groups : int
    pooling : {"max", "mean", "sum", "count"}

    Returns
    -------
    ndarray or CSR matrix of shape (n_groups, n_columns)
        Of the same dtype as ``X``; a group without rows is a row of zeros.
    """
    if sparse.issparse(X) and not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    if pooling == "max":
        return _max_rows(X, groups, n_groups)
    if pooling == "count":
        X = (X != 0).astype(X.dtype)
    pooled = _membership(groups, n_groups, X.dtype) @ X
    if pooling == "mean":
        pooled = _divided(pooled, np.maximum(np.bincount(groups, minlength=n_groups), 1))
    return _compact(pooled) if sparse.issparse(pooled) else pooled


def _divided(pooled, counts):
    if sparse.issparse(pooled):
        pooled.data /= np.repeat(counts, np.diff(pooled.indptr))
    else:
        pooled /= counts[:, None]
    return pooled


def _compact(pooled):
    """Drop zeros, sort, and use int32 indices if they fit."""
    pooled.eliminate_zeros()
    pooled.sort_indices()
    fits = max(pooled.nnz, *pooled.shape) <= np.iinfo(np.int32).max
    index = np.int32 if fits else np.int64
    parts = (pooled.data, pooled.indices.astype(index), pooled.indptr.astype(index))
    return with_rows(sparse.csr_array(parts, shape=pooled.shape), None)


def _membership(groups, n_groups, dtype):
    """Give the CSR array (n_groups, n_rows) with a one where a row belongs to a group."""
    indptr = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=n_groups))])
    order = np.argsort(groups, kind="stable").astype(np.int32)
    ones = np.ones(len(groups), dtype=dtype)
    shape = (n_groups, len(groups))
    return sparse.csr_array((ones, order, indptr.astype(np.int32)), shape=shape)


def _max_rows(X, groups, n_groups):
    if np.any(groups[1:] < groups[:-1]):
        order = np.argsort(groups, kind="stable")
        X, groups = X[order], groups[order]
    counts = np.bincount(groups, minlength=n_groups)
    return _max_sparse(X, counts) if sparse.issparse(X) else _max_dense(X, counts)


def _max_dense(X, counts):
    pooled = np.zeros((len(counts), X.shape[1]), dtype=X.dtype)
    filled = counts > 0
    if filled.any():
        starts = (np.cumsum(counts) - counts)[filled]
        pooled[filled] = np.maximum.reduceat(X, starts, axis=0)
    return pooled


def _max_sparse(X, counts):
    merged = _merged(X, counts)
    starts, indptr = _runs(merged)
    entries = np.diff(np.append(starts, merged.nnz))
    values = np.maximum.reduceat(merged.data, starts) if len(starts) else merged.data[:0]
    has_zero = entries < np.repeat(counts, np.diff(indptr))
    np.maximum(values, 0, out=values, where=has_zero)
    return _compact(sparse.csr_array((values, merged.indices[starts], indptr), merged.shape))


def _merged(X, counts):
    """Chain the ``counts`` consecutive rows of each group into one row, sorted by column.

    An entry of the same group and column in several rows appears several times.
    """
    indptr = X.indptr[np.concatenate([[0], np.cumsum(counts)])]
    chained = sparse.csr_array((X.data, X.indices, indptr), shape=(len(counts), X.shape[1]))
    return chained.tocsc().tocsr()


def _runs(merged):
    """Give where each run of equal columns starts, and the indptr that counts the runs."""
    first = np.ones(merged.nnz, dtype=bool)
    first[1:] = merged.indices[1:] != merged.indices[:-1]
    first[merged.indptr[:-1][np.diff(merged.indptr) > 0]] = True
    return np.flatnonzero(first), np.concatenate([[0], np.cumsum(first)])[merged.indptr]


def _text_frame(pooled, labels):
    """Index the texts as the Series that they came in, as scikit-learn's own frames are."""
    import pandas as pd

    index = pd.RangeIndex(len(pooled), name="text") if labels is None else labels
    return pd.DataFrame(pooled, index=index)
