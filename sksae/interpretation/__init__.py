"""Names for concepts, and how good they are: transformers that end a pipeline."""

from ._contexts import ActivatingExample
from ._examples import MaxActivatingExamples
from ._interpret import interpret
from ._llm_backends import LLMError, TransformersLLM
from ._llm_endpoint import OpenAILLM
from ._llm_examples import SamplingMethod
from ._llm_labels import LLMLabels
from ._logit_lens import ConceptTokens, LogitLens, TokenLogit
from ._ngrams import unique_ngrams
from ._scores import score_labels
from ._target_association import TargetAssociation
from ._term_labels import TermLabels
from ._topk_inputs import TopKInputs
from ._unit_codes import unit_codes, vocabulary_codes

__all__ = [
    "ActivatingExample",
    "ConceptTokens",
    "LLMError",
    "LLMLabels",
    "LogitLens",
    "MaxActivatingExamples",
    "OpenAILLM",
    "SamplingMethod",
    "TargetAssociation",
    "TermLabels",
    "TokenLogit",
    "TopKInputs",
    "TransformersLLM",
    "interpret",
    "score_labels",
    "unique_ngrams",
    "unit_codes",
    "vocabulary_codes",
]
