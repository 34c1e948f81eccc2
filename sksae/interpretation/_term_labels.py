"""TermLabels: names concepts by the words that stand around the units they activate on."""

from numbers import Integral, Real

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.utils.validation import check_is_fitted, validate_data

from .._sklearn import Interval, StrOptions, fit_context
from ._base import ConceptInterpreter
from ._documents import activating, distinct_documents, read_documents
from ._term_scores import best_terms, class_tf_idf, count_terms, log_odds


class TermLabels(ConceptInterpreter):
    r"""Name each concept by the terms that are more frequent where it activates.

    No language model is asked: a concept is named by the words that are over-represented in
    the documents of the rows that activate it, against the documents of all other rows. The
    document of a row is a window of words around it, so that word pieces are read as the
    words they belong to. The codes themselves pass unchanged, under the names of their
    concepts.

    Parameters
    ----------
    n_terms : int, default=3
        Largest number of terms per concept.
    method : {"log_odds", "ctfidf"}, default="log_odds"
        How terms are scored:

        - "log_odds": z-score of the log-odds ratio with an informative Dirichlet prior [1]_,
          activating against non-activating rows;
        - "ctfidf": class-based tf-idf [2]_, the activating rows of each concept as a class.
    window : int or "text", default=5
        Words in the document of a row. The words that the row's span touches belong to it;
        if they are fewer, neighbours in the same text are added, as many on either side. 1
        is the row alone, "text" the whole text.
    stop_words : None, "english" or array-like of str, default=None
        Words that are no terms; "english" is scikit-learn's list. They still count as words
        of a window.
    min_count : int, default=2
        A term occurs at least so often in the texts.
    min_score : float, default=0.0
        A term scores above it. For "log_odds", 1.96 leaves out what is not significant.
    prior : float, default=1.0
        Strength of the prior of "log_odds", relative to the data. Larger values favour
        frequent terms.
    concepts_indices : "all", int or array-like of int, default="all"
        Columns to interpret.

    Attributes
    ----------
    interpretations_ : dict of int to dict of str to float, or to None
        The terms of each interpreted concept with their scores, highest first; empty where
        no term is over-represented. None for a dead concept, one that activates nowhere.
    n_features_in_ : int
        Number of columns (concepts) seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where fit saw a data frame.

    See Also
    --------
    TopKInputs : Names concepts by the units that activate them most.
    score_labels : How well such names tell activating from other units.

    Notes
    -----
    A row activates a concept where its code is above 0, however little. A term counts once
    in a document. With :math:`y_w` activating and :math:`y'_w` other rows whose documents
    contain the term :math:`w`, :math:`n = \sum_w y_w` and :math:`n' = \sum_w y'_w`, the
    prior :math:`\alpha_w = prior \cdot (y_w + y'_w)` and
    :math:`\alpha_0 = \sum_w \alpha_w`, "log_odds" is (equations 16 to 22 of [1]_)

    .. math::
        \zeta_w = \frac{1}{\sqrt{1 / (y_w + \alpha_w) + 1 / (y'_w + \alpha_w)}} \left(
        \log \frac{y_w + \alpha_w}{n + \alpha_0 - y_w - \alpha_w} -
        \log \frac{y'_w + \alpha_w}{n' + \alpha_0 - y'_w - \alpha_w} \right).

    A prior as strong as the data keeps a term that occurs in nothing but activating rows
    above one that also occurs elsewhere; a weak one, with its variance near
    :math:`1 / \alpha_w`, would not. Rows whose windows overlap are not independent, so the
    z-scores rank terms better than they test them.

    "ctfidf" is :math:`y_w \log(1 + A / f_w)` (section 3.3 of [2]_), where :math:`f_w` is the
    sum of :math:`y_w` over all concepts, interpreted or not, and :math:`A` the mean of
    :math:`n` over those that are not dead.

    Terms are in lower case: words, with apostrophes inside; single marks of punctuation,
    since concepts stand for these, too; and single ideographs and kana. Of terms with equal
    scores the one that occurs first comes first. A special token is its own document, except
    where it is a text's only row and stands for the text.

    With ``units`` nothing is known around a row: its document is its own string.

    References
    ----------
    .. [1] Monroe, Colaresi and Quinn (2008), "Fightin' Words: lexical feature selection and
       evaluation for identifying the content of political conflict", Political Analysis 16(4).
    .. [2] Grootendorst (2022), "BERTopic: neural topic modeling with a class-based TF-IDF
       procedure", arXiv:2203.05794.

    Examples
    --------
    The first concept activates on the units about the sea, the second nowhere.

    >>> import numpy as np
    >>> units = ["the red sea", "the sea", "the old tree", "a tree"]
    >>> codes = np.array([[0.5, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    >>> labels = TermLabels().fit(codes, units=units)
    >>> list(labels.get_feature_names_out())
    ['0: sea, the', '1: (dead)']

    By class-based tf-idf the only class has four terms, two of each ("red" occurs too rarely
    to be one), and 2 log(1 + 4 / 2) = 2.197.

    >>> TermLabels(method="ctfidf").fit(codes, units=units).to_frame().round(3)
       concept  rank term  score
    0        0     1  the  2.197
    1        0     2  sea  2.197
    """

    _parameter_constraints: dict = {
        "n_terms": [Interval(Integral, 1, None, closed="left")],
        "method": [StrOptions({"log_odds", "ctfidf"})],
        "window": [Interval(Integral, 1, None, closed="left"), StrOptions({"text"})],
        "stop_words": [None, StrOptions({"english"}), "array-like", set, frozenset],
        "min_count": [Interval(Integral, 1, None, closed="left")],
        "min_score": [Interval(Real, 0, None, closed="left")],
        "prior": [Interval(Real, 0, None, closed="neither")],
        "concepts_indices": [StrOptions({"all"}), Integral, "array-like"],
    }

    def __init__(
        self,
        n_terms=3,
        *,
        method="log_odds",
        window=5,
        stop_words=None,
        min_count=2,
        min_score=0.0,
        prior=1.0,
        concepts_indices="all",
    ):
        self.n_terms = n_terms
        self.method = method
        self.window = window
        self.stop_words = stop_words
        self.min_count = min_count
        self.min_score = min_score
        self.prior = prior
        self.concepts_indices = concepts_indices

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, units=None):
        """Find the terms of each concept.

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
        self : TermLabels
            The fitted transformer.
        """
        strings = self._checked_units(X, units)
        codes = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32])
        concepts, active = self._concepts(), activating(codes)
        documents = read_documents(X, strings, units is not None, self.window)
        contains, number = distinct_documents(documents)
        kept = np.flatnonzero(self._are_terms(documents))
        counts = count_terms(contains[:, kept], number, active)
        terms = [documents.terms[i] for i in kept.tolist()]
        self.interpretations_ = dict.fromkeys(concepts.tolist())
        alive = concepts[np.diff(counts.active.indptr)[concepts] > 0]
        for concept, found in zip(alive.tolist(), self._scores(alive, counts), strict=True):
            numbers, scores = best_terms(*found, self.n_terms, self.min_score)
            listed = zip(numbers.tolist(), scores.tolist(), strict=True)
            self.interpretations_[concept] = {terms[i]: score for i, score in listed}
        return self

    def to_frame(self):
        """Give the interpretations as a table, one line per concept and term.

        Returns
        -------
        table : pandas.DataFrame
            Columns concept, rank (from 1), term and score. Concepts without terms have no
            line.
        """
        check_is_fitted(self)
        import pandas as pd

        lines = [
            (concept, rank, term, score)
            for concept, terms in self.interpretations_.items()
            for rank, (term, score) in enumerate((terms or {}).items(), start=1)
        ]
        return pd.DataFrame(lines, columns=["concept", "rank", "term", "score"])

    def _name(self, interpretation):
        return ", ".join(interpretation) or "(no terms)"

    def _scores(self, concepts, counts):
        if self.method == "ctfidf":
            return class_tf_idf(concepts, counts)
        return log_odds(concepts, counts, self.prior)

    def _are_terms(self, documents):
        stopped = self._stopped()
        allowed = np.array([term not in stopped for term in documents.terms], dtype=bool)
        return allowed & (documents.counts >= self.min_count)

    def _stopped(self):
        if self.stop_words is None:
            return frozenset()
        if isinstance(self.stop_words, str):
            return ENGLISH_STOP_WORDS
        words = list(self.stop_words)
        wrong = next((word for word in words if not isinstance(word, str)), None)
        if wrong is not None:
            raise TypeError(
                "The 'stop_words' parameter of TermLabels must be 'english' or a list of str. "
                f"Got {wrong!r} of type {type(wrong).__name__} in it."
            )
        return frozenset(word.lower() for word in words)
