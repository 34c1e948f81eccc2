"""TargetAssociation: which concepts go with a target."""

from numbers import Integral, Real

import numpy as np
from scipy.stats import false_discovery_control
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from .._sklearn import Interval, StrOptions, fit_context
from ._association import anova, pearson, welch


class TargetAssociation(SelectorMixin, BaseEstimator):
    r"""Find, and select, the concepts that go with a target.

    Each column is tested against ``y``; what is significant after correction for the number
    of concepts is selected. On a part of the samples held out beforehand the findings can be
    tested again, as hypotheses are in HypotheSAEs [1]_. It stands behind a `ConceptPooler`,
    where a row is a labelled text::

        pipe = make_pipeline(acts, sae, TermLabels(), ConceptPooler(), TargetAssociation())
        pipe.fit(texts, y)
        pipe[-1].to_frame(pipe[:-1].get_feature_names_out())

    Parameters
    ----------
    task : {"auto", "binary", "multiclass", "continuous"}, default="auto"
        What ``y`` is, and with it effect and test:

        - "binary": Cohen's d, Welch's t-test;
        - "multiclass": eta squared, F-test of the analysis of variance;
        - "continuous": Pearson's r, t-test of the correlation.

        "auto" tells by ``sklearn.utils.multiclass.type_of_target``: floats with a fractional
        part are continuous, all else is classes. For counts, say "continuous".
    correction : {"fdr_bh", "bonferroni"} or None, default="fdr_bh"
        How p-values are corrected: Benjamini and Hochberg [2]_ bound the expected share of
        false ones among the selected concepts, Bonferroni the probability of any.
    alpha : float, default=0.05
        Level of corrected p-values up to which a concept is significant.
    k : int, default=None
        None selects the significant concepts, and where samples are held out only those that
        are validated. An int selects the k best, significant or not: validated ones first,
        then by p-value.
    validation_fraction : float, default=None
        Share of the samples that are held out, stratified by class. None tests on all
        samples and validates nothing.
    random_state : int, RandomState instance or None, default=None
        Seed of the split; an int makes the fit repeatable.

    Attributes
    ----------
    task_ : str
        "binary", "multiclass" or "continuous".
    effects_ : ndarray of shape (n_features_in_,)
        Effect sizes; 0 for a constant column.
    pvalues_ : ndarray of shape (n_features_in_,)
        Two-sided, before correction; 1 for a constant column.
    corrected_pvalues_ : ndarray of shape (n_features_in_,)
        After correction.
    validation_effects_, validation_pvalues_ : ndarray of shape (n_features_in_,), or None
        Of the held-out samples, before correction.
    validated_ : ndarray of bool, shape (n_features_in_,), or None
        Which significant concepts proved so on the held-out samples.
    classes_ : ndarray of shape (n_classes,), or None
        The classes seen in fit.
    class_means_ : ndarray of shape (n_classes, n_features_in_), or None
        Means of the columns in each class, without the samples held out.
    n_features_in_ : int
        Number of columns seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    sksae.metrics.MeanDifferenceSelector : The k concepts with the largest differences.
    sksae.activations.ConceptPooler : One row per text, one target per row.

    Notes
    -----
    With means :math:`m_c`, sizes :math:`n_c` and variances :math:`s_c^2` of a column in the
    classes, the effects are

    - :math:`d = (m_1 - m_0) / \sqrt{((n_0 - 1) s_0^2 + (n_1 - 1) s_1^2) / (n_0 + n_1 - 2)}`
      ([3]_, section 2.5): positive where the second of the sorted classes has more;
    - :math:`\eta^2 = \sum_c n_c (m_c - m)^2 / \sum_i (x_i - m)^2` ([3]_, section 8.2), the
      share of the variance that the classes explain;
    - :math:`r = \sum_i (x_i - m)(y_i - \bar y) / \sqrt{\sum_i (x_i - m)^2 \sum_i (y_i - \bar
      y)^2}`.

    A constant column, such as a dead concept, is not tested and does not count in the
    correction. A column that is constant in each class, but not the same, has an infinite
    :math:`d` and p-value 0.

    A concept is validated if it is significant, if on the held-out samples its effect has the
    same sign (for several classes: the class means there and before correlate above 0), and if
    its p-value there, corrected for the number of significant concepts, is at most ``alpha``.

    CSR input is not made dense, and CSR comes out. Codes are skewed and mostly zero; the tests
    hold for them in samples of some hundred, and are cautious about concepts that activate in
    few texts. The p-values say nothing about what would happen if a text were changed.

    References
    ----------
    .. [1] Movva et al. (2025), "Sparse autoencoders for hypothesis generation",
       arXiv:2502.04382.
    .. [2] Benjamini and Hochberg (1995), "Controlling the false discovery rate", Journal of
       the Royal Statistical Society B 57(1).
    .. [3] Cohen (1988), "Statistical power analysis for the behavioral sciences", 2nd ed.

    Examples
    --------
    The means of the first column differ by 4 and both variances are 1. Those of the second
    are equal.

    >>> X = [[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [4.0, 0.0], [5.0, 1.0], [6.0, 1.0]]
    >>> association = TargetAssociation().fit(X, ["a", "a", "a", "b", "b", "b"])
    >>> association.effects_
    array([4., 0.])
    >>> association.get_feature_names_out()
    array(['x0'], dtype=object)
    >>> table = association.to_frame().round(3)
    >>> print(table[["name", "effect", "corrected_pvalue", "selected"]].to_string(index=False))
    name  effect  corrected_pvalue  selected
      x0     4.0             0.016      True
      x1     0.0             1.000     False
    """

    _parameter_constraints: dict = {
        "task": [StrOptions({"auto", "binary", "multiclass", "continuous"})],
        "correction": [StrOptions({"fdr_bh", "bonferroni"}), None],
        "alpha": [Interval(Real, 0, 1, closed="both")],
        "k": [Interval(Integral, 1, None, closed="left"), None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        task="auto",
        *,
        correction="fdr_bh",
        alpha=0.05,
        k=None,
        validation_fraction=None,
        random_state=None,
    ):
        self.task = task
        self.correction = correction
        self.alpha = alpha
        self.k = k
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y):
        """Test each concept against the target.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Codes or activations, one row per sample.
        y : array-like of shape (n_samples,)
            Class or number of each sample.

        Returns
        -------
        self : TargetAssociation
            The fitted selector.

        Raises
        ------
        ValueError
            If ``k`` exceeds the number of columns, if ``y`` does not fit ``task``, or if there
            are too few samples to test.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        if self.k is not None and self.k > X.shape[1]:
            raise ValueError(
                f"k={self.k} exceeds n_features={X.shape[1]} in {type(self).__name__}. Lower k."
            )
        target = self._read_target(y)
        found, held_out = self._parts(target)
        tested = self._tested(X[found], target[found], "")
        self.effects_, self.pvalues_ = tested.effects, tested.pvalues
        self.class_means_ = tested.means
        self.corrected_pvalues_ = self._corrected(tested.pvalues, ~tested.constant)
        self._validate(X, target, held_out)
        return self

    def to_frame(self, input_features=None):
        """Give the findings as a table, one line per concept, the smallest p-values first.

        Parameters
        ----------
        input_features : array-like of str, shape (n_features_in_,), default=None
            Names of the concepts, such as ``pipe[:-1].get_feature_names_out()``. None takes
            those seen in fit, or "x0", "x1", ...

        Returns
        -------
        table : pandas.DataFrame
            Columns name, effect, pvalue, corrected_pvalue and selected; for two classes
            mean_difference (second less first); for several, class (the one with the largest
            mean); with samples held out validation_effect, validation_pvalue and validated.
            The index is the concept's column.
        """
        check_is_fitted(self)
        import pandas as pd

        names = _check_feature_names_in(self, input_features)
        table = pd.DataFrame({"name": np.asarray(names, dtype=object), "effect": self.effects_})
        if self.task_ == "binary":
            table["mean_difference"] = self.class_means_[1] - self.class_means_[0]
        elif self.task_ == "multiclass":
            table["class"] = self.classes_[self.class_means_.argmax(axis=0)]
        table["pvalue"] = self.pvalues_
        table["corrected_pvalue"] = self.corrected_pvalues_
        if self.validated_ is not None:
            table["validation_effect"] = self.validation_effects_
            table["validation_pvalue"] = self.validation_pvalues_
            table["validated"] = self.validated_
        table["selected"] = self.get_support()
        table.index.name = "concept"
        return table.iloc[self._order()]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags

    def _get_support_mask(self):
        check_is_fitted(self)
        if self.k is None:
            return self._significant() if self.validated_ is None else self.validated_
        proven = np.zeros(self.n_features_in_) if self.validated_ is None else self.validated_
        mask = np.zeros(self.n_features_in_, dtype=bool)
        order = self._order()
        mask[order[np.argsort(~proven[order].astype(bool), kind="stable")][: self.k]] = True
        return mask

    def _order(self):
        """Sort by p-value, then by effect, then by index."""
        return np.lexsort((-np.abs(self.effects_), self.pvalues_))

    def _significant(self):
        return (self.corrected_pvalues_ <= self.alpha) & (self.pvalues_ < 1)

    # -- the target ---------------------------------------------------------------------------

    def _read_target(self, y):
        """Set ``task_`` and ``classes_``; give numbers, or the index of each sample's class."""
        self.task_ = self._resolved_task(y)
        if self.task_ == "continuous":
            self.classes_ = None
            return self._numbers(y)
        check_classification_targets(y)
        self.classes_, target = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        if n_classes < 2 or (self.task_ == "binary" and n_classes > 2):
            wanted = "2 classes" if self.task_ == "binary" else "at least 2 classes"
            raise ValueError(
                f"task='{self.task_}' of {type(self).__name__} needs {wanted} in y. "
                f"Got {n_classes} {'class' if n_classes == 1 else 'classes'}."
            )
        return target

    def _resolved_task(self, y):
        if self.task != "auto":
            return self.task
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        return kind if kind in ("binary", "continuous") else "multiclass"

    def _numbers(self, y):
        try:
            return np.asarray(y, dtype=np.float64)
        except ValueError as exc:
            raise ValueError(
                f"task='continuous' of {type(self).__name__} needs numbers in y. "
                "For classes, set task='auto'."
            ) from exc

    def _parts(self, target):
        """Give the samples to find associations on, and those to validate them on."""
        if self.validation_fraction is None:
            return np.arange(len(target)), None
        kind = ShuffleSplit if self.classes_ is None else StratifiedShuffleSplit
        splitter = kind(1, test_size=self.validation_fraction, random_state=self.random_state)
        self._check_enough(target, "")
        return next(splitter.split(np.zeros(len(target)), target))

    # -- the tests ----------------------------------------------------------------------------

    def _tested(self, X, target, where):
        self._check_enough(target, where)
        if self.task_ == "continuous":
            return pearson(X, target)
        if self.task_ == "binary":
            return welch(X, target)
        return anova(X, target, len(self.classes_))

    def _check_enough(self, target, where):
        """Refuse samples that no test can be made on."""
        name = type(self).__name__
        if self.task_ == "continuous":
            if len(target) < 3 or np.ptp(target) == 0:
                raise ValueError(
                    f"{name} needs at least 3 samples with different y to correlate{where}. Got "
                    f"n_samples={len(target)} with {len(np.unique(target))} value(s) of y."
                )
            return
        sizes = np.bincount(target, minlength=len(self.classes_))
        least = 2 if self.task_ == "binary" else 1
        if sizes.min() < least or len(target) <= len(sizes):
            counted = dict(zip(self.classes_.tolist()[:10], sizes.tolist(), strict=False))
            more = f" and {len(sizes) - 10} more" if len(sizes) > 10 else ""
            numbers = np.issubdtype(self.classes_.dtype, np.number)
            hint = " If y is a quantity, set task='continuous'." if numbers else ""
            raise ValueError(
                f"{name} needs at least {least} sample(s) of each class, and more samples than "
                f"classes{where}. Got {counted}{more}.{hint}"
            )

    def _corrected(self, pvalues, tested):
        corrected = pvalues.copy()
        if self.correction == "bonferroni":
            corrected[tested] = np.minimum(pvalues[tested] * tested.sum(), 1)
        elif self.correction == "fdr_bh" and tested.any():
            corrected[tested] = false_discovery_control(pvalues[tested], method="bh")
        return corrected

    def _validate(self, X, target, held_out):
        self.validation_effects_ = self.validation_pvalues_ = self.validated_ = None
        if held_out is None:
            return
        where = f" on the held-out part (validation_fraction={self.validation_fraction})"
        again = self._tested(X[held_out], target[held_out], where)
        self.validation_effects_, self.validation_pvalues_ = again.effects, again.pvalues
        significant = self._significant()
        corrected = self._corrected(again.pvalues, significant & ~again.constant)
        self.validated_ = significant & self._agrees(again) & (corrected <= self.alpha)

    def _agrees(self, again):
        if self.task_ == "multiclass":
            deviations = self.class_means_ - self.class_means_.mean(axis=0)
            return (deviations * again.means).sum(axis=0) > 0
        return np.sign(self.effects_) == np.sign(again.effects)
