"""Training through skorch: the net, its step, its callbacks and its batches."""

from ._data import BatchIterator, RowBatches
from ._net import SAENet

__all__ = ["BatchIterator", "RowBatches", "SAENet"]
