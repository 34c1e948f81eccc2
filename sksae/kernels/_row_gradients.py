"""Gradients with a row per concept that are never written out, and steps of Adam from them.

The gradient of the encoder or of the dictionary, of shape (m, d), has in each row a sum of few
rows of a table (n, d), the batch or its error. An optimizer that goes through the rows can add
them up as it comes to them, which saves writing and reading the whole gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _cpu, _cuda
from ._codes import SparseCodes
from ._gathers import TINY
from ._screen import Rounded, Workspace
from ._threads import split_all


@dataclass
class Sums:
    """Row j of a gradient: ``weights[a:b] @ table[index[a:b]]`` with a, b from ``starts[j:j+2]``.

    With ``tangent``, its part along row j of the parameter is to be left out, and the rows of
    the parameter are of unit norm, before and after a step. The entries are those of ``codes``,
    sorted by concept.
    """

    starts: Tensor
    index: Tensor
    weights: Tensor
    table: Tensor
    tangent: bool
    codes: SparseCodes


@dataclass
class RowGradients:
    """What a backward pass leaves instead of gradients, by "encoder" and "dictionary".

    ``workspace`` is where pre-codes are computed. ``numbers``, those of `adam_numbers` on the
    device in float64, take the place of the optimizer's. The forward pass leaves ``centered``,
    what the encoder gets, and ``error``, the reconstruction less the target and the sum of its
    squares.
    """

    sums: dict[str, Sums] = field(default_factory=dict)
    parts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    normalized: set[str] = field(default_factory=set)
    workspace: Workspace | None = None
    numbers: Tensor | None = None
    centered: Tensor | None = None
    error: tuple[Tensor, Tensor] | None = None

    def add(
        self, name: str, codes: SparseCodes, weights: Tensor, table: Tensor, tangent: bool
    ) -> None:
        """Leave the gradient that stored codes give: their transpose times a table."""
        starts, rows, order = codes.by_concept
        weights = weights.index_select(0, order)
        self.sums[name] = Sums(starts, rows, weights, table, tangent, codes)

    def rounded(self, parameter: Tensor) -> Tensor:
        """Give a parameter in the precision that the encoder's product has."""
        return parameter if self.workspace is None else self.workspace.rounded(parameter)

    def take(self, name: str, parameter: Tensor, index: Tensor) -> Tensor:
        """Give some rows of a parameter, in ascending order, whose gradient is kept apart.

        The number of rows stands for none, of which any row is given.
        """
        at = index.clamp(max=len(parameter) - 1)
        if not parameter.requires_grad:
            return parameter.index_select(0, at)
        rows = parameter.detach().index_select(0, at).requires_grad_()
        self.parts[name] = index, rows
        return rows

    def step(self, parameters: dict[str, Tensor], optimizer: torch.optim.Adam) -> None:
        """Take the optimizer's step with parameters by name, or give them their gradients.

        Those that are to have rows of unit norm have it then: ``normalized`` has their names.
        Where the workspace has roundings of a parameter, they are those after the step. On a CUDA
        device this takes the step with all other parameters too, which have no gradient then.
        """
        steps = []
        for name, parameter in parameters.items():
            if name in self.sums:
                steps.append((parameter, self.sums[name], self._part(name)))
            elif (part := self._part(name)) is not None:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                index, rows = part
                # What stands for none has a gradient of 0.
                parameter.grad.index_add_(0, index.clamp(max=len(parameter) - 1), rows)
        if optimizer.param_groups[0]["params"][0].device.type == "cuda":
            _steps_on_cuda(steps, optimizer, self.workspace, self.numbers)
        else:
            _steps_on_cpu(steps, optimizer, self.workspace)
        self.normalized = {name for name, sums in self.sums.items() if sums.tangent}

    def _part(self, name: str) -> tuple[Tensor, Tensor] | None:
        index, rows = self.parts.get(name, (None, None))
        return None if index is None or rows is None or rows.grad is None else (index, rows.grad)


