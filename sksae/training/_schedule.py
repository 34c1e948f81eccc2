"""How training develops over a fit: learning rate, penalties, and what follows from its length.

A fit has a known number of steps; a series of ``partial_fit`` calls is open, and is
treated as `OPEN_STEPS` steps long with a constant rate at the end of the warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OPEN_STEPS = 2000
# Share of a fit, and steps, in which it is looked for silent concepts, see
# `sksae.training._sparsity`. Where the rate stays high for longer, some fall silent that were not.
_SILENCE_WATCH, _MAX_SILENCE_WATCH = 0.2, 8000

# Measured on token activations of a small encoder; see `auto_lr`.
_LR, _WIDTH, _BATCH, _STEPS = 5e-3, 4096, 1024, 1500
MAX_LR = 1e-2
_CONSTANT = 1 / 4
_WARMUP_SHARE, _MAX_WARMUP = 0.05, 1000
_AUXK, _MAX_AUXK, _AUXK_STEPS = 1 / 32, 1 / 8, 200
# Firings of the average concept, and batches, after which another one is revived; measured on
# token activations and planted features.
_MAX_FIRINGS, _FEWEST_BATCHES = 50, 8


@dataclass(frozen=True)
class Length:
    """How long a fit is.

    Attributes
    ----------
    n_batches : int
        Steps of one pass over the rows.
    n_rows : int
        Rows of one pass.
    epochs : int or None
        Passes; None where the end is open.
    """

    n_batches: int
    n_rows: int
    epochs: int | None

    @property
    def n_steps(self) -> int | None:
        """Steps; None where the end is open."""
        return None if self.epochs is None else self.epochs * self.n_batches

    @property
    def assumed_steps(self) -> int:
        """Steps, or what an open end is taken for."""
        return OPEN_STEPS if self.epochs is None else self.epochs * self.n_batches

    def steps(self, value: float) -> int:
        """Give a number of steps: an int is one, a float is a share of the fit."""
        return int(value) if isinstance(value, Integral) else round(value * self.assumed_steps)


def auto_lr(nb_concepts: int, batch_size: int, n_steps: int | None) -> float:
    """Give the learning rate, at the end of the warm-up, for Adam.

    ``5e-3 * sqrt(4096 / nb_concepts) * sqrt(batch_size / 1024) * (1500 / n_steps)^(1/4)``,
    at most 1e-2. The rate falls with the square root of the width as in Gao et al.
    (2024), arXiv:2406.04093, appendix A.3; rises with that of the batch size, as the
    gradient's noise falls; and a short fit has to go further at each step.

    Parameters
    ----------
    nb_concepts : int
        Number of dictionary rows.
    batch_size : int
        Rows per step.
    n_steps : int or None
        Steps until the rate has fallen to zero. None is a rate that stays, and then a
        quarter of that for 2,000 steps.

    Returns
    -------
    float
        The learning rate.

    Examples
    --------
    >>> auto_lr(4096, 1024, 1500)
    0.005
    >>> auto_lr(16384, 1024, 24_000)
    0.00125
    """
    steps = OPEN_STEPS if n_steps is None else n_steps
    rate = _LR * math.sqrt(_WIDTH / nb_concepts * batch_size / _BATCH) * (_STEPS / steps) ** 0.25
    return min(MAX_LR, rate) * (_CONSTANT if n_steps is None else 1)


def auto_dead_after(length: Length, firing_rate: float = 0.0) -> int:
    """Give the samples of silence after which a concept counts as dead.

    A fiftieth of the samples of the fit, but at least five batches and at most the ten million
    of Gao et al. (2024), arXiv:2406.04093, appendix A.2; and at most those in which the average
    concept fires 50 times, or eight batches if these are more.

    Parameters
    ----------
    length : Length
        Of the fit.
    firing_rate : float, default=0.0
        Share of the samples in which the average concept fires. 0 sets no limit.

    Returns
    -------
    int
        Number of samples.

    Examples
    --------
    >>> auto_dead_after(Length(n_batches=1000, n_rows=1_024_000, epochs=10))
    204800
    >>> auto_dead_after(Length(n_batches=1000, n_rows=1_024_000, epochs=10), 16 / 4096)
    12800
    """
    batch = length.n_rows / length.n_batches
    samples = batch * length.assumed_steps / 50
    if firing_rate:
        samples = min(samples, max(_MAX_FIRINGS / firing_rate, _FEWEST_BATCHES * batch))
    return round(min(10_000_000, max(5 * batch, samples)))


def silence_watch(length: Length) -> int:
    """Give the steps in which it is looked for silent concepts, see `sksae.training._sparsity`.

    Parameters
    ----------
    length : Length
        Of the fit.

    Returns
    -------
    int
        A fifth of the steps, at least 1 and at most 8,000.

    Examples
    --------
    >>> silence_watch(Length(n_batches=1000, n_rows=1_024_000, epochs=10))
    2000
    """
    return max(1, min(_MAX_SILENCE_WATCH, length.steps(_SILENCE_WATCH)))


def auto_auxk_coefficient(length: Length) -> float:
    """Give the weight of the auxiliary loss that revives dead concepts.

    The 1/32 of Gao et al. (2024), arXiv:2406.04093, section 2.4. A fit of less than 200
    steps has a high rate and little time to revive what that silences: it is
    ``(200 / n_steps)^2`` times that, at most 1/8.

    Parameters
    ----------
    length : Length
        Of the fit.

    Returns
    -------
    float
        The weight.

    Examples
    --------
    >>> auto_auxk_coefficient(Length(n_batches=40, n_rows=40_960, epochs=5))
    0.03125
    >>> auto_auxk_coefficient(Length(n_batches=20, n_rows=20_480, epochs=5))
    0.125
    """
    return min(_MAX_AUXK, _AUXK * max(1.0, _AUXK_STEPS / length.assumed_steps) ** 2)


def ramp(step: int, n_steps: int) -> float:
    """Give the share, from 0 to 1, that something has grown to at a step counted from 0."""
    return min(1.0, (step + 1) / n_steps) if n_steps else 1.0


class WarmupDecay(LRScheduler):
    """Raise the rate over ``warmup_steps``, then lower it linearly to zero at ``n_steps``.

    Step i, from 0, runs at ``lr * min(1, (i + 1) / warmup_steps, (n_steps - i) / decay_steps)``.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its rates are the peak rates.
    n_steps : int or None
        Steps of the fit. None keeps the rate constant after the warm-up.
    warmup_steps : int, optional
        By default a twentieth of the steps, at most 1,000; 100 where ``n_steps`` is None.
    decay_steps : int, optional
        By default all steps after the warm-up. 0 keeps the rate constant.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        n_steps: int | None,
        warmup_steps: int | None = None,
        decay_steps: int | None = None,
    ) -> None:
        if warmup_steps is None:
            wanted = _WARMUP_SHARE * (OPEN_STEPS if n_steps is None else n_steps)
            warmup_steps = min(_MAX_WARMUP, round(wanted))
        if decay_steps is None:
            decay_steps = 0 if n_steps is None else max(0, n_steps - warmup_steps)
        self.n_steps, self.warmup_steps, self.decay_steps = n_steps, warmup_steps, decay_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Give the share of the peak rate at a step, counted from 0."""
        share = ramp(step, self.warmup_steps)
        if self.n_steps is not None and self.decay_steps:
            share = min(share, max(0, self.n_steps - step) / self.decay_steps)
        return share

    def get_lr(self) -> list[float | Tensor]:
        """Give the rate of each parameter group at the coming step."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
