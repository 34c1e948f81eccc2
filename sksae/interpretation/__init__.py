"""Names for concepts: transformers that end a pipeline."""

from ._llm_backends import LLMError, TransformersLLM
from ._llm_endpoint import OpenAILLM
from ._llm_examples import SamplingMethod
from ._llm_labels import LLMLabels
from ._topk_inputs import TopKInputs

__all__ = [
    "LLMError",
    "LLMLabels",
    "OpenAILLM",
    "SamplingMethod",
    "TopKInputs",
    "TransformersLLM",
]
