"""The loss of a fit: a reconstruction criterion, a variant's penalties, dead concepts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import dead_loss, has_dead_loss
from ._functions import LEAK, auxk_loss, dead_neurons_reanimation, l0_penalty, l1_penalty, mse
from ._target_l0 import TargetL0
from ._terms import STORED_TERMS

Term = Callable[[Any, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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
    """A reconstruction criterion, the further terms of a variant, and AuxK.

    ``reconstruction + sum(coefficient * further reconstruction) + scale * sum(coefficient *
    penalty) + auxk_coefficient * auxk``, where ``scale`` is 1 but for a warm-up and a target
    for L0.

    Parameters
    ----------
    reconstruction : callable
        ``(x, x_hat, pre_codes, codes, dictionary) -> scalar Tensor``.
    terms : sequence of (float, callable)
        The penalties: coefficients and
        ``(module, x, x_hat, pre_codes, codes, dictionary) -> scalar Tensor``. One whose
        coefficient is 0 is not computed.
    auxk_coefficient : float, default=0.0
        Weight of `auxk_loss`, over the concepts that the module lists as dead.
    k_aux : int, optional
        Dead concepts used for each sample. None is half the width of the input.
    target_l0 : float, optional
        Mean number of active concepts that the penalties are steered to, by `TargetL0`.
    reconstruction_terms : sequence of (float, callable)
        Losses of reconstructions other than that of all codes: like ``terms``, but never
        scaled.

    Attributes
    ----------
    warmup : float
        Share of the penalties that counts at this step, from 0 to 1; at 0 they are not computed. A
        tensor stands for what is neither.
    """

    def __init__(
        self,
        reconstruction: Callable[..., Tensor],
        terms: Sequence[tuple[float, Term]] = (),
        auxk_coefficient: float = 0.0,
        k_aux: int | None = None,
        target_l0: float | None = None,
        reconstruction_terms: Sequence[tuple[float, Term]] = (),
    ) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self.terms, self.reconstruction_terms = list(terms), list(reconstruction_terms)
        self.auxk_coefficient, self.k_aux = auxk_coefficient, k_aux
        self.target_l0 = target_l0
        self.controller = TargetL0()
        self.warmup: float | Tensor = 1.0

    @property
    def is_warm(self) -> bool:
        """Whether the penalties have their full weight."""
        return not isinstance(self.warmup, Tensor) and self.warmup == 1

    @property
    def repeats(self) -> bool:
        """Whether what is computed is known, and does not depend on values."""
        terms = {term for c, term in (*self.terms, *self.reconstruction_terms) if c}
        return self.reconstruction in CRITERIA.values() and terms <= _STORED_TERMS.keys()

    def forward(
        self,
        module,
        x: Tensor,
        x_hat: Tensor,
        pre_codes: Tensor,
        codes: Tensor,
        dictionary: Tensor,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """Give the total loss of a batch.

        Parameters
        ----------
        module : SAEModule
            The module being trained.
        x, x_hat : Tensor of shape (n, n_features)
            Target and reconstruction.
        pre_codes, codes : Tensor of shape (n, nb_concepts)
            Before and after the nonlinearity.
        dictionary : Tensor of shape (nb_concepts, n_features)
            The module's dictionary.
        inputs : Tensor, optional
            What the codes were made of, where that is not the target.

        Returns
        -------
        Tensor
            One number.
        """
        loss = self.of_codes(module, x, x_hat, pre_codes, codes, dictionary)
        return loss + self.of_dead(module, x, x_hat, pre_codes, dictionary, inputs)

    def of_codes(self, module, *batch: Tensor) -> Tensor:
        """Give the loss of a batch without the auxiliary loss of dead concepts.

        Parameters
        ----------
        module : SAEModule
            The module being trained.
        *batch : Tensor
            The first five tensors that ``forward`` takes.

        Returns
        -------
        Tensor
            One number.
        """
        penalties = [c * term(module, *batch) for c, term in self._penalties()]
        others = [c * term(module, *batch) for c, term in self.reconstruction_terms if c]
        return self.reconstruction(*batch) + sum(others) + self._penalty(penalties)

    def of_dead(
        self,
        module,
        x: Tensor,
        x_hat: Tensor,
        pre_codes: Tensor | None,
        dictionary: Tensor | None,
        inputs: Tensor | None = None,
    ) -> Tensor | float:
        """Give the auxiliary loss of dead concepts, times its coefficient.

        Parameters
        ----------
        module : SAEModule
            The module being trained.
        x, x_hat : Tensor of shape (n, n_features)
            Target and reconstruction.
        pre_codes : Tensor of shape (n, nb_concepts), optional
            Needed where the module's encoder is not the linear one.
        dictionary : Tensor of shape (nb_concepts, n_features), optional
            The module's dictionary; needed where it has no ``dead_places``.
        inputs : Tensor, optional
            What the codes were made of, where that is not the target.

        Returns
        -------
        Tensor or float
            One number, 0 where no concept is dead.
        """
        if not (self.auxk_coefficient and len(module.dead_concepts)):
            return 0.0
        if module.dead_places is not None:
            rows = module.dead_rows()
            return self._stored_auxk(module, x, x_hat.detach(), None, rows, inputs)
        assert dictionary is not None
        rows = dictionary.index_select(0, module.dead_concepts)
        return self._auxk(module, x, x_hat, pre_codes, rows, inputs)

    def sparse_obstacle(self) -> str | None:
        """Say what keeps `sparse` from giving what `forward` gives, if anything.

        Returns
        -------
        str or None
        """
        if self.reconstruction is not mse:
            return "criterion is not 'mse'"
        terms = [*self.terms, *self.reconstruction_terms]
        unknown = [term for c, term in terms if c and term not in _STORED_TERMS]
        return f"the loss term {unknown[0]!r} needs all codes" if unknown else None

    def sparse(
        self,
        module,
        x: Tensor,
        x_hats,
        error: Tensor,
        codes,
        pre_codes: Tensor,
        values: Tensor,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """Give the total loss of a batch from the stored codes.

        Parameters
        ----------
        module : SAEModule
            The module being trained.
        x : Tensor of shape (n, n_features)
            Target.
        x_hats : tuple of Tensor of shape (n, n_features)
            Its reconstructions; the last one is by all concepts.
        error : Tensor
            `mse` of x and the last one.
        codes : SparseCodes
            Where the codes are.
        pre_codes, values : Tensor of shape (n_stored,)
            Before and after the nonlinearity.
        inputs : Tensor, optional
            What the codes were made of, where that is not the target.

        Returns
        -------
        Tensor
            One number.
        """
        batch = (module, x, x_hats, codes, pre_codes, values)
        penalties = [c * _STORED_TERMS[term](*batch) for c, term in self._penalties()]
        others = [c * _STORED_TERMS[term](*batch) for c, term in self.reconstruction_terms if c]
        loss = error + sum(others) + self._penalty(penalties)
        if self.auxk_coefficient and len(module.dead_concepts):
            auxk = self._stored_auxk if has_dead_loss(x.device) else self._auxk
            loss = loss + auxk(module, x, x_hats[-1].detach(), None, module.dead_rows(), inputs)
        return loss

    def _penalties(self) -> list[tuple[float, Term]]:
        counts = isinstance(self.warmup, Tensor) or self.warmup > 0
        return [(c, term) for c, term in self.terms if c and counts]

    def _penalty(self, penalties: list[Tensor]) -> Tensor | float:
        return self.warmup * self.scale() * sum(penalties) if penalties else 0.0

    def scale(self) -> Tensor | float:
        """Give the factor that steers the penalties to the target; 1 without one.

        Returns
        -------
        Tensor or float
            One positive number.
        """
        return 1.0 if self.target_l0 is None else self.controller.log_scale.exp()

    def after_step(self, l0: Tensor, time: float) -> None:
        """Steer the penalties after a step of the optimizer.

        Parameters
        ----------
        l0 : Tensor
            Mean number of active concepts per sample of the batch.
        time : float
            See `TargetL0`.
        """
        if self.target_l0 is not None:
            self.controller.update(l0, self.target_l0, time)

    def _auxk(self, module, x, x_hat, pre_codes, rows, inputs) -> Tensor:
        pre_codes = module.dead_pre_codes(x if inputs is None else inputs, pre_codes)
        return self.auxk_coefficient * auxk_loss(x - x_hat, pre_codes, rows, self._k_aux(x))

    def _stored_auxk(self, module, x, x_hat, pre_codes, rows, inputs) -> Tensor:
        """Give `_auxk` of a linear encoder."""
        c, *encoder = module.dead_encoder(x if inputs is None else inputs)
        gradients = module.row_gradients
        known = None if gradients is None else gradients.error
        loss = dead_loss(c, tuple(encoder), rows, x, x_hat, self._k_aux(x), LEAK, known)
        return self.auxk_coefficient * loss

    def _k_aux(self, x: Tensor) -> int:
        return self.k_aux or max(1, x.shape[1] // 2)


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


def _stored_l1(module, x, x_hats, codes, pre_codes, values) -> Tensor:
    """Give `vanilla_l1` of stored codes, whose dictionary rows have unit norm."""
    return values.sum() / x.numel()


def _stored_l0(module, x, x_hats, codes, pre_codes, values) -> Tensor:
    """Give `jumprelu_l0` of stored codes."""
    return module.stored_active(codes, pre_codes).sum() / len(x)


_STORED_TERMS: dict[Term, Callable[..., Tensor]] = {
    vanilla_l1: _stored_l1,
    jumprelu_l0: _stored_l0,
    **STORED_TERMS,
}


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
