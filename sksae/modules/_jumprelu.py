"""JumpReLU and the step function, with pseudo-gradients for the threshold.

Rajamanoharan et al. (2024), arXiv:2407.14435, section 3: with a kernel K that
integrates to one and a bandwidth e, the threshold's pseudo-derivatives are::

    d/dt JumpReLU_t(z) = -(t / e) K((z - t) / e)
    d/dt H(z - t)      = -(1 / e) K((z - t) / e)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Each integrates to one over t = (z - threshold) / bandwidth. The shapes and widths are
# those of overcomplete's kernels, the normalisation is not.
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "rectangle": lambda t: (t.abs() <= 0.5).to(t.dtype),
    "gaussian": lambda t: (-2 * t**2).exp() * math.sqrt(2 / math.pi),
    "triangular": lambda t: 2 * (1 - 2 * t.abs()).clamp(min=0),
    "cosine": lambda t: (1 + torch.cos(math.pi * t.clamp(-1, 1))) / 2,
    "epanechnikov": lambda t: 1.5 * (1 - 4 * t**2).clamp(min=0),
    "quartic": lambda t: 1.875 * (1 - 4 * t**2).clamp(min=0) ** 2,
    "silverman": lambda t: (
        (-math.sqrt(2) * t.abs()).exp() * torch.sin(math.sqrt(2) * t.abs() + math.pi / 4)
    ),
    "cauchy": lambda t: 2 / (math.pi * (1 + 4 * t**2)),
}


# How far from the threshold, in bandwidths, those of them are 0 that end somewhere.
REACH = {"rectangle": 0.5, "triangular": 0.5, "cosine": 1.0, "epanechnikov": 0.5, "quartic": 0.5}


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, threshold, kernel, bandwidth):
        active = z > threshold
        ctx.save_for_backward(z, threshold, active)
        ctx.kernel, ctx.bandwidth = kernel, bandwidth
        return z * active

    @staticmethod
    def backward(ctx, grad):
        z, threshold, active = ctx.saved_tensors
        density = KERNELS[ctx.kernel]((z - threshold) / ctx.bandwidth)
        slope = -(threshold / ctx.bandwidth) * (density * grad).sum_to_size(threshold.shape)
        return grad * active, slope, None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, threshold, kernel, bandwidth):
        ctx.save_for_backward(z, threshold)
        ctx.kernel, ctx.bandwidth = kernel, bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        z, threshold = ctx.saved_tensors
        density = KERNELS[ctx.kernel]((z - threshold) / ctx.bandwidth)
        slope = -(density * grad).sum_to_size(threshold.shape) / ctx.bandwidth
        return None, slope, None, None


def jump_relu(z: Tensor, threshold: Tensor, kernel: str, bandwidth: float) -> Tensor:
    """Give z where z > threshold and 0 elsewhere.

    Parameters
    ----------
    z : Tensor of shape (n, nb_concepts) or (n_stored,)
        Pre-codes.
    threshold : Tensor of shape (nb_concepts,) or (n_stored,)
        Positive thresholds.
    kernel : str
        A key of ``KERNELS``.
    bandwidth : float
        Width of the kernel, in the units of ``z``.

    Returns
    -------
    Tensor of the shape of z
        Gradient with respect to z: 1 where active. With respect to the threshold: the
        pseudo-derivative of the module docstring, summed over rows where it
        stands for all of them.
    """
    return _JumpReLU.apply(z, threshold, kernel, bandwidth)


def step(z: Tensor, threshold: Tensor, kernel: str, bandwidth: float) -> Tensor:
    """Give 1 where z > threshold and 0 elsewhere.

    Parameters
    ----------
    z : Tensor of shape (n, nb_concepts) or (n_stored,)
        Pre-codes.
    threshold : Tensor of shape (nb_concepts,) or (n_stored,)
        Positive thresholds.
    kernel : str
        A key of ``KERNELS``.
    bandwidth : float
        Width of the kernel, in the units of ``z``.

    Returns
    -------
    Tensor of the shape of z
        Its gradient with respect to z is zero; with respect to the threshold it is the
        pseudo-derivative of the module docstring, summed over rows where it
        stands for all of them.
    """
    return _Step.apply(z, threshold, kernel, bandwidth)
