"""Names for concepts: transformers that end a pipeline."""

from ._topk_inputs import TopKInputs

__all__ = ["TopKInputs"]
