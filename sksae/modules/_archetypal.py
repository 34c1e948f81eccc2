"""The torch module of ArchetypalSAE: a dictionary in reach of the data.

With candidates C, directions of unit norm in which data lie from their center::

    archetype_i  = unit(sum_j w_ij C_j)      w_i = softmax(logits_i): positive, of sum 1
    dictionary_i = unit(archetype_i + relaxation_i)      |relaxation_i| <= delta

Fel et al. (2025), arXiv:2502.12892, equation 4.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import SparseCodes, reconstruct
from ._overcomplete import overcomplete_sae
from ._variants import TopKModule

# At the start, an archetype is nearly one candidate: its weight among all others together.
_OWN_WEIGHT = 0.9
# Adam moves each logit by about the learning rate a step. A weight of 1 / n_points has to grow
# by orders of magnitude within a fit, so that weights move faster than other parameters.
_LOGIT_SCALE = 10.0
# Spread of the random logits of archetypes that start between several candidates.
_SPREAD = 3.0


class ArchetypalDictionary(overcomplete_sae.RelaxedArchetypalDictionary):
    """Rows of unit norm, at most ``arcsin(delta)`` from convex combinations of candidates.

    Differs from overcomplete's class: weights are a softmax, so that they stay a convex
    combination under any optimizer (there, a step of Adam moves each of thousands of weights by
    the learning rate, and clipping and dividing by their sum then all but erases a row); rows
    and archetypes have unit norm, in place of one multiplier, so that ``delta`` is an angle
    whatever the units of the data and combinations that cancel leave the relaxation no more
    room; with more rows than candidates none is zero; and nothing is written in a forward pass.

    Parameters
    ----------
    points : Tensor of shape (n_points, n_features)
        The candidates; rows of unit norm, on the CPU.
    nb_concepts : int
        Number of rows.
    delta : float
        Largest norm of a relaxation.
    """

    C: Tensor
    Relax: nn.Parameter
    fused: Tensor

    def __init__(self, points: Tensor, nb_concepts: int, delta: float) -> None:
        super().__init__(points.shape[1], nb_concepts, points, delta, use_multiplier=False)
        del self.W, self.multiplier
        self.logits = nn.Parameter(_first_logits(nb_concepts, len(points)))
        self.to(points.dtype)
        self.register_buffer("fused", self.rows().detach(), persistent=False)

    def weights(self) -> Tensor:
        """Give the weights of the candidates in each archetype, shape (nb_concepts, n_points)."""
        return (_LOGIT_SCALE * self.logits).softmax(dim=1)

    def archetypes(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Give the archetypes, shape (nb_concepts, n_features), or some of them."""
        weights = (_LOGIT_SCALE * self.logits[index]).softmax(dim=1)
        return nn.functional.normalize(weights @ self.C, dim=1)

    def rows(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Give the dictionary, shape (nb_concepts, n_features), or some of its rows."""
        return nn.functional.normalize(self.archetypes(index) + self.Relax[index], dim=1)

    def get_dictionary(self) -> Tensor:
        """Give the dictionary, shape (nb_concepts, n_features): computed anew in training."""
        return self.rows() if self.training else self.fused

    @property
    def has_unit_rows(self) -> bool:
        """Whether the rows have unit Euclidean norm and nothing else is learnt of them."""
        return True

    @torch.no_grad()
    def project_(self) -> None:
        """Shorten relaxations that are longer than ``delta``."""
        norm = self.Relax.norm(dim=1, keepdim=True)
        self.Relax.mul_((self.delta / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1))

    @torch.no_grad()
    def _fuse(self) -> None:
        self.fused = self.rows()

    def train(self, mode: bool = True) -> ArchetypalDictionary:
        """Switch the mode; at the end of training, keep the rows that it arrived at."""
        if self.training and not mode:
            self._fuse()
        nn.Module.train(self, mode)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fuse()


class ArchetypalModule(TopKModule, overcomplete_sae.RATopKSAE):
    """TopK codes on a dictionary in reach of the data.

    ``points``, shape (n_points, n_features), are the candidates, of unit norm.
    """

    dictionary: ArchetypalDictionary  # type: ignore[assignment]

    def __init__(
        self,
        n_features: int,
        nb_concepts: int,
        *,
        points: Tensor,
        delta: float,
        encoder_init_norm: float = 1.0,
        **params: Any,
    ) -> None:
        super().__init__(n_features, nb_concepts, points=points[:1], delta=delta, **params)
        self.dictionary = ArchetypalDictionary(points, nb_concepts, delta)
        if self.has_linear_encoder:
            self._tie_encoder(encoder_init_norm)

    @property
    def delta(self) -> float:
        """Largest norm of a relaxation."""
        return self.dictionary.delta

    @delta.setter
    def delta(self, value: float) -> None:
        self.dictionary.delta = value

    def reconstruct_stored(
        self, codes: SparseCodes, values: Tensor, u: Tensor, target: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Give the reconstruction of stored codes, in scaled units, and the squared error."""
        target = u if target is None else target
        dictionary, bias = self.dictionary.get_dictionary(), self.decoder_bias
        u_hat, error = reconstruct(codes, values, dictionary, bias, target)
        return (u_hat,), error

    def row_parameters(self) -> dict[str, Tensor]:
        """Give the encoder's weights alone: the dictionary is made of other parameters."""
        return {"encoder": self.linear_encoder.weight} if self.has_linear_encoder else {}

    def dead_rows(self) -> Tensor:
        """Give the dictionary's rows of the dead concepts, shape (n_dead, n_features)."""
        return self.dictionary.rows(self.dead_concepts)


def _first_logits(nb_concepts: int, n_points: int) -> Tensor:
    """Give logits with which archetypes are the candidates, as far as there are as many."""
    logits = torch.zeros(nb_concepts, n_points)
    n_own = min(nb_concepts, n_points)
    logits[n_own:] = _SPREAD * torch.randn(nb_concepts - n_own, n_points)
    others = max(1, n_points - 1)
    logits.fill_diagonal_(math.log(_OWN_WEIGHT / (1 - _OWN_WEIGHT) * others))
    return logits / _LOGIT_SCALE
