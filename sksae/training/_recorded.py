"""Training steps that a CUDA device repeats by itself, without being told each operation.

A step is some eighty operations, each of which the host needs microseconds to begin: more than
the device needs for them, unless batches are large. Recorded once as a graph, they begin
together.
"""

from __future__ import annotations

import contextlib
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import adam_numbers
from ._dense import compact_step, dense_step

# Steps of one kind after which the next ones are repeated from a record, and records kept.
_STEADY, _MOST_RECORDS = 8, 3
# Dead concepts that a record has place for, at least.
_FEWEST_DEAD = 64
# Pre-codes of all steps to come from which on it pays to compile what is computed of dense ones:
# on one H100 that took 3 to 13 seconds and saved 0.03 to 0.09 ns of each.
_FEWEST_COMPILED = 2e11
# Numbers that modules compute with, apart from what is looked at by name.
_HELD = ("target_l0", "bandwidth", "threshold_momentum", "prefix_weights")
# What a step gives that is not needed before the next one.
_NUMBERS = ("loss", "error", "n_active")
_lock = threading.Lock()


def _capture(
    work: Callable[[], Any], device: torch.device, pool: Any
) -> tuple[Callable[[], None], Any]:
    """Record what is done on a device; give what repeats it, and where it leaves results.

    Records that share a pool of memory may overwrite the results of each other.
    """
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        stream, others_go_on = torch.cuda.Stream(device), "thread_local"
        with _lock, torch.cuda.graph(graph, pool, stream, capture_error_mode=others_go_on):
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
    n_rows : int
        Those of each epoch.
    """

    def __init__(self, net, n_rows: int) -> None:
        self.net, self.parameters = net, list(net.module_.parameters())
        self.matrices = list(net.module_.row_parameters().values())
        self.dense_step: Callable[..., Any] = dense_step
        n_pre_codes = net.max_epochs * n_rows * net.module_.nb_concepts
        self.compiles = n_pre_codes >= _FEWEST_COMPILED
        self.compact_step: Callable[..., Any] | None = None
        # Results are read before another step is repeated.
        self.pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        self.key: tuple[Any, ...] | None = None
        self.n_same = self.n_places = 0
        self.records: dict[tuple[Any, ...], _Record] = {}
        self.inputs: Tensor | None = None
        zeros = torch.zeros(5, dtype=torch.float64, device=net._device())
        self.numbers, self.relative = zeros[:4], zeros[4]
        self.warmup = net.module_.decoder_bias.new_zeros(())
        # What is written there.
        self.values = (0.0,) * 6
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
            return self._take_first(record)
        record = self.records[key] = self.records.pop(key)  # the last one used
        self._set_inputs(x, record)
        if record.replay is None:
            self._record(record)
        if record.replay is None:
            return None
        if self.net.stored_steps_.obstacle is None:
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
        module, loss = net.module_, net.criterion_
        annealed = getattr(module, "k_scale", 1) != 1
        if annealed or net._full_precision or not self._is_repeatable():
            return None
        n_dead = len(module.dead_concepts) if loss.auxk_coefficient else 0
        self.n_places = _places(n_dead, self.n_places)
        share = loss.warmup if loss.warmup in (0, 1) else "between"
        k = module.k() if module.per_sample or hasattr(module, "top_k") else None
        sparsity = (k, module.relative > 0, module.per_sample, share)
        auxk = (self.n_places, loss.auxk_coefficient, loss.k_aux)
        weights = [c for c, _ in (*loss.terms, *loss.reconstruction_terms)]
        held = [getattr(module, name, None) for name in _HELD]
        numbers = (*auxk, *weights, loss.target_l0, net.l0_time, *held)
        states = net.optimizer_.state
        tensors, workspace = [module.samples_since_fired], net.stored_steps_.workspace
        tensors += [] if workspace is None else [workspace.memory]
        learns = []
        for parameter in self.parameters:
            learns.append(parameter.requires_grad)
            tensors += [parameter, *states.get(parameter, {}).values()]
        return (x.dtype, *sparsity, *numbers, *learns, *(t.data_ptr() for t in tensors))

    def _is_repeatable(self) -> bool:
        """Tell whether a step can be repeated as far as its operations are known."""
        module, stored = self.net.module_, self.net.stored_steps_
        if stored.obstacle is None:
            return module.is_repeatable("stored") and stored.workspace is not None
        if stored.wanted == "reference" or not module.is_repeatable("dense"):
            return False
        known = module.has_linear_encoder and module.dictionary.has_separate_rows
        return known and self.net.criterion_.repeats

    def _take_first(self, record: _Record) -> dict[str, Any]:
        """Take a step as it will be recorded: what is compiled at a first use is then ready."""
        if self.dense_is_compiled:
            try:
                self.compact_step = self.compact_step or _compiled()
                done = self._take(record)
            except Exception as exc:  # the weights are what they were
                self.compiles = False
                reason = f"{type(exc).__name__}: {exc}".splitlines()[0]
                warnings.warn(
                    f"Training steps could not be compiled ({reason}); they run in plain torch.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                self.net.stored_steps_.compiled = True
                return done
        return self._take(record)

    def _take(self, record: _Record) -> dict[str, Any]:
        with self._inputs_read(record):
            return self.net.take_step(self.inputs, self.inputs, self.numbers)

    def _set_inputs(self, x: Tensor, record: _Record) -> None:
        """Write what changes from step to step to where the record reads it."""
        module = self.net.module_
        self.inputs = torch.empty_like(x) if self.inputs is None else self.inputs
        self.inputs.copy_(x)
        (group,) = self.net.optimizer_.param_groups
        values = (*adam_numbers(group), float(module.relative), float(self.net.criterion_.warmup))
        tensors = (*self.numbers.unbind(), self.relative, self.warmup)
        for tensor, value, before in zip(tensors, values, self.values, strict=True):
            if value != before:
                tensor.fill_(value)
        self.values = values
        dead = module.dead_concepts
        if self.n_places and record.listed is not dead:
            if record.dead is None:
                record.dead = dead.new_empty(self.n_places)
            record.dead.fill_(module.nb_concepts)[: len(dead)] = dead
            record.listed = dead
        workspace = self.net.stored_steps_.workspace
        if workspace is not None:
            workspace.refresh(self.matrices)

    @contextlib.contextmanager
    def _inputs_read(self, record: _Record) -> Iterator[None]:
        """Have the module read what changes where it is written."""
        module, loss = self.net.module_, self.net.criterion_
        before, module.dead_places = (module.relative, loss.warmup), record.dead
        if module.relative > 0:
            module.relative = self.relative
        if 0 < loss.warmup < 1:
            loss.warmup = self.warmup
        if self.dense_is_compiled:
            self.dense_step = self.compact_step or dense_step
        try:
            yield
        finally:
            module.dead_places, (module.relative, loss.warmup) = None, before
            self.dense_step = dense_step

    @property
    def dense_is_compiled(self) -> bool:
        """Whether what is computed of dense codes is to be compiled."""
        dense = self.net.stored_steps_.obstacle is not None
        return self.compiles and dense and not self.net.module_.per_sample

    def _record(self, record: _Record) -> None:
        """Record a step without taking it, if that is possible."""

        def work() -> tuple[Tensor, Tensor]:
            step = self.net.take_step(self.inputs, self.inputs, self.numbers)
            if "error" not in step:
                step["error"] = (step["target"] - step["y_pred"]).square().mean()
            return torch.stack([step[name].double() for name in _NUMBERS]), step["target"]

        n_steps = self.net.stored_steps_.n_steps
        try:
            with self._inputs_read(record):
                record.replay, record.results = _capture(work, self.net._device(), self.pool)
        except RuntimeError as exc:
            self.enabled, self.records = False, {}
            self.net.stored_steps_.compiled = False
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


def _compiled() -> Callable[..., Any]:
    """Give a compiled `compact_step` of one's own.

    The compiler makes few variants of each piece of code before it gives up: those of other fits,
    of other sizes, are not to count.
    """
    own = types.FunctionType(compact_step.__code__.replace(), compact_step.__globals__)
    return torch.compile(own, dynamic=False)


def _places(n_dead: int, before: int) -> int:
    """Give a number of places for dead concepts that seldom changes as their number does."""
    if n_dead <= before < 4 * n_dead:
        return before
    return max(_FEWEST_DEAD, 1 << (n_dead - 1).bit_length()) if n_dead else 0
