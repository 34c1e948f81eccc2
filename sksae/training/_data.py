"""Batches of rows, sliced from one array by a shuffled index."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

# Rows that stand for all where something is estimated from a sample.
SAMPLE_ROWS = 8192

# Bytes of a block of rows, or of what is made of it, by the device that works on it: for CUDA
# devices at most that, and that share of what is free.
_BLOCK_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
_BLOCK_SHARE = 1 / 32
_SAMPLE_BYTES = _PINNED_BYTES = 32 * 2**20
_MOST_PINNED = 8
_AT_CENTER = 1e-3
# Rows small enough to stay in a processor's cache between two operations, and enough of them to
# occupy another device.
_CACHED_ROWS, _DEVICE_ROWS = 512, 2**15


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
    X : ndarray, Tensor or CSR matrix of shape (n_rows, n_features)
        Dense rows stay where they are, or move to a CUDA device whole where they take
        less than half of its free memory; CSR rows become dense batch by batch. What stays
        goes to a CUDA device through pinned memory, see `copied_ahead`. Rows that are on the
        device stay there.
    device : torch.device
    dtype : torch.dtype
    """

    def __init__(self, X, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.rows = X if sparse.issparse(X) or isinstance(X, Tensor) else as_tensor(X)
        if isinstance(self.rows, Tensor):
            self.rows = _brought(self.rows, device)

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
            key = index.cpu().numpy() if isinstance(index, Tensor) else index
            batch = torch.from_numpy(self.rows[key].toarray())
        if self.copies:
            batch = batch.pin_memory()
        return batch.to(self.device, self.dtype, non_blocking=True)

    @property
    def copies(self) -> bool:
        """Whether each batch is copied to a CUDA device."""
        on_host = not isinstance(self.rows, Tensor) or self.rows.device.type == "cpu"
        return self.device.type == "cuda" and on_host

    def take_pair(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Give input and target of some rows; an autoencoder's target is its input."""
        batch = self.take(index)
        return batch, batch

    @property
    def n_outputs(self) -> int:
        """Width of the target."""
        return self.shape[1]

    def placed(self, order: Tensor) -> Tensor:
        """Give an order of rows where parts of it are taken without waiting for the device."""
        return order.to(self.rows.device) if isinstance(self.rows, Tensor) else order

    @functools.cached_property
    def statistics(self) -> InputStatistics:
        """Center and scale of the rows."""
        return InputStatistics.of(self)

    def blocks(self, n_columns: int = 0) -> Iterator[Tensor]:
        """Give the rows in order, in blocks of up to 32 MiB, or on a CUDA device 1 GiB.

        Parameters
        ----------
        n_columns : int
            Width of what is made of a block, if that is more than its own.
        """
        return map(self.take, self.slices(n_columns))

    def slices(self, n_columns: int = 0) -> list[slice]:
        """Give the rows of each of the `blocks`."""
        width = max(self.shape[1], n_columns) * self.dtype.itemsize
        size = max(1, _block_bytes(self.device) // width)
        return [slice(start, start + size) for start in range(0, len(self), size)]


def _block_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _BLOCK_BYTES["cpu"]
    free, _ = torch.cuda.mem_get_info(device)
    return min(_BLOCK_BYTES["cuda"], int(_BLOCK_SHARE * free))


class SharedRows(RowBatches):
    """Rows that several nets read in step: the same index twice in a row is read once."""

    def __init__(self, X, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(X, device, dtype)
        self.last: tuple[Tensor, Tensor] | None = None

    @property
    def copies(self) -> bool:
        """Never ahead: a net that is would read rows that the others do not want yet."""
        return False

    def placed(self, order: Tensor) -> Tensor:
        """Give the order as it is: parts of it are compared on the CPU."""
        return order

    def take(self, index: Tensor | slice) -> Tensor:
        """Give the rows of an index or slice; they must not be written to."""
        if not isinstance(index, Tensor):
            return super().take(index)
        if self.last is None or not torch.equal(index, self.last[0]):
            self.last = index, super().take(index)
        return self.last[1]


class RowSubset(RowBatches):
    """Some of other rows.

    Parameters
    ----------
    data : RowBatches
    numbers : ndarray of int
        Which of them.
    """

    def __init__(self, data: RowBatches, numbers: np.ndarray) -> None:
        self.data, self.numbers = data, data.placed(torch.from_numpy(numbers))
        self.device, self.dtype = data.device, data.dtype
        self.rows = data.rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows in the subset and of features."""
        return len(self), self.data.shape[1]

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, index: Tensor | slice) -> Tensor:
        """Give the rows of an index or slice of the subset."""
        return self.data.take(self.numbers[index])


class PairedRows(RowBatches):
    """Rows and, for each of them, the row that is to be predicted from it.

    Parameters
    ----------
    inputs, targets : RowBatches
        Of as many rows.
    """

    def __init__(self, inputs: RowBatches, targets: RowBatches) -> None:
        self.inputs, self.targets = inputs, targets
        self.device, self.dtype, self.rows = inputs.device, inputs.dtype, inputs.rows

    def take(self, index: Tensor | slice) -> Tensor:
        """Give the inputs of an index or slice."""
        return self.inputs.take(index)

    def take_pair(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Give inputs and targets of an index or slice."""
        return self.inputs.take(index), self.targets.take(index)

    @property
    def copies(self) -> bool:
        """Whether each batch is copied to a CUDA device."""
        return self.inputs.copies or self.targets.copies

    @property
    def n_outputs(self) -> int:
        """Width of the targets."""
        return self.targets.shape[1]

    def placed(self, order: Tensor) -> Tensor:
        """Give an order of rows where parts of it are taken without waiting for the device."""
        placed = [data.placed(order) for data in (self.inputs, self.targets)]
        return placed[0] if placed[0].device == placed[1].device else order

    @property
    def statistics(self) -> InputStatistics:
        """Center and scale of the inputs."""
        return self.inputs.statistics


class ColumnBlock(RowBatches):
    """A block of the columns of other rows.

    Parameters
    ----------
    data : RowBatches
    columns : slice
    """

    def __init__(self, data: RowBatches, columns: slice) -> None:
        self.data, self.columns = data, columns
        self.device, self.dtype = data.device, data.dtype
        self.rows = data.rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns in the block."""
        return len(self), self.columns.stop - self.columns.start

    def __len__(self) -> int:
        return len(self.data)

    def take(self, index: Tensor | slice) -> Tensor:
        """Give the columns of the rows of an index or slice."""
        return self.data.take(index)[:, self.columns]


def _fits_device(rows: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return rows.nbytes < free / 2


def _brought(rows: Tensor, device: torch.device) -> Tensor:
    """Give rows on a device if they fit there, else on the CPU."""
    if rows.device.type == "cpu":
        return copied(rows, device) if _fits_device(rows, device) else rows
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        if rows.device.index != index and not _fits_device(rows, device):
            return rows.cpu()
    return rows.to(device)


def copied(rows: Tensor, device: torch.device) -> Tensor:
    """Copy rows to a CUDA device, each piece while the next one is put into pinned memory."""
    out = torch.empty(rows.shape, dtype=rows.dtype, device=device)
    size = max(1, _PINNED_BYTES * len(rows) // max(1, rows.nbytes))
    for i, (there, here) in enumerate(zip(out.split(size), rows.split(size), strict=True)):
        if i % _MOST_PINNED == 0:  # pinned memory is given back when its copy is done
            torch.cuda.current_stream(device).synchronize()
        there.copy_(here.contiguous().pin_memory(), non_blocking=True)
    return out


class BatchIterator:
    """Iterate over batches of inputs and targets, shuffled anew at each pass or in order.

    A last batch of one row joins the batch before it (batch normalisation needs two).

    Parameters
    ----------
    data : RowBatches
    batch_size : int
        Rows per batch.
    generator : torch.Generator, optional
        Draws the order of each pass. None keeps the order of the rows.
    ahead : bool, default=False
        Whether the order of the next pass is drawn, in a thread, while a pass goes on: a device
        would stand still meanwhile.
    """

    def __init__(
        self,
        data: RowBatches,
        batch_size: int,
        generator: torch.Generator | None = None,
        ahead: bool = False,
    ) -> None:
        self.data, self.batch_size, self.generator = data, batch_size, generator
        self.thread = ThreadPoolExecutor(1) if ahead else None
        # Order and state of the generator after it, and the state before.
        self.drawn: tuple[Future[tuple[Tensor, Tensor]], Tensor] | None = None

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
        order = None if self.generator is None else self.data.placed(self._order(self.generator))
        slices = (slice(start, end) for start, end in self.bounds())
        batches = (self.data.take_pair(s if order is None else order[s]) for s in slices)
        return copied_ahead(batches, self.data.device) if self.data.copies else batches

    def _order(self, generator: torch.Generator) -> Tensor:
        """Give an order of the rows, and let the next one be drawn."""
        n = len(self.data)
        if self.thread is None:
            return torch.randperm(n, generator=generator)
        # Unless somebody has drawn numbers since.
        known = self.drawn is not None and torch.equal(self.drawn[1], generator.get_state())
        if self.drawn is None or not known:
            self.drawn = self.thread.submit(_draw, n, generator.get_state()), generator.get_state()
        order, after = self.drawn[0].result()
        generator.set_state(after)
        self.drawn = self.thread.submit(_draw, n, after), after
        return order


def _draw(n: int, state: Tensor) -> tuple[Tensor, Tensor]:
    """Give an order of n rows, and the state after it of a generator in this state."""
    generator = torch.Generator()
    generator.set_state(state)
    return torch.randperm(n, generator=generator), generator.get_state()


def copied_ahead(
    batches: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give batches, each copied to a CUDA device while the one before it is worked on.

    Parameters
    ----------
    batches : iterator of tuple of Tensor
        Takes the rows from pinned memory, without waiting for the copy.
    device : torch.device

    Yields
    ------
    tuple of Tensor
    """
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def begin() -> tuple[Tensor, Tensor] | None:
        with torch.cuda.stream(side):
            return next(batches, None)

    coming = begin()
    while coming is not None:
        main.wait_stream(side)
        batch, coming = coming, begin()
        for tensor in batch:
            tensor.record_stream(main)  # whose memory is the side's to use again
        yield batch


@dataclass(frozen=True)
class InputStatistics:
    """What training needs to know of the data before its first step.

    Attributes
    ----------
    center : Tensor of shape (n_features,), float64
        Geometric median of the rows, of a random choice of as many as fit into 32 MiB. A
        few rows of extreme norm, such as the first positions of a causal model, hardly move
        it. The start that Gao et al. (2024), arXiv:2406.04093, appendix A.1, give to the
        decoder bias.
    distances : Tensor of shape (n_rows,), float64
        Squared Euclidean distances of the rows from the center.
    """

    center: Tensor
    distances: Tensor

    def radius(self, ratio: float | None) -> float:
        """Give ``ratio`` times the median distance from the center; without one, infinity.

        Rows at the center itself, such as many zero rows, do not count for the median.
        """
        distances = self.distances.sqrt()
        apart = distances[distances > _AT_CENTER * distances.mean()]
        return math.inf if ratio is None or not len(apart) else ratio * float(apart.median())

    def scale(self, radius: float) -> float:
        """Give the root mean square of the entries of ``x - center`` over rows within a radius.

        1 for constant data.
        """
        usual = self.distances[self.distances <= radius**2]
        mean_square = float(usual.mean()) / len(self.center)
        return mean_square**0.5 if mean_square > rounding(self.center) else 1.0

    @classmethod
    def of(cls, data: RowBatches) -> InputStatistics:
        """Compute the statistics, in float64."""
        sample = random_rows(len(data), max(2, _SAMPLE_BYTES // (8 * data.shape[1])))
        center = geometric_median(data.take(sample).double())
        distances = center.new_empty(len(data))
        start = 0
        for x in _cached(data):  # not as a list: small results between large blocks pin memory
            part = distances[start : start + len(x)]
            torch.sum((x.double() - center).square_(), dim=1, out=part)
            start += len(x)
        return cls(center, distances)


def random_rows(n_rows: int, most: int, seed: int = 0) -> Tensor:
    """Give, in order, the numbers of at most that many rows, chosen at random.

    Every n-th row would not do: in texts of equal length these are all at one position.
    """
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def sample_batches(n_rows: int, batch_size: int, seed: int) -> tuple[Tensor, ...]:
    """Give batches of `random_rows`, up to 8,192, that stand for all rows."""
    sample = random_rows(n_rows, SAMPLE_ROWS, seed)
    return sample.tensor_split(-(-len(sample) // int(batch_size)))


def geometric_median(rows: Tensor, max_iter: int = 50, tol: float = 1e-6) -> Tensor:
    """Give the point with the smallest sum of distances to the rows.

    Weiszfeld's iteration from the mean: each row weighs by its inverse distance, bounded
    so that a row at the point itself does not divide by zero.

    Parameters
    ----------
    rows : Tensor of shape (n_rows, n_features)
        In float64.
    max_iter : int
        Largest number of iterations.
    tol : float
        Stop when a move is below this share of the mean distance.

    Returns
    -------
    Tensor of shape (n_features,)
        The median; the rows themselves for constant rows.
    """
    center = rows.mean(dim=0)
    for _ in range(max_iter):
        distance = (rows - center).norm(dim=1)
        typical = float(distance.mean())
        if typical == 0:
            break
        weight = 1 / distance.clamp(min=1e-6 * typical)
        moved = (weight / weight.sum()) @ rows
        step, center = float((moved - center).norm()), moved
        if step < tol * typical:
            break
    return center


def mean_and_variance(data: RowBatches) -> tuple[Tensor, float]:
    """Give the mean of each feature and the mean over features of its variance, in float64.

    The variance of constant data is 0, whatever rounding makes of it.
    """
    mean = torch.zeros(data.shape[1], dtype=torch.float64, device=data.device)
    for x in _cached(data):
        mean += x.double().sum(dim=0)
    mean /= len(data)
    squares = mean.new_zeros(())
    for x in _cached(data):
        squares += (x.double() - mean).square_().sum()
    variance = float(squares) / (len(data) * len(mean))
    return mean, variance if variance > rounding(mean) else 0.0


def _cached(data: RowBatches) -> Iterator[Tensor]:
    for block in data.blocks():
        yield from block.split(_CACHED_ROWS if block.device.type == "cpu" else _DEVICE_ROWS)


def rounding(mean: Tensor) -> float:
    """Give the variance that rounding alone gives to constant data of this mean."""
    return (4 * torch.finfo(mean.dtype).eps * float(mean.abs().max())) ** 2
