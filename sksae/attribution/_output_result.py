"""What `concept_output_attribution` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from ..activations._pooler import pool_rows

_ORDERS: dict[str, Any] = {"magnitude": np.abs, "positive": np.asarray, "negative": np.negative}


@dataclass(frozen=True, repr=False)
class OutputAttribution:
    """How much each concept contributes to a logit of each text, in logits.

    Parameters
    ----------
    scores : CSR matrix of shape (n_rows, n_concepts) or (n_texts, n_concepts)
        The contribution of each concept that is active, for each row of the pipeline or
        for each text. ``scores.rows`` tells which text, and which characters of it, a row
        stands for. Positive scores speak for the target. A concept without an entry has a
        score of 0. Sums to 1 in magnitude over each text where normalised.
    activations : CSR matrix of the same shape, with the same entries
        The codes; for whole texts, the largest one of each concept in the text.
    concepts : ndarray of int64, shape (n_concepts,)
        The concept of each column.
    names : ndarray of str, shape (n_concepts,)
        Its name, from the pipeline's steps.
    target : ndarray of int64, shape (n_texts,)
        The class or token whose logit is explained; -1 for a text without tokens.
    target_names : list of str
        Its label, or the string of the token.
    logits : ndarray of float64, shape (n_texts,)
        The model's own logit of the target; NaN for a text without tokens.
    logits_replaced : ndarray of float64, shape (n_texts,)
        With the hidden states replaced by decoded codes. With ``keep_error`` the same but
        for rounding; without, the difference is what the SAE loses.
    logits_baseline : ndarray of float64, shape (n_texts,)
        With the codes of the chosen concepts at their baseline, zero by default.
    delta : ndarray of float64, shape (n_texts,)
        ``sum of scores - (logits_replaced - logits_baseline)``, before normalising. For
        integrated gradients the error of the numerical integral, for Shapley values
        rounding. For the other methods, which do not promise such a sum, how far the logit
        is from a sum of separate contributions.
    method : str
        The attribution method.
    settings : dict
        How the scores were made; `insertion_deletion` reads it.

    See Also
    --------
    concept_output_attribution : Makes it.
    insertion_deletion : Tests it on the model.
    """

    scores: Any
    activations: Any
    concepts: np.ndarray
    names: np.ndarray
    target: np.ndarray
    target_names: list[str]
    logits: np.ndarray
    logits_replaced: np.ndarray
    logits_baseline: np.ndarray
    delta: np.ndarray
    method: str
    settings: dict[str, Any]

    @property
    def rows(self) -> Any:
        """What the rows of ``scores`` stand for: text, start, end, units."""
        return self.scores.rows

    @property
    def per_position(self) -> bool:
        """Whether the scores are those of rows, and not of whole texts."""
        return bool(self.settings["per_position"])

    def __repr__(self) -> str:
        per = "rows" if self.per_position else "texts"
        return (
            f"OutputAttribution({self.method!r}, {self.scores.shape[0]} {per} x "
            f"{self.scores.shape[1]} concepts, {self.scores.nnz} scores)"
        )

    def to_frame(self) -> Any:
        """Give the scores as a table, one line for each active concept of a row or text.

        Returns
        -------
        table : pandas.DataFrame
            Columns text, for rows also start, end and unit, then concept, name,
            activation and score, in the order of the texts.
        """
        import pandas as pd

        at = np.repeat(np.arange(self.scores.shape[0]), np.diff(self.scores.indptr))
        columns = {"text": self.rows.text[at]}
        if self.per_position:
            columns |= {"start": self.rows.start[at], "end": self.rows.end[at]}
            columns["unit"] = self.rows.units[at]
        columns["concept"] = self.concepts[self.scores.indices]
        columns["name"] = self.names[self.scores.indices]
        columns["activation"] = self.activations.data
        columns["score"] = self.scores.data
        return pd.DataFrame(columns)

    def top(self, k: int = 5, *, overall: bool = False, by: str = "magnitude") -> Any:
        """Give the strongest scores, of each text or on the whole.

        Parameters
        ----------
        k : int, default=5
            Most lines for each text, or on the whole.
        overall : bool, default=False
            Whether to give concepts by the mean of their scores over all texts, where a text
            without the concept counts as 0, instead of the strongest of each text.
        by : {"magnitude", "positive", "negative"}, default="magnitude"
            Which scores are strong: those far from 0, or those on one side of it only.

        Returns
        -------
        table : pandas.DataFrame
            Lines of `to_frame`, ordered by text, the strongest first. With ``overall``
            columns concept, name, n_texts (in which the concept is active) and score.

        Raises
        ------
        ValueError
            If ``by`` is unknown.
        """
        if by not in _ORDERS:
            raise ValueError(f"by must be one of {', '.join(map(repr, _ORDERS))}. Got {by!r}.")
        table = self._overall() if overall else self.to_frame()
        table = table.assign(strength=_ORDERS[by](table["score"].to_numpy()))
        if by != "magnitude":
            table = table[table["strength"] > 0]
        table = table.sort_values("strength", ascending=False, kind="stable")
        if not overall:
            table = table.groupby("text", sort=False).head(k).sort_values("text", kind="stable")
        return table.head(len(table) if not overall else k).drop(columns="strength")

    def _overall(self) -> Any:
        import pandas as pd

        n_texts = len(self.target)
        scores = sparse.csr_array(self.scores)
        per_text = pool_rows(scores, self.rows.text, n_texts, "sum") if n_texts else scores
        active = scores.copy()
        active.data[:] = 1
        counts = pool_rows(active, self.rows.text, n_texts, "max").sum(axis=0)
        means = np.asarray(per_text.sum(axis=0)).ravel() / n_texts
        live = np.flatnonzero(counts)
        return pd.DataFrame(
            {
                "concept": self.concepts[live],
                "name": self.names[live],
                "n_texts": np.asarray(counts).ravel()[live].astype(np.int64),
                "score": means[live],
            }
        )
