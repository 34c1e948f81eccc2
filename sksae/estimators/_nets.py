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
from ..training import RowBatches, SAENet
from ..training._data import InputStatistics
from ._parameters import AMP_DTYPES, DEFAULT_LR, check_dictionary_params, check_encoder_output

# What a net is built around; a fit that continues cannot change it.
_STRUCTURE = ("nb_concepts", "encoder_module", "dictionary_params")

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
    """Copy what a failed continuation may spoil."""
    return {
        "module": copy.deepcopy(net.module_.state_dict()),
        "n_epochs": len(net.history),
        "n_steps": net.n_steps_,
    }


def restore_state(net: SAENet, saved: dict[str, Any]) -> None:
    """Go back to a saved state, with a fresh optimizer: its moments may be spoilt."""
    net.module_.load_state_dict(saved["module"])
    net.module_.eval()
    net.valid_data = None
    del net.history[saved["n_epochs"] :]
    net.initialize_optimizer()
    net.n_steps_ = saved["n_steps"]


def start_net(estimator, data: RowBatches, epochs: int, seed: int) -> SAENet:
    """Build the net of a fresh fit, its module's units set from the data."""
    statistics = InputStatistics.of(data)
    n_features = len(statistics.mean)
    check_dictionary_params(estimator, n_features)
    module_class, own = estimator._module()
    structure = {name: getattr(estimator, name) for name in _STRUCTURE}
    structure["nb_concepts"] = int(estimator.nb_concepts)
    module = {"n_features": n_features} | structure | own
    net = SAENet(
        module_class,
        SAELoss,
        **{f"module__{name}": value for name, value in module.items()},
        criterion__reconstruction=_reconstruction(estimator),
        criterion__terms=estimator._loss_terms(),
        **_loop(estimator),
        optimizer=_optimizer(estimator),
        scheduler=_scheduler(estimator),
        dtype=data.dtype,
        device=str(data.device),
        name=type(estimator).__name__,
        seed=seed,
        max_epochs=epochs,
    ).initialize()
    check_encoder_output(estimator, net.module_)
    net.module_.set_units(statistics.mean.to(data.device, data.dtype), statistics.scale)
    net.criterion_.to(data.dtype)
    # Beside the net, whose modules are pickled apart from the parameters.
    estimator._fitted_with = {name: getattr(estimator, name) for name in (*_STRUCTURE, "criterion")}
    return net


def resume_net(estimator, device: torch.device, epochs: int) -> None:
    """Make the fitted net follow the parameters as they are now.

    Weights, optimizer state and silence counters stay. Another optimizer or scheduler
    starts with fresh state.

    Raises
    ------
    ValueError
        If a parameter has changed that the module is built around.
    """
    net = estimator.net_
    _check_structure(estimator)
    for name, value in estimator._module()[1].items():
        _set_own(net.module_, name, value)
    net.criterion_.terms = estimator._loss_terms()
    if not _same(estimator.criterion, estimator._fitted_with["criterion"]):
        net.criterion_.reconstruction = _reconstruction(estimator)
        net.criterion_.to(net.dtype)
        estimator._fitted_with["criterion"] = estimator.criterion
    for name, value in _loop(estimator).items():
        setattr(net, name, value)
    net.max_epochs = epochs
    net.initialize_callbacks()
    _move(net, device)
    _resume_optimizer(net, _optimizer(estimator), _scheduler(estimator))


@torch.no_grad()
def _set_own(module, name: str, value) -> None:
    held = getattr(module, name)
    if isinstance(held, torch.Tensor):
        held.fill_(value)
    else:
        setattr(module, name, value)


def _check_structure(estimator) -> None:
    owner = type(estimator).__name__
    for name in _STRUCTURE:
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
    net.optimizer_.load_state_dict(net.optimizer_.state_dict())  # follows its parameters


def _resume_optimizer(net: SAENet, optimizer, scheduler) -> None:
    scaled = net.amp_dtype is torch.float16
    same = _same(net.optimizer, optimizer) and _same(net.scheduler, scheduler)
    net.optimizer, net.scheduler = optimizer, scheduler
    if not same or scaled != (net.optimizer_scaler_ is not None):
        n_steps = net.n_steps_
        net.initialize_optimizer()
        net.n_steps_ = n_steps
    elif scheduler is None:
        for group in net.optimizer_.param_groups:
            group["lr"] = net.lr


def _reconstruction(estimator):
    return resolve_criterion(estimator.criterion, type(estimator).__name__)


def _loop(estimator) -> dict[str, Any]:
    return {
        "lr": DEFAULT_LR if estimator.lr == "auto" else estimator.lr,
        "batch_size": estimator.batch_size,
        "clip_grad": estimator.clip_grad,
        "amp_dtype": AMP_DTYPES[estimator.use_amp],
        "max_nan_fallbacks": estimator.max_nan_fallbacks,
        "monitoring": estimator.monitoring,
        "verbose": estimator.verbose,
        "callbacks": copy.deepcopy(estimator.callbacks),
    }


def _optimizer(estimator) -> functools.partial:
    params = estimator.optimizer_params or {}
    if estimator.optimizer_class is None:
        fused = not {"fused", "foreach", "differentiable"} & set(params)
        return functools.partial(torch.optim.Adam, **{"fused": fused} | params)
    return functools.partial(estimator.optimizer_class, **params)


def _scheduler(estimator) -> functools.partial | None:
    scheduler = estimator.scheduler_class
    if scheduler in (None, "auto"):
        return None
    if scheduler is ReduceLROnPlateau:
        raise ValueError(
            f"The 'scheduler_class' parameter of {type(estimator).__name__} is stepped after each "
            "batch, but ReduceLROnPlateau needs a metric. Use callbacks=["
            "skorch.callbacks.LRScheduler('ReduceLROnPlateau', monitor='train_loss')]."
        )
    return functools.partial(scheduler, **(estimator.scheduler_params or {}))
