"""From an estimator's parameters to its skorch net, at a start and when going on."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from ..losses import SAELoss, resolve_criterion
from ..training import RowBatches, SAENet
from ..training._data import InputStatistics
from ._parameters import AMP_DTYPES, DEFAULT_LR, check_dictionary_params, check_encoder_output

# What a net is built around; a fit that continues cannot change it.
_STRUCTURE = ("nb_concepts", "encoder_module", "dictionary_params")


def start_net(estimator, data: RowBatches, epochs: int, seed: int) -> SAENet:
    """Build the net of a fresh fit, its module's units set from the data."""
    statistics = InputStatistics.of(data)
    n_features = len(statistics.mean)
    check_dictionary_params(estimator, n_features)
    module_class, own = estimator._module()
    structure = {name: getattr(estimator, name) for name in _STRUCTURE}
    module = {"n_features": n_features} | structure | own
    net = SAENet(
        module_class,
        SAELoss,
        **{f"module__{name}": value for name, value in module.items()},
        **{f"criterion__{name}": value for name, value in _loss(estimator).items()},
        **_loop(estimator),
        optimizer=_optimizer(estimator),
        scheduler=_scheduler(estimator),
        dtype=data.dtype,
        device=str(data.device),
        seed=seed,
        max_epochs=epochs,
    ).initialize()
    check_encoder_output(estimator, net.module_)
    net.module_.set_units(statistics.mean.to(data.device, data.dtype), statistics.scale)
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
        setattr(net.module_, name, value)
    for name, value in _loss(estimator).items():
        setattr(net.criterion_, name, value)
    for name, value in _loop(estimator).items():
        setattr(net, name, value)
    net.max_epochs = epochs
    net.initialize_callbacks()
    _move(net, device)
    _resume_optimizer(net, _optimizer(estimator), _scheduler(estimator))


def _check_structure(estimator) -> None:
    owner = type(estimator).__name__
    for name in _STRUCTURE:
        now, fitted = getattr(estimator, name), getattr(estimator.net_, f"module__{name}")
        if now is not fitted and (name != "nb_concepts" or now != fitted):
            raise ValueError(
                f"{name}={now!r}, but this {owner} was fitted with {fitted!r}. Set "
                "warm_start=False and call fit to start anew."
            )


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


def _same(one: functools.partial | None, other: functools.partial | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.func is other.func and one.keywords == other.keywords


def _loss(estimator) -> dict[str, Any]:
    return {
        "reconstruction": resolve_criterion(estimator.criterion, type(estimator).__name__),
        "terms": estimator._loss_terms(),
    }


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
        return functools.partial(torch.optim.Adam, **{"fused": True} | params)
    return functools.partial(estimator.optimizer_class, **params)


def _scheduler(estimator) -> functools.partial | None:
    if estimator.scheduler_class in (None, "auto"):
        return None
    return functools.partial(estimator.scheduler_class, **(estimator.scheduler_params or {}))
