"""What makes a concept active, and what an active concept does to the model's output."""

from ._input import input_concept_attribution
from ._result import InputAttribution

__all__ = ["InputAttribution", "input_concept_attribution"]
