"""Training losses: functions of ``(x, x_hat, pre_codes, codes, dictionary)``."""

from ._criterion import (
    CRITERIA,
    DeadNeuronsReanimationLoss,
    MSELoss,
    SAELoss,
    SAELossClasses,
    check_loss,
    jumprelu_l0,
    resolve_criterion,
    vanilla_l1,
)
from ._functions import auxk_loss, dead_neurons_reanimation, l0_penalty, l1_penalty, mse
from ._target_l0 import TargetL0
from ._terms import gate_l1, gate_reconstruction, prefix_reconstruction

__all__ = [
    "CRITERIA",
    "DeadNeuronsReanimationLoss",
    "MSELoss",
    "SAELoss",
    "SAELossClasses",
    "TargetL0",
    "auxk_loss",
    "check_loss",
    "dead_neurons_reanimation",
    "gate_l1",
    "gate_reconstruction",
    "jumprelu_l0",
    "l0_penalty",
    "l1_penalty",
    "mse",
    "prefix_reconstruction",
    "resolve_criterion",
    "vanilla_l1",
]
