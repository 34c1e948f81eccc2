"""The attribution methods: what of captum each one runs, and how tokens become units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from ._surrogate import LeastSquares, all_coalitions, shapley_kernel

# Of LIME's exponential kernel over cosine distances: that of the authors' package for text.
_KERNEL_WIDTH = 0.25


class Settings(NamedTuple):
    """What the methods are told beside the function and its input."""

    n_steps: int
    n_samples: int
    noise: float
    batch_size: int


class Method(NamedTuple):
    """One attribution method.

    A gradient method's ``run(captum, f, x, base, index, settings)`` gives attributions of the
    shape of the embeddings ``x``; ``fold`` makes them one number a unit. A perturbation
    method's ``run(captum, f, n_units, settings)`` gives one number a unit; its ``f`` takes
    rows of 1 (present) and 0 (replaced).
    """

    run: Callable[..., torch.Tensor]
    gradient: bool
    random: bool = False
    sums_up: bool = False
    fold: str = "sum"


def captum_attr() -> Any:
    """Import ``captum.attr``.

    Raises
    ------
    ImportError
        If captum is not installed.
    """
    try:
        import captum.attr
    except ImportError as exc:
        raise ImportError(
            "Missing optional dependency 'captum', needed by sksae.attribution. Try: pip install "
            "'sksae[attribution]'."
        ) from exc
    return captum.attr


def find_method(name: Any, owner: str) -> str:
    """Give the key of a method named by a string or by a class of captum or interpreto.

    Parameters
    ----------
    name : str or type
        A key of `METHODS`, or the name of a class, as in "IntegratedGradients".
    owner : str
        For the messages.

    Returns
    -------
    str

    Examples
    --------
    >>> find_method("InputXGradient", "f"), find_method("lime", "f")
    ('input_x_gradient', 'lime')
    """
    asked = name.__name__ if isinstance(name, type) else name
    known = {key.replace("_", ""): key for key in METHODS}
    folded = asked.replace("_", "").lower() if isinstance(asked, str) else None
    if folded in known:
        return known[folded]
    listed = ", ".join(f"'{key}'" for key in METHODS)
    why = " captum has no counterpart of interpreto's Sobol." if "sobol" in str(folded) else ""
    raise ValueError(
        f"The 'attribution_method' of {owner} must be one of {listed}. Got {name!r} instead.{why}"
    )


def batched_gradients(size: int) -> Callable[..., tuple[torch.Tensor]]:
    """Make what captum calls for gradients: it runs no more than ``size`` inputs at once."""

    def gradients(
        forward_fn: Callable[..., torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
        target_ind: Any = None,
        additional_forward_args: Any = None,
    ) -> tuple[torch.Tensor]:
        is_tensor = isinstance(additional_forward_args, torch.Tensor)
        index = additional_forward_args if is_tensor else additional_forward_args[0]
        found = []
        for x, at in zip(inputs[0].split(size), index.split(size), strict=True):
            piece = x.detach().requires_grad_()
            with torch.enable_grad():
                total = forward_fn(piece, at).sum()
            zero = not total.requires_grad
            found.append(torch.zeros_like(x) if zero else torch.autograd.grad(total, piece)[0])
        return (torch.cat(found),)

    return gradients


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed the global generators that captum draws from, and leave them as they were."""
    if seed is None:
        yield
        return
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep captum's warnings from the user, who cannot act on them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"captum(\.|$)")
        yield


# -- gradient methods -----------------------------------------------------------------


def _with_gradients(method: Any, settings: Settings) -> Any:
    method.gradient_func = batched_gradients(settings.batch_size)
    return method


def _saliency(captum, f, x, base, index, settings):
    method = _with_gradients(captum.Saliency(f), settings)
    return method.attribute(x, abs=False, additional_forward_args=index)


def _input_x_gradient(captum, f, x, base, index, settings):
    method = _with_gradients(captum.InputXGradient(f), settings)
    return method.attribute(x, additional_forward_args=index)


def _integrated_gradients(captum, f, x, base, index, settings):
    method = _with_gradients(captum.IntegratedGradients(f), settings)
    return method.attribute(x, base, n_steps=settings.n_steps, additional_forward_args=index)


def _gradient_shap(captum, f, x, base, index, settings):
    method = _with_gradients(captum.GradientShap(f), settings)
    return method.attribute(
        x, base, n_samples=settings.n_samples, stdevs=0.0, additional_forward_args=index
    )


def _noise_tunnel(kind: str) -> Callable[..., torch.Tensor]:
    def run(captum, f, x, base, index, settings):
        tunnel = captum.NoiseTunnel(_with_gradients(captum.Saliency(f), settings))
        found = tunnel.attribute(
            x,
            nt_type=kind,
            nt_samples=settings.n_samples,
            stdevs=settings.noise * float(x.detach().std()),
            abs=False,
            additional_forward_args=index,
        )
        # A variance computed as a difference of means may fall below 0 by rounding.
        return found if kind == "smoothgrad" else found.clamp(min=0)

    return run


# -- perturbation methods -------------------------------------------------------------


def _occlusion(captum, f, n_units, settings):
    return captum.Occlusion(f).attribute(
        torch.ones(1, n_units),
        sliding_window_shapes=(1,),
        baselines=0,
        perturbations_per_eval=settings.batch_size,
    )


def _lime(captum, f, n_units, settings):
    method = captum.Lime(f, LeastSquares(), _similarity)
    return _surrogate(method, n_units, settings.n_samples, settings.batch_size)


def _kernel_shap(captum, f, n_units, settings):
    if n_units > math.log2(max(settings.n_samples, 2)):
        method = captum.KernelShap(f)
        method.interpretable_model = LeastSquares()
        return _surrogate(method, n_units, settings.n_samples, settings.batch_size)
    method = captum.Lime(f, LeastSquares(), shapley_kernel, all_coalitions)
    return _surrogate(method, n_units, 2**n_units, settings.batch_size)


def _surrogate(method: Any, n_units: int, n_samples: int, batch_size: int) -> torch.Tensor:
    return method.attribute(
        torch.ones(1, n_units),
        baselines=0,
        n_samples=n_samples,
        perturbations_per_eval=batch_size,
    )


def _similarity(_text: Any, _perturbed: Any, present: torch.Tensor, **_: Any) -> float:
    """Weight a perturbed text by how much of the text it keeps (LIME's kernel for text)."""
    share = float(present.double().mean())
    distance = 1 - math.sqrt(share)  # the cosine distance from the vector of ones
    return math.exp(-(distance**2) / (2 * _KERNEL_WIDTH**2))


METHODS: dict[str, Method] = {
    "saliency": Method(_saliency, gradient=True, fold="norm"),
    "input_x_gradient": Method(_input_x_gradient, gradient=True),
    "integrated_gradients": Method(_integrated_gradients, gradient=True, sums_up=True),
    "gradient_shap": Method(_gradient_shap, gradient=True, random=True, sums_up=True),
    "smooth_grad": Method(_noise_tunnel("smoothgrad"), gradient=True, random=True, fold="norm"),
    "square_grad": Method(_noise_tunnel("smoothgrad_sq"), gradient=True, random=True),
    "var_grad": Method(_noise_tunnel("vargrad"), gradient=True, random=True),
    "occlusion": Method(_occlusion, gradient=False),
    "lime": Method(_lime, gradient=False, random=True),
    "kernel_shap": Method(_kernel_shap, gradient=False, random=True, sums_up=True),
}
