"""What an attribution of concepts to their input found, with labels."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..activations import Rows
from ._rendering import html_fragment, html_page, plain_text

# A notebook shows no more than this by itself; a page has it all.
_MOST_TEXTS = 20
_MOST_CONCEPTS = 5


@dataclass(frozen=True, repr=False, eq=False)
class InputAttribution:
    """Scores of the tokens, words or sentences of texts for one concept or several.

    A sequence with one array of scores for each text, and an array of all scores end to end.
    In a notebook it shows the first 20 texts, shaded by their scores, for the first 5 concepts.

    Parameters
    ----------
    scores : ndarray of shape (n_units,) or (n_units, n_concepts)
        One score for each unit, those of all texts end to end, in units of the activation;
        with a column for each concept where a list of concepts was asked for.
    rows : Rows
        The text and characters of each unit.
    values : ndarray of shape (n_texts,) or (n_texts, n_concepts)
        The concept's activation in each text, which the scores explain.
    baseline_values : ndarray of the shape of ``values``
        The same where every unit is replaced by the baseline.
    delta : ndarray of the shape of ``values``, or None
        For methods whose scores should sum to ``values - baseline_values``: the sum of the
        scores of each text, minus that. 0 is exact; `input_concept_attribution` tells what
        else it may be. None for other methods.
    concept : int or ndarray of int, shape (n_concepts,)
        The concept, or all of them.
    names : list of str
        Name of each concept.
    method : str
        As in "integrated_gradients".
    granularity : {"token", "word", "sentence"}
        What a unit is.
    reduction : {"sum", "max"} or int
        How the activations of a text's rows were made one number.
    baseline : str
        The token that stood for an absent unit, or "zero".

    Examples
    --------
    >>> found = InputAttribution(
    ...     scores=np.array([0.5, 1.5, -0.25]),
    ...     rows=Rows([0, 0, 1], [0, 3, 0], [2, 8, 3], ["An apple", "Sea"]),
    ...     values=np.array([2.0, 0.0]), baseline_values=np.array([0.0, 0.25]),
    ...     delta=None, concept=3, names=["fruit"], method="occlusion", granularity="word",
    ...     reduction="sum", baseline="[MASK]")
    >>> len(found), found[0].tolist()
    (2, [0.5, 1.5])
    >>> print(found.to_text())
    fruit
             2  [An|+0.5] [apple|+1.5]
             0  [Sea|-0.25]
    """

    scores: np.ndarray
    rows: Rows
    values: np.ndarray
    baseline_values: np.ndarray
    delta: np.ndarray | None
    concept: int | np.ndarray
    names: list[str]
    method: str
    granularity: str
    reduction: str | int
    baseline: str

    @classmethod
    def _of(cls, numbers: Sequence[np.ndarray], sums_up: bool, **labels: Any) -> InputAttribution:
        """Make a result of scores, values and baseline values."""
        scores, values, absent = numbers
        delta = None
        if sums_up:
            total = np.zeros_like(values)
            np.add.at(total, labels["rows"].text, scores)
            delta = total - (values - absent)
        return cls(scores=scores, values=values, baseline_values=absent, delta=delta, **labels)

    def __len__(self):
        return self.rows.n_texts

    def __getitem__(self, i):
        """Give the scores of one text, shape (n_units,) or (n_units, n_concepts)."""
        at = operator.index(i)
        if not -len(self) <= at < len(self):
            raise IndexError(f"There are {len(self)} texts, and text {i} is none of them.")
        start, stop = np.searchsorted(self.rows.text, [at % len(self), at % len(self) + 1])
        return self.scores[start:stop]

    def __array__(self, dtype=None, copy=None):
        found = self.scores if dtype is None else self.scores.astype(dtype, copy=False)
        return found.copy() if copy and found is self.scores else found

    def to_frame(self):
        """Give a table with a line for each unit.

        Returns
        -------
        pandas.DataFrame
            With the columns ``text`` (its index), ``start``, ``end`` (characters), ``unit``,
            ``score``; for a list of concepts, ``concept`` before ``score``, and a line for each
            unit and concept.
        """
        import pandas as pd

        rows = self.rows
        columns = {"text": rows.text, "start": rows.start, "end": rows.end, "unit": rows.units}
        frame = pd.DataFrame(columns)
        if self.scores.ndim == 1:
            return frame.assign(score=self.scores)
        parts = [
            frame.assign(concept=int(concept), score=column)
            for concept, column in zip(np.atleast_1d(self.concept), self.scores.T, strict=True)
        ]
        return pd.concat(parts, ignore_index=True)

    def to_html(self):
        """Give a page that shows the texts, units shaded by their scores.

        Returns
        -------
        page : str
            HTML that needs no other file; it reads in light and in dark. Warm shades raise the
            activation, cold ones lower it; the strongest of each text is as dark as can be.
            The activation stands before each text.
        """
        return html_page(self._shown())

    def to_text(self):
        """Give the texts as lines, each unit with its score.

        Returns
        -------
        text : str
            The name of each concept and a line for each text: its activation, and the text
            with ``[unit|score]`` for each unit whose score is not 0.
        """
        return plain_text(self._shown())

    def _repr_html_(self):
        return html_fragment(self._shown(_MOST_TEXTS, _MOST_CONCEPTS))

    def __repr__(self):
        concepts = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        return (
            f"InputAttribution({concepts}; {self.method}, {len(self)} texts, {len(self.rows)} "
            f"{self.granularity}s)"
        )

    def _shown(self, n_texts=None, n_concepts=None):
        """Give for each concept its name, the activations and the scores of each text."""
        values = self.values.reshape(len(self), len(self.names)).T[:, :n_texts]
        scores = self.scores.reshape(len(self.rows), len(self.names)).T
        return self.rows, list(zip(self.names, values, scores, strict=True))[:n_concepts]
