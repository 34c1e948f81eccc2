"""The torch module of each variant, on its overcomplete class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ._base import SAEModule
from ._jumprelu import jump_relu, step
from ._overcomplete import overcomplete_sae

_INITIAL_THRESHOLD = 0.5


class VanillaModule(SAEModule, overcomplete_sae.SAE):
    """ReLU codes: every positive pre-code is active."""


class TopKModule(SAEModule, overcomplete_sae.TopKSAE):
    """The ``top_k`` largest ReLU codes of each sample."""

    top_k: int

    def sparsify(self, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Keep the ``top_k`` largest codes of each row."""
        values, indices = relu_codes.topk(self.top_k, dim=-1, sorted=False)
        return torch.zeros_like(relu_codes).scatter(-1, indices, values)


class BatchTopKModule(SAEModule, overcomplete_sae.BatchTopKSAE):
    """The ``top_k * n`` largest ReLU codes of a batch of n; at evaluation, one threshold.

    The threshold, in scaled units, is a running mean over batches of the smallest code
    kept; it is NaN before the first training batch.
    """

    top_k: int
    threshold_momentum: float
    running_threshold: Tensor

    def __init__(self, n_features: int, nb_concepts: int, **params: Any) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self._buffer("running_threshold", torch.tensor(torch.nan))

    def sparsify(self, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Keep the codes above the batch's threshold, or above the running one."""
        if self.training:  # type: ignore[attr-defined]
            threshold = self._batch_threshold(relu_codes.detach())
        else:
            threshold = self.running_threshold
        return relu_codes * ((relu_codes >= threshold) & (relu_codes > 0))

    @torch.no_grad()
    def finish(self, batches: Iterable[Tensor]) -> None:
        """Estimate the threshold anew with the final weights, from scaled batches.

        During training the weights move on, and the running mean lags behind them.
        """
        self.running_threshold.fill_(torch.nan)
        self.train()  # type: ignore[attr-defined]
        for u in batches:
            self.encode_scaled(u)
        self.eval()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _batch_threshold(self, codes: Tensor) -> Tensor:
        n_kept = min(self.top_k * len(codes), codes.numel())
        threshold = codes.flatten().topk(n_kept, sorted=False).values.min()
        old, new = self.running_threshold, threshold.to(self.running_threshold.dtype)
        mixed = torch.lerp(new, old, self.threshold_momentum)
        self.running_threshold.copy_(torch.where(old.isnan(), new, mixed))
        return threshold


class JumpReLUModule(SAEModule, overcomplete_sae.JumpSAE):
    """Pre-codes above a threshold that each concept learns.

    ``thresholds`` holds their logarithms, in scaled units.
    """

    thresholds: torch.nn.Parameter
    kernel: str

    def __init__(
        self,
        n_features: int,
        nb_concepts: int,
        *,
        kernel: str,
        bandwidth: float,
        **params: Any,
    ) -> None:
        super().__init__(n_features, nb_concepts, kernel=kernel, bandwidth=bandwidth, **params)
        self.kernel = kernel
        self.bandwidth = float(bandwidth)
        with torch.no_grad():
            self.thresholds.fill_(_INITIAL_THRESHOLD).log_()

    def sparsify(self, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Zero the pre-codes that do not exceed their threshold."""
        return jump_relu(pre_codes, self.thresholds.exp(), self.kernel, self.bandwidth)

    def active(self, pre_codes: Tensor) -> Tensor:
        """Give 1 where a concept is active, with the threshold's pseudo-gradient."""
        return step(pre_codes, self.thresholds.exp(), self.kernel, self.bandwidth)