def steps_by_rows(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether `RowGradients` can take the steps of an optimizer."""
    if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    flags = ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable")
    if any(group[flag] for flag in flags) or not all(p.is_contiguous() for p in group["params"]):
        return False
    kinds = {p.device.type for p in group["params"]}
    if kinds == {"cpu"}:
        return _cpu.compiled() is not None
    # Of the others, "fused" has the state on the device.
    kernels = _cuda.compiled() if kinds == {"cuda"} and group["fused"] else None
    widths = [p.shape[1] for p in group["params"] if p.dim() == 2]
    return kernels is not None and max(widths, default=0) <= kernels.WIDEST_ROW


def adam_numbers(group: dict[str, Any]) -> tuple[float, float, float, float]:
    """Give learning rate, betas and eps of Adam."""
    beta1, beta2 = group["betas"]
    return float(group["lr"]), float(beta1), float(beta2), float(group["eps"])


def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Give numbers on a device, in float64, without waiting for it."""
    on_host = torch.tensor(numbers, dtype=torch.float64)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host


Step = tuple[Tensor, Sums, tuple[Tensor, Tensor] | None]


def _state(parameter: Tensor, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Give the optimizer's state of a parameter, with the coming step counted."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
    state["step"] += 1
    return state


def _steps_on_cuda(
    steps: list[Step],
    optimizer: torch.optim.Adam,
    workspace: Workspace | None,
    numbers: Tensor | None = None,
) -> None:
    (group,) = optimizer.param_groups
    if numbers is None:
        (device,) = {parameter.device for parameter in group["params"]}
        numbers = _on_device(adam_numbers(group), device)
    for parameter, sums, part in steps:
        copy = None if workspace is None else workspace.copy_of(parameter)
        _cuda.adam_rows_(parameter, sums, part, _state(parameter, optimizer), numbers, copy)
        if workspace is not None:
            workspace.keep(parameter)
    for parameter in group["params"]:
        if parameter.grad is not None:
            _cuda.adam_(parameter, parameter.grad, _state(parameter, optimizer), numbers)
            parameter.grad = None
            if workspace is not None:
                workspace.drop(parameter)


def _steps_on_cpu(
    steps: list[Step], optimizer: torch.optim.Adam, workspace: Workspace | None
) -> None:
    jobs, tables = [], []
    for parameter, sums, part in steps:
        table = None if workspace is None else workspace.table(parameter)
        job = _adam_rows(parameter, sums, part, optimizer, table)
        jobs.append((job, len(parameter)))
        tables.append(table)
    split_all(jobs, 4)
    for (parameter, *_), table in zip(steps, tables, strict=True):
        if table is not None:
            table.keep(parameter)


def _adam_rows(
    parameter: Tensor,
    sums: Sums,
    part: tuple[Tensor, Tensor] | None,
    optimizer: torch.optim.Adam,
    table: Rounded | None,
) -> Callable[[int, int], None]:
    """Begin the step of Adam that a gradient given as sums leads to, with one parameter.

    Parameters
    ----------
    parameter : Tensor of shape (m, d)
        Of the optimizer, whose state for it is used and kept.
    sums : Sums
        Its gradient.
    part : tuple of Tensor of shape (n_part,) and (n_part, d), or None
        Rows, ascending, that have a further part of their gradient, and that part.
    optimizer : torch.optim.Adam
        One of those that `steps_by_rows` tells.
    table : Rounded, optional
        Where to round the rows that change.

    Returns
    -------
    callable
        To be called with ranges of rows, which it changes.
    """
    (group,), state = optimizer.param_groups, _state(parameter, optimizer)
    number = parameter.detach().numpy().dtype.type
    rate, beta1, beta2, eps = adam_numbers(group)
    n = float(state["step"])
    numbers = (rate / (1 - beta1**n), beta1, beta2, eps, math.sqrt(1 - beta2**n))
    if part is None:
        part = torch.zeros(0, dtype=torch.int64), parameter.new_zeros(0, parameter.shape[1])
    if table is None:
        nothing = parameter.new_empty(0)
        rounded = (torch.empty(0, parameter.shape[1], dtype=torch.int8), *[nothing] * 3)
    else:
        rounded = (table.whole, *table.each)
    changed = (parameter, state["exp_avg"], state["exp_avg_sq"])
    read = (sums.starts, sums.index, sums.weights, sums.table, *part)
    arrays: list[Any] = [t.detach().numpy() for t in changed]
    arrays += [t.contiguous().numpy() for t in read]
    arrays += [sums.tangent, *(t.detach().numpy() for t in rounded)]
    given = (*arrays, *(number(value) for value in numbers), TINY)
    return lambda a, b: _cpu.step_loops().adam_rows(*given, a, b)
