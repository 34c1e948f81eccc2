"""Training losses: functions of ``(x, x_hat, pre_codes, codes, dictionary)``.

``x`` and ``x_hat`` have shape (n, n_features), ``pre_codes`` and ``codes``
(n, nb_concepts), ``dictionary`` (nb_concepts, n_features). During ``fit`` they are in
the units the module trains in: the input divided by its root mean square about the
decoder bias, so that predicting the bias alone has a mean squared error near 1.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

Term = Callable[[Any, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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


class MSELoss:
    """`mse` as a class, as interpreto names it."""

    def __call__(self, x, x_hat, pre_codes=None, codes=None, dictionary=None) -> Tensor:
        """Give `mse` of the arguments."""
        return mse(x, x_hat, pre_codes, codes, dictionary)


class DeadNeuronsReanimationLoss:
    """`dead_neurons_reanimation` as a class, as interpreto names it."""

    def __call__(self, x, x_hat, pre_codes, codes, dictionary=None) -> Tensor:
        """Give `dead_neurons_reanimation` of the arguments."""
        return dead_neurons_reanimation(x, x_hat, pre_codes, codes, dictionary)


class SAELossClasses(Enum):
    """The reconstruction losses, under interpreto's names."""

    MSE = MSELoss
    DeadNeuronsReanimation = DeadNeuronsReanimationLoss


CRITERIA: dict[str, Callable[..., Tensor]] = {
    "mse": mse,
    "dead_neurons_reanimation": dead_neurons_reanimation,
}


def resolve_criterion(criterion, estimator_name: str) -> Callable[..., Tensor]:
    """Give the reconstruction loss that a ``criterion`` parameter names.

    Parameters
    ----------
    criterion : str, SAELossClasses, class or callable
        A key of ``CRITERIA``, a member of `SAELossClasses`, a class to instantiate
        without arguments, or a callable
        ``(x, x_hat, pre_codes, codes, dictionary) -> scalar Tensor``. A module is copied.
    estimator_name : str
        For the error message.

    Returns
    -------
    callable
        ``(x, x_hat, pre_codes, codes, dictionary) -> scalar Tensor``.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if isinstance(criterion, str) and criterion in CRITERIA:
        return CRITERIA[criterion]
    if isinstance(criterion, SAELossClasses):
        criterion = criterion.value
    if inspect.isclass(criterion) and _takes(criterion, 0):
        return resolve_criterion(criterion(), estimator_name)
    if callable(criterion) and not inspect.isclass(criterion) and _takes(criterion, 5):
        return copy.deepcopy(criterion) if isinstance(criterion, nn.Module) else criterion
    raise ValueError(
        f"The 'criterion' parameter of {estimator_name} must be one of {sorted(CRITERIA)}, a "
        "member of sksae.losses.SAELossClasses, a class to call without arguments, or a callable "
        f"(x, x_hat, pre_codes, codes, dictionary). Got {criterion!r} instead."
    )


def _takes(function, n_arguments: int) -> bool:
    """Tell whether a callable takes that many positional arguments, as far as can be seen."""
    if isinstance(function, nn.Module):
        function = function.forward
    try:
        inspect.signature(function).bind(*[None] * n_arguments)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True


class SAELoss(nn.Module):
    """A reconstruction criterion plus the weighted terms of a variant.

    Parameters
    ----------
    reconstruction : callable
        ``(x, x_hat, pre_codes, codes, dictionary) -> scalar Tensor``.
    terms : sequence of (float, callable)
        Coefficients and ``(module, x, x_hat, pre_codes, codes, dictionary) -> scalar Tensor``.
        A term whose coefficient is 0 is not computed.
    """

    def __init__(
        self, reconstruction: Callable[..., Tensor], terms: Sequence[tuple[float, Term]] = ()
    ) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self.terms = list(terms)

    def forward(
        self,
        module,
        x: Tensor,
        x_hat: Tensor,
        pre_codes: Tensor,
        codes: Tensor,
        dictionary: Tensor,
    ) -> Tensor:
        """Give the total loss of a batch.

        Parameters
        ----------
        module : SAEModule
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
            One number.
        """
        loss = self.reconstruction(x, x_hat, pre_codes, codes, dictionary)
        for coefficient, term in self.terms:
            if coefficient:
                loss = loss + coefficient * term(module, x, x_hat, pre_codes, codes, dictionary)
        return loss


def vanilla_l1(module, x, x_hat, pre_codes, codes, dictionary) -> Tensor:
    """Give the `l1_penalty` of a module's codes, as a term of `SAELoss`.

    Parameters
    ----------
    module : SAEModule
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
        One number.
    """
    return l1_penalty(codes, dictionary)


def jumprelu_l0(module, x, x_hat, pre_codes, codes, dictionary) -> Tensor:
    """Give the `l0_penalty` of a JumpReLU module, as a term of `SAELoss`.

    Parameters
    ----------
    module : SAEModule
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
        One number.
    """
    return l0_penalty(module.active(pre_codes))


def check_loss(loss: Tensor) -> Tensor:
    """Refuse a loss that is not one number.

    Parameters
    ----------
    loss : Tensor
        What a criterion gave.

    Returns
    -------
    Tensor
        The same number, without dimensions.

    Raises
    ------
    ValueError
        With the shape that came.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"The criterion must return a tensor with one number, got {got}.")
    return loss.reshape(())
