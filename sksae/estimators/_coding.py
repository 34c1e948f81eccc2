"""Blocks of rows to codes and back, without gradients and without dense codes where possible."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..kernels import SparseCodes, Workspace, indptr_of, serves, sum_rows
from ..training._data import RowBatches, as_tensor, mean_and_variance, rounding

# Sizes from which dense codes are made of stored ones.
_FEWEST_ROWS, _FEWEST_CONCEPTS = 64, 256


class Coder:
    """Encodes and reconstructs blocks of rows.

    With the linear encoder, where there are kernels for the device, dense codes are never
    made: the active ones are selected from the pre-codes, whose memory is used again for
    each block.

    Parameters
    ----------
    module : SAEModule
        In evaluation mode.
    backend : str
        "reference" computes dense codes always.
    """

    def __init__(self, module, backend: str) -> None:
        self.module, self.device = module, module.decoder_bias.device
        self.selects = serves(backend, self.device) and module.selects
        self._workspace: Workspace | None = None

    def encode(self, x: Tensor) -> tuple[SparseCodes, Tensor]:
        """Give the active codes of a block (n, n_features) and their values, in input units."""
        if self.selects:
            codes, values = self.module.encode_sparse(x, self._pre_codes(len(x)))
            if codes.kept is not None:
                codes, values = codes.keep(codes.kept, values)
            # On the CPU whoever builds a matrix sorts them all at once.
            return (codes, values) if self.device.type == "cpu" else codes.ascending(values)
        dense = self.encode_dense(x)  # in plain torch
        active = dense != 0
        columns = active.nonzero()[:, 1].int()
        indptr = indptr_of(active.sum(dim=1))
        return SparseCodes(indptr, columns, dense.shape[1]), dense[active]

    @torch.no_grad()
    def encode_dense(self, x: Tensor) -> Tensor:
        """Give the codes of a block as a dense tensor, in input units."""
        pays = len(x) >= _FEWEST_ROWS and self.module.nb_concepts >= _FEWEST_CONCEPTS
        if self.selects and pays and not self.module.dense_is_fast:
            codes, values = self.module.encode_sparse(x, self._pre_codes(len(x)))
            return codes.dense(values)
        with torch.autocast(self.device.type, enabled=False):
            return self.module.encode(x)[1]

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Give the reconstruction of a block, in output units."""
        if not self.selects:
            with torch.autocast(self.device.type, enabled=False):
                return self.module(x)[-1]
        codes, values = self.encode(x)
        dictionary, offset = self.module.get_dictionary(), self.module.offset(x)
        return sum_rows(codes.indptr, codes.columns, values, dictionary) + offset

    def _pre_codes(self, n: int) -> Workspace:
        if self._workspace is None or len(self._workspace.memory) < n:
            memory = self.module.decoder_bias.new_empty(n, self.module.nb_concepts)
            self._workspace = Workspace(memory, screen=self.module.screens, constant=True)
        return self._workspace


def explained_share(coder: Coder, data: RowBatches, targets: RowBatches) -> float:
    """Give the share of the variance of the targets that is explained from the data.

    For constant targets 1 if they are met exactly, else 0.
    """
    mean, variance = mean_and_variance(targets)
    error = float(squared_errors(coder, data, targets).sum())
    n_entries = len(targets) * targets.shape[1]
    if variance == 0:
        return float(error <= rounding(mean) * n_entries)
    return 1 - error / (variance * n_entries)


def squared_errors(coder: Coder, data: RowBatches, targets: RowBatches) -> Tensor:
    """Give the sum over rows of the squared errors of each column, in float64."""
    width = max(data.shape[1], targets.shape[1], coder.module.nb_concepts)
    total = torch.zeros(targets.shape[1], dtype=torch.float64, device=data.device)
    for part in data.slices(width):
        x = data.take(part)
        y = x if targets is data else targets.take(part)
        total += (y - coder.reconstruct(x)).double().square_().sum(dim=0)
    return total


class CSRBuilder:
    """Collect blocks of codes into one CSR matrix with int32 indices where they fit."""

    def __init__(self, n_columns: int) -> None:
        self.n_columns = n_columns
        self.counts: list[np.ndarray] = []
        self.columns: list[np.ndarray] = []
        self.values: list[np.ndarray] = []

    def add(self, codes: SparseCodes, values: Tensor) -> None:
        """Append the rows of a block."""
        self.counts.append(codes.indptr.diff().cpu().numpy())
        self.columns.append(codes.columns.cpu().numpy())
        self.values.append(values.cpu().numpy())

    def build(self) -> sparse.csr_matrix:
        """Give the matrix of all the rows added, the columns of each row in order."""
        counts = np.concatenate(self.counts)
        n_stored = int(counts.sum(dtype=np.int64))
        index = np.int32 if n_stored <= np.iinfo(np.int32).max else np.int64
        indptr = np.zeros(len(counts) + 1, dtype=index)
        np.cumsum(counts, out=indptr[1:])
        columns = np.concatenate(self.columns).astype(index, copy=False)
        values = np.concatenate(self.values)
        codes = sparse.csr_matrix(
            (values, columns, indptr), shape=(len(counts), self.n_columns), copy=False
        )
        codes.sort_indices()
        return codes


def decode_rows(Z, dictionary: np.ndarray) -> np.ndarray:
    """Give ``Z @ dictionary`` for codes as an array or a CSR matrix."""
    if not sparse.issparse(Z):
        return np.asarray(Z) @ dictionary
    if Z.indices.dtype != np.int32 or not Z.nnz:
        return np.asarray(Z @ dictionary)
    arrays = (as_tensor(a) for a in (Z.indptr, Z.indices, Z.data, dictionary))
    return sum_rows(*arrays).numpy()
