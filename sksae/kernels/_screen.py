"""The encoder's product in small integers, which tells where the large pre-codes are.

Rows ``c`` and weights ``W`` are rounded to 8-bit integers, each row by its own scale. Where a
processor multiplies such integers faster than floats, their product finds the pre-codes that
may be selected; these few are then computed in full precision. A pre-code's rounding has about
the standard deviation::

    sqrt((|c - rounded c|^2 |W_j|^2 + |c|^2 |W_j - rounded W_j|^2) / n_features)

and what lies within 8 of them below the cut is computed anew, with the largest norms of all
rows of W in place of those of row j. So what is selected is what a product in full precision
selects, unless rounding errs by several times what is to be expected; a row with few very large
features, whose rounding is coarse, only costs more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .._linear import linear
from . import _half
from ._codes import SparseCodes, indptr_of
from ._threads import split

# Deviations of the rounding of a pre-code within which it counts as level with the cut.
_LEVEL = 8.0
# Sizes from which it is faster, and the share of the pre-codes computed anew up to which it is.
_FEWEST_CONCEPTS, _FEWEST_FEATURES, _FEWEST_ROWS = 1024, 64, 16
_LARGEST_SHARE = 1 / 16
# Batches until it is tried again after one with a larger share.
_PAUSE = 32
# Rows whose products are made and looked at together.
_BLOCK = 128


@functools.cache
def loops():
    """Give the module of compiled loops, or None where there is no use for them."""
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    by_library = torch.backends.mkldnn.is_available() and hasattr(torch, "_int_mm")
    if not (supported() and by_library):
        return None
    try:
        from . import _numba_screen
    except ImportError:
        return None
    return _numba_screen


class Rounded:
    """Rows of shape (n, d) as 8-bit integers, with scales and with norms of what is lost."""

    def __init__(self, rows: Tensor) -> None:
        self.version: int | None = None
        self.rows = rows.detach().contiguous()
        self.whole = torch.empty(rows.shape, dtype=torch.int8)
        self.scale, self.norm, self.rest = self.rows.new_empty(3, len(rows))
        self._arrays = [t.numpy() for t in (self.rows, self.whole, *self.each)]

    def round(self, start: int, stop: int) -> None:
        """Round some rows; of the others nothing is known before."""
        loops().round_rows(*self._arrays, start, stop)

    def keep(self, rows: Tensor) -> None:
        """Stand for rows, here those of before, whose roundings were just written."""
        self.version = rows._version

    def is_kept(self, rows: Tensor) -> bool:
        """Tell whether this stands for rows that have not changed since `keep`."""
        return self.version == rows._version and self.rows.data_ptr() == rows.data_ptr()

    @property
    def each(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, norm and norm of the loss of each row, shape (n,)."""
        return self.scale, self.norm, self.rest

    @property
    def is_finite(self) -> bool:
        """Whether all entries are, and not so large that their squares are not."""
        return bool(self.norm.isfinite().all())


