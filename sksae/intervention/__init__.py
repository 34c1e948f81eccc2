"""A model that runs on other hidden states than its own: an SAE's, or with concepts edited."""

from ._edits import Add, Scale
from ._effects import Effects, effects
from ._intervene import intervene
from ._splice import SplicedAccuracy, SplicedLoss, spliced_accuracy, spliced_loss
from ._steering import steering_vector

__all__ = [
    "Add",
    "Effects",
    "Scale",
    "SplicedAccuracy",
    "SplicedLoss",
    "effects",
    "intervene",
    "spliced_accuracy",
    "spliced_loss",
    "steering_vector",
]
