"""The methods: how much of a logit each switch is responsible for, by captum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from ._codes_path import LogitOfCodes
from ._methods import captum_attr


class Settings(NamedTuple):
    """What the methods are told."""

    n_steps: int
    n_samples: int
    rows_at_once: int
    rng: np.random.RandomState


def gradient_x_activation(logit: LogitOfCodes, settings: Settings) -> torch.Tensor:
    """Give code times derivative; a switch at 1 times its derivative is that of its codes."""
    on = logit.constant(1).requires_grad_()
    return captum_attr().InputXGradient(logit).attribute(on).detach()


def integrated_gradients(logit: LogitOfCodes, settings: Settings) -> torch.Tensor:
    """Integrate the derivatives on the straight way from all switches at 0 to all at 1."""
    return (
        captum_attr()
        .IntegratedGradients(logit)
        .attribute(
            logit.constant(1),
            logit.constant(0),
            n_steps=settings.n_steps,
            internal_batch_size=settings.rows_at_once,
        )
        .detach()
    )


def ablation(logit: LogitOfCodes, settings: Settings) -> torch.Tensor:
    """Turn off one switch after the other."""
    method = captum_attr().FeatureAblation(logit)
    return method.attribute(logit.constant(1), perturbations_per_eval=settings.rows_at_once)


def orders(rng: np.random.RandomState, n: int, n_samples: int) -> Iterator[list[int]]:
    """Give random orders of n switches."""
    return (rng.permutation(n).tolist() for _ in range(n_samples))


def shapley_sampling(logit: LogitOfCodes, settings: Settings) -> torch.Tensor:
    """Turn the switches on in random orders."""
    method = captum_attr().ShapleyValueSampling(logit)
    # captum's own orders come from the global generator.
    method.permutation_generator = lambda n, n_samples: orders(settings.rng, n, n_samples)
    return method.attribute(
        logit.constant(1),
        logit.constant(0),
        n_samples=settings.n_samples,
        perturbations_per_eval=settings.rows_at_once,
    )


class Method(NamedTuple):
    """A method, and whether it takes texts together or one at a time."""

    estimate: Callable[[LogitOfCodes, Settings], torch.Tensor]
    together: bool


METHODS = {
    "gradient_x_activation": Method(gradient_x_activation, True),
    "concepts_x_gradients": Method(gradient_x_activation, True),
    "integrated_gradients": Method(integrated_gradients, False),
    "ablation": Method(ablation, False),
    "shapley_sampling": Method(shapley_sampling, False),
}


def estimate(name: str, logit: LogitOfCodes, settings: Settings) -> list[np.ndarray]:
    """Give the scores of the switches of each text."""
    method, scores = METHODS[name], []
    groups = [logit.cases] if method.together else [[case] for case in logit.cases]
    for cases in groups:
        part = LogitOfCodes(logit.readout, cases, logit.directions)
        if part.n_switches:
            found = method.estimate(part, settings).double().cpu().numpy()
        else:
            found = np.zeros((len(cases), 0))
        scores += [row[: case.n_switches] for row, case in zip(found, cases, strict=True)]
    return scores
