"""The torch module of each variant, on its overcomplete class."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..kernels import SparseCodes, above, largest, top_k
from ._base import SAEModule, kth_largest, mean_kth_largest
from ._jumprelu import REACH, jump_relu, step
from ._overcomplete import overcomplete_sae

_INITIAL_THRESHOLD = 0.5
# Logarithm of where the threshold of a dead concept stops falling.
_LOWEST_LOG = math.log(_INITIAL_THRESHOLD / 100)
_SMALLEST_FACTOR = 1e-3
# The same where a batch may have too few stored pre-codes to tell.
_SMALLEST_OF_BATCH = 0.5
# Active codes of a batch from which on it alone tells where the thresholds belong.
_ENOUGH_CODES = 1024
# Rows near the center are not made larger than that.
_SMALLEST_SIZE = 1e-3
# Rows that the momentum of BatchTopK's threshold is meant for.
_MOMENTUM_ROWS = 1024
# How much more a new threshold counts where training did not move the old one.
_CATCH_UP = 8


class VanillaModule(SAEModule, overcomplete_sae.SAE):
    """ReLU codes: every positive pre-code is active."""

    # On one H200 steps on stored codes took 1.0 and 1.8 times as long at 4,096 and 24,576 concepts.
    dense_is_fast = counts_codes = True
    repeats = ("dense",)

    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the positive pre-codes."""
        return above(pre_codes, pre_codes.new_zeros(()))


class _Annealed:
    """Mixin for a ``top_k`` that training may start with a multiple of."""

    top_k: int
    k_scale: float = 1.0

    def k(self) -> int:
        """Give the number of concepts to keep: ``top_k``, in training times ``k_scale``."""
        if not self.training:  # type: ignore[attr-defined]
            return self.top_k
        return min(round(self.top_k * self.k_scale), self.nb_concepts)  # type: ignore[attr-defined]


