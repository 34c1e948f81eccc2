"""Codes of a batch as stored entries: what the sparse kernels give and take."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


class SparseCodes:
    """The layout of a CSR matrix of codes; the values travel beside it, with gradients.

    Parameters
    ----------
    indptr : Tensor of int32, shape (n + 1,)
        Row i has the entries ``indptr[i]`` to ``indptr[i + 1]``.
    columns : Tensor of int32, shape (n_stored,)
        Their concepts.
    n_concepts : int
        Number of columns.
    kept : Tensor of bool, shape (n_stored,), optional
        Where not all entries are codes, which of them are. The others have the value 0 and
        no gradient; they fill a layout whose size is known without reading the device.
    per_row : int, optional
        Number of entries of each row, where it is the same for all.
    n_spare : int, default=0
        How many entries there are for the case of ties alone.
    """

    def __init__(
        self,
        indptr: Tensor,
        columns: Tensor,
        n_concepts: int,
        kept: Tensor | None = None,
        per_row: int | None = None,
        n_spare: int = 0,
    ) -> None:
        self.indptr, self.columns, self.n_concepts = indptr, columns, n_concepts
        self.kept, self.per_row, self.n_spare = kept, per_row, n_spare

    @functools.cached_property
    def rows(self) -> Tensor:
        """Row of each entry, int32."""
        if self.per_row is not None:
            entries = torch.arange(len(self.columns), dtype=torch.int32, device=self.columns.device)
            return entries // self.per_row
        counts = self.indptr.diff()
        rows = torch.arange(len(counts), dtype=torch.int32, device=counts.device)
        return rows.repeat_interleave(counts, output_size=len(self.columns))

    @functools.cached_property
    def by_concept(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries sorted by concept: ``(starts, rows, order)``.

        Concept j has the entries ``starts[j]`` to ``starts[j + 1]`` of the sorted ones,
        which lie in ``rows``; ``order`` gives their positions among the unsorted. Entries
        that are no codes come after those of the last concept.
        """
        if self.columns.device.type == "cpu" and self.kept is None:
            from ._cpu import by_concept

            if (found := by_concept(self)) is not None:
                return found
        concepts, order = self.sorted_concepts
        each = torch.arange(self.n_concepts + 1, device=concepts.device).to(concepts.dtype)
        starts = torch.searchsorted(concepts, each, out_int32=True)
        if self.per_row is not None:
            return starts, (order // self.per_row).int(), order
        return starts, self.rows.index_select(0, order), order

    @functools.cached_property
    def sorted_concepts(self) -> tuple[Tensor, Tensor]:
        """Concepts of the sorted entries, and where these are among the unsorted.

        Of what is no code the concept is ``n_concepts``.
        """
        columns = self.columns
        if self.kept is not None:
            columns = torch.where(self.kept, columns, self.n_concepts)
        # Devices sort by some bits at a time, so that few are sorted faster.
        few = self.n_concepts <= torch.iinfo(torch.int16).max
        return (columns.short() if few else columns).sort(stable=True)

    def split_at(self, begins: Tensor) -> SparseCodes:
        """Give the same entries with a row for every row and group of concepts.

        Row ``i * len(begins) + g`` has the entries of row i whose concepts lie from
        ``begins[g]`` to before ``begins[g + 1]``, or to the last; the first begins at 0. The
        columns of each row have to ascend, as `above` gives them.
        """
        n_rows, device = len(self.indptr) - 1, self.columns.device
        first = torch.arange(n_rows, device=device)[:, None] * self.n_concepts
        indptr = torch.empty(n_rows * len(begins) + 1, dtype=torch.int32, device=device)
        keys = self.rows.long() * self.n_concepts + self.columns
        indptr[:-1] = torch.searchsorted(keys, (first + begins).flatten())
        indptr[-1:].fill_(len(keys))  # an assignment would copy from the host
        return SparseCodes(indptr, self.columns, self.n_concepts)

    def ascending(self, values: Tensor) -> tuple[SparseCodes, Tensor]:
        """Give the same entries and their values with the columns of each row in order."""
        order = (self.rows.long() * self.n_concepts + self.columns).argsort()
        kept = None if self.kept is None else self.kept[order]
        codes = SparseCodes(self.indptr, self.columns[order], self.n_concepts, kept)
        return codes, values[order]

    def keep(self, mask: Tensor, values: Tensor) -> tuple[SparseCodes, Tensor]:
        """Give the entries where ``mask``, shape (n_stored,), is true, and their values."""
        n_before, at = indptr_of(mask), mask.nonzero()[:, 0]
        columns, values = (t.index_select(0, at) for t in (self.columns, values))
        indptr = n_before.index_select(0, self.indptr)
        return SparseCodes(indptr, columns, self.n_concepts), values

    def fired(self, values: Tensor) -> Tensor:
        """Tell for each concept whether one of its values is not 0, shape (n_concepts,)."""
        if self.kept is not None:  # what the backward pass needs too
            return self.by_concept[0].diff() > 0
        # A mask as an index would read the device; what is 0 goes to one place more.
        at = torch.where(values != 0, self.columns, self.n_concepts).long()
        fired = torch.zeros(self.n_concepts + 1, dtype=torch.bool, device=values.device)
        return fired.index_fill_(0, at, True)[:-1]

    def n_active(self, values: Tensor) -> Tensor:
        """Give how many values are not 0, one number."""
        return torch.count_nonzero(values) if self.kept is None else self.by_concept[0][-1]

    def dense(self, values: Tensor) -> Tensor:
        """Give the codes as a dense tensor (n, n_concepts)."""
        out = values.new_zeros(len(self.indptr) - 1, self.n_concepts)
        if self.per_row is not None:
            columns, values = (t.view(-1, self.per_row) for t in (self.columns.long(), values))
            return out.scatter_(1, columns, values)
        out[self.rows.long(), self.columns.long()] = values
        return out


def indptr_of(counts: Tensor) -> Tensor:
    """Give the ``indptr``, int32 of shape (n + 1,), of rows with so many entries."""
    indptr = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=indptr[1:])
    return indptr
