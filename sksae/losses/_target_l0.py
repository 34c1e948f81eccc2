"""A controller that brings the number of active concepts to a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SMOOTHING = 0.9


class TargetL0(nn.Module):
    """Scale a sparsity penalty so that the mean L0 of the codes meets a target.

    With s the logarithm of the scale, ``e = log(L0 / target)``, L0 a running mean over
    batches, and ``time`` steps for a correction, each step adds::

        clip(e + time * (e - e_before), -1, 1) / time

    to s: proportional-integral control of log L0, which acts alike on every scale of
    coefficients. The change of e brakes the correction while L0 is already on its way,
    for the weights need many steps to follow the penalty. Half of ``time`` passes
    before the first correction: early L0 says little. The idea of steering the
    coefficient is the L0 autotuner's of the SynthSAEBench paper (arXiv:2602.14687); here
    its speed follows from the length of the fit.

    Attributes
    ----------
    log_scale : Tensor
        Logarithm of the scale, from 0 at the start.
    log_l0 : Tensor
        Logarithm of the running mean of L0; NaN before the first step.
    n_steps : Tensor
        Steps so far.
    """

    log_scale: Tensor
    log_l0: Tensor
    n_steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_scale", torch.zeros(()))
        self.register_buffer("log_l0", torch.tensor(torch.nan))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, l0: Tensor, target: float, time: float) -> None:
        """Correct the scale after a step, without reading the device.

        Parameters
        ----------
        l0 : Tensor
            Mean number of active concepts per sample of the batch.
        target : float
            Mean number of active concepts per sample.
        time : float
            Steps in which an error of 1 in log L0 moves the logarithm of the scale by 1.
        """
        new = l0.to(self.log_l0.dtype).clamp(min=1e-2).log()
        old = torch.where(self.log_l0.isnan(), new, self.log_l0)
        self.log_l0.copy_(torch.lerp(new, old, _SMOOTHING))
        error = self.log_l0 - math.log(target)
        drive = error + time * (self.log_l0 - old)
        self.n_steps += 1
        self.log_scale += (drive.clamp(-1, 1) / time) * (self.n_steps > time / 2)
