"""What acts on what: inputs on concepts, concepts on the model's output."""

from ._curves import InsertionDeletion, insertion_deletion
from ._output import concept_output_attribution
from ._output_result import OutputAttribution

__all__ = [
    "InsertionDeletion",
    "OutputAttribution",
    "concept_output_attribution",
    "insertion_deletion",
]
