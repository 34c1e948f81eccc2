"""Training through skorch: the net, its step, its callbacks and its batches."""

from ._callbacks import ResampleDead
from ._data import BatchIterator, RowBatches
from ._net import SAENet
from ._schedule import WarmupDecay, auto_lr

__all__ = ["BatchIterator", "ResampleDead", "RowBatches", "SAENet", "WarmupDecay", "auto_lr"]
