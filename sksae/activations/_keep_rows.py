"""KeepRows: lets the link from rows to texts pass a scikit-learn step."""

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, MetaEstimatorMixin, TransformerMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from .._sklearn import HasMethods, fit_context
from ._rows import (
    RowsArray,
    RowsCSRArray,
    RowsCSRMatrix,
    check_frame_output,
    rows_frame,
    rows_of,
    with_rows,
)


def _transformer_has(method):
    def check(self):
        getattr(getattr(self, "transformer_", self.transformer), method)
        return True

    return check


class KeepRows(MetaEstimatorMixin, TransformerMixin, BaseEstimator):
    """Let the link from rows to texts pass a scikit-learn transformer.

    A scikit-learn step between an extractor and an SAE gives a plain array, and the texts
    behind its rows are lost. ``KeepRows(StandardScaler())`` does what ``StandardScaler()``
    does and gives its output the rows of its input. Input without rows is transformed as
    by the wrapped transformer alone.

    Parameters
    ----------
    transformer : transformer
        Any transformer whose output has one row for each row of its input, in the same
        order. It is cloned in fit and sees plain containers.

    Attributes
    ----------
    transformer_ : transformer
        The fitted clone.
    n_features_in_ : int
        Number of columns seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    ConceptPooler : From the rows back to one row per text.

    Notes
    -----
    In a pipeline from texts ``y`` has one entry per text, which a row-wise transformer
    cannot use. Where the input carries rows, ``y`` therefore reaches the wrapped
    transformer only if it has one entry per row. Where rows and texts happen to be equal
    in number, it does so only if each text has one row, in the order of the texts.

    Examples
    --------
    A frame with the index (text, start, end) carries rows, as the output of an extractor
    does.

    >>> import pandas as pd
    >>> from sklearn.preprocessing import StandardScaler
    >>> spans = [(0, 0, 2), (0, 3, 8), (1, 0, 3)]
    >>> index = pd.MultiIndex.from_tuples(spans, names=["text", "start", "end"])
    >>> X = pd.DataFrame({"x0": [1.0, 2.0, 3.0]}, index=index)
    >>> step = KeepRows(StandardScaler())
    >>> step.fit_transform(X).rows.groups
    array([0, 0, 1])
    >>> step.set_params(transformer__with_mean=False)
    KeepRows(transformer=StandardScaler(with_mean=False))
    """

    _parameter_constraints: dict = {"transformer": [HasMethods(["fit", "transform"])]}

    def __init__(self, transformer):
        self.transformer = transformer

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **fit_params):
        """Fit a clone of the transformer.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Activations or codes.
        y : array-like, default=None
            Passed on if it has one entry per row; one entry per text is ignored.
        **fit_params : dict
            Passed to the transformer's ``fit``.

        Returns
        -------
        self : KeepRows
            The fitted transformer.
        """
        y = self._row_targets(X, y)
        self.transformer_ = clone(self.transformer).fit(_plain(X), y, **fit_params)
        return self

    @fit_context(prefer_skip_nested_validation=False)
    def fit_transform(self, X, y=None, **fit_params):
        """Fit a clone of the transformer and transform the same rows.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Activations or codes.
        y : array-like, default=None
            Passed on if it has one entry per row; one entry per text is ignored.
        **fit_params : dict
            Passed to the transformer's ``fit_transform``, or ``fit`` where it has none.

        Returns
        -------
        X_new : ndarray or CSR matrix of shape (n_rows, n_features_out)
            The transformer's output, with the rows of ``X``.
        """
        y = self._row_targets(X, y)
        self.transformer_ = clone(self.transformer)
        if hasattr(self.transformer_, "fit_transform"):
            return self._keep(self.transformer_.fit_transform(_plain(X), y, **fit_params), X)
        self.transformer_.fit(_plain(X), y, **fit_params)
        return self._keep(self.transformer_.transform(_plain(X)), X)

    @available_if(_transformer_has("partial_fit"))
    @fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X, y=None, **fit_params):
        """Continue to fit the transformer; the first call clones it.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Activations or codes.
        y : array-like, default=None
            Passed on if it has one entry per row; one entry per text is ignored.
        **fit_params : dict
            Passed to the transformer's ``partial_fit``.

        Returns
        -------
        self : KeepRows
            The fitted transformer.
        """
        y = self._row_targets(X, y)
        if not hasattr(self, "transformer_"):
            self.transformer_ = clone(self.transformer)
        self.transformer_.partial_fit(_plain(X), y, **fit_params)
        return self

    def transform(self, X):
        """Transform, and give the output the rows of the input.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Activations or codes.

        Returns
        -------
        X_new : ndarray or CSR matrix of shape (n_rows, n_features_out)
            The transformer's output, with the rows of ``X``.
        """
        check_is_fitted(self)
        return self._keep(self.transformer_.transform(_plain(X)), X)

    @available_if(_transformer_has("inverse_transform"))
    def inverse_transform(self, X):
        """Undo the transformation, and give the output the rows of the input.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features_out)
            Transformed activations or codes.

        Returns
        -------
        X_original : ndarray or CSR matrix of shape (n_rows, n_features)
            The transformer's output, with the rows of ``X``.
        """
        check_is_fitted(self)
        return self._attach(self.transformer_.inverse_transform(_plain(X)), X)

    @available_if(_transformer_has("get_feature_names_out"))
    def get_feature_names_out(self, input_features=None):
        """Give the names that the transformer gives.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of the input.

        Returns
        -------
        feature_names_out : ndarray of str objects
            Names of the columns of the output.
        """
        check_is_fitted(self)
        return self.transformer_.get_feature_names_out(input_features)

    @property
    def n_features_in_(self):
        """Number of columns seen in fit."""
        return self._fitted("n_features_in_")

    @property
    def feature_names_in_(self):
        """Names of the columns, where fit saw a data frame."""
        return self._fitted("feature_names_in_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = get_tags(self.transformer)
        tags.input_tags = inner.input_tags
        tags.target_tags = inner.target_tags
        tags.non_deterministic = inner.non_deterministic
        tags.requires_fit = inner.requires_fit
        if inner.transformer_tags is not None:
            tags.transformer_tags = inner.transformer_tags
        return tags

    def __sklearn_is_fitted__(self):
        return hasattr(self, "transformer_")

    def _fitted(self, name):
        if not hasattr(self, "transformer_"):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self.transformer_, name)

    def _row_targets(self, X, y):
        """Give y, or None where it has one entry per text instead of one per row."""
        rows = rows_of(X)
        if y is None or rows is None:
            return y
        one_to_one = np.array_equal(rows.text, np.arange(rows.n_texts))
        if _length(y) == len(rows) and (one_to_one or len(rows) != rows.n_texts):
            return y
        if get_tags(self.transformer).target_tags.required:
            raise ValueError(
                f"{_name(self.transformer)} in {type(self).__name__} needs y with one entry per "
                f"row. Got {_length(y)} entries for {len(rows)} rows of {rows.n_texts} texts. "
                "Put it behind a ConceptPooler, where there is one row per text."
            )
        return None

    def _keep(self, out, X):
        container = check_frame_output(out, self)
        out = self._attach(out, X)
        is_rows_array = isinstance(out, RowsArray) and out.rows is not None
        return rows_frame(out, out.rows) if container == "pandas" and is_rows_array else out

    def _attach(self, out, X):
        rows = rows_of(X)
        if rows is None:
            return out
        if _length(out) != len(rows):
            raise ValueError(
                f"{_name(self.transformer)} in {type(self).__name__} must give one row for each "
                f"row of its input: expected {len(rows)}, got {_length(out)}. Use it without "
                f"{type(self).__name__}; the texts of its output are then unknown."
            )
        if isinstance(out, np.ndarray):
            return with_rows(out, rows)
        if sparse.issparse(out):
            return with_rows(out.tocsr(), rows)
        return rows_frame(out, rows) if hasattr(out, "iloc") else out


def _plain(X):
    """Give X as the wrapped transformer sees it: not in a container of sksae."""
    return with_rows(X, None) if isinstance(X, RowsArray | RowsCSRMatrix | RowsCSRArray) else X


def _length(values):
    return values.shape[0] if hasattr(values, "shape") else len(values)


def _name(transformer):
    return type(transformer).__name__
