"""The torch module of MatryoshkaSAE: BatchTopK codes, decoded by each prefix of the dictionary."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import SparseCodes, decode
from ._variants import BatchTopKModule


class MatryoshkaModule(BatchTopKModule):
    """A BatchTopK module that knows the prefixes of concepts that are to stand alone.

    ``prefixes`` are ascending numbers of concepts, the last of them all; ``prefix_weights``
    those of their losses, the last of them 1.
    """

    repeats = ("stored", "dense")
    # Up to 26 % were where the others are found later.
    most_silent = 0.4
    group_begins: Tensor

    def __init__(
        self,
        n_features: int,
        nb_concepts: int,
        *,
        prefixes: Sequence[int],
        prefix_weights: Sequence[float],
        **params: Any,
    ) -> None:
        super().__init__(n_features, nb_concepts, **params)
        self.prefixes, self.prefix_weights = tuple(prefixes), tuple(prefix_weights)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Ascending numbers of concepts."""
        return self._prefixes

    @prefixes.setter
    def prefixes(self, prefixes: Sequence[int]) -> None:
        self._prefixes = tuple(prefixes)
        begins = torch.tensor([0, *self._prefixes[:-1]], device=self.decoder_bias.device)
        self.register_buffer("group_begins", begins, persistent=False)

    @property
    def can_be_sorted(self) -> bool:  # type: ignore[override]
        """Whether concepts are in prefixes, and the encoder's rows can change places."""
        return len(self.prefixes) > 1 and self.has_linear_encoder

    def select_stored(self, pre_codes: Tensor) -> tuple[SparseCodes, Tensor]:
        """Choose as a BatchTopK module does; the concepts of each row ascend."""
        codes, values = super().select_stored(pre_codes)
        return codes.ascending(values) if self.per_sample else (codes, values)

    def reconstruct_stored(
        self, codes: SparseCodes, values: Tensor, u: Tensor, target: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Give the reconstruction by each prefix, sums of groups of concepts, and the error."""
        bias, n_groups = self.decoder_bias, len(self.prefixes)
        if n_groups == 1:
            return super().reconstruct_stored(codes, values, u, target)
        split = codes.split_at(self.group_begins)
        weights, nothing = self.dictionary._weights, torch.zeros_like(bias)
        sums = decode(split, values, weights, nothing, self.row_gradients)
        by_group = sums.view(-1, n_groups, len(bias)).unbind(1)
        u_hats = tuple(itertools.accumulate(by_group, initial=bias))[1:]
        return u_hats, (u_hats[-1] - (u if target is None else target)).square().mean()