class TopKModule(_Annealed, SAEModule, overcomplete_sae.TopKSAE):
    """The ``top_k`` largest ReLU codes of each sample."""

    repeats = ("stored", "dense")

    def sparsify(self, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Keep the ``top_k`` largest codes of each row."""
        return _largest_of_rows(relu_codes, relu_codes.detach(), self.k())

    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the ``top_k`` largest of each row, where they are positive."""
        return top_k(pre_codes, self.k())


class BatchTopKModule(_Annealed, SAEModule, overcomplete_sae.BatchTopKSAE):
    """The ``top_k * n`` largest ReLU codes of a batch of n; at evaluation, one threshold.

    The threshold, in scaled units, is a running mean over batches of the smallest code
    kept; it is NaN before the first training batch. While ``per_sample``, each sample keeps
    its own ``top_k`` largest codes instead, and the threshold stays as it is. While
    ``relative`` is positive, codes are ranked as if the rows' norms were nearer each other.
    """

    repeats = ("stored", "dense")
    # After a fifth of the fit 7 % and more were silent where planted features were not found, and
    # elsewhere at most 2 %; before that elsewhere up to 13 %.
    most_silent, most_silent_at_last = 0.2, 0.04
    threshold_momentum: float
    running_threshold: Tensor

    def __init__(self, n_features: int, nb_concepts: int, **params: Any) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self._buffer("running_threshold", torch.tensor(torch.nan))

    @torch.no_grad()
    def row_sizes(self, u: Tensor) -> Tensor | None:
        """Give the rows' norms over their root mean square, to the power of ``relative``."""
        nothing = isinstance(self.relative, float) and not self.relative
        if nothing or self.per_sample or not self.training:
            return None
        return _sizes(u - self.pre_bias, self.relative)

    def encode_scaled(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``(pre_codes, codes)`` of scaled input."""
        pre_codes, relu_codes = self.encoder(u - self.pre_bias)
        return pre_codes, self.share(u, pre_codes, relu_codes)

    def share(self, u: Tensor, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Choose the active codes of what the encoder gives for scaled input."""
        sizes = self.row_sizes(u)
        if sizes is None:
            return self.sparsify(pre_codes, relu_codes)
        shift = self.linear_encoder.bias.detach() if self.has_linear_encoder else 0
        resized = (pre_codes.detach() - shift) / sizes[:, None] + shift
        return self._keep(relu_codes, self.rank(resized.clamp(min=0)))

    def sparsify(self, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Keep the codes above the batch's threshold, or above the running one."""
        return self._keep(relu_codes, self.rank(relu_codes.detach()))

    def _keep(self, relu_codes: Tensor, ranked: Tensor) -> Tensor:
        if self.per_sample:
            return _largest_of_rows(relu_codes, ranked, self.k())
        threshold = self._batch_threshold(ranked) if self.training else self.running_threshold
        return relu_codes * ((ranked >= threshold) & (ranked > 0))

    def rank(self, codes: Tensor) -> Tensor:
        """Give what the threshold is compared with, shape (n, nb_concepts); here the codes."""
        return codes

    @torch.no_grad()
    def finish(self, batches: Iterable[Tensor], weight: float = 1.0) -> None:
        """Estimate the threshold anew with the final weights, from scaled batches.

        During training the weights move on, and the running mean lags behind them.
        """
        weight = _weight_of_new(self, weight)
        self.k_scale, self.per_sample, self.relative = 1.0, False, 0.0
        codes = (self.rank(self.encoder(u - self.decoder_bias)[1]) for u in batches)
        threshold = mean_kth_largest(codes, self.top_k).to(self.running_threshold)
        self._mix(threshold, weight)

    def _mix(self, threshold: Tensor, weight: float) -> None:
        """Give a new threshold this weight in the running one."""
        old = self.running_threshold
        old.copy_(torch.where(old.isnan(), threshold, torch.lerp(old, threshold, weight)))

    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the ``k * n`` largest of the batch, where they are positive."""
        if self.per_sample:
            return top_k(pre_codes, self.k())
        n_kept = self.k() * len(pre_codes)
        codes, values, threshold = largest(pre_codes, n_kept, self.running_threshold)
        self._mix_of_batch(threshold, len(pre_codes))
        return codes, values

    def select_active(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose what reaches the running threshold."""
        cut = self.running_threshold.to(pre_codes.dtype)
        return above(pre_codes, cut.nextafter(torch.full_like(cut, -torch.inf)).clamp(min=0))

    def scale_thresholds(self, factor: Tensor) -> None:
        """Multiply the threshold by a factor."""
        self.running_threshold.mul_(factor)

    @torch.no_grad()
    def _batch_threshold(self, codes: Tensor) -> Tensor:
        n_kept = self.k() * len(codes)
        threshold = codes.flatten().topk(n_kept, sorted=False).values.min()
        self._mix_of_batch(threshold, len(codes))
        return threshold

    def _mix_of_batch(self, threshold: Tensor, n: int) -> None:
        weight = 1 - self.threshold_momentum ** (n / _MOMENTUM_ROWS)
        self._mix(threshold.to(self.running_threshold), weight)


class JumpReLUModule(SAEModule, overcomplete_sae.JumpSAE):
    """Pre-codes above a threshold that each concept learns.

    ``thresholds`` holds their logarithms, in scaled units. While ``per_sample``, each sample
    keeps its ``target_l0`` largest positive pre-codes instead, and no threshold has a gradient.
    While ``relative`` is positive, the rows' norms are brought nearer each other.
    """

    has_start_rows = True
    # After a fifth of the fit 30 % were silent where planted features were not found, and elsewhere
    # at most 12 %, as the auxiliary loss takes longer here; before that 60 and 37 %.
    most_silent, most_silent_at_last = 0.5, 0.2
    counts_codes = True
    repeats = ("dense",)

    thresholds: torch.nn.Parameter
    kernel: str

    def __init__(
        self,
        n_features: int,
        nb_concepts: int,
        *,
        kernel: str,
        bandwidth: float,
        target_l0: float | None = None,
        **params: Any,
    ) -> None:
        super().__init__(n_features, nb_concepts, kernel=kernel, bandwidth=bandwidth, **params)
        self.target_l0 = target_l0
        self.kernel = kernel
        self.bandwidth = float(bandwidth)
        with torch.no_grad():
            self.thresholds.fill_(_INITIAL_THRESHOLD).log_()

    def sparsify(self, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Zero the pre-codes that do not exceed their threshold."""
        if self.per_sample:
            return _largest_of_rows(relu_codes, relu_codes.detach(), self.k())
        return jump_relu(pre_codes, self.thresholds.exp(), self.kernel, self.bandwidth)

    @torch.no_grad()
    def start_rows(self, u: Tensor) -> Tensor:
        """Divide the rows' differences from the bias by their sizes to the power ``relative``."""
        nothing = isinstance(self.relative, float) and not self.relative
        if nothing or not self.training:
            return u
        c = u - self.pre_bias
        return self.pre_bias + c / _sizes(c, self.relative)[:, None]

    def k(self) -> int:
        """Give the number of codes that a sample keeps while ``per_sample``."""
        assert self.target_l0 is not None
        return max(1, round(self.target_l0))

    def active(self, pre_codes: Tensor) -> Tensor:
        """Give 1 where a concept is active, with the threshold's pseudo-gradient."""
        return step(pre_codes, self.thresholds.exp(), self.kernel, self.bandwidth)

    def sparse_obstacle(self) -> str | None:
        """Say what keeps `forward_sparse` from giving what `forward_scaled` gives, if anything."""
        if self.kernel not in REACH:
            return f"kernel='{self.kernel}' gives every pre-code a gradient"
        return super().sparse_obstacle()

    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the pre-codes above their threshold or within reach of its kernel."""
        if self.per_sample:
            return top_k(pre_codes, self.k())
        cut = self._lowest_stored()
        return above(pre_codes, cut.nextafter(torch.full_like(cut, -torch.inf)))

    def _lowest_stored(self) -> Tensor:
        """Give for each concept the lowest pre-code with a gradient."""
        reach = REACH.get(self.kernel, math.inf)
        return self.thresholds.detach().exp() - reach * self.bandwidth

    def select_active(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the pre-codes above their threshold."""
        return above(pre_codes, self.thresholds.exp())

    def codes_of_stored(self, codes: SparseCodes, pre_codes: Tensor) -> Tensor:
        """Zero the stored pre-codes that do not exceed their threshold."""
        if self.per_sample:
            return pre_codes
        return jump_relu(pre_codes, self._thresholds_at(codes), self.kernel, self.bandwidth)

    def stored_active(self, codes: SparseCodes, pre_codes: Tensor) -> Tensor:
        """Give `active` of stored pre-codes, shape (n_stored,)."""
        return step(pre_codes, self._thresholds_at(codes), self.kernel, self.bandwidth)

    def _thresholds_at(self, codes: SparseCodes) -> Tensor:
        return self.thresholds.exp().index_select(0, codes.columns)

    @torch.no_grad()
    def finish(self, batches: Iterable[Tensor], weight: float = 1.0) -> None:
        """With a target for L0, multiply all thresholds by the factor that meets it.

        Thresholds are slow to follow the penalty; this makes up for what is left.
        """
        weight = _weight_of_new(self, weight)
        self.per_sample = False
        if self.target_l0 is None:
            return
        ratios = (self.encode_scaled(u)[0] / self.thresholds.exp() for u in batches)
        # Where fewer pre-codes than asked for are positive, no positive factor meets it.
        factor = mean_kth_largest(ratios, self.target_l0).clamp(min=_SMALLEST_FACTOR)
        self.multiply_thresholds(factor**weight)

    def l0_factor(self, pre_codes: Tensor, codes: SparseCodes | None = None) -> Tensor | None:
        """Give the factor of the thresholds that meets the target for L0 on a batch.

        It is made of the pre-codes that may be stored, the others count as 0. Of a small batch,
        whose codes say little, it is a power towards 1.
        """
        if self.target_l0 is None:
            return None
        thresholds = self.thresholds.detach().exp()
        if codes is None:
            n = len(pre_codes)
            ratios = pre_codes / thresholds * (pre_codes >= self._lowest_stored())
        else:
            n = len(codes.indptr) - 1
            ratios = pre_codes / thresholds[codes.columns]
        wanted = self.target_l0 * n
        factor = kth_largest(ratios.flatten(), wanted).clamp(min=_SMALLEST_OF_BATCH)
        return factor ** min(1.0, wanted / _ENOUGH_CODES)

    @torch.no_grad()
    def multiply_thresholds(self, factor: Tensor) -> None:
        """Multiply all thresholds by a factor."""
        self.thresholds.add_(factor.log())

    @torch.no_grad()
    def lower_dead_thresholds(self, step: float) -> None:
        """Lower the logarithms of the dead concepts' thresholds by a step, down to a floor.

        The auxiliary loss teaches these concepts what is missing from the reconstruction, which
        is smaller than the thresholds of the others, and no gradient reaches their own.
        """
        if self.per_sample:
            return
        before = self.thresholds[self.dead_concepts]
        lowered = (before - step).clamp(min=_LOWEST_LOG)
        self.thresholds[self.dead_concepts] = torch.minimum(before, lowered)

    def scale_thresholds(self, factor: Tensor) -> None:
        """Multiply the thresholds, and the kernel's width with them, by a factor."""
        self.thresholds.add_(factor.log())
        self.bandwidth *= float(factor)

    def revived_parameters(self) -> list[torch.nn.Parameter]:
        """Give the parameters with a row per concept."""
        return [*super().revived_parameters(), self.thresholds]

    @torch.no_grad()
    def revive(self, directions: Tensor, encoder_share: float) -> None:
        """Start the dead concepts anew, at the initial threshold."""
        self.thresholds[self.dead_concepts] = math.log(_INITIAL_THRESHOLD)
        super().revive(directions, encoder_share)


def _sizes(c: Tensor, power: float | Tensor) -> Tensor:
    """Give the norms of rows over their root mean square, to a power, shape (n,)."""
    norms = torch.linalg.vector_norm(c, dim=1)
    mean = norms.square().mean().sqrt().clamp(min=torch.finfo(c.dtype).tiny)
    return (norms / mean).clamp(min=_SMALLEST_SIZE) ** power


def _weight_of_new(module: SAEModule, weight: float) -> float:
    """Give the weight of a new threshold; more after steps that did not move the old one."""
    return min(1.0, _CATCH_UP * weight) if module.per_sample else weight


def _largest_of_rows(codes: Tensor, ranked: Tensor, k: int) -> Tensor:
    """Keep of each row of codes the k that rank highest, and zero the others."""
    indices = ranked.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(codes).scatter(-1, indices, codes.gather(-1, indices))
