"""The kernels, each run by the module for the device that its first tensor is on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch

from . import _cpu, _cuda

P = ParamSpec("P")
R = TypeVar("R")

# Kinds of device that have kernels.
DEVICES = ("cpu", "cuda")


def serves(backend: str, device: torch.device) -> bool:
    """Tell whether a ``backend`` parameter means these kernels on a device.

    "auto" does on the CPU, and on a CUDA device on which Triton runs.
    """
    if backend == "auto":
        return device.type == "cpu" or (device.type == "cuda" and _cuda.compiled() is not None)
    return device.type in DEVICES and backend == device.type


def module_for(device: torch.device) -> ModuleType:
    """Give the module whose functions work on a device."""
    return _cuda if device.type == "cuda" else _cpu


def name(device: torch.device) -> str:
    """Say what computes on a device."""
    return module_for(device).name()


def _by_device(function: Callable[P, R]) -> Callable[P, R]:
    """Give an operation that is called like this function of `_cpu`, on any device."""

    @functools.wraps(function)
    def operation(*args: P.args, **kwargs: P.kwargs) -> R:
        data = next(a for a in args if hasattr(a, "device"))
        return getattr(module_for(data.device), function.__name__)(*args, **kwargs)

    return operation


above = _by_device(_cpu.above)
largest = _by_device(_cpu.largest)
products = _by_device(_cpu.products)
reconstruct = _by_device(_cpu.reconstruct)
remove_parallel_ = _by_device(_cpu.remove_parallel_)
scale_rows = _by_device(_cpu.scale_rows)
subtract = _by_device(_cpu.subtract)
sum_rows = _by_device(_cpu.sum_rows)
top_k = _by_device(_cpu.top_k)
unit_rows_ = _by_device(_cpu.unit_rows_)
