"""The torch module of Transcoder: codes of one layer's activations, decoded into another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import SparseCodes
from ._base import Dictionary, _dictionary_arguments, distance_cut
from ._variants import TopKModule


class TranscoderModule(TopKModule):
    """TopK codes of an input whose dictionary lies in the space of an output.

    In scaled units, ``u = x / input_scale`` and ``v = y / output_scale``::

        codes = topk(relu(encoder(u - center)), k)
        v_hat = codes @ dictionary + decoder_bias [+ skip_weight (u - center)]

    The center of the input stays as the data set it: the encoder's own bias can do what
    learning it would. ``skip`` is whether there is a ``skip_weight``, of shape (n_outputs,
    n_features), zero until `start_skip`.
    """

    target_scale: Tensor
    target_center: Tensor
    target_distance: Tensor

    def __init__(
        self,
        n_features: int,
        nb_concepts: int,
        *,
        n_outputs: int,
        skip: bool = False,
        dictionary_params: dict[str, Any] | None = None,
        **params: Any,
    ) -> None:
        super().__init__(n_features, nb_concepts, **params)
        arguments = _dictionary_arguments(dictionary_params)
        self.dictionary = Dictionary(n_outputs, nb_concepts, **arguments)
        self.dictionary.project_()
        self.decoder_bias = nn.Parameter(torch.zeros(n_outputs))
        self.n_outputs, self.skip = n_outputs, skip
        weight = nn.Parameter(torch.zeros(n_outputs, n_features)) if skip else None
        self.register_parameter("skip_weight", weight)
        self._buffer("target_scale", torch.ones(()))
        self._buffer("target_center", torch.zeros(n_outputs))
        self._buffer("target_distance", torch.tensor(torch.inf))

    @property
    def pre_bias(self) -> Tensor:
        """What is subtracted from the scaled input: the center of the input."""
        return self.center

    @property
    def output_scale(self) -> Tensor:
        """What scaled predictions are multiplied by to be in output units."""
        return self.target_scale

    @torch.no_grad()
    def set_units(self, bias: Tensor, scale: Tensor | float, radius: float = torch.inf) -> None:
        """Set, in input units, the input's center, scale and `pull_in`'s radius."""
        self.input_scale.fill_(scale)
        self.max_distance.fill_(radius / scale)
        self.center.copy_(bias / self.input_scale)

    @torch.no_grad()
    def set_output_units(self, bias: Tensor, scale: float, radius: float = torch.inf) -> None:
        """Set, in output units, decoder bias, scale and `pull_in_target`'s radius."""
        self.target_scale.fill_(scale)
        self.target_distance.fill_(radius / scale)
        self.decoder_bias.copy_(bias / self.target_scale)
        self.target_center.copy_(self.decoder_bias)

    @torch.no_grad()
    def start_skip(self, x: Tensor, y: Tensor) -> None:
        """Start the skip as the ridge regression of outputs on inputs (n, d), both unscaled.

        The ridge is the total variance of the input by the number of rows: it does not matter
        where there are many more rows than features, and shrinks the map where there are few.
        """
        u = (self.pull_in(x / self.input_scale) - self.center).double()
        v = (self.pull_in_target(y / self.output_scale) - self.target_center).double()
        covariance, ridge = u.T @ u / len(u), u.square().sum() / len(u) ** 2
        covariance.diagonal().add_(ridge.clamp(min=torch.finfo(torch.float64).tiny))
        solution = torch.linalg.solve(covariance, u.T @ v / len(u))
        if self.skip_weight is not None and torch.isfinite(solution).all():
            self.skip_weight.copy_(solution.T)

    @torch.no_grad()
    def pull_in_target(self, v: Tensor) -> Tensor:
        """Move scaled outputs beyond the radius towards their center, onto the radius."""
        return distance_cut(v, self.target_center, self.target_distance)

    # Codes are selected as a TopK module does; only what is made of them differs.
    select_stored = TopKModule.select_stored

    def skipped(self, u: Tensor) -> Tensor | float:
        """Give what of the scaled prediction is affine in the scaled input."""
        return 0.0 if self.skip_weight is None else (u - self.center) @ self.skip_weight.T

    def forward_scaled(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give ``(pre_codes, codes, v_hat, dictionary)`` of scaled input."""
        pre_codes, codes, v_hat, dictionary = super().forward_scaled(u)
        return pre_codes, codes, v_hat + self.skipped(u), dictionary

    def reconstruct_stored(
        self, codes: SparseCodes, values: Tensor, u: Tensor, target: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Give the prediction from stored codes, in scaled units, and the squared error."""
        assert target is not None
        skipped = self.skipped(u)
        (v_hat,), error = super().reconstruct_stored(codes, values, u, target - skipped)
        return (v_hat + skipped,), error

    def offset(self, x: Tensor) -> Tensor:
        """Give what is added to the decoded codes of rows x, in output units."""
        constant = super().offset(x)
        if self.skip_weight is None:
            return constant
        return constant + self.output_scale * self.skipped(x / self.input_scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give ``(pre_codes, codes, y_hat)`` of rows (n, n_features), in output units."""
        pre_codes, codes = self.encode(x)
        return pre_codes, codes, codes @ self.get_dictionary() + self.offset(x)

    @torch.no_grad()
    def fold_normalization(self) -> TranscoderModule:
        """Give a copy that gives the same with scales of 1, for export."""
        ratio = self.output_scale / self.input_scale
        folded = super().fold_normalization()
        assert isinstance(folded, TranscoderModule)
        folded.linear_encoder.weight.mul_(ratio)
        folded.linear_encoder.bias.mul_(ratio)
        folded.decoder_bias.mul_(ratio)
        if folded.skip_weight is not None:
            folded.skip_weight.mul_(ratio)
        folded.target_center.mul_(self.output_scale)
        folded.target_distance.mul_(self.output_scale)
        folded.target_scale.fill_(1)
        return folded
