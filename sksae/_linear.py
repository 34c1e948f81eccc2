"""Linear layers in float32 on the CPU, by the library that is fast on this processor.

torch multiplies floats through MKL, which on AMD processors leaves the wide AVX-512 registers
unused. oneDNN, which torch has too, does not: it takes half the time there, with the same
precision.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CPU_INFO = Path("/proc/cpuinfo")
# Rows whose product is made and copied together: memory of that size is used again.
_ROWS = 256


@functools.cache
def prefers_onednn() -> bool:
    """Tell whether this processor multiplies floats faster through oneDNN than through MKL."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _is_amd():
        return False
    x = torch.arange(6.0).view(2, 3)
    try:  # an operator of torch that is not documented
        found = _by_onednn(x, x, x[:, 0])
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, x @ x.T + x[:, 0])


def _is_amd() -> bool:
    try:
        known = _CPU_INFO.read_text()
    except OSError:
        known = platform.processor()
    return "AuthenticAMD" in known


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # It takes a bias with gaps for one without.
    bias = None if bias is None else bias.contiguous()
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def _is_served(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether oneDNN is to multiply these."""
    return (
        prefers_onednn()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(t is None or _is_plain(t) for t in (x, weight, bias))
        and x.dim() > 1
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _is_plain(t: Any) -> bool:
    """Tell whether this is float32 in memory, rather than quantised, fake or of another kind."""
    return (
        type(t) in (Tensor, torch.nn.Parameter)
        and t.dtype == torch.float32
        and t.device.type == "cpu"
        and t.layout == torch.strided
        and t.numel() > 0
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Write ``x @ weight.T + bias`` into ``out``, without gradients.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    weight : Tensor of shape (m, d)
    bias : Tensor of shape (m,)
    out : Tensor of shape (n, m)
    """
    with torch.no_grad():
        if not _is_served(x, weight, bias) or out.dtype != x.dtype:
            torch.addmm(bias, x, weight.T, out=out)
            return
        for rows, into in zip(x.split(_ROWS), out.split(_ROWS), strict=True):
            into.copy_(_by_onednn(rows, weight, bias))


class FastLinear(TorchFunctionMode):
    """A context in which models' linear layers take the faster library, where there is one.

    What has gradients or runs in autocast is left alone, and so is all that is not float32 on
    the CPU.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run one of torch's functions."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear:
            x, weight, bias = _linear_arguments(*args, **kwargs)
            if _is_served(x, weight, bias):
                return _by_onednn(x, weight, bias)
        elif func is torch.addmm and len(args) == 3 and not kwargs:  # the layers of GPT-2
            bias, x, weight = args
            if _is_served(x, weight.T, bias):
                return _by_onednn(x, weight.T, bias)
        return func(*args, **kwargs)


def _linear_arguments(input, weight, bias=None):
    return input, weight, bias
