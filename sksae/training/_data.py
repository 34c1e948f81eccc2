"""Batches of rows, sliced from one array by a shuffled index."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

_BLOCK_BYTES = 32 * 2**20


def as_tensor(array: np.ndarray) -> Tensor:
    """Give a tensor that shares the memory of an array; it must not be written to."""
    array = np.asarray(array)
    if any(s < 0 or s % array.itemsize for s in array.strides):  # torch has no such strides
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():  # a read-only array or memory map is only read here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class RowBatches:
    """Rows of a dense or CSR matrix, given out as dense tensors on one device.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_rows, n_features)
        Dense rows stay where they are, or move to a CUDA device whole where they take
        less than half of its free memory; CSR rows become dense batch by batch.
    device : torch.device
    dtype : torch.dtype
    """

    def __init__(self, X, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.rows = X if sparse.issparse(X) else as_tensor(X)
        if isinstance(self.rows, Tensor) and _fits_device(self.rows, device):
            self.rows = self.rows.to(device)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of features."""
        return tuple(self.rows.shape)

    def __len__(self) -> int:
        return self.rows.shape[0]

    def take(self, index: Tensor | slice) -> Tensor:
        """Give the rows of an index or slice, shape (n, n_features), on the device."""
        if isinstance(self.rows, Tensor):
            if isinstance(index, Tensor):
                batch = self.rows.index_select(0, index.to(self.rows.device))
            else:
                batch = self.rows[index]
        else:
            key = index.numpy() if isinstance(index, Tensor) else index
            batch = torch.from_numpy(self.rows[key].toarray())
        return batch.to(self.device, self.dtype, non_blocking=True)

    def blocks(self, n_columns: int = 0) -> Iterator[Tensor]:
        """Give the rows in order, in blocks of up to 32 MiB.

        Parameters
        ----------
        n_columns : int
            Width of what is made of a block, if that is more than its own.
        """
        width = max(self.shape[1], n_columns) * self.dtype.itemsize
        size = max(1, _BLOCK_BYTES // width)
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


def _fits_device(rows: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return rows.nbytes < free / 2


class BatchIterator:
    """Iterate over batches of rows, shuffled anew at each pass or in order.

    A last batch of one row joins the batch before it (batch normalisation needs two).

    Parameters
    ----------
    data : RowBatches
    batch_size : int
        Rows per batch.
    generator : torch.Generator, optional
        Draws the order of each pass. None keeps the order of the rows.
    """

    def __init__(
        self, data: RowBatches, batch_size: int, generator: torch.Generator | None = None
    ) -> None:
        self.data, self.batch_size, self.generator = data, batch_size, generator

    def bounds(self) -> list[tuple[int, int]]:
        """Give the first row and the end of each batch."""
        n, size = len(self.data), self.batch_size
        starts = list(range(0, n, size))
        if size > 1 and len(starts) > 1 and n % size == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], n], strict=True))

    def __len__(self) -> int:
        return len(self.bounds())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = None
        if self.generator is not None:
            order = torch.randperm(len(self.data), generator=self.generator)
        for start, end in self.bounds():
            batch = self.data.take(slice(start, end) if order is None else order[start:end])
            yield batch, batch  # an autoencoder's target is its input


@dataclass(frozen=True)
class InputStatistics:
    """What training needs to know of the data before its first step.

    Attributes
    ----------
    mean : Tensor of shape (n_features,), float64
    variance : float
        Mean over rows and features of ``(x - mean) ** 2``.
    """

    mean: Tensor
    variance: float

    @property
    def scale(self) -> float:
        """Root mean square about the mean; 1 for constant data."""
        return self.variance**0.5 if self.variance > 0 else 1.0

    @classmethod
    def of(cls, data: RowBatches) -> InputStatistics:
        """Compute the statistics in two passes, in float64."""
        sums = [b.double().sum(dim=0) for b in data.blocks()]
        mean = torch.stack(sums).sum(dim=0) / len(data)
        squares = [(b.double() - mean).square().sum() for b in data.blocks()]
        variance = float(torch.stack(squares).sum()) / (len(data) * len(mean))
        return cls(mean, variance if variance > rounding(mean) else 0.0)


def rounding(mean: Tensor) -> float:
    """Give the variance that rounding alone gives to constant data of this mean."""
    return (4 * torch.finfo(mean.dtype).eps * float(mean.abs().max())) ** 2
