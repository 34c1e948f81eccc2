"""Running a language model on other hidden states than its own: those of an SAE, or none."""

from ._splice import SplicedAccuracy, SplicedLoss, spliced_accuracy, spliced_loss

__all__ = ["SplicedAccuracy", "SplicedLoss", "spliced_accuracy", "spliced_loss"]