class Screened:
    """Pre-codes (n, m) of which only those that matter are computed in full precision."""

    def __init__(self, workspace: Workspace, c: Rounded, table: Rounded, bias: Tensor) -> None:
        self.workspace, self.c, self.table, self.bias = workspace, c, table, bias.detach()
        self.shape = len(c.rows), len(table.rows)
        self.dtype, self.device = bias.dtype, bias.device
        self.products = workspace.memory[: len(c.rows)].view(torch.int32)
        self._full: Tensor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def new_zeros(self, shape) -> Tensor:
        """Give zeros as a tensor of pre-codes does."""
        return self.bias.new_zeros(shape)

    def dense(self) -> Tensor:
        """Give all pre-codes in full precision; and for a while have others do so at once."""
        if self._full is None:  # in the memory of the products, which are gone then
            self.workspace.pause = _PAUSE
            self._full = self.workspace.full(self.c.rows, self.table.rows, self.bias)
        return self._full

    @functools.cached_property
    def _given(self) -> tuple[Any, ...]:
        """Rows, what is known of their roundings, and of those of the table; for the loops."""
        c, table = self.c, self.table
        tensors = (c.rows, *c.each, table.rows, self.bias, table.scale)
        level = _LEVEL / math.sqrt(c.rows.shape[1])
        coarse = (level * table.norm.max(), level * table.rest.max())
        return *(t.numpy() for t in tensors), *(t.numpy()[()] for t in coarse)

    def _multiply(self, rows: slice, out: Tensor) -> None:
        self.c.round(rows.start, rows.stop)
        torch._int_mm(self.c.whole[rows], self.table.whole.T, out=out)

    def top_k(self, k: int) -> tuple[SparseCodes, Tensor] | None:
        """Select as `_cpu.top_k` does; None if a product in full precision is to do it."""
        n, m = self.shape
        if self._full is not None or k > _LARGEST_SHARE * m:
            return None
        values, columns = self.bias.new_empty(n, k), torch.empty(n, k, dtype=torch.int32)
        counts, tried = torch.empty(2, n, dtype=torch.int64)
        out = [t.numpy() for t in (columns, values, counts, tried)]
        of_rows, of_table = self._given[:4], self._given[4:]

        def work(start: int, stop: int) -> None:
            for first in range(start, stop, _BLOCK):  # whose products stay in the cache
                block = slice(first, min(first + _BLOCK, stop))
                acc = self.products[start : start + block.stop - first]
                self._multiply(block, acc)
                given = (acc.numpy(), *(x[block] for x in of_rows), *of_table, k)
                loops().top_k(*given, *(x[block] for x in out), 0, len(acc))

        split(work, n, 2)
        if not self.c.is_finite:
            return None
        if int(tried.sum()) > _LARGEST_SHARE * n * m:
            self.workspace.pause = _PAUSE
        if bool((counts < k).any()):
            kept = torch.arange(k) < counts[:, None]
            return SparseCodes(indptr_of(counts), columns[kept], m), values[kept]
        return SparseCodes(indptr_of(counts), columns.flatten(), m), values.flatten()

    def above(self, cut: Tensor) -> tuple[SparseCodes, Tensor] | None:
        """Select as `_cpu.above` does; None if a product in full precision is to do it."""
        if self._full is not None:
            return None
        (n, m), cuts = self.shape, cut.numpy()
        counts = torch.empty(n, dtype=torch.int64)
        of_rows, of_table = self._given[:4], self._given[4:]
        found: dict[int, tuple[Tensor, Tensor] | None] = {}
        n_places = int(_LARGEST_SHARE * m)  # for each row

        def work(start: int, stop: int) -> None:
            columns = torch.empty(_BLOCK * n_places, dtype=torch.int32)
            values = self.bias.new_empty(len(columns))
            for first in range(start, stop, _BLOCK):
                block = slice(first, min(first + _BLOCK, stop))
                acc = self.products[start : start + block.stop - first]
                self._multiply(block, acc)
                given = (acc.numpy(), *(x[block] for x in of_rows), *of_table, cuts)
                out = (columns.numpy(), values.numpy(), counts[block].numpy())
                n_found, n_tried = loops().above(*given, *out, 0, len(acc))
                many = n_found < 0 or n_tried > n_places * len(acc)
                found[first] = (
                    None if many else (columns[:n_found].clone(), values[:n_found].clone())
                )

        split(work, n, 2)
        parts = [found[first] for first in sorted(found)]
        if not self.c.is_finite or None in parts:
            return None
        columns, values = (torch.cat(each) for each in zip(*parts, strict=True))
        return SparseCodes(indptr_of(counts), columns, m), values


