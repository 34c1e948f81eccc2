"""A pipeline taken apart: texts, extractor, steps between, SAE."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from ..activations import TransformerActivationExtractor
from ..activations._rows import Rows, rows_frame, with_rows
from ..activations._texts import check_texts
from ..metrics._observed import split_at_sae


class Parts(NamedTuple):
    """The fitted steps of a pipeline, up to its SAE.

    Attributes
    ----------
    owner : str
        What needs them, for the messages.
    on_texts : list
        Steps before the extractor.
    extractor : TransformerActivationExtractor, or None
    between : list
        Steps between extractor and SAE; without an extractor, all before the SAE.
    sae : BaseSAE
    """

    owner: str
    on_texts: list[Any]
    extractor: Any
    between: list[Any]
    sae: Any

    @classmethod
    def of(cls, pipe_or_sae: Any, owner: str) -> Parts:
        """Take a fitted SAE, or a pipeline that holds one, apart."""
        before, sae = split_at_sae(pipe_or_sae, owner)
        is_extractor = [isinstance(step, TransformerActivationExtractor) for step in before]
        at = is_extractor.index(True) if any(is_extractor) else None
        for step in (*before, sae):
            check_is_fitted(step)
        if at is None:
            return cls(owner, [], None, before, sae)
        return cls(owner, before[:at], before[at], before[at + 1 :], sae)

    @property
    def nb_concepts(self) -> int:
        """Number of columns of the codes."""
        return self.sae.components_.shape[0]

    def with_extractor(self) -> Parts:
        """Refuse to go on without an extractor."""
        if self.extractor is None:
            raise ValueError(
                f"{self.owner} needs an extractor to run texts. Pass a pipeline of a "
                "TransformerActivationExtractor and an SAE, not the SAE alone."
            )
        return self

    def prepared(self, texts):
        """Pass texts through the steps before the extractor."""
        for step in self.on_texts:
            texts = step.transform(texts)
        return texts

    def rows(self, texts) -> Rows:
        """Give the rows that the extractor makes of texts, without running the model."""
        extractor = self.with_extractor().extractor
        checked = check_texts(self.prepared(texts), self.owner)
        tokens = extractor._tokenize(checked)
        return extractor._rows(tokens, extractor._plan(tokens, checked), checked)

    def states(self, values, rows: Rows):
        """Put hidden states and their rows into the container that the next step was fitted on."""
        names = getattr((*self.between, self.sae)[0], "feature_names_in_", None)
        if names is None:
            return with_rows(values, rows)
        return rows_frame(values, rows).set_axis(names, axis=1)

    def encode(self, activations):
        """Give the codes of the extractor's output, as a plain ndarray or CSR matrix."""
        for step in self.between:
            activations = step.transform(activations)
        codes = self.sae.transform(activations)
        return codes if sparse.issparse(codes) else np.asarray(codes)
