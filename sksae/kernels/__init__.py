"""Encoding and decoding that touch only the codes that are stored."""

from ._autograd import decode, encode
from ._codes import SparseCodes, indptr_of
from ._ops import DEVICES, above, largest, name, serves, sum_rows, top_k, unit_rows_

__all__ = [
    "DEVICES",
    "SparseCodes",
    "above",
    "decode",
    "encode",
    "indptr_of",
    "largest",
    "name",
    "serves",
    "sum_rows",
    "top_k",
    "unit_rows_",
]
