"""What makes a concept active, and what an active concept does to the model's output."""

from ._curves import InsertionDeletion, insertion_deletion
from ._input import input_concept_attribution
from ._output import concept_output_attribution
from ._output_result import OutputAttribution
from ._result import InputAttribution

__all__ = [
    "InputAttribution",
    "InsertionDeletion",
    "OutputAttribution",
    "concept_output_attribution",
    "input_concept_attribution",
    "insertion_deletion",
]
