"""score_labels: how well a concept's name tells the units that activate it from others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from scipy.special import ndtr
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ..metrics._checks import check_matrix, check_number, check_share
from ._base import ConceptInterpreter, checked_units
from ._columns import Columns
from ._documents import read_documents
from ._llm_prompts import NO_ANSWER
from ._matching import as_label, is_terms, term_scores
from ._term_labels import TermLabels

_WINDOW = 5
_NUMBERS = ("auroc", "p_value", "coverage", "precision", "recall")


def score_labels(
    labels,
    codes,
    *,
    units=None,
    judge=None,
    threshold=None,
    window=None,
    max_units=1000,
    alpha=0.05,
    random_state=None,
):
    """Score names of concepts by whether they tell activating from other units.

    The detection score of Delphi [1]_ and SAEBench [2]_: from its label alone one predicts
    which units activate a concept; the score says how often this is right. A list of terms
    predicts the units whose documents contain one; free text is judged by ``judge``.

    Parameters
    ----------
    labels : fitted interpreter or dict of int to label
        A `TopKInputs`, `TermLabels` or any other `ConceptInterpreter`, or a dict of concept
        index to a string (free text), a list of terms, a dict of term to weight, or None.
    codes : array-like or sparse matrix of shape (n_rows, n_concepts)
        Held-out codes: of other texts than the labels were made from.
    units : array-like of str, shape (n_rows,), default=None
        The string of each row; needed where ``codes`` does not carry its rows.
    judge : callable, default=None
        ``judge(label, texts)`` gives one score per text, higher where the label fits better:
        a language model's answers, or similarities of embeddings. It judges every label, terms
        as "term, term". None scores free text by its words.
    threshold : float, default=None
        Score from which on the ``judge`` says yes. None leaves out what depends on it:
        coverage, precision and recall.
    window : int, "text" or None, default=None
        Words in the document of a row, as in `TermLabels`. None is the window of ``labels``
        if it is a `TermLabels`, else 5.
    max_units : int or None, default=1000
        At most so many activating and so many other units of a concept are scored, drawn at
        random. None scores all. With a judge that takes its time, lower it.
    alpha : float, default=0.05
        Level of the verdict's test.
    random_state : int, RandomState instance or None, default=None
        Seed of the drawing; an int makes the result repeatable.

    Returns
    -------
    scores : pandas.DataFrame
        Indexed by concept, with the columns

        - label: as text; None where there is none;
        - n_active, n_inactive: activating and other units that were scored;
        - auroc: probability that an activating unit scores above another one, ties counted
          half; 0.5 is chance, 1 is best;
        - p_value: of the one-sided Mann-Whitney test that activating units score higher;
        - coverage: share of the activation, recall: share of the activating units, that the
          label matches, both in [0, 1];
        - precision: share of activating units among those that the label matches, if both
          kinds were equally frequent: 0.5 is chance;
        - verdict: "better than chance", "no better than chance", "worse than chance", "dead"
          (no unit activates it), "always active" (every unit does) or "no label".

        The numbers are NaN for the last three verdicts, precision also where nothing
        matches.

    Raises
    ------
    ValueError
        If a concept is not among the columns, a parameter is out of range, or the judge
        does not give one finite number per text.
    TypeError
        If a label is none of the above.

    See Also
    --------
    TermLabels : Names by over-represented terms.
    TopKInputs : Names by the most activating units.

    Notes
    -----
    **Score on held-out texts.** On the rows that the labels were made from every label looks
    good: it was chosen to match them.

    A unit activates a concept where its code is above 0, however little. With terms, the
    score of a unit is the sum of the weights of those in its document, and it matches where
    that is above 0. The document is a window of words, as in `TermLabels`, and the unit's
    own string, so that word pieces can match. Case does not count; a term of several words
    is contained where all of them are. Free text without a judge counts as the list of its
    words that are neither punctuation nor English stop words.

    The units of a concept are weighted so that both kinds count alike, as in [1]_: neither
    score depends on how rare the concept is. The test is the normal approximation with
    corrections for ties and continuity. It is not corrected for the number of concepts, and
    it takes units as independent, which the tokens of a text are not quite. "Worse than
    chance" is the same test in the other direction.

    References
    ----------
    .. [1] Paulo et al. (2024), "Automatically interpreting millions of features in large
       language models", arXiv:2410.13928, section on detection scoring.
    .. [2] Karvonen et al. (2025), "SAEBench", arXiv:2503.09532.

    Examples
    --------
    "sea" is in both units that activate the concept and in one of two others: an activating
    unit wins against one of these and ties with the other.

    >>> import numpy as np
    >>> units = ["red sea", "old sea", "sea", "tree"]
    >>> codes = np.array([[3.0], [1.0], [0.0], [0.0]])
    >>> scores = score_labels({0: ["sea"]}, codes, units=units)
    >>> scores.loc[0, ["auroc", "coverage", "recall", "precision"]].astype(float).round(3).to_dict()
    {'auroc': 0.75, 'coverage': 1.0, 'recall': 1.0, 'precision': 0.667}
    """
    matrix = check_matrix(codes, "codes", "score_labels")
    window = _checked_window(labels, window)
    threshold = _checked_threshold(threshold, judge)
    alpha, max_units = check_share(alpha, "alpha", "score_labels"), _checked_size(max_units)
    strings = checked_units(codes, units, "score_labels")
    read = {c: as_label(v, c) for c, v in _values(labels, matrix.shape[1]).items()}
    documents = read_documents(codes, strings, units is not None, window)
    named = [label for label in read.values() if label is not None]
    if judge is None:
        scorers = _term_scorers(documents, strings, named)
    else:
        scorers = _judges(judge, documents, named)
    draw = _Draw(matrix, max_units, check_random_state(random_state))
    lines = {
        concept: _line(None if label is None else next(scorers), draw(concept), threshold, alpha)
        for concept, label in read.items()
    }
    return _frame(read, lines)


# -- what came in -----------------------------------------------------------------------------


def _values(labels, n_concepts):
    if isinstance(labels, ConceptInterpreter):
        check_is_fitted(labels)
        if labels.n_features_in_ != n_concepts:
            raise ValueError(
                f"labels of score_labels was fitted on {labels.n_features_in_} concepts, but "
                f"codes has {n_concepts} columns. Take codes from the same SAE."
            )
        return {c: _readable(labels, found) for c, found in labels.interpretations_.items()}
    if not isinstance(labels, Mapping):
        raise TypeError(
            "labels of score_labels must be a fitted interpreter, such as TermLabels, or a dict "
            f"of concept index to label. Got {type(labels).__name__}."
        )
    for concept in labels:
        if not isinstance(concept, Integral) or not 0 <= concept < n_concepts:
            raise ValueError(
                "The concepts in labels of score_labels must be column indices of codes, from 0 "
                f"to {n_concepts - 1}. Got {concept!r}."
            )
    return {int(concept): value for concept, value in labels.items()}


def _readable(interpreter, found):
    """Give an interpretation as a label: as it is if it can be read, else what it is named by."""
    if isinstance(found, str) and found == NO_ANSWER:
        return None
    if found is None or isinstance(found, str) or is_terms(found):
        return found
    return interpreter._label(found)


def _checked_window(labels, window):
    if window is None:
        return labels.window if isinstance(labels, TermLabels) else _WINDOW
    if window == "text" or isinstance(window, Integral) and window >= 1:
        return window
    raise ValueError(
        f"window of score_labels must be an int of at least 1, 'text' or None. Got {window!r}."
    )


def _checked_threshold(threshold, judge):
    if judge is None:
        if threshold is not None:
            raise ValueError(
                "threshold of score_labels is for the scores of a judge, but judge is None. Terms "
                "match where they occur."
            )
        return np.nextafter(0, 1)
    return None if threshold is None else check_number(threshold, "threshold", "score_labels")


def _checked_size(max_units):
    if max_units is None or isinstance(max_units, Integral) and max_units >= 1:
        return max_units
    raise ValueError(
        f"max_units of score_labels must be an int of at least 1 or None. Got {max_units!r}."
    )


# -- which units, and what their labels predict -----------------------------------------------


class _Draw:
    """Draws units of a concept, the same for a concept whatever the others are."""

    def __init__(self, codes, max_units, rng):
        self.columns = Columns(codes)
        self.limit = codes.shape[0] if max_units is None else max_units
        self.order = rng.permutation(codes.shape[0])
        self.rank = np.argsort(self.order)
        self.taken = np.zeros(codes.shape[0], dtype=bool)

    def __call__(self, concept):
        """Give activating rows with their codes, and other rows, in random order."""
        rows, values = self.columns[concept]
        order = np.argsort(self.rank[rows])
        rows, values = rows[order], values[order]
        first = self.order[: self.limit + len(rows)]
        self.taken[rows] = True
        others = first[~self.taken[first]][: self.limit]
        self.taken[rows] = False
        return rows[: self.limit], values[: self.limit], others


def _term_scorers(documents, strings, labels) -> Iterator[Callable]:
    columns, number = term_scores(documents, strings, labels)
    totals = np.zeros(number.max() + 1)
    for column in columns:
        totals[column.documents] = column.scores
        yield lambda rows: totals[number[rows]]
        totals[column.documents] = 0


def _judges(judge, documents, labels) -> Iterator[Callable]:
    for label in labels:
        yield partial(_judged, judge, documents, label.name)


def _judged(judge, documents, label, rows):
    scores = np.asarray(judge(label, documents.strings(rows)), dtype=np.float64)
    if scores.shape != rows.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"judge of score_labels must give one finite number per text. For {label!r} and "
            f"{len(rows)} texts it gave {scores!r}."
        )
    return scores


# -- the numbers ------------------------------------------------------------------------------


def _line(scorer, drawn, threshold, alpha) -> dict[str, Any]:
    active, values, others = drawn
    line: dict[str, Any] = {"n_active": len(active), "n_inactive": len(others)}
    line |= dict.fromkeys(_NUMBERS, np.nan)
    if not len(active) or not len(others) or scorer is None:
        verdict = "no label" if len(others) else "always active"
        return line | {"verdict": "dead" if not len(active) else verdict}
    # One call with both kinds mixed: their order must not tell a judge which is which.
    rows = np.concatenate([active, others])
    mixed = np.random.default_rng(len(rows)).permutation(len(rows))
    scores = np.empty(len(rows))
    scores[mixed] = scorer(rows[mixed])
    inside, outside = scores[: len(active)], scores[len(active) :]
    auroc, better, worse = auroc_test(inside, outside)
    line |= {"auroc": auroc, "p_value": better, "verdict": _verdict(better, worse, alpha)}
    if threshold is None:
        return line
    return line | _match_scores(inside >= threshold, outside >= threshold, values)


def _verdict(better, worse, alpha):
    if better <= alpha:
        return "better than chance"
    return "worse than chance" if worse <= alpha else "no better than chance"


def _match_scores(inside, outside, values):
    recall, false = inside.mean(), outside.mean()
    matched = recall + false
    return {
        "coverage": values[inside].sum(dtype=np.float64) / values.sum(dtype=np.float64),
        "precision": recall / matched if matched else np.nan,
        "recall": recall,
    }


def auroc_test(positive, negative) -> tuple[float, float, float]:
    """Give the AUROC, and the p-values that positives score higher and that they score lower.

    The Mann-Whitney test by its normal approximation, corrected for ties and continuity.

    Examples
    --------
    >>> auroc, better, worse = auroc_test([2, 1], [0, 1])
    >>> auroc
    0.875
    """
    m, n = len(positive), len(negative)
    scores = np.concatenate([positive, negative])
    _, value, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(ties) - (ties - 1) / 2
    u, total = ranks[value[:m]].sum() - m * (m + 1) / 2, m + n
    ties = ties.astype(np.float64)
    variance = m * n / 12 * (total + 1 - (ties**3 - ties).sum() / (total * (total - 1)))
    auroc = float(u / (m * n))
    if len(ties) == 1:
        return auroc, 1.0, 1.0
    above = u - m * n / 2
    better, worse = ndtr((0.5 - np.array([above, -above])) / np.sqrt(variance))
    return auroc, float(better), float(worse)


def _frame(labels, lines):
    import pandas as pd

    columns = ["n_active", "n_inactive", *_NUMBERS, "verdict"]
    frame = pd.DataFrame(list(lines.values()), columns=columns)
    frame.index = pd.Index(list(lines), name="concept", dtype="int64")
    names = [None if label is None else label.name for label in labels.values()]
    frame.insert(0, "label", pd.Series(names, index=frame.index, dtype=object))
    return frame
