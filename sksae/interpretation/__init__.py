"""Names for concepts: transformers that end a pipeline."""

from ._interpret import interpret
from ._ngrams import unique_ngrams
from ._topk_inputs import TopKInputs
from ._unit_codes import unit_codes, vocabulary_codes

__all__ = ["TopKInputs", "interpret", "unique_ngrams", "unit_codes", "vocabulary_codes"]
