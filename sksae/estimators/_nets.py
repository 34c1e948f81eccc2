"""From an estimator's parameters to its skorch net, at a start and when going on."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..losses import SAELoss, resolve_criterion
from ..training import BatchIterator, RowBatches, SAENet
from ..training._callbacks import BestEpoch, ResampleDead
from ..training._schedule import (
    Length,
    WarmupDecay,
    auto_auxk_coefficient,
    auto_dead_after,
    auto_lr,
    silence_watch,
)
from ._parameters import AMP_DTYPES, check_dictionary_params, check_encoder_output

# What a net is built around; a fit that continues cannot change it.
_STRUCTURE = ("nb_concepts", "encoder_module", "encoder_init_norm", "dictionary_params")
_FIXED = (*_STRUCTURE, "outlier_ratio")

# What a continued fit sets anew on the net.
_CHANGEABLE = (
    "lr",
    "max_epochs",
    "batch_size",
    "clip_grad",
    "amp_dtype",
    "max_nan_fallbacks",
    "monitoring",
    "verbose",
    "callbacks",
    "dead_after",
    "revive_after",
    "sparsity_warmup",
    "k_anneal",
    "topk_start",
    "silence_watch",
    "relative_start",
    "sort_at",
    "l0_time",
    "backend",
    "optimizer",
    "scheduler",
    "device",
)

# torch's generators are shared by the threads of a process.
_GENERATORS = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device):
    """Seed torch's global generators, and leave them as they were."""
    forked = [device] if device.type == "cuda" else []
    with _GENERATORS, torch.random.fork_rng(devices=forked, device_type="cuda"):
        torch.manual_seed(seed)
        yield


def draws_while_training(estimator) -> bool:
    """Tell whether something of the caller's, such as dropout, may draw in a training step."""
    own = estimator.encoder_module is not None or estimator.callbacks
    return bool(own) or not isinstance(estimator.criterion, str)


def save_state(net: SAENet) -> dict[str, Any]:
    """Copy what a refused or failed continuation may spoil."""
    kept = {name: getattr(net, name) for name in _CHANGEABLE}
    return {
        "module_": copy.deepcopy(net.module_),
        "criterion_": copy.deepcopy(net.criterion_),
        "n_epochs": len(net.history),
        "n_steps": net.n_steps_,
        "parameters": kept,
    }


def restore_state(net: SAENet, saved: dict[str, Any]) -> None:
    """Go back to a saved state, with a fresh optimizer: its moments may be spoilt."""
    for name, value in saved["parameters"].items():
        setattr(net, name, value)
    net.module_, net.criterion_ = saved["module_"].eval(), saved["criterion_"]
    net.valid_data = None
    del net.history[saved["n_epochs"] :]
    net.initialize_optimizer()
    net.n_steps_ = saved["n_steps"]


def start_net(estimator, data: RowBatches, epochs: int | None, seed: int) -> SAENet:
    """Build the net of a fresh fit, its module's units set from the data.

    ``epochs`` is None for a first ``partial_fit``, whose number of passes is open.
    """
    length = _length(estimator, data, epochs)
    check_dictionary_params(estimator, data.n_outputs)
    module_class, own = estimator._module()
    own = own | estimator._module_from_rows(data)
    structure = {name: getattr(estimator, name) for name in _STRUCTURE}
    structure["nb_concepts"] = int(estimator.nb_concepts)
    module = {"n_features": data.shape[1]} | structure | own
    net = SAENet(
        module_class,
        SAELoss,
        **{f"module__{name}": value for name, value in module.items()},
        criterion__reconstruction=_reconstruction(estimator),
        **{f"criterion__{name}": value for name, value in _weights(estimator, length).items()},
        **_loop(estimator, length),
        optimizer=_optimizer(estimator),
        scheduler=_scheduler(estimator, length),
        dtype=data.dtype,
        device=str(data.device),
        name=type(estimator).__name__,
        seed=seed,
    ).initialize()
    if estimator.encoder_module is not None:
        check_encoder_output(estimator, net.module_)
    estimator._set_units(net.module_, data)
    net.criterion_.to(data.dtype)
    # Beside the net, whose modules are pickled apart from the parameters.
    kept = (*_FIXED, *estimator._own_structure, "criterion")
    estimator._fitted_with = {name: getattr(estimator, name) for name in kept}
    return net


