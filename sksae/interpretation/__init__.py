"""Names for concepts: transformers that end a pipeline."""

from ._contexts import ActivatingExample
from ._examples import MaxActivatingExamples
from ._logit_lens import ConceptTokens, LogitLens, TokenLogit
from ._topk_inputs import TopKInputs

__all__ = [
    "ActivatingExample",
    "ConceptTokens",
    "LogitLens",
    "MaxActivatingExamples",
    "TokenLogit",
    "TopKInputs",
]
