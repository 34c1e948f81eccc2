"""The order of a dictionary's concepts, where it matters which come first."""

from __future__ import annotations

import torch

from ._data import RowBatches, sample_batches


@torch.no_grad()
def sort_concepts(net, data: RowBatches) -> None:
    """Put the concepts in descending order of how often they are active.

    The optimizer's moments move with the weights.

    Parameters
    ----------
    net : SAENet
        With the linear encoder; another one's weights are not known.
    data : RowBatches
        The training rows, of which up to 8,192 are encoded.
    """
    module = net.module_
    module.eval()
    counts = torch.zeros_like(module.samples_since_fired)
    for index in sample_batches(len(data), net.batch_size, net.seed):
        codes = module.encode_scaled(data.take(index) / module.input_scale)[1]
        counts += (codes != 0).sum(dim=0)
    module.train()
    order = counts.argsort(descending=True, stable=True)
    for parameter in module.revived_parameters():
        for rows in (parameter, *moments(net.optimizer_, parameter)):
            rows.copy_(rows[order])
    module.samples_since_fired.copy_(module.samples_since_fired[order])
    module.dead_concepts = order.argsort()[module.dead_concepts].sort().values
    net.stored_steps_.forget()


def moments(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """Give what an optimizer keeps of each row of a parameter, or of each of its entries."""
    held = optimizer.state[parameter].values() if parameter in optimizer.state else ()
    tensors = (value for value in held if isinstance(value, torch.Tensor))
    return [v for v in tensors if v.dim() == parameter.dim() and len(v) == len(parameter)]