def units_of(data: RowBatches, outlier_ratio: float | None) -> tuple[torch.Tensor, float, float]:
    """Give center, scale and radius of rows, as a module's units are set from them."""
    statistics = data.statistics
    radius = statistics.radius(outlier_ratio)
    center = statistics.center.to(data.device, data.dtype)
    return center, statistics.scale(radius), radius


def resume_net(estimator, data: RowBatches, epochs: int | None) -> None:
    """Make the fitted net follow the parameters as they are now.

    Weights, optimizer state and silence counters stay; another optimizer starts with
    fresh state. A ``fit`` starts its learning-rate schedule anew, a ``partial_fit``
    (``epochs`` is None) goes on with the one that it began.

    Raises
    ------
    ValueError
        If a parameter has changed that the module is built around.
    """
    net = estimator.net_
    _check_structure(estimator)
    length, rate = _length(estimator, data, epochs), net.lr
    # What concepts are called by does not change any more.
    loop, scheduler = _loop(estimator, length) | {"sort_at": None}, _scheduler(estimator, length)
    for name, value in estimator._module()[1].items():
        _set_own(net.module_, name, value)
    for name, value in _weights(estimator, length).items():
        _set_own(net.criterion_, name, value)
    if not _same(estimator.criterion, estimator._fitted_with["criterion"]):
        net.criterion_.reconstruction = _reconstruction(estimator)
        net.criterion_.to(net.dtype)
        estimator._fitted_with = estimator._fitted_with | {"criterion": estimator.criterion}
    for name, value in loop.items():
        setattr(net, name, value)
    net.initialize_callbacks()
    _move(net, data.device)
    _resume_optimizer(net, _optimizer(estimator))
    if epochs is not None or rate != net.lr or not _same(net.scheduler, scheduler):
        _restart_schedule(net, scheduler)


@torch.no_grad()
def _set_own(module, name: str, value) -> None:
    held = getattr(module, name)
    if isinstance(held, torch.Tensor):
        held.fill_(value)
    else:
        setattr(module, name, value)


def _check_structure(estimator) -> None:
    owner = type(estimator).__name__
    for name in (*_FIXED, *estimator._own_structure):
        now, fitted = getattr(estimator, name), estimator._fitted_with[name]
        if not _same(now, fitted):
            raise ValueError(
                f"{name}={now!r}, but this {owner} was fitted with {fitted!r}. Set "
                "warm_start=False and call fit to start anew."
            )


def _same(one, other) -> bool:
    """Tell whether two parameters are equal, arrays and dicts by value."""
    if one is other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray | torch.Tensor) or isinstance(other, np.ndarray | torch.Tensor):
        return np.array_equal(np.asarray(one), np.asarray(other))
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return one.func is other.func and _same(one.keywords, other.keywords)
    return type(one) is type(other) and not isinstance(one, torch.nn.Module) and one == other


def _move(net: SAENet, device: torch.device) -> None:
    there = net.module_.decoder_bias.device
    if (there.type, there.index or 0) == (device.type, device.index or 0):
        return
    net.device = str(device)
    net.module_.to(device)
    net.criterion_.to(device)
    net.optimizer_.load_state_dict(net.optimizer_.state_dict())  # follows its parameters


def _resume_optimizer(net: SAENet, optimizer: functools.partial) -> None:
    scaled = net.amp_dtype is torch.float16
    if _same(net.optimizer, optimizer) and scaled == (net.optimizer_scaler_ is not None):
        return
    net.optimizer, n_steps = optimizer, net.n_steps_
    net.initialize_optimizer()
    net.n_steps_ = n_steps


def _restart_schedule(net: SAENet, scheduler: functools.partial | None) -> None:
    for group in net.optimizer_.param_groups:
        group.pop("initial_lr", None)
        group["lr"] = net.lr
    net.scheduler = scheduler
    net.optimizer_scheduler_ = scheduler(net.optimizer_) if scheduler else None


def _reconstruction(estimator):
    return resolve_criterion(estimator.criterion, type(estimator).__name__)


