"""The torch module of MatchingPursuitSAE: codes by greedy steps on the dictionary itself.

With ``r_0 = u - decoder_bias`` and dictionary rows ``d_j`` of unit norm, for t = 1, 2, ..., k::

    j_t = argmax_j <r_{t-1}, d_j>      v_t = max(0, <r_{t-1}, d_{j_t}>)
    r_t = r_{t-1} - v_t d_{j_t}

The code of a concept is the sum of the ``v_t`` of the steps that chose it, so what is left
after the last step is the error of the reconstruction. Costa et al. (2025), arXiv:2506.03093,
section 3; Mallat and Zhang (1993), "Matching pursuits with time-frequency dictionaries".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._base import SAEModule
from ._overcomplete import overcomplete_sae

# Inner products of a row with the dictionary change in a step by those of the chosen row of the
# dictionary. They are kept where they take no more than this.
_GRAM_BYTES = 256 * 2**20
# A step that explains less than this many roundings of the row explains only rounding.
_ROUNDINGS = 16


class MatchingPursuitModule(SAEModule, overcomplete_sae.MpSAE):
    """Codes by ``k`` steps of matching pursuit; there is no encoder beside the dictionary.

    The pre-codes are the inner products of the dictionary's rows with what is left over after
    the last step, which is a constant in them: what further steps would choose from, and what
    the auxiliary loss teaches the dead concepts to explain.

    Differs from overcomplete's class: codes are not negative (there, a row that no concept
    points along gets the least negative one), a decoder bias is subtracted, pre-codes belong to
    concepts (there, they are the residual), and float64 stays float64.
    """

    k: int

    def __init__(
        self,
        n_features: int,
        nb_concepts: int,
        *,
        encoder_module: None = None,
        encoder_init_norm: float = 1.0,
        **params: Any,
    ) -> None:
        # With None, overcomplete would build a linear encoder that nothing uses.
        super().__init__(n_features, nb_concepts, encoder_module="identity", **params)

    def encode_scaled(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``(pre_codes, codes)``, each (n, nb_concepts), of scaled input (n, n_features)."""
        return self._pursue(u, self.dictionary.get_dictionary())[:2]

    def forward_scaled(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give ``(pre_codes, codes, u_hat, dictionary)`` of scaled input."""
        dictionary = self.dictionary.get_dictionary()
        pre_codes, codes, residual = self._pursue(u, dictionary)
        return pre_codes, codes, u - residual, dictionary

    def _pursue(self, u: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give ``(pre_codes, codes, residual)``."""
        values, chosen, residual = pursue(u - self.decoder_bias, dictionary, self.k)
        codes = values.new_zeros(len(u), self.nb_concepts).scatter_add(1, chosen, values)
        return residual.detach() @ dictionary.T, codes, residual

    def sparse_obstacle(self) -> str | None:
        """Say what keeps `forward_sparse` from giving what `forward_scaled` gives, if anything."""
        return "matching pursuit chooses codes one after the other"

    def scale_encoder(self, factor: Tensor) -> None:
        """Do nothing: the codes of ``factor * c`` are ``factor`` times those of ``c``."""


def pursue(c: Tensor, dictionary: Tensor, n_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Write rows as sums of dictionary rows, one more at each step.

    Parameters
    ----------
    c : Tensor of shape (n, d)
        Centered rows.
    dictionary : Tensor of shape (m, d)
        Rows of unit norm.
    n_steps : int
        Rows of the dictionary to add up for each row.

    Returns
    -------
    values : Tensor of shape (n, n_steps)
        Coefficients, positive, or 0 at a step that found nothing to add.
    chosen : Tensor of int64, shape (n, n_steps)
        The dictionary rows that they belong to; one may be chosen again.
    residual : Tensor of shape (n, d)
        What is left: ``c - sum_t values[:, t] * dictionary[chosen[:, t]]``.
    """
    return _Pursuit.apply(c, dictionary, n_steps)


class _Pursuit(torch.autograd.Function):
    """Forwards, `n_steps` greedy choices. Backwards, the steps in reverse.

    With ``g_t`` the derivative by ``r_t``, and the choices taken as given::

        s_t     = derivative by v_t - <g_t, d>       (0 where v_t is 0)
        on d    = s_t r_{t-1} - v_t g_t
        g_{t-1} = g_t + s_t d

    so that nothing but the choices, their values and the last residual need be kept.
    """

    @staticmethod
    def forward(ctx, c, dictionary, n_steps):
        products = (c @ dictionary.T).to(c.dtype)
        gram = _gram(dictionary) if _gram_pays(dictionary, len(c), n_steps) else None
        least = _ROUNDINGS * torch.finfo(c.dtype).eps * c.norm(dim=1)
        values, chosen = c.new_zeros(len(c), n_steps), []
        residual = c
        for step in range(n_steps):
            if step and gram is None:
                products = residual @ dictionary.T
            elif step:
                products.addcmul_(gram[chosen[-1]], values[:, step - 1, None], value=-1)
            chosen.append(products.argmax(dim=1))
            atoms = dictionary[chosen[-1]]
            value = (residual * atoms).sum(dim=1)
            values[:, step] = torch.where(value > least, value, 0)
            residual = residual - values[:, step, None] * atoms
        index = torch.stack(chosen, dim=1)
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(dictionary, values, index, residual)
        return values, index, residual

    @staticmethod
    def backward(ctx, on_values, _on_index, on_residual):
        dictionary, values, index, residual = ctx.saved_tensors
        on_dictionary = torch.zeros_like(dictionary) if ctx.needs_input_grad[1] else None
        for step in reversed(range(index.shape[1])):
            atoms, value = dictionary[index[:, step]], values[:, step, None]
            slope = on_values[:, step, None] - (on_residual * atoms).sum(dim=1, keepdim=True)
            slope = torch.where(value > 0, slope, 0)
            residual = residual + value * atoms
            if on_dictionary is not None:
                on_atoms = slope * residual - value * on_residual
                on_dictionary.index_add_(0, index[:, step], on_atoms)
            on_residual = on_residual + slope * atoms
        return on_residual, on_dictionary, None


def _gram_pays(dictionary: Tensor, n_rows: int, n_steps: int) -> bool:
    """Tell whether products of dictionary rows cost less than those with residuals."""
    m = len(dictionary)
    fits = m * m * dictionary.element_size() <= _GRAM_BYTES
    return fits and m < n_rows * (n_steps - 1)


def _gram(dictionary: Tensor) -> Tensor:
    return (dictionary @ dictionary.T).to(dictionary.dtype)
