"""Names for concepts: transformers that end a pipeline."""

from ._contexts import ActivatingExample
from ._examples import MaxActivatingExamples
from ._interpret import interpret
from ._logit_lens import ConceptTokens, LogitLens, TokenLogit
from ._ngrams import unique_ngrams
from ._topk_inputs import TopKInputs
from ._unit_codes import unit_codes, vocabulary_codes

__all__ = [
    "ActivatingExample",
    "ConceptTokens",
    "LogitLens",
    "MaxActivatingExamples",
    "TokenLogit",
    "TopKInputs",
    "interpret",
    "unique_ngrams",
    "unit_codes",
    "vocabulary_codes",
]
