"""The torch module of GatedSAE: gates that open concepts, and magnitudes that share their weights.

With ``c = u - decoder_bias`` and the encoder's rows W and bias ``b_gate``::

    gates      = W c + b_gate                    (the pre-codes)
    magnitudes = relu(exp(r_mag) * (W c) + b_mag)
    codes      = magnitudes where gates > 0

Rajamanoharan et al. (2024), arXiv:2404.16014, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import SparseCodes, above, decode
from ._base import SAEModule
from ._overcomplete import overcomplete_sae


class GatedModule(SAEModule, overcomplete_sae.SAE):
    """Codes whose gate is open, at a magnitude that is learnt apart from the gate.

    An encoder of the caller's gives the gates, and ``W c`` above is what it gives.
    """

    dense_is_fast = counts_codes = True
    repeats = ("dense",)

    def __init__(self, n_features: int, nb_concepts: int, **params: Any) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self.r_mag = nn.Parameter(torch.zeros(nb_concepts))
        self.b_mag = nn.Parameter(torch.zeros(nb_concepts))

    @property
    def b_gate(self) -> Tensor:
        """The bias of the gates, shape (nb_concepts,), in scaled units."""
        return self.linear_encoder.bias if self.has_linear_encoder else torch.zeros_like(self.b_mag)

    def thresholds(self) -> Tensor:
        """Give what every active code of a concept exceeds, shape (nb_concepts,), scaled units."""
        return (self.b_mag - self.r_mag.exp() * self.b_gate).relu()

    def sparsify(self, pre_codes: Tensor, relu_codes: Tensor) -> Tensor:
        """Give the magnitudes of the codes whose gate is open."""
        magnitudes = self.r_mag.exp() * (pre_codes - self.b_gate) + self.b_mag
        return torch.where(pre_codes > 0, magnitudes, 0).relu()

    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the open gates."""
        return above(pre_codes, pre_codes.new_zeros(()))

    def select_active(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the open gates with a positive magnitude."""
        codes, gates = self.select_stored(pre_codes)
        values = self.codes_of_stored(codes, gates)
        return codes.keep(values > 0, values)

    def codes_of_stored(self, codes: SparseCodes, pre_codes: Tensor) -> Tensor:
        """Give the magnitudes at open gates."""
        r, b, gate = (
            p.index_select(0, codes.columns) for p in (self.r_mag, self.b_mag, self.b_gate)
        )
        return (r.exp() * (pre_codes - gate) + b).relu()

    def decode_frozen(self, codes: SparseCodes, gates: Tensor) -> Tensor:
        """Decode open gates, shape (n_stored,), with dictionary and bias as constants."""
        weights, bias = self.dictionary._weights.detach(), self.decoder_bias.detach()
        return decode(codes, gates, weights, bias)

    def scale_thresholds(self, factor: Tensor) -> None:
        """Multiply the bias of the magnitudes by a factor."""
        self.b_mag.mul_(factor)

    def revived_parameters(self) -> list[nn.Parameter]:
        """Give the parameters with a row per concept that `revive` writes to."""
        return [*super().revived_parameters(), self.r_mag, self.b_mag]

    @torch.no_grad()
    def revive(self, directions: Tensor, encoder_share: float) -> None:
        """Start the dead concepts anew, their magnitudes equal to their gates."""
        self.r_mag[self.dead_concepts] = 0
        self.b_mag[self.dead_concepts] = 0
        super().revive(directions, encoder_share)
