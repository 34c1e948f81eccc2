"""MeanDifferenceSelector: the concepts whose means differ most between classes."""

from numbers import Integral

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._sklearn import Interval, fit_context


class MeanDifferenceSelector(SelectorMixin, BaseEstimator):
    """Select the k features whose means differ most between classes.

    The selection step of k-sparse probing (Gurnee et al. (2023) [1]_; SAEBench [2]_). Behind
    a `ConceptPooler` it chooses concepts for a classifier::

        make_pipeline(acts, sae, ConceptPooler("mean"), MeanDifferenceSelector(5),
                      LogisticRegression())

    Parameters
    ----------
    k : int, default=1
        Number of features to keep, at most ``n_features_in_``.

    Attributes
    ----------
    scores_ : ndarray of shape (n_features_in_,)
        For two classes the absolute difference of the class means of each feature. For more,
        the largest over the classes of the absolute difference between the mean in the class
        and the mean outside. In units of the features.
    classes_ : ndarray of shape (n_classes,)
        The classes seen in fit.
    n_features_in_ : int
        Number of columns seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    sparse_probing : Selection, classifier and held-out accuracy in one call.
    sksae.activations.ConceptPooler : One row per text, one label per row.

    Notes
    -----
    CSR input is not made dense, and CSR comes out. Of features with equal scores the first
    are kept. The scores depend on the units of the features, as the means do.

    References
    ----------
    .. [1] Gurnee et al. (2023), "Finding neurons in a haystack: case studies with sparse
       probing", arXiv:2305.01610.
    .. [2] Karvonen et al. (2025), "SAEBench", arXiv:2503.09532.

    Examples
    --------
    The means of the classes are 1 and 2 in the first column, 0 and 4 in the second.

    >>> X, y = [[1.0, 0.0], [1.0, 0.0], [2.0, 3.0], [2.0, 5.0]], ["a", "a", "b", "b"]
    >>> selector = MeanDifferenceSelector(k=1).fit(X, y)
    >>> selector.scores_
    array([1., 4.])
    >>> selector.get_feature_names_out()
    array(['x1'], dtype=object)
    """

    _parameter_constraints: dict = {"k": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, k=1):
        self.k = k

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y):
        """Compare the means of the classes.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Codes or activations, one row per labelled sample.
        y : array-like of shape (n_samples,)
            Class of each sample; at least two classes.

        Returns
        -------
        self : MeanDifferenceSelector
            The fitted selector.

        Raises
        ------
        ValueError
            If ``k`` exceeds the number of features, or if ``y`` has a single class or is
            continuous.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        check_classification_targets(y)
        if self.k > X.shape[1]:
            raise ValueError(
                f"k={self.k} exceeds n_features={X.shape[1]} in {type(self).__name__}. Lower k."
            )
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes in y. "
                f"Got 1 class: {self.classes_[0]!r}."
            )
        self.scores_ = _mean_differences(X, codes, len(self.classes_)).max(axis=0)
        return self

    def _get_support_mask(self):
        check_is_fitted(self)
        mask = np.zeros(len(self.scores_), dtype=bool)
        mask[np.argsort(-self.scores_, kind="stable")[: self.k]] = True
        return mask

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags


def _mean_differences(X, codes, n_classes):
    """Give |mean in the class - mean outside|, shape (n_classes, n_features)."""
    ones = np.ones(len(codes))
    members = sparse.csr_array((ones, (codes, np.arange(len(codes)))), (n_classes, len(codes)))
    sums = members @ X
    sums = sums.toarray() if sparse.issparse(sums) else sums
    sizes = np.bincount(codes)[:, None]
    outside = (sums.sum(axis=0) - sums) / (len(codes) - sizes)
    return np.abs(sums / sizes - outside)
