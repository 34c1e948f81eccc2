"""Names for concepts, and how good they are: transformers that end a pipeline."""

from ._scores import score_labels
from ._target_association import TargetAssociation
from ._term_labels import TermLabels
from ._topk_inputs import TopKInputs

__all__ = ["TargetAssociation", "TermLabels", "TopKInputs", "score_labels"]
