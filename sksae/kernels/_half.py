"""The encoder's product in bfloat16, which tells a CUDA device where the large pre-codes are.

Such a product is much faster than one in float32. The pre-codes that may be selected are
then computed in float32: as `_screen` does it on the CPU, with other roundings. Those of rows c
and weights W to bfloat16 have about the standard deviation, each relative to its entry,
``2^-8 / sqrt(3)``, so that a pre-code is off by about::

    sqrt(2 / 3) * 2^-8 * |c| |W_j| / sqrt(n_features)

and by its own rounding. What lies within 8 of these deviations is level with what it is compared
with. Of rows in which pre-codes that were not computed may be among the largest, a sixty-fourth of
all is computed whole. Where there are more, training goes on and counts them, and encoding
computes all pre-codes in float32.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._linear import linear
from ._codes import SparseCodes

if TYPE_CHECKING:
    from ._screen import Workspace

_LEVEL = 8 * math.sqrt(2 / 3) * 2**-8
# Of a pre-code and of a bias.
_ROUNDING = 2**-7
_FEWEST_CONCEPTS, _FEWEST_FEATURES, _FEWEST_ROWS = 4096, 64, 64
# Batches until it is tried again after one that had to be computed whole.
_PAUSE = 32
# Pre-codes computed for each one selected, at least, the share of all up to which that is done,
# and the share of rows that are computed whole: those that may need it most.
_TRIED, _FEWEST_TRIED, _LARGEST_SHARE, _AGAIN = 2, 32, 1 / 16, 1 / 64


def screens(memory: Tensor) -> bool:
    """Tell whether pre-codes of this shape and precision are found faster like this."""
    if memory.device.type != "cuda" or memory.dtype != torch.float32:
        return False
    # Devices before Ampere have no fast product in bfloat16.
    fast = torch.cuda.get_device_capability(memory.device) >= (8, 0)
    return fast and memory.shape[1] >= _FEWEST_CONCEPTS


def serves(c: Tensor) -> bool:
    """Tell whether these rows are worth it."""
    return c.shape[0] >= _FEWEST_ROWS and c.shape[1] >= _FEWEST_FEATURES


class HalfScreened:
    """Pre-codes (n, m) of which only those that matter are computed in float32.

    Parameters
    ----------
    workspace : Workspace
        Whose memory, of shape (n_max, m), is overwritten. To its ``n_missed`` the number of rows
        is added that should perhaps have been computed whole and were not. Where it is None
        the device is asked for that number, and then all rows are.
    c, weight, bias : Tensor of shape (n, d), (m, d) and (m,)
    """

    def __init__(self, workspace: Workspace, c: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.workspace, self.memory = workspace, workspace.memory
        self.c, self.weight, self.bias = (t.detach() for t in (c, weight, bias))
        self.shape = len(c), len(weight)
        self.dtype, self.device = bias.dtype, bias.device

    def __len__(self) -> int:
        return self.shape[0]

    def new_zeros(self, shape) -> Tensor:
        """Give zeros as a tensor of pre-codes does."""
        return self.bias.new_zeros(shape)

    def dense(self) -> Tensor:
        """Give all pre-codes in float32."""
        out = self.memory[: len(self)]
        linear(self.c, self.weight, self.bias, out)
        return out

    def _half(self) -> Tensor:
        n, m = self.shape
        out = self.memory.flatten().view(torch.bfloat16)[: n * m].view(n, m)
        c, weight, bias = (t.bfloat16() for t in (self.c, self.weight, self.bias))
        linear(c, weight, bias, out)
        return out

    @functools.cached_property
    def _level(self) -> tuple[Tensor, Tensor]:
        """How far pre-codes may be off by rounding the bias, and for each unit of a row's norm."""
        of_bias = torch.linalg.vector_norm(self.bias, torch.inf)
        largest = torch.linalg.vector_norm(self.weight, dim=1).max()
        return of_bias * _ROUNDING, largest * (_LEVEL / math.sqrt(self.c.shape[1]))

    def _exact(self, codes: SparseCodes) -> Tensor:
        from ._cuda import products

        exact = products(codes, self.c, self.weight)
        return exact.add_(self.bias.index_select(0, codes.columns))

    def top_k(self, k: int) -> tuple[SparseCodes, Tensor] | None:
        """Select as `_cuda.top_k` does; None if a product in float32 is to do it."""
        from ._cuda import choose_exactly, equal_rows, largest_of_rows

        n, m = self.shape
        n_tried = max(_TRIED * k, _FEWEST_TRIED)
        if n_tried > _LARGEST_SHARE * m:
            return None
        tried, product = largest_of_rows(self._half(), n_tried), (self.c, self.weight, self.bias)
        columns, values, surplus = choose_exactly(tried, product, self._level, _ROUNDING, k)
        n_again = math.ceil(_AGAIN * n)
        again = surplus.topk(n_again, largest=False, sorted=False).indices
        n_missed = (n - n_again - torch.count_nonzero(surplus >= 0)).clamp_(min=0)
        if self.workspace.n_missed is not None:
            self.workspace.n_missed += n_missed
        pre = torch.addmm(self.bias, self.c.index_select(0, again), self.weight.T)
        for all_rows, anew in zip((columns, values), largest_of_rows(pre, k), strict=True):
            all_rows.index_copy_(0, again, anew)
        columns, values = columns.flatten(), values.flatten()
        # Whoever waits for the device has told it before all that there is to do.
        if self.workspace.n_missed is None and bool(n_missed > 0):
            self.workspace.pause = _PAUSE
            return None
        self.workspace.n_screened += 1
        return equal_rows(columns, values > 0, m, k), values

    def above(self, cut: Tensor) -> tuple[SparseCodes, Tensor] | None:
        """Select as `_cuda.above` does; None if a product in float32 is to do it."""
        from ._cuda import fewer_above

        n, m = self.shape
        cut = cut.to(self.dtype).expand(m)
        of_bias, of_rows = self._level
        level = torch.addcmul(of_bias, torch.linalg.vector_norm(self.c, dim=1).max(), of_rows)
        half, lowest = self._half(), cut - _ROUNDING * cut.abs() - level
        found = fewer_above(half, lowest, int(_LARGEST_SHARE * n * m))
        if found is None:
            self.workspace.pause = _PAUSE
            return None
        self.workspace.n_screened += 1
        codes, _ = found
        values = self._exact(codes)
        return codes.keep(values > cut.index_select(0, codes.columns), values)
