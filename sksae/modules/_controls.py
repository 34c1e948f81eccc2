"""The torch modules of the controls: BatchTopK codes, some of the weights held where they began."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..kernels import SparseCodes, Workspace, encode
from ._variants import BatchTopKModule


class ControlModule(BatchTopKModule):
    """A BatchTopK module whose random start can be replaced by other directions."""

    @torch.no_grad()
    def start_at(self, directions: Tensor, encoder_norm: float) -> None:
        """Start dictionary and linear encoder at directions (nb_concepts, n_features).

        ``encoder_norm`` is that of the encoder's rows. A direction of zeros keeps the start
        that is there.
        """
        weights = self.dictionary._weights
        there = directions.any(dim=1, keepdim=True)
        weights.copy_(torch.where(there, directions.to(weights), weights))
        self.dictionary.project_()
        if self.has_linear_encoder:
            self._tie_encoder(encoder_norm)


class FrozenDecoderModule(ControlModule):
    """The dictionary stays at its start; all else is trained."""

    def __init__(self, n_features: int, nb_concepts: int, **params: Any) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self.dictionary.requires_grad_(False)

    def after_step(self) -> None:
        """Leave the dictionary alone: it has not moved, and rounding is not to move it."""


class SoftFrozenModule(ControlModule):
    """Each dictionary row keeps a cosine of at least ``min_cosine`` to its start."""

    start: Tensor

    def __init__(
        self, n_features: int, nb_concepts: int, *, min_cosine: float, **params: Any
    ) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self.min_cosine = float(min_cosine)
        self._buffer("start", self.dictionary.get_dictionary().detach().clone())

    def start_at(self, directions: Tensor, encoder_norm: float) -> None:
        """Start dictionary and linear encoder at directions, and stay near them."""
        super().start_at(directions, encoder_norm)
        self.start.copy_(self.dictionary.get_dictionary().detach())

    @torch.no_grad()
    def after_step(self) -> None:
        """Restore unit norms, then turn rows that went too far back to the border."""
        super().after_step()
        weights = self.dictionary._weights
        far = (weights * self.start).sum(dim=1) < self.min_cosine
        if weights.device.type == "cpu":  # elsewhere, asking which would stall every step
            rows = far.nonzero()[:, 0]
            weights[rows] = turned_back(weights[rows], self.start[rows], self.min_cosine)
        else:
            turned = turned_back(weights, self.start, self.min_cosine)
            weights.copy_(torch.where(far[:, None], turned, weights))


def turned_back(rows: Tensor, start: Tensor, cosine: float) -> Tensor:
    """Give the unit vectors of a cosine to the start that are nearest to given unit rows.

    ``c s + sqrt(1 - c^2) a`` with the unit vector a along what of the row is at a right
    angle to its start s. A row opposite to its start goes back to the start.

    Parameters
    ----------
    rows, start : Tensor of shape (n, n_features)
        Rows of unit norm.
    cosine : float
        Above 0 and at most 1.

    Returns
    -------
    Tensor of shape (n, n_features)
    """
    aside = rows - (rows * start).sum(dim=1, keepdim=True) * start
    return normalize(cosine * start + (1 - cosine**2) ** 0.5 * normalize(aside, dim=1), dim=1)


class FrozenEncoderModule(ControlModule):
    """The linear encoder keeps its start, but for one factor common to all concepts.

    Rows of the dictionary have unit norm, so that without the factor the codes could not
    get the size that reconstructs best. ``log_gain`` is trained; after each step it is
    multiplied into the weights and goes back to 0. The encoder's bias follows the decoder
    bias b, which is trained, so that codes see the input minus the center of the data::

        gain * W (u - b) + bias = gain * W (u - center)
    """

    gain: Tensor
    encoder_start: Tensor

    def __init__(self, n_features: int, nb_concepts: int, **params: Any) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self.encoder.requires_grad_(False)
        self.log_gain = nn.Parameter(torch.zeros(()))
        self._buffer("gain", torch.ones(()))
        self._buffer("encoder_start", self.linear_encoder.weight.detach().clone())

    def start_at(self, directions: Tensor, encoder_norm: float) -> None:
        """Start dictionary and linear encoder at directions; the latter stays there."""
        super().start_at(directions, encoder_norm)
        self.encoder_start.copy_(self.linear_encoder.weight)

    def encode_scaled(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``(pre_codes, codes)`` of scaled input; of the weights, the gain has a gradient."""
        pre_codes, relu_codes = self.encoder(u - self.decoder_bias.detach())
        gain = self.log_gain.exp()
        pre_codes, relu_codes = pre_codes * gain, relu_codes * gain
        return pre_codes, self.share(u, pre_codes, relu_codes)

    # Beside `encode_scaled`, because `selects` asks for both in one class.
    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the ``k * n`` largest of the batch, where they are positive."""
        return super().select_stored(pre_codes)

    def forward_sparse(
        self,
        u: Tensor,
        workspace: Workspace,
        check: Callable[[int, int], None],
        target: Tensor | None = None,
    ) -> tuple[SparseCodes, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """Give what `SAEModule.forward_sparse` gives; of the encoder, the gain has a gradient."""
        linear, bias = self.linear_encoder, self.decoder_bias.detach()
        select = self.select_stored
        with torch.no_grad():
            given = u, bias, linear.weight, linear.bias, select, workspace
            stored, codes = encode(*given, sizes=self.row_sizes(u))
        check(len(stored), len(u) * codes.n_concepts)
        pre_codes = stored * self.log_gain.exp()
        values = self.codes_of_stored(codes, pre_codes)
        return codes, pre_codes, values, *self.reconstruct_stored(codes, values, u, target)

    @torch.no_grad()
    def after_step(self) -> None:
        """Restore unit norms, and move the trained gain and bias into the encoder."""
        super().after_step()
        self._absorb()

    def _absorb(self) -> None:
        linear, factor = self.linear_encoder, self.log_gain.exp()
        self.log_gain.zero_()
        self.gain.mul_(factor)
        self.scale_thresholds(factor)
        torch.mul(self.encoder_start, self.gain, out=linear.weight)
        torch.mv(linear.weight, self.decoder_bias - self.center, out=linear.bias)


class RandomModule(FrozenEncoderModule):
    """Neither dictionary nor encoder leave their start; bias, gain and threshold are fitted."""

    def __init__(self, n_features: int, nb_concepts: int, **params: Any) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self.dictionary.requires_grad_(False)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the trained gain and bias into the encoder; the dictionary has not moved."""
        self._absorb()
