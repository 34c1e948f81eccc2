"""The formulas: functions of tensors that give one number.

``x`` and ``x_hat`` have shape (n, n_features), ``pre_codes`` and ``codes``
(n, nb_concepts), ``dictionary`` (nb_concepts, n_features). During ``fit`` they are in
the units the module trains in: the input divided by its root mean square about the
decoder bias, so that predicting the bias alone has a mean squared error near 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAK = 0.1


def mse(x: Tensor, x_hat: Tensor, pre_codes=None, codes=None, dictionary=None) -> Tensor:
    """Mean squared error over all n * n_features entries.

    Parameters
    ----------
    x, x_hat : Tensor of shape (n, n_features)
        Input and reconstruction.
    pre_codes, codes, dictionary : object, optional
        Ignored; every loss is called with them.

    Returns
    -------
    Tensor
        One number.

    Examples
    --------
    >>> import torch
    >>> mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])).item()
    2.0
    """
    return (x - x_hat).square().mean()


def dead_neurons_reanimation(
    x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary=None
) -> Tensor:
    """Mean squared error minus a push on the pre-codes of concepts silent in the batch.

    ``mse - 1e-3 * mean(pre_codes * dead)`` over all n * nb_concepts entries, where
    ``dead`` is 1 for a concept with no positive code in the batch. The constant and the
    normalisation are those of interpreto's ``DeadNeuronsReanimationLoss``.

    Parameters
    ----------
    x, x_hat : Tensor of shape (n, n_features)
        Input and reconstruction.
    pre_codes, codes : Tensor of shape (n, nb_concepts)
        Before and after the nonlinearity.
    dictionary : object, optional
        Ignored; every loss is called with it.

    Returns
    -------
    Tensor
        One number.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(2, 3)
    >>> pre_codes, codes = torch.tensor([[1.0, -4.0]] * 2), torch.tensor([[1.0, 0.0]] * 2)
    >>> round(dead_neurons_reanimation(x, x, pre_codes, codes).item(), 6)
    0.002
    """
    dead = ~(codes > 0).any(dim=0)
    return mse(x, x_hat) - 1e-3 * (pre_codes * dead).mean()


def l1_penalty(codes: Tensor, dictionary: Tensor) -> Tensor:
    """Norm-weighted L1 norm of a code, per input feature, averaged over samples.

    ``mean_i sum_j |codes_ij| * ||dictionary_j|| / n_features``. Beside the mean squared
    error per entry this weighs as in ``||x - x_hat||^2 + coefficient * L1`` [1]_, so that
    coefficients carry over.

    Parameters
    ----------
    codes : Tensor of shape (n, nb_concepts)
        Codes.
    dictionary : Tensor of shape (nb_concepts, n_features)
        Its row norms are the weights.

    Returns
    -------
    Tensor
        One number.

    References
    ----------
    .. [1] Conerly et al. (2024), "Update on how we train SAEs", Transformer Circuits
       Thread, April 2024.

    Examples
    --------
    >>> import torch
    >>> l1_penalty(torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.eye(2)).item()
    1.5
    """
    norms = dictionary.norm(dim=1)
    return (codes.abs() @ norms).mean() / dictionary.shape[1]


def l0_penalty(active: Tensor) -> Tensor:
    """Mean number of active concepts per sample.

    Beside a mean squared error in units of the input's variance, its coefficient is the
    share of variance that one more active concept has to explain. Source: the L0 term of
    Rajamanoharan et al. (2024), arXiv:2407.14435, equation 9.

    Parameters
    ----------
    active : Tensor of shape (n, nb_concepts)
        1 where a concept is active, else 0.

    Returns
    -------
    Tensor
        One number.

    Examples
    --------
    >>> import torch
    >>> l0_penalty(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).item()
    1.5
    """
    return active.sum(dim=1).mean()


def auxk_loss(residual: Tensor, pre_codes: Tensor, dictionary: Tensor, k_aux: int) -> Tensor:
    """How badly the dead concepts explain what the live ones left over.

    ``mean((e - z D)^2) / mean(e^2)`` with the residual ``e = x - x_hat``, detached, and z
    the ``k_aux`` largest pre-codes of each sample among the dead concepts; the decoder
    bias has no part in it. The pre-codes pass a leaky ReLU of slope 0.1, so that the
    gradient reaches concepts whose pre-codes are negative for every sample. Where dead
    concepts explain nothing it is 1, so its weight does not fade as the reconstruction
    improves. Source: Gao et al. (2024), arXiv:2406.04093, section 2.4 and appendix A.2; the
    division by the size of the residual is in the authors' code (openai/sparse_autoencoder),
    the leak is not.

    Parameters
    ----------
    residual : Tensor of shape (n, n_features)
        Input minus reconstruction.
    pre_codes : Tensor of shape (n, n_dead)
        Of the dead concepts, before the nonlinearity.
    dictionary : Tensor of shape (n_dead, n_features)
        Rows of the dead concepts.
    k_aux : int
        Dead concepts used for each sample, if there are as many.

    Returns
    -------
    Tensor
        One number; 0 where the residual is.

    Examples
    --------
    >>> import torch
    >>> residual, pre_codes = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.5]])
    >>> auxk_loss(residual, pre_codes, torch.eye(2), k_aux=1).item()
    0.25
    """
    residual = residual.detach()
    codes = torch.nn.functional.leaky_relu(pre_codes, LEAK)
    if k_aux < codes.shape[1]:
        values, indices = codes.topk(k_aux, dim=1, sorted=False)
        codes = torch.zeros_like(codes).scatter(1, indices, values)
    error, size = (residual - codes @ dictionary).square().mean(), residual.square().mean()
    tiny = torch.finfo(size.dtype).eps  # of rows of unit variance
    return torch.where(size > tiny, error / size.clamp(min=tiny), 0 * error)
