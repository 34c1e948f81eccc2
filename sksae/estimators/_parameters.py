"""Constraints of the shared parameters, and the checks that need more than one of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from .._sklearn import Interval, Options, StrOptions

SHARED_CONSTRAINTS: dict[str, list[Any]] = {
    "nb_concepts": [Interval(Integral, 1, None, closed="left")],
    "encoder_module": [None, str, torch.nn.Module],
    "dictionary_params": [None, dict],
    "criterion": "no_validation",  # type: ignore[dict-item]
    "nb_epochs": [Interval(Integral, 1, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "lr": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
    "optimizer_class": [None, callable],
    "optimizer_params": [None, dict],
    "scheduler_class": [None, StrOptions({"auto"}), callable],
    "scheduler_params": [None, dict],
    "auxk_coefficient": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
    "k_aux": [None, Interval(Integral, 1, None, closed="left")],
    "dead_after": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    "encoder_init_norm": [Interval(Real, 0, None, closed="neither")],
    "outlier_ratio": [None, Interval(Real, 1, None, closed="neither")],
    "clip_grad": [None, Interval(Real, 0, None, closed="neither")],
    "use_amp": ["boolean", StrOptions({"bf16", "fp16"})],
    "max_nan_fallbacks": [Interval(Integral, 0, None, closed="left")],
    "monitoring": [None, Interval(Integral, 1, None, closed="left")],
    "verbose": ["verbose"],
    "validation_fraction": [None, Interval(Real, 0, 1, closed="neither")],
    "early_stopping": [None, Interval(Integral, 1, None, closed="left")],
    "callbacks": [None, list],
    "warm_start": ["boolean"],
    "device": [str, torch.device],
    "backend": [StrOptions({"auto", "reference", "cpu", "cuda"})],
    "sparse_output": ["boolean"],
    "random_state": ["random_state"],
}

TOP_K = [Interval(Integral, 1, None, closed="left")]
COEFFICIENT = [Interval(Real, 0, None, closed="left")]
POSITIVE = [Interval(Real, 0, None, closed="neither")]
# A share of the steps of the fit, or a number of steps.
STEPS = [Interval(Real, 0, 1, closed="both"), Interval(Integral, 0, None, closed="left")]
TOPK_START = [StrOptions({"auto"}), *STEPS]
TARGET_L0 = [None, Interval(Real, 0, None, closed="neither")]
PENALISED = {
    "target_l0": TARGET_L0,
    "sparsity_warmup": STEPS,
    "resample_dead": ["boolean"],
}
MOMENTUM = [Interval(Real, 0, 1, closed="left")]

AMP_DTYPES = {
    False: None,
    True: torch.bfloat16,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

_DICTIONARY_KEYS = ("initializer", "normalization", "use_multiplier")


def one_of(options: Iterable[str]) -> list[Any]:
    """Give the constraint of a parameter that is one of some strings."""
    return [Options(str, set(options))]


def check_backend(estimator, device: torch.device) -> None:
    """Refuse kernels for another kind of device than the one to train on."""
    backend = estimator.backend
    if backend in ("cpu", "cuda") and backend != device.type:
        raise ValueError(
            f"backend={backend!r} of {type(estimator).__name__} computes on device={backend!r} "
            f"only. Got device={str(estimator.device)!r}, which is {str(device)!r} here. Set "
            f"backend='auto', which suits any device, or device={backend!r}."
        )


def check_top_k(estimator) -> None:
    """Refuse more active concepts than there are concepts."""
    if estimator.top_k > estimator.nb_concepts:
        raise ValueError(
            f"top_k={estimator.top_k} exceeds nb_concepts={estimator.nb_concepts} in "
            f"{type(estimator).__name__}. Lower top_k or raise nb_concepts."
        )


def refuse_parameter(estimator, name: str, why: str) -> None:
    """Refuse a shared parameter that has nothing to act on, unless it is at its default."""
    default = inspect.signature(type(estimator)).parameters[name].default
    value = getattr(estimator, name)
    if value is not default and (type(value) is not type(default) or value != default):
        owner = type(estimator).__name__
        raise ValueError(
            f"{name}={value!r} has nothing to act on in {owner}: {why}. Leave {name} at its "
            f"default, {default!r}."
        )


def check_target_l0(estimator, coefficient: str) -> None:
    """Refuse a target for L0 that cannot be reached."""
    owner, target = type(estimator).__name__, estimator.target_l0
    if target is None:
        return
    if target >= estimator.nb_concepts:
        raise ValueError(
            f"target_l0={target} is not below nb_concepts={estimator.nb_concepts} in {owner}. "
            "Lower target_l0 or raise nb_concepts."
        )
    if not getattr(estimator, coefficient):
        raise ValueError(
            f"target_l0={target} needs a positive {coefficient} in {owner}, to start from. Got 0. "
            f"Leave {coefficient} at its default."
        )


def check_topk_start(estimator) -> None:
    """Refuse to start with each sample's largest codes where their number is not known."""
    if estimator.topk_start not in ("auto", 0) and estimator.target_l0 is None:
        raise ValueError(
            f"topk_start={estimator.topk_start} of {type(estimator).__name__} keeps the target_l0 "
            "largest codes of each sample at the start of a fit, but target_l0 is None. Set "
            "target_l0 to the mean number of active concepts that you want, or topk_start='auto'."
        )