def _weights(estimator, length: Length) -> dict[str, Any]:
    """Give what of the loss may change between fits, as attributes of `SAELoss`."""
    auxk = estimator.auxk_coefficient
    return {
        "terms": estimator._loss_terms(),
        "reconstruction_terms": estimator._reconstruction_terms(),
        "auxk_coefficient": auto_auxk_coefficient(length) if auxk == "auto" else auxk,
        "k_aux": estimator.k_aux,
        "target_l0": estimator.target_l0,
    }


def _length(estimator, data: RowBatches, epochs: int | None) -> Length:
    return Length(len(BatchIterator(data, estimator.batch_size)), len(data), epochs)


def _loop(estimator, length: Length) -> dict[str, Any]:
    """Give the net's parameters but those that it is built around."""
    rate, start = estimator.lr, estimator.topk_start
    # Without a number of codes to keep there is nothing to begin.
    n_codes = getattr(estimator, "top_k", None) or estimator.target_l0
    dead_after = revive_after = estimator.dead_after
    if dead_after == "auto":
        dead_after = auto_dead_after(length)
        revive_after = auto_dead_after(length, (n_codes or 0) / estimator.nb_concepts)
    if rate == "auto":
        n_steps = None if estimator.scheduler_class is None else length.n_steps
        # Chunks of changing size must not change the rate of an open end.
        most = estimator.batch_size if length.epochs is None else length.n_rows
        rate = auto_lr(estimator.nb_concepts, min(estimator.batch_size, most), n_steps)
    return {
        "lr": rate,
        "max_epochs": length.epochs or 1,
        "batch_size": estimator.batch_size,
        "clip_grad": estimator.clip_grad,
        "amp_dtype": AMP_DTYPES[estimator.use_amp],
        "max_nan_fallbacks": estimator.max_nan_fallbacks,
        "monitoring": estimator.monitoring,
        "verbose": estimator.verbose,
        "callbacks": _callbacks(estimator, length),
        "dead_after": dead_after,
        "revive_after": revive_after,
        "sparsity_warmup": length.steps(estimator.sparsity_warmup),
        "k_anneal": length.steps(estimator.k_anneal),
        "topk_start": 0 if start == "auto" else length.steps(start),
        "silence_watch": silence_watch(length) if start == "auto" and n_codes else 0,
        "relative_start": length.steps(estimator.relative_start),
        "sort_at": _sort_at(estimator, length),
        "l0_time": max(30, length.assumed_steps / 10),
        "backend": estimator.backend,
    }


def _sort_at(estimator, length: Length) -> int | None:
    """Give the number of steps after which concepts are sorted, if that is in the fit."""
    if length.n_steps is None:
        return None
    step = length.steps(estimator.sort_at)
    return step if 0 < step < length.n_steps else None


def _callbacks(estimator, length: Length) -> list[Any]:
    """Give the caller's callbacks, then early stopping, before weights are resampled."""
    own = copy.deepcopy(estimator.callbacks) or []
    if estimator.early_stopping is not None and length.epochs is not None:
        own.append(("sksae_early_stopping", BestEpoch(estimator.early_stopping)))
    if estimator.resample_dead:
        own.append(("sksae_resample_dead", ResampleDead()))
    return own


def _optimizer(estimator) -> functools.partial:
    params = estimator.optimizer_params or {}
    if estimator.optimizer_class is None:
        fused = not {"fused", "foreach", "differentiable"} & set(params)
        return functools.partial(torch.optim.Adam, **{"fused": fused} | params)
    return functools.partial(estimator.optimizer_class, **params)


def _scheduler(estimator, length: Length) -> functools.partial | None:
    scheduler, params = estimator.scheduler_class, estimator.scheduler_params or {}
    if scheduler is None:
        if params:
            raise ValueError(
                f"scheduler_params={params!r} of {type(estimator).__name__} has no scheduler to go "
                "to: scheduler_class is None. Set scheduler_class='auto' or another one."
            )
        return None
    if scheduler == "auto":
        return functools.partial(WarmupDecay, **{"n_steps": length.n_steps} | params)
    if scheduler is ReduceLROnPlateau:
        raise ValueError(
            f"The 'scheduler_class' parameter of {type(estimator).__name__} is stepped after each "
            "batch, but ReduceLROnPlateau needs a metric. Use callbacks=["
            "skorch.callbacks.LRScheduler('ReduceLROnPlateau', monitor='train_loss')]."
        )
    return functools.partial(scheduler, **params)
