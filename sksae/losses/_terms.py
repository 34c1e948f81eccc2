"""Terms of `SAELoss` that belong to single variants, for all codes and for stored ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._functions import l1_penalty, mse


def gate_l1(module, x, x_hat, pre_codes, codes, dictionary) -> Tensor:
    """Give the `l1_penalty` of the positive parts of a gated module's gates.

    The dictionary, whose row norms weigh them, is taken as a constant, as it is in
    `gate_reconstruction`. Source: Rajamanoharan et al. (2024), arXiv:2404.16014, section 3.2.

    Parameters
    ----------
    module : GatedModule
        The module being trained.
    x, x_hat : Tensor of shape (n, n_features)
        Input and reconstruction.
    pre_codes, codes : Tensor of shape (n, nb_concepts)
        The gates before they are cut at 0, and the codes.
    dictionary : Tensor of shape (nb_concepts, n_features)
        The module's dictionary.

    Returns
    -------
    Tensor
        One number.
    """
    return l1_penalty(pre_codes.relu(), dictionary.detach())


def gate_reconstruction(module, x, x_hat, pre_codes, codes, dictionary) -> Tensor:
    """Give the `mse` of reconstructing x from the positive parts of a gated module's gates.

    Dictionary and decoder bias are taken as constants there, so that this loss teaches the
    gates alone; nothing else but the penalty does, for a step has no gradient. Source:
    Rajamanoharan et al. (2024), arXiv:2404.16014, section 3.2, the auxiliary loss.

    Parameters
    ----------
    module : GatedModule
        The module being trained.
    x, x_hat : Tensor of shape (n, n_features)
        Input and reconstruction.
    pre_codes, codes : Tensor of shape (n, nb_concepts)
        The gates before they are cut at 0, and the codes.
    dictionary : Tensor of shape (nb_concepts, n_features)
        The module's dictionary.

    Returns
    -------
    Tensor
        One number.
    """
    return mse(x, pre_codes.relu() @ dictionary.detach() + module.decoder_bias.detach())


def prefix_reconstruction(module, x, x_hat, pre_codes, codes, dictionary) -> Tensor | float:
    """Give the weighted sum, over prefixes of the dictionary, of the `mse` of each alone.

    ``sum_m w_m mse(x, codes[:, :m] @ dictionary[:m] + decoder_bias)`` over the module's
    ``prefixes`` but the last, which is the whole dictionary. Source: Bussmann et al. (2025),
    arXiv:2503.17547, section 3.

    Parameters
    ----------
    module : MatryoshkaModule
        The module being trained.
    x, x_hat : Tensor of shape (n, n_features)
        Input and reconstruction.
    pre_codes, codes : Tensor of shape (n, nb_concepts)
        Before and after the nonlinearity.
    dictionary : Tensor of shape (nb_concepts, n_features)
        The module's dictionary.

    Returns
    -------
    Tensor
        One number; the float 0 where the whole dictionary is the only prefix.
    """
    total: Tensor | float = 0.0
    x_hat, start = module.decoder_bias, 0
    for weight, end in zip(module.prefix_weights, module.prefixes[:-1], strict=False):
        x_hat = x_hat + codes[:, start:end] @ dictionary[start:end]
        total, start = total + weight * mse(x, x_hat), end
    return total


def _stored_gate_l1(module, x, x_hats, codes, pre_codes, values) -> Tensor:
    """Give `gate_l1` of stored gates: all positive ones, dictionary rows of unit norm."""
    return pre_codes.sum() / x.numel()


def _stored_gate_reconstruction(module, x, x_hats, codes, pre_codes, values) -> Tensor:
    """Give `gate_reconstruction` of stored gates."""
    return mse(x, module.decode_frozen(codes, pre_codes))


def _stored_prefixes(module, x, x_hats, codes, pre_codes, values) -> Tensor | float:
    """Give `prefix_reconstruction` of the reconstructions that the module gives."""
    pairs = zip(module.prefix_weights, x_hats[:-1], strict=False)
    return sum(weight * mse(x, x_hat) for weight, x_hat in pairs)


STORED_TERMS: dict[Callable[..., Any], Callable[..., Any]] = {
    gate_l1: _stored_gate_l1,
    gate_reconstruction: _stored_gate_reconstruction,
    prefix_reconstruction: _stored_prefixes,
}
