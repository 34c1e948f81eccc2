"""Encoding and decoding with stored codes only, as differentiable functions.

One dense product is left of a training step, the encoder's: everything else touches the
stored codes alone. Backwards, with ``s`` the derivatives by the stored pre-codes, ``z`` the
stored codes and ``g`` the derivatives by the reconstruction::

    encoder rows      s^T c        encoder bias   sum over rows of s
    stored codes      g D^T        dictionary     z^T g, its part along each row removed
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _ops
from ._codes import SparseCodes
from ._row_gradients import RowGradients
from ._screen import Workspace

Select = Callable[[Tensor], tuple[SparseCodes, Tensor]]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, center, weight, bias, select, workspace, gradients, sizes):
        c = _centered(u, center, workspace, gradients)
        if sizes is None:
            codes, values = select(workspace.pre_codes(c, weight, bias))
        else:
            resized = workspace.pre_codes(c / sizes[:, None], weight, bias)
            codes, values = _size_back(*select(resized), bias, sizes)
        ctx.save_for_backward(c, weight)
        ctx.codes, ctx.gradients = codes, gradients
        # Of the weights that the product had, which a step that goes by rows writes anew.
        ctx.rounded = None if gradients is None else workspace.copy_of(weight)
        return values.to(weight.dtype), codes

    @staticmethod
    def backward(ctx, slopes, _codes):
        c, weight = ctx.saved_tensors
        if ctx.codes.kept is not None:
            slopes = slopes * ctx.codes.kept
        on_weight = None
        if ctx.needs_input_grad[2]:
            on_weight = _summed(ctx, "encoder", slopes, c)
        on_bias = weight.new_zeros(len(weight)).index_add_(0, ctx.codes.columns, slopes)
        on_center = None
        if ctx.needs_input_grad[1]:
            table = weight if ctx.rounded is None else ctx.rounded
            on_center = -(on_bias.to(table.dtype) @ table).to(on_bias.dtype)
        return None, on_center, on_weight, on_bias, *[None] * 4


def _centered(u, center, workspace, gradients):
    """Give ``u - center``, in the product's precision where the optimizer steps by rows."""
    if gradients is None:
        return u - center
    gradients.workspace = workspace
    gradients.centered = _ops.subtract(u, center, workspace.memory.dtype)
    return gradients.centered


def _size_back(codes, values, bias, sizes):
    """Give the pre-codes of rows from those of rows divided by their sizes, if positive."""
    shift = bias.index_select(0, codes.columns)
    values = (values - shift) * sizes.index_select(0, codes.rows) + shift
    positive = values > 0
    if codes.kept is not None:
        kept = codes.kept & positive
        return SparseCodes(codes.indptr, codes.columns, codes.n_concepts, kept), values * kept
    return codes.keep(positive, values)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, dictionary, bias, codes, gradients):
        table = dictionary if gradients is None else gradients.rounded(dictionary)
        ctx.save_for_backward(values, dictionary, table)
        ctx.codes, ctx.gradients = codes, gradients
        return _ops.sum_rows(codes.indptr, codes.columns, values, table) + bias

    @staticmethod
    def backward(ctx, g):
        values, dictionary, table = ctx.saved_tensors
        on_dictionary = None
        if ctx.needs_input_grad[1]:
            on_dictionary = _summed(ctx, "dictionary", values, g, dictionary)
        return _ops.products(ctx.codes, g, table), on_dictionary, g.sum(dim=0), None, None


class _Reconstruct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, dictionary, bias, codes, target, gradients):
        table = dictionary if gradients is None else gradients.rounded(dictionary)
        given = codes, values, table, bias, target
        x_hat, error, slopes, squares = _ops.reconstruct(*given)
        if gradients is not None:
            gradients.error = error, squares
        ctx.save_for_backward(values, dictionary, error, slopes)
        ctx.codes, ctx.gradients = codes, gradients
        ctx.mark_non_differentiable(x_hat)
        return x_hat, squares / error.numel()

    @staticmethod
    def backward(ctx, _x_hat, g):
        values, dictionary, error, slopes = ctx.saved_tensors
        factor = 2 * g / error.numel()
        on_dictionary = None
        if ctx.needs_input_grad[1]:
            on_dictionary = _summed(ctx, "dictionary", values * factor, error, dictionary)
        on_target = -factor * error if ctx.needs_input_grad[4] else None
        on_bias = error.sum(dim=0, dtype=values.dtype) * factor
        return slopes * factor, on_dictionary, on_bias, None, on_target, None


