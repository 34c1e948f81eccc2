"""Training steps that a CUDA device repeats by itself, without being told each operation.

A step is some eighty operations, each of which the host needs microseconds to begin: more than
the device needs for them, unless batches are large. Recorded once as a graph, they begin
together.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import adam_numbers

# Steps of one kind after which the next ones are repeated from a record, and records kept.
_STEADY, _MOST_RECORDS = 8, 3
# Dead concepts that a record has place for, at least.
_FEWEST_DEAD = 64
# What a step gives that is not needed before the next one.
_NUMBERS = ("loss", "error", "n_active")
_lock = threading.Lock()


def _capture(work: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """Record what is done on a device; give what repeats it, and where it leaves results."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on.
        stream = torch.cuda.Stream(device)
        with _lock, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            results = work()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, results


@dataclass
class _Record:
    """A recorded step, and where it reads the numbers of dead concepts."""

    dead: Tensor | None = None
    listed: Tensor | None = None
    replay: Callable[[], None] | None = None
    # `_NUMBERS`, and the scaled rows.
    results: tuple[Tensor, ...] = ()


class RecordedSteps:
    """Repeats training steps that differ in little: rows, the optimizer's numbers, dead concepts.

    Parameters
    ----------
    net : SAENet
        Whose steps go by rows.
    """

    def __init__(self, net) -> None:
        self.net = net
        self.key: tuple[Any, ...] | None = None
        self.n_same = self.n_places = 0
        self.records: dict[tuple[Any, ...], _Record] = {}
        self.inputs: Tensor | None = None
        zeros = torch.zeros(5, dtype=torch.float64, device=net._device())
        self.numbers, self.relative = zeros[:4], zeros[4]
        self.enabled = True

    def step(self, x: Tensor, y: Tensor) -> dict[str, Any] | None:
        """Take a step as `SAENet.take_step` does; give None where this one cannot be recorded."""
        if y is not x or len(x) != self.net.batch_size:  # the last batch of an epoch
            return None
        key = self._key(x)
        self.n_same = self.n_same + 1 if key == self.key else 1
        self.key = key
        if not self.enabled or key is None:
            return None
        if key not in self.records:
            if self.n_same < _STEADY:
                return None
            while len(self.records) >= _MOST_RECORDS:
                del self.records[next(iter(self.records))]
            record = self.records[key] = _Record()
            self._set_inputs(x, record)
            with self._inputs_read(record):  # what is compiled at a first use is then ready
                return self.net.take_step(self.inputs, self.inputs, self.numbers)
        record = self.records[key] = self.records.pop(key)  # the last one used
        self._set_inputs(x, record)
        if record.replay is None:
            self._record(record)
        if record.replay is None:
            return None
        self.net.stored_steps_.n_steps += 1
        record.replay()
        numbers, target = record.results
        done = dict(zip(_NUMBERS, numbers.clone().unbind(), strict=True))
        return done | {"target": target, "y_pred": None}

    def interrupt(self) -> None:
        """Know that a step was taken in plain torch, as the coming ones of its kind will be."""
        self.n_same = 0

    def _key(self, x: Tensor) -> tuple[Any, ...] | None:
        """Give all that a record depends on; None where there can be none."""
        net = self.net
        module, stored = net.module_, net.stored_steps_
        annealed = getattr(module, "k_scale", 1) != 1
        if not module.repeatable or annealed or net._full_precision or stored.workspace is None:
            return None
        loss = net.criterion_
        n_dead = len(module.dead_concepts) if loss.auxk_coefficient else 0
        self.n_places = _places(n_dead, self.n_places)
        sparsity = (module.k(), module.relative > 0, module.per_sample, loss.warmup)
        auxk = (self.n_places, loss.auxk_coefficient, loss.k_aux)
        states = net.optimizer_.state
        tensors = [stored.workspace.memory, module.samples_since_fired]
        learns = []
        for parameter in module.parameters():
            learns.append(parameter.requires_grad)
            tensors += [parameter, *states.get(parameter, {}).values()]
        return (x.dtype, *sparsity, *auxk, *learns, *(t.data_ptr() for t in tensors))

    def _set_inputs(self, x: Tensor, record: _Record) -> None:
        """Write what changes from step to step to where the record reads it."""
        module = self.net.module_
        self.inputs = torch.empty_like(x) if self.inputs is None else self.inputs
        self.inputs.copy_(x)
        (group,) = self.net.optimizer_.param_groups
        self.numbers.copy_(adam_numbers(group, self.numbers.device))
        self.relative.fill_(module.relative)
        dead = module.dead_concepts
        if self.n_places and record.listed is not dead:
            if record.dead is None:
                record.dead = dead.new_empty(self.n_places)
            record.dead.fill_(module.nb_concepts)[: len(dead)] = dead
            record.listed = dead
        self.net.stored_steps_.workspace.refresh(module.row_parameters().values())

    @contextlib.contextmanager
    def _inputs_read(self, record: _Record) -> Iterator[None]:
        """Have the module read what changes where it is written."""
        module = self.net.module_
        before, module.dead_places = module.relative, record.dead
        if before > 0:
            module.relative = self.relative
        try:
            yield
        finally:
            module.dead_places, module.relative = None, before

    def _record(self, record: _Record) -> None:
        """Record a step without taking it, if that is possible."""

        def work() -> tuple[Tensor, Tensor]:
            step = self.net.take_step(self.inputs, self.inputs, self.numbers)
            return torch.stack([step[name].double() for name in _NUMBERS]), step["target"]

        n_steps = self.net.stored_steps_.n_steps
        try:
            with self._inputs_read(record):
                record.replay, record.results = _capture(work, self.net._device())
        except RuntimeError as exc:
            self.enabled, self.records = False, {}
            reason = str(exc).splitlines()[0]
            warnings.warn(
                f"Training steps could not be recorded as a CUDA graph ({reason}); they are "
                "begun one operation at a time, which is slower for small batches.",
                RuntimeWarning,
                stacklevel=2,
            )
        finally:
            self.net.stored_steps_.n_steps = n_steps
            self.net.optimizer_.zero_grad(set_to_none=True)


def _places(n_dead: int, before: int) -> int:
    """Give a number of places for dead concepts that seldom changes as their number does."""
    if n_dead <= before < 4 * n_dead:
        return before
    return max(_FEWEST_DEAD, 1 << (n_dead - 1).bit_length()) if n_dead else 0
