"""The auxiliary loss of dead concepts with its gradients, in few passes over few rows.

With the residual ``e``, the pre-codes ``p = c W^T + b`` and the codes ``z`` of the dead
concepts, the loss is ``|e - z D|^2 / |e|^2``. Its derivatives follow from ``r = z D - e``::

    by z  2 r D^T / |e|^2        by D  2 z^T r / |e|^2        by p  by z, times dz/dp

Where most of the dead concepts are not among the k of a sample, all but the encoder's product
goes by the stored codes alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _cpu, _cuda, _ops
from ._codes import SparseCodes
from ._screen import Workspace
from ._threads import split

# Dead concepts for each one used, from which on stored codes are faster, and rows whose
# pre-codes are looked at together.
_SPARSE_FROM = 4
_BLOCK = 256


def has_dead_loss(device: torch.device) -> bool:
    """Tell whether `dead_loss` works on a device."""
    if device.type == "cpu":
        return _cpu.compiled() is not None
    return device.type == "cuda" and _cuda.compiled() is not None


def dead_loss(
    c: Tensor,
    encoder: tuple[Tensor, Tensor],
    dictionary: Tensor,
    target: Tensor,
    x_hat: Tensor,
    k: int,
    leak: float,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Tell how badly dead concepts explain what a reconstruction leaves of a target.

    Parameters
    ----------
    c : Tensor of shape (n, n_inputs)
        What their encoder gets.
    encoder : tuple of Tensor of shape (n_dead, n_inputs) and (n_dead,)
        Its weight and bias, on a CUDA device minus infinity where there is no concept.
    dictionary : Tensor of shape (n_dead, d)
    target, x_hat : Tensor of shape (n, d)
        Their difference is the residual, which gets no gradient.
    k : int
        Dead concepts used for each sample, if there are as many.
    leak : float
        Slope of the codes where pre-codes are not positive.
    known : tuple of Tensor of shape (n, d) and (), optional
        ``x_hat - target`` and the sum of its squares, where they have been computed.

    Returns
    -------
    Tensor
        One number, with gradients to encoder and dictionary: the mean square of what is left
        of the residual divided by that of the residual; 0 where the residual is.
    """
    sums = _way(c.device, k, len(dictionary))
    return _DeadLoss.apply(sums, c, *encoder, dictionary, target, x_hat, k, leak, known)


def _way(device: torch.device, k: int, n_dead: int) -> Callable[..., list[Tensor]]:
    """Give the function that computes the loss and its gradients."""
    if device.type != "cpu":
        return _sums_on_device
    return _sums_of_stored if _SPARSE_FROM * k <= n_dead else _sums


class _DeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sums, c, weight, bias, dictionary, target, x_hat, k, leak, known):
        parameters = [t.detach() for t in (weight, bias, dictionary)]
        wanted = ctx.needs_input_grad[2:5]
        rows = c, target, x_hat
        error, size, *gradients = sums(rows, parameters, k, leak, wanted, known)
        tiny = torch.finfo(size.dtype).eps * target.numel()  # of rows of unit variance
        useful = size > tiny
        ctx.factor = torch.where(useful, 2 / size.clamp(min=tiny), 0)
        ctx.save_for_backward(*gradients)
        return torch.where(useful, error / size.clamp(min=tiny), 0 * error)

    @staticmethod
    def backward(ctx, g):
        factor = g * ctx.factor
        pairs = zip(ctx.saved_tensors, ctx.needs_input_grad[2:5], strict=True)
        return None, None, *(t * factor if wanted else None for t, wanted in pairs), *[None] * 5


def _sums(rows, parameters, k: int, leak: float, wanted, known=None) -> list[Tensor]:
    """Give the squares of r and e and, without 2 / |e|^2, the gradients."""
    parts = {}

    def work(start: int, stop: int) -> None:
        with torch.no_grad():  # which is a matter of the thread
            parts[start] = _part([t[start:stop] for t in rows], parameters, k, leak, wanted)

    split(work, len(rows[0]))
    # In the order of the rows, so that sums do not depend on which thread was first.
    return [sum(each) for each in zip(*(parts[s] for s in sorted(parts)), strict=True)]


def _sums_on_device(rows, parameters, k: int, leak: float, wanted, known=None) -> list[Tensor]:
    """Give what `_sums` gives, all rows at once, in autocast's precision if there is one."""
    (c, target, x_hat), (weight, bias, dictionary) = rows, parameters
    kind = c.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else c.dtype
    c, w, b, table = (t.to(precision) for t in (c, weight, bias, dictionary))
    codes, slopes = _cuda.keep_dead(torch.addmm(b, c, w.T), k, leak)
    error, size = (x_hat - target, None) if known is None else known
    size = _sum_of_squares(error) if size is None else size
    off = torch.addmm(error.to(precision), codes, table)
    by_codes = (off @ table.T).mul_(slopes) if wanted[0] or wanted[1] else codes
    none = size.new_zeros(())
    return [
        _sum_of_squares(off).to(size.dtype),
        size,
        (by_codes.T @ c).to(weight.dtype) if wanted[0] else none,
        by_codes.sum(dim=0, dtype=bias.dtype) if wanted[1] else none,
        (codes.T @ off).to(dictionary.dtype) if wanted[2] else none,
    ]


def _sum_of_squares(t: Tensor) -> Tensor:
    """Give one number, added up in float32 at least, with one pass over the entries."""
    wide = torch.promote_types(t.dtype, torch.float32)
    return torch.linalg.vector_norm(t, dtype=wide).square()


def _sums_of_stored(rows, parameters, k: int, leak: float, wanted, known=None) -> list[Tensor]:
    """Give what `_sums` gives, from the k codes of each row alone."""
    (c, target, x_hat), (weight, bias, dictionary) = rows, parameters
    norms = [torch.linalg.vector_norm(t, dim=1).max() for t in (c, weight)]
    # Pre-codes are raised by as much as makes all of them positive.
    raised = (norms[0] * norms[1] - bias.min()) * 1.001 + 1
    if not raised.isfinite():
        return _sums(rows, parameters, k, leak, wanted)
    codes, pre = _largest(c, weight, bias + raised, k)
    pre -= raised
    slopes = torch.ones_like(pre).masked_fill_(pre <= 0, leak)
    values, residual = pre * slopes, target - x_hat
    nothing = residual.new_zeros(residual.shape[1])
    _, off, by_codes, squares = _ops.reconstruct(codes, values, dictionary, nothing, residual)
    by_codes *= slopes
    starts, of_concept, order = codes.by_concept

    def summed(weights: Tensor, table: Tensor) -> Tensor:
        return _ops.sum_rows(starts, of_concept, weights.index_select(0, order), table)

    none = residual.new_zeros(())
    return [
        squares,
        residual.square().sum(),
        summed(by_codes, c) if wanted[0] else none,
        torch.zeros_like(bias).index_add_(0, codes.columns, by_codes) if wanted[1] else none,
        summed(values, off) if wanted[2] else none,
    ]


def _largest(c: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[SparseCodes, Tensor]:
    """Give the k largest pre-codes of each row, all of which are positive."""
    workspace = Workspace(c.new_empty(_BLOCK, len(weight)), screen=True, constant=True)
    columns, values = [], []
    for block in c.split(_BLOCK):
        found, above = _cpu.top_k(workspace.pre_codes(block, weight, bias), k)
        columns.append(found.columns)
        values.append(above)
    indptr = torch.arange(len(c) + 1, dtype=torch.int32) * k
    return SparseCodes(indptr, torch.cat(columns), len(weight)), torch.cat(values)


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
