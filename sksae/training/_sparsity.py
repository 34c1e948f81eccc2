"""What the sparsity of a training step depends on beside the weights."""

from __future__ import annotations

from ._data import RowBatches, sample_batches
from ._schedule import ramp

_K_START = 4
_NEAR_TARGET = 0.1


def set_sparsity(net, data: RowBatches) -> None:
    """Set the sparsity of the coming step.

    While ``net.topk_start`` steps last, each sample keeps its own codes and no penalty
    counts, which then grows from nothing. When they end, thresholds start at what keeps as
    many codes of a sample of the rows. Over ``net.relative_start`` steps the size of a sample
    comes to count where samples share codes or have codes above thresholds.

    Parameters
    ----------
    net : SAENet
    data : RowBatches
        The training rows.
    """
    module, step = net.module_, net.n_steps_
    own = step < net.topk_start
    if module.per_sample and not own:
        module.eval()
        batches = sample_batches(len(data), net.batch_size, net.seed)
        module.finish(data.take(index) / module.input_scale for index in batches)
        module.train()
    module.per_sample = own
    module.relative = 1 - ramp(step, net.relative_start)
    module.k_scale = 1 + (_K_START - 1) * (1 - ramp(step, net.k_anneal))
    share = 0.0 if own else ramp(step - net.topk_start, net.sparsity_warmup)
    net.criterion_.warmup = share


def sparsity_is_settled(net) -> bool:
    """Tell whether sparsity is at what it will be at the end of the fit.

    Parameters
    ----------
    net : SAENet
        At the end of an epoch.

    Returns
    -------
    bool
    """
    start = net.relative_start if net.module_.has_start_rows else 0
    if net.module_.per_sample or net.n_steps_ < max(
        net.topk_start + net.sparsity_warmup, net.k_anneal, start
    ):
        return False
    target = net.criterion_.target_l0
    return target is None or abs(net.history[-1]["l0"] / target - 1) < _NEAR_TARGET
