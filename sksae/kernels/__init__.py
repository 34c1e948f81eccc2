"""Encoding and decoding that touch only the codes that are stored."""

from ._autograd import decode, encode
from ._codes import SparseCodes
from ._cpu import above, name, nth_largest, sum_rows, top_k, unit_rows_

__all__ = [
    "SparseCodes",
    "above",
    "decode",
    "encode",
    "name",
    "nth_largest",
    "sum_rows",
    "top_k",
    "unit_rows_",
]
