"""Names for concepts: transformers that end a pipeline."""

from ._examples import ActivatingExample, MaxActivatingExamples
from ._topk_inputs import TopKInputs

__all__ = ["ActivatingExample", "MaxActivatingExamples", "TopKInputs"]
