"""The torch module of Crosscoder: one set of codes for several layers' activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import SparseCodes
from ._base import SAEModule, distance_cut
from ._variants import BatchTopKModule


class CrosscoderModule(BatchTopKModule):
    """BatchTopK codes of blocks of columns, each in units of its own.

    ``layer_widths`` are the widths of the blocks. ``input_scale`` has an entry for each
    column. Codes are ranked, in scaled units, by what they are times `weights`, the sum over
    layers of the norms of the concept's dictionary row there.

    Scaled dictionary rows have unit norm over all layers; so have those that
    `get_dictionary` gives in input units, and `code_scale` makes up for the difference.
    """

    # Pre-codes are weighed before codes are chosen from them.
    screens = False

    def __init__(
        self, n_features: int, nb_concepts: int, *, layer_widths: Sequence[int], **params: Any
    ) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self.layer_widths = tuple(layer_widths)
        self._buffer("input_scale", torch.ones(n_features))
        self._buffer("max_distance", torch.full((len(self.layer_widths),), torch.inf))

    @torch.no_grad()
    def set_units(  # type: ignore[override]
        self, bias: Tensor, scales: Sequence[float], radii: Sequence[float]
    ) -> None:
        """Set, in input units, decoder bias (n_features,), and each layer's scale and radius."""
        for block, scale in zip(self.input_scale.split(self.layer_widths), scales, strict=True):
            block.fill_(scale)
        ratios = [radius / scale for radius, scale in zip(radii, scales, strict=True)]
        self.max_distance.copy_(torch.tensor(ratios))
        self.decoder_bias.copy_(bias / self.input_scale)
        self.center.copy_(self.decoder_bias)

    def scale_rows(self, x: Tensor) -> Tensor:
        """Give rows in scaled units, each layer's as `pull_in` gives them."""
        return self.pull_in(x / self.input_scale)

    @torch.no_grad()
    def pull_in(self, u: Tensor) -> Tensor:
        """Move, layer by layer, what lies beyond the layer's radius onto it."""
        blocks = zip(
            u.split(self.layer_widths, dim=1),
            self.center.split(self.layer_widths),
            self.max_distance,
            strict=True,
        )
        return torch.cat([distance_cut(*block) for block in blocks], dim=1)

    def layer_norms(self) -> Tensor:
        """Give the norm of each dictionary row in each layer, (nb_concepts, n_layers), scaled."""
        blocks = self.dictionary.get_dictionary().split(self.layer_widths, dim=1)
        return torch.stack([block.norm(dim=1) for block in blocks], dim=1)

    @torch.no_grad()
    def weights(self) -> Tensor:
        """Give the sum over layers of the norms of each dictionary row, (nb_concepts,)."""
        return self.layer_norms().sum(dim=1).clamp(min=torch.finfo(self.center.dtype).tiny)

    def rank(self, codes: Tensor) -> Tensor:
        """Give the codes times `weights`."""
        return codes * self.weights()

    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose the ``k * n`` of the batch that rank highest; ``pre_codes`` is overwritten."""
        return self._unranked(*super().select_stored(self._ranked(pre_codes)))

    def select_active(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose what reaches the running threshold; ``pre_codes`` is overwritten."""
        return self._unranked(*super().select_active(self._ranked(pre_codes)))

    def _ranked(self, pre_codes: Tensor) -> Tensor:
        return pre_codes.mul_(self.weights().to(pre_codes.dtype))

    def _unranked(self, codes: SparseCodes, values: Tensor) -> tuple[SparseCodes, Tensor]:
        return codes, values / self.weights()[codes.columns].to(values.dtype)

    @property
    def code_scale(self) -> Tensor:
        """What scaled codes are multiplied by, (nb_concepts,): how much longer rows get."""
        scaled = self.dictionary.get_dictionary()
        tiny, largest = torch.finfo(scaled.dtype).tiny, self.input_scale.max()
        longer = (scaled * (self.input_scale / largest)).norm(dim=1)  # its squares stay in range
        return largest * (longer / scaled.norm(dim=1).clamp(min=tiny))

    def get_dictionary(self) -> Tensor:
        """Give the dictionary in input units, shape (nb_concepts, n_features)."""
        scaled = self.dictionary.get_dictionary()
        return scaled * (self.input_scale / self.code_scale[:, None])

    def fold_normalization(self) -> SAEModule:
        """Refuse: codes are ranked in units that differ between layers."""
        raise ValueError(
            "fold_normalization cannot fold the scales of several layers into the weights of a "
            "Crosscoder, which ranks codes in scaled units. Keep the module as it is: encode and "
            "decode already take and give input units."
        )