def _summed(ctx, name, weights, table, atoms=None):
    """Give ``z^T table`` for the stored z, without its part along atoms; or leave it as sums."""
    if ctx.gradients is not None:
        return ctx.gradients.add(name, ctx.codes, weights, table, atoms is not None)
    starts, rows, order = ctx.codes.by_concept
    gradient = _ops.sum_rows(starts, rows, weights.index_select(0, order), table)
    if atoms is not None:
        _ops.remove_parallel_(gradient, atoms)
    return gradient


def encode(
    u: Tensor,
    center: Tensor,
    weight: Tensor,
    bias: Tensor,
    select: Select,
    workspace: Workspace,
    gradients: RowGradients | None = None,
    sizes: Tensor | None = None,
) -> tuple[Tensor, SparseCodes]:
    """Encode rows with a linear encoder; keep what a function selects.

    Parameters
    ----------
    u : Tensor of shape (n, d)
        Rows. They get no gradient.
    center : Tensor of shape (d,)
        Subtracted from them.
    weight, bias : Tensor of shape (m, d) and (m,)
        Of the encoder.
    select : callable
        From pre-codes (n, m) to ``(codes, values)``, such as `top_k`.
    workspace : Workspace
        Where pre-codes are computed, in its precision; all else is computed in that of ``u``.
    gradients : RowGradients, optional
        Where the backward pass is to leave the gradient of ``weight``.
    sizes : Tensor of shape (n,), optional
        What rows are divided by before pre-codes are selected. Those selected are the ones
        of the undivided rows, as far as they are positive.

    Returns
    -------
    values : Tensor of shape (n_stored,)
        The selected pre-codes, with gradients to ``center``, ``weight`` and ``bias``.
    codes : SparseCodes
        Where they are.
    """
    return _Encode.apply(u, center, weight, bias, select, workspace, gradients, sizes)


def decode(
    codes: SparseCodes,
    values: Tensor,
    dictionary: Tensor,
    bias: Tensor,
    gradients: RowGradients | None = None,
) -> Tensor:
    """Decode stored codes with a dictionary whose rows have unit norm.

    Parameters
    ----------
    codes : SparseCodes
    values : Tensor of shape (n_stored,)
    dictionary : Tensor of shape (m, d)
        Its gradient is that of its rows divided by their norms: with no part along a row.
    bias : Tensor of shape (d,)
    gradients : RowGradients, optional
        Where the backward pass is to leave the gradient of ``dictionary``.

    Returns
    -------
    Tensor of shape (n, d)
    """
    return _Decode.apply(values, dictionary, bias, codes, gradients)


def reconstruct(
    codes: SparseCodes,
    values: Tensor,
    dictionary: Tensor,
    bias: Tensor,
    target: Tensor,
    gradients: RowGradients | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode stored codes and give the mean squared error, with one pass for both.

    Parameters
    ----------
    codes : SparseCodes
    values : Tensor of shape (n_stored,)
    dictionary : Tensor of shape (m, d)
        As in `decode`.
    bias : Tensor of shape (d,)
    target : Tensor of shape (n, d)
    gradients : RowGradients, optional
        Where the backward pass is to leave the gradient of ``dictionary``.

    Returns
    -------
    x_hat : Tensor of shape (n, d)
        What `decode` gives, without gradients.
    error : Tensor
        ``mean((x_hat - target)^2)``, one number, with gradients.
    """
    return _Reconstruct.apply(values, dictionary, bias, codes, target, gradients)