class Workspace:
    """Memory for the pre-codes of batches, and the way they are computed.

    Parameters
    ----------
    memory : Tensor of shape (n_max, m)
        Overwritten. Its precision is that of the product.
    screen : bool, default=False
        Whether pre-codes may be `Screened`, where that is faster.
    constant : bool, default=False
        Whether all batches have the same weights.
    """

    def __init__(self, memory: Tensor, *, screen: bool = False, constant: bool = False) -> None:
        self.memory, self.constant = memory, constant
        wide = memory.shape[1] >= _FEWEST_CONCEPTS and memory.dtype == torch.float32
        self.screens = screen and wide and memory.device.type == "cpu" and loops() is not None
        self.halves = screen and _half.screens(memory)
        # Rows of which it is not certain that the largest pre-codes were found.
        self.n_missed = (
            None if constant else torch.zeros((), dtype=torch.int64, device=memory.device)
        )
        self.n_screened = self.pause = 0
        self._table: Rounded | None = None
        # Parameters in the precision of the memory, and the versions that they are copies of.
        self._copies: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}

    def pre_codes(self, c: Tensor, weight: Tensor, bias: Tensor) -> Any:
        """Give ``c @ weight.T + bias``, or where its large entries are.

        Parameters
        ----------
        c : Tensor of shape (n, d)
            At most as many rows as the memory has.
        weight, bias : Tensor of shape (m, d) and (m,)

        Returns
        -------
        Tensor, Screened or HalfScreened
            For the selecting functions of this package.
        """
        if self.halves and _half.serves(c):
            if not self.pause:
                return _half.HalfScreened(self, c, weight, bias)
            self.pause -= 1
        screened = self._screened(c, weight, bias)
        return self.full(c, weight, bias) if screened is None else screened

    def table(self, weight: Tensor) -> Rounded | None:
        """Give the roundings of weights, for who changes these to write anew, if there are any."""
        known = self._table is not None and self._table.rows.data_ptr() == weight.data_ptr()
        return self._table if known and not self.pause else None

    def forget(self) -> None:
        """Round weights anew at the next batch: they may have changed."""
        self._table = None
        self._versions.clear()

    def rounded(self, parameter: Tensor) -> Tensor:
        """Give a parameter in the precision of the memory."""
        parameter = parameter.detach()
        copy = self.copy_of(parameter)
        if copy is None:
            return parameter
        # Another step may change the parameter and not `keep` it.
        if self._versions.pop(parameter.data_ptr(), None) != parameter._version:
            copy.copy_(parameter)
        return copy

    def refresh(self, parameters: Iterable[Tensor]) -> None:
        """Have copies of parameters that are known to be what these are."""
        for parameter in parameters:
            copy = self.rounded(parameter)
            if copy.dtype != parameter.dtype:
                self.keep(parameter)

    def copy_of(self, parameter: Tensor) -> Tensor | None:
        """Give the memory of the copy of a parameter; None where it has the precision itself."""
        if parameter.dtype == self.memory.dtype:
            return None
        at = parameter.data_ptr()
        if at not in self._copies:
            self._copies[at] = torch.empty_like(parameter, dtype=self.memory.dtype)
        return self._copies[at]

    def drop(self, parameter: Tensor) -> None:
        """Know that a parameter was changed and its copy was not."""
        self._versions.pop(parameter.data_ptr(), None)

    def keep(self, parameter: Tensor) -> None:
        """Know that the copy of a parameter was just written."""
        self._versions[parameter.data_ptr()] = parameter._version

    def missed(self) -> int:
        """Give the number of rows whose largest pre-codes may not all have been found."""
        return 0 if self.n_missed is None else int(self.n_missed)

    def full(self, c: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Give ``c @ weight.T + bias``, shape (n, m), in the precision of the memory."""
        b, x = (t.detach().to(self.memory.dtype) for t in (bias, c))
        w = self.rounded(weight)
        out = self.memory[: len(c)]
        if out.device.type == "cpu":
            # In ranges, because torch's own threads may be kept from it.
            split(lambda i, j: linear(x[i:j], w, b, out[i:j]), len(c))
        else:
            linear(x, w, b, out)
        return out

    def _screened(self, c: Tensor, weight: Tensor, bias: Tensor) -> Screened | None:
        n, d = c.shape
        if not self.screens or d < _FEWEST_FEATURES or n < _FEWEST_ROWS:
            return None
        if self.pause:
            self.pause -= 1
            return None
        if self._table is None or not (self.constant or self._table.is_kept(weight)):
            self._table = Rounded(weight)
            split(self._table.round, len(weight), 4)
        self._table.version = None  # another step may change the weights and not keep it
        if not (self._table.is_finite and bool(bias.isfinite().all())):
            return None
        self.n_screened += 1
        return Screened(self, Rounded(c), self._table, bias)
