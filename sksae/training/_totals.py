"""Sums over the batches of an epoch, kept on the device until its end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._data import rounding

_MOST_WAITING = 64


@dataclass(frozen=True)
class EpochValues:
    """The numbers of one pass: means over its rows, ``explained_variance`` of its rows.

    ``sum_squares`` is that of its rows around their mean.
    """

    loss: float
    n_batches: int
    sum_squares: float
    explained_variance: float
    l0: float
    dead_fraction: float


class EpochTotals:
    """Accumulate loss, squared error, variance and activity without reading the device.

    Parameters
    ----------
    module : SAEModule
    device : torch.device
    sum_squares : float, optional
        That of the rows around their mean, where it is known from an earlier pass.
    """

    def __init__(self, module, device: torch.device, sum_squares: float | None = None) -> None:
        self.module, self.known_sum_squares = module, sum_squares
        self.n_rows = self.n_batches = 0
        # Loss, squared error and number of active codes: sums, and those of batches of equal
        # size that wait to be added together, which takes fewer operations.
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.n_each = 0
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        n_features = module.decoder_bias.shape[0]
        self.sum = torch.zeros(n_features, dtype=torch.float64, device=device)
        self.sum_squares = torch.zeros(n_features, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, step: dict[str, Tensor]) -> None:
        """Add a batch: its loss, active codes, scaled target and reconstruction."""
        u, n = step["target"], len(step["target"])
        error = step.get("error")
        if error is None:
            error = (u - step["y_pred"]).square().mean(dtype=torch.float64)
        if n != self.n_each or len(self.waiting) == _MOST_WAITING:
            self._add_waiting()
        self.n_each = n
        self.waiting.append((step["loss"], error, step["n_active"]))
        if self.known_sum_squares is None:
            self._add_rows(u)
        self.n_rows += n
        self.n_batches += 1

    def _add_waiting(self) -> None:
        if not self.waiting:
            return
        columns = zip(*self.waiting, strict=True)
        loss, error, active = (torch.stack(column).double() for column in columns)
        before = self.n_batches - len(self.waiting)
        bad = ~torch.isfinite(loss)
        first = torch.where(bad.any(), before + bad.to(torch.int64).argmax(), -1)
        self.first_bad = torch.where(self.first_bad < 0, first, self.first_bad)
        n_features = len(self.sum)
        added = (loss.sum() * self.n_each, error.sum() * self.n_each * n_features, active.sum())
        self.sums += torch.stack(added)
        self.waiting = []

    def _add_rows(self, u: Tensor) -> None:
        if self.n_batches == 0:
            # Near the mean, so that the difference of the two sums keeps its digits.
            self.shift = u.mean(dim=0)
        deviation = u - self.shift
        self.sum += deviation.sum(dim=0)
        self.sum_squares += deviation.square().sum(dim=0)

    def read(self, n_steps: int | None = None) -> EpochValues:
        """Read the totals from the device.

        Parameters
        ----------
        n_steps : int, optional
            Steps taken at the end of the pass, if it was one of training.

        Raises
        ------
        FloatingPointError
            If a training loss was not finite, with its step.
        """
        n = self.n_rows
        self._add_waiting()
        loss, error, active = self.sums.tolist()
        first_bad = int(self.first_bad)
        if n_steps is not None and first_bad >= 0:
            raise not_finite(n_steps - self.n_batches + first_bad)
        total = self._sum_squares() if self.known_sum_squares is None else self.known_sum_squares
        dead = self.module.samples_since_fired >= n
        return EpochValues(
            loss=loss / n,
            n_batches=self.n_batches,
            sum_squares=total,
            explained_variance=_explained(error, total),
            l0=active / n,
            dead_fraction=float(dead.double().mean()),
        )

    def _sum_squares(self) -> float:
        total = float((self.sum_squares - self.sum.square() / self.n_rows).sum())
        tiny = self.n_rows * len(self.sum) * rounding(self.shift.double())
        return total if total > tiny else 0.0


def _explained(error: float, total: float) -> float:
    if total > 0:
        return 1 - error / total
    return 1.0 if error == 0 else 0.0


def not_finite(step: int) -> FloatingPointError:
    """Give the error for a loss that is not finite at a step, counted from 0."""
    return FloatingPointError(
        f"The loss was not finite at training step {step}. Likely causes: a learning rate that is "
        "too high (lower lr or set clip_grad), a criterion that divides by zero, or rows of "
        "extreme norm in X."
    )
