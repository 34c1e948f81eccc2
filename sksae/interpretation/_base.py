"""What the transformers that interpret concepts share."""

from abc import ABCMeta, abstractmethod

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..activations._rows import check_frame_output, resolve_units, rows_frame, rows_of


class ConceptInterpreter(TransformerMixin, BaseEstimator, metaclass=ABCMeta):
    """Base class of the transformers that say what each concept stands for.

    Fitted on codes, one fills ``interpretations_``, a dict of concept index to what it
    found, or to None for a dead concept. The codes pass through unchanged, under the names
    of their concepts.
    """

    @abstractmethod
    def _name(self, interpretation):
        """Give the name, a string, that an interpretation amounts to."""

    def _label(self, interpretation):
        """Give what the name says, as `score_labels` reads it: a string, or a list of terms."""
        return self._name(interpretation)

    def transform(self, X, *, units=None):
        """Give the codes back unchanged.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Codes or activations.
        units : array-like of str, default=None
            Ignored.

        Returns
        -------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            The same object; under ``set_output`` a frame with the concepts' names.
        """
        check_is_fitted(self)
        validate_data(self, X, reset=False, skip_check_array=True)
        container = check_frame_output(X, self)
        # scikit-learn renames the columns of a frame in place.
        if container == "polars" and hasattr(X, "clone"):
            return X.clone()
        if container == "pandas":
            rows = rows_of(X)
            X = X if rows is None else rows_frame(X, rows)
            return X.copy(deep=False) if hasattr(X, "iloc") else X
        return X

    def fit_transform(self, X, y=None, *, units=None):
        """Interpret each concept and give the codes back unchanged.

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
        X : array-like or sparse matrix of shape (n_rows, n_features)
            The same object; under ``set_output`` a frame with the concepts' names.
        """
        return self.fit(X, y, units=units).transform(X)

    def inverse_transform(self, X):
        """Give the codes back unchanged.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            Codes or activations.

        Returns
        -------
        X : array-like or sparse matrix of shape (n_rows, n_features)
            The same object.
        """
        check_is_fitted(self)
        return X

    def get_feature_names_out(self, input_features=None):
        """Name each column by its index and what it stands for.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Ignored: the names come from the interpretations.

        Returns
        -------
        feature_names_out : ndarray of str objects
            "{index}: {name}"; "{index}: (dead)" for a dead concept, or with `TopKInputs`
            "{index}: (no text)" for one on blank units alone; "{index}" for a
            column that was not interpreted.
        """
        check_is_fitted(self)
        names = [self._feature_name(index) for index in range(self.n_features_in_)]
        return np.asarray(names, dtype=object)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _feature_name(self, index):
        if index not in self.interpretations_:
            return str(index)
        found = self.interpretations_[index]
        return f"{index}: {'(dead)' if found is None else self._name(found)}"

    def _checked_units(self, X, units):
        return checked_units(X, units, type(self).__name__)

    def _concepts(self):
        if isinstance(self.concepts_indices, str):
            return np.arange(self.n_features_in_)
        indices = np.asarray(self.concepts_indices)
        if indices.size == 0:
            return np.arange(0)
        integers = indices.dtype.kind in "iu" and indices.ndim <= 1
        if not integers or indices.min() < 0 or indices.max() >= self.n_features_in_:
            raise ValueError(
                f"The 'concepts_indices' parameter of {type(self).__name__} must be 'all' or "
                f"column indices from 0 to {self.n_features_in_ - 1}. "
                f"Got {self.concepts_indices!r} instead."
            )
        return np.asarray(list(dict.fromkeys(indices.ravel().tolist())))


def checked_units(X, units, owner):
    """Give the string of each row from ``units`` or the rows of ``X``; refuse what is no str."""
    units = resolve_units(X, units, owner)
    wrong = next((unit for unit in units if not isinstance(unit, str)), None)
    if wrong is not None:
        raise TypeError(
            f"The 'units' of {owner} must be strings, one per row. "
            f"Got {wrong!r} of type {type(wrong).__name__}."
        )
    return units
