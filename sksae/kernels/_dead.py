"""The auxiliary loss of dead concepts with its gradients, in few passes over few rows.

With the residual ``e``, the pre-codes ``p = c W^T + b`` and the codes ``z`` of the dead
concepts, the loss is ``|e - z D|^2 / |e|^2``. Its derivatives follow from ``r = z D - e``::

    by z  2 r D^T / |e|^2        by D  2 z^T r / |e|^2        by p  by z, times dz/dp
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _cpu
from ._threads import split


def has_dead_loss(device: torch.device) -> bool:
    """Tell whether `dead_loss` works on a device."""
    return device.type == "cpu" and _cpu.compiled() is not None


def dead_loss(
    c: Tensor,
    encoder: tuple[Tensor, Tensor],
    dictionary: Tensor,
    target: Tensor,
    x_hat: Tensor,
    k: int,
    leak: float,
) -> Tensor:
    """Tell how badly dead concepts explain what a reconstruction leaves of a target.

    Parameters
    ----------
    c : Tensor of shape (n, n_inputs)
        What their encoder gets.
    encoder : tuple of Tensor of shape (n_dead, n_inputs) and (n_dead,)
        Its weight and bias.
    dictionary : Tensor of shape (n_dead, d)
    target, x_hat : Tensor of shape (n, d)
        Their difference is the residual, which gets no gradient.
    k : int
        Dead concepts used for each sample, if there are as many.
    leak : float
        Slope of the codes where pre-codes are not positive.

    Returns
    -------
    Tensor
        One number, with gradients to encoder and dictionary: the mean square of what is left
        of the residual divided by that of the residual; 0 where the residual is.
    """
    return _DeadLoss.apply(c, *encoder, dictionary, target, x_hat, k, leak)


class _DeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, c, weight, bias, dictionary, target, x_hat, k, leak):
        parameters = [t.detach() for t in (weight, bias, dictionary)]
        wanted, parts = ctx.needs_input_grad[1:4], {}

        def work(start: int, stop: int) -> None:
            rows = [t[start:stop] for t in (c, target, x_hat)]
            with torch.no_grad():  # which is a matter of the thread
                parts[start] = _part(rows, parameters, k, leak, wanted)

        split(work, len(c))
        # In the order of the rows, so that sums do not depend on which thread was first.
        sums = [sum(each) for each in zip(*(parts[s] for s in sorted(parts)), strict=True)]
        error, size, *gradients = sums
        tiny = torch.finfo(size.dtype).eps * target.numel()  # of rows of unit variance
        useful = size > tiny
        ctx.factor = torch.where(useful, 2 / size.clamp(min=tiny), 0)
        ctx.save_for_backward(*gradients)
        return torch.where(useful, error / size.clamp(min=tiny), 0 * error)

    @staticmethod
    def backward(ctx, g):
        factor = g * ctx.factor
        pairs = zip(ctx.saved_tensors, ctx.needs_input_grad[1:4], strict=True)
        return None, *(t * factor if wanted else None for t, wanted in pairs), *[None] * 4


def _part(rows, parameters, k: int, leak: float, wanted) -> tuple[Tensor, ...]:
    """Give what some rows add to the squares of r and e and, without 2 / |e|^2, to gradients."""
    (c, target, x_hat), (weight, bias, dictionary) = rows, parameters
    loops, codes = _cpu.step_loops(), torch.addmm(bias, c, weight.T)
    slopes, (errors, sizes) = torch.empty_like(codes), codes.new_empty(2, len(c))
    loops.keep_dead(codes.numpy(), k, slopes.numpy().dtype.type(leak), slopes.numpy(), 0, len(c))
    off = codes @ dictionary
    arrays = [t.contiguous().numpy() for t in (target, x_hat)]
    loops.compare(off.numpy(), *arrays, errors.numpy(), sizes.numpy(), 0, len(c))
    by_codes = (off @ dictionary.T).mul_(slopes) if wanted[0] or wanted[1] else codes
    return (
        errors.sum(),
        sizes.sum(),
        by_codes.T @ c if wanted[0] else errors.new_zeros(()),
        by_codes.sum(dim=0) if wanted[1] else errors.new_zeros(()),
        codes.T @ off if wanted[2] else errors.new_zeros(()),
    )
