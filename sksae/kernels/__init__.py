"""Encoding and decoding that touch only the codes that are stored."""

from ._autograd import decode, encode, reconstruct
from ._codes import SparseCodes, indptr_of
from ._ops import DEVICES, above, largest, name, scale_rows, serves, sum_rows, top_k, unit_rows_
from ._row_gradients import RowGradients, steps_by_rows
from ._screen import Workspace

__all__ = [
    "DEVICES",
    "RowGradients",
    "SparseCodes",
    "Workspace",
    "above",
    "decode",
    "encode",
    "indptr_of",
    "largest",
    "name",
    "reconstruct",
    "scale_rows",
    "serves",
    "steps_by_rows",
    "sum_rows",
    "top_k",
    "unit_rows_",
]