def check_resampling(estimator) -> None:
    """Refuse to resample concepts of an encoder whose weights are not known."""
    if estimator.resample_dead and estimator.encoder_module is not None:
        raise ValueError(
            f"resample_dead=True needs the linear encoder of {type(estimator).__name__}. Set "
            "encoder_module=None or resample_dead=False."
        )
    if estimator.resample_dead and estimator.nb_epochs < 2:
        raise ValueError(
            f"resample_dead=True of {type(estimator).__name__} acts at the ends of epochs in the "
            "first half of a fit; with nb_epochs=1 there is none. Raise nb_epochs, or set "
            "resample_dead=False and rely on auxk_coefficient."
        )


def check_shared(estimator) -> None:
    """Check what the constraints of single parameters cannot."""
    _check_encoder_name(estimator)
    _check_callbacks(estimator)
    for name in (
        "early_stopping",
        "k_anneal",
        "sparsity_warmup",
        "topk_start",
        "relative_start",
        "sort_at",
    ):
        if isinstance(getattr(estimator, name), bool):
            raise ValueError(
                f"The {name!r} parameter of {type(estimator).__name__} is a number, not a switch. "
                f"Got {getattr(estimator, name)!r}; see the docstring for its unit."
            )
    if "lr" in (estimator.optimizer_params or {}):
        raise ValueError(
            f"The learning rate of {type(estimator).__name__} is its parameter 'lr'; "
            "'optimizer_params' must not hold another one. Use lr="
            f"{estimator.optimizer_params['lr']!r}."
        )


def _check_callbacks(estimator) -> None:
    held_out = estimator.validation_fraction is not None or estimator.early_stopping is not None
    for item in estimator.callbacks or []:
        callback = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        if not hasattr(callback, "on_epoch_end"):
            raise ValueError(
                f"The 'callbacks' parameter of {type(estimator).__name__} must be a list of skorch "
                f"callbacks, or of (name, callback). Got {item!r} in it."
            )
        monitor = getattr(callback, "monitor", None)
        if not held_out and str(monitor).startswith("valid_loss"):
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor!r}, which "
                f"{type(estimator).__name__} has only with held-out rows. Set "
                "validation_fraction, or monitor 'train_loss'."
            )


def _check_encoder_name(estimator) -> None:
    from ..modules import VECTOR_ENCODERS, load_overcomplete_sae

    name = estimator.encoder_module
    if not isinstance(name, str):
        return
    registered = load_overcomplete_sae().EncoderFactory.list_modules()
    if name not in registered or name.startswith(("resnet_", "attention_")):
        raise ValueError(
            f"The 'encoder_module' parameter of {type(estimator).__name__} must be None, a "
            f"torch.nn.Module, or an encoder of vectors that is registered with overcomplete: "
            f"{', '.join(VECTOR_ENCODERS)}. Got {name!r} instead."
        )


def check_dictionary_params(estimator, n_features: int) -> None:
    """Refuse arguments that overcomplete's dictionary layer of this width would not take."""
    from ..modules import load_overcomplete_sae

    params = estimator.dictionary_params or {}
    owner = f"The 'dictionary_params' parameter of {type(estimator).__name__}"
    unknown = sorted(set(params) - set(_DICTIONARY_KEYS))
    if unknown:
        raise ValueError(
            f"{owner} takes the keys {', '.join(_DICTIONARY_KEYS)}. Got {', '.join(unknown)}."
        )
    normalization = params.get("normalization", "l2")
    names = sorted(load_overcomplete_sae().DictionaryLayer.NORMALIZATIONS)
    if normalization not in names and not callable(normalization):
        raise ValueError(
            f"The 'normalization' of {owner[0].lower() + owner[1:]} must be a callable or one of "
            f"{', '.join(names)}. Got {normalization!r} instead."
        )
    initializer = params.get("initializer")
    expected = (estimator.nb_concepts, n_features)
    if initializer is not None and np.shape(initializer) != expected:
        width = "n_features" if estimator._reconstructs_input else "n_outputs"
        raise ValueError(
            f"{owner} must hold an 'initializer' of shape (nb_concepts, {width}) = {expected}. "
            f"Got shape {np.shape(initializer)} instead."
        )
    if initializer is not None and not np.any(np.asarray(initializer), axis=-1).all():
        raise ValueError(f"{owner} must hold an 'initializer' without rows of zeros.")


def check_encoder_output(estimator, module) -> None:
    """Run the encoder on two rows and refuse what is not a pair of (2, nb_concepts)."""
    rows = torch.zeros(2, len(module.center)).to(module.center)
    expected = (2, module.nb_concepts)
    got: Any
    cause: Exception | None = None
    try:
        with torch.no_grad():
            out = module.eval().encoder(rows)
        got = [tuple(o.shape) for o in out] if isinstance(out, tuple) else type(out).__name__
    except (RuntimeError, AssertionError, ValueError, TypeError) as exc:
        got, cause = f"{type(exc).__name__}: {exc}", exc
    if got != [expected, expected]:
        raise ValueError(
            f"The 'encoder_module' of {type(estimator).__name__} must give a tuple (pre_codes, "
            f"codes), each of shape (n, nb_concepts) = {expected}, for input of shape "
            f"{tuple(rows.shape)}. Got {got}."
        ) from cause
