"""A training step with dense codes, apart from what depends on which concepts are dead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def dense_step(
    module, criterion, u: Tensor, target: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Compute loss, reconstruction and activity of a batch.

    Parameters
    ----------
    module : SAEModule
    criterion : SAELoss
    u, target : Tensor of shape (n, n_features)
        Scaled input, and what is to be made of it.

    Returns
    -------
    step : dict of Tensor
        ``loss`` without the auxiliary one, ``y_pred``, ``n_active``, ``fired`` and, where
        `l0_factor` gives one, ``l0_factor``.
    pre_codes : Tensor of shape (n, nb_concepts)
    dictionary : Tensor of shape (nb_concepts, n_features)
    """
    pre_codes, codes, u_hat, dictionary = module.forward_scaled(u)
    loss = criterion.of_codes(module, target, u_hat, pre_codes, codes, dictionary)
    step = {"loss": loss, "y_pred": u_hat} | activity(codes)
    return step | l0_factor(module, criterion, pre_codes), pre_codes, dictionary


def compact_step(
    module, criterion, u: Tensor, target: Tensor
) -> tuple[dict[str, Tensor], None, None]:
    """Give the step of `dense_step` alone, so that nothing else has to be written out."""
    return dense_step(module, criterion, u, target)[0], None, None


@torch.no_grad()
def activity(codes: Tensor) -> dict[str, Tensor]:
    """Give how many codes of a batch (n, nb_concepts) are active, and which concepts."""
    active = codes != 0
    return {"n_active": active.sum(), "fired": active.any(dim=0)}


def l0_factor(module, criterion, pre_codes: Tensor, codes: Any = None) -> dict[str, Tensor]:
    """Give what thresholds are to be multiplied by while penalties lack their full weight.

    Parameters
    ----------
    module : SAEModule
    criterion : SAELoss
    pre_codes : Tensor
        See `SAEModule.l0_factor`.
    codes : SparseCodes, optional

    Returns
    -------
    dict of Tensor
        With the key ``l0_factor``, or empty.
    """
    if not module.training or module.per_sample or criterion.is_warm:
        return {}
    factor = module.l0_factor(pre_codes.detach(), codes)
    return {} if factor is None else {"l0_factor": factor}
