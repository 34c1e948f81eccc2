"""Encoding and decoding that touch only the codes that are stored."""

from ._autograd import decode, encode, reconstruct
from ._codes import SparseCodes, indptr_of
from ._dead import dead_loss, has_dead_loss
from ._ops import DEVICES, above, largest, name, scale_rows, serves, sum_rows, top_k, unit_rows_
from ._row_gradients import RowGradients, adam_numbers, steps_by_rows
from ._screen import Workspace
from ._threads import own_threads

__all__ = [
    "DEVICES",
    "RowGradients",
    "SparseCodes",
    "Workspace",
    "above",
    "adam_numbers",
    "dead_loss",
    "decode",
    "encode",
    "has_dead_loss",
    "indptr_of",
    "largest",
    "name",
    "own_threads",
    "reconstruct",
    "scale_rows",
    "serves",
    "steps_by_rows",
    "sum_rows",
    "top_k",
    "unit_rows_",
]
