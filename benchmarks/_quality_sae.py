"""The form in which ``quality.py`` compares all libraries: plain weights, one encoder.

Imported in every library's environment; needs torch and numpy alone.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 2048


class PlainSAE(NamedTuple):
    """Weights of a trained SAE in input units, whatever library trained it.

    ``pre = x @ W_enc + b_enc``, the codes are those of ``relu(pre)`` that are kept, and
    ``x_hat = codes @ W_dec + b_dec``. A bias that the library subtracts from the input is
    part of ``b_enc``.
    """

    W_enc: Tensor
    """(n_features, nb_concepts)"""

    b_enc: Tensor
    """(nb_concepts,)"""

    W_dec: Tensor
    """(nb_concepts, n_features)"""

    b_dec: Tensor
    """(n_features,)"""

    top_k: int
    """Codes kept per row, or in a batch per row on average."""

    threshold: Tensor = torch.tensor(float("nan"))
    """If not NaN, codes above it are kept instead: one number, or one per concept."""

    @classmethod
    def of(cls, W_enc, b_enc, W_dec, b_dec, top_k, threshold=float("nan"), *, pre_bias=None):
        """Copy the weights; ``pre_bias`` (n_features,) is subtracted before encoding."""
        if pre_bias is not None:
            b_enc = b_enc - pre_bias @ W_enc
        weights = (W_enc, b_enc, W_dec, b_dec)
        return cls(
            *(w.detach().clone() for w in weights), int(top_k), torch.as_tensor(threshold).float()
        )

    def encode(self, x, *, over_batch=False):
        """Give the codes (n, nb_concepts) of ``x`` (n, n_features).

        ``over_batch`` keeps ``top_k * n`` codes of the batch, instead of a threshold.
        """
        codes = torch.addmm(self.b_enc, x, self.W_enc).relu_()
        if over_batch:
            n_kept = self.top_k * len(codes)
            return codes * (codes >= codes.flatten().topk(n_kept, sorted=False).values.min())
        if not self.threshold.isnan().any():
            return codes * (codes > self.threshold)
        values, indices = codes.topk(self.top_k, dim=1, sorted=False)
        return torch.zeros_like(codes).scatter_(1, indices, values)

    def encode_comparable(self, x):
        """Give the codes times the norms of the dictionary's rows: no library's scale."""
        return self.encode(x) * self.W_dec.norm(dim=1)

    def decode(self, codes):
        """Give the reconstruction (n, n_features) of codes (n, nb_concepts)."""
        return torch.addmm(self.b_dec, codes, self.W_dec)

    def save(self, path):
        """Write an .npz file."""
        np.savez(path, **{key: np.array(value) for key, value in self._asdict().items()})

    @classmethod
    def load(cls, path):
        """Read what `save` wrote."""
        with np.load(path) as file:
            weights = [torch.from_numpy(file[key]) for key in cls._fields[:4]]
            return cls(*weights, int(file["top_k"]), torch.from_numpy(file["threshold"]))


@torch.no_grad()
def explained_variance(sae, x, *, over_batch=False):
    """Give 1 - SSE / SST of the rows of ``x``, with the mean of each feature."""
    error = 0.0
    for rows in x.split(BLOCK):
        x_hat = sae.decode(sae.encode(rows, over_batch=over_batch))
        error += float((rows - x_hat).square().sum(dtype=torch.float64))
    return 1 - error / float((x - x.mean(dim=0)).square().sum(dtype=torch.float64))


@torch.no_grad()
def share_of_equal_rows(sae, x, x_hat):
    """Give the share of rows that ``sae`` reconstructs as in ``x_hat``, to 0.1 %.

    Rounding may exchange two codes of nearly the same size, so that few rows differ.
    """
    difference = (sae.decode(sae.encode(x)) - x_hat).norm(dim=1)
    return float((difference <= 1e-3 * x_hat.norm(dim=1)).double().mean())
