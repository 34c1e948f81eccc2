"""Finding layers in a torch module, and running it no further than they need."""

from __future__ import annotations

import difflib
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import nn

_MOST_NAMED = 8


def find_layers(
    model: nn.Module, layer: str | Integral | Sequence[str | Integral]
) -> dict[str, nn.Module]:
    """Resolve ``layer`` to modules of ``model``.

    Parameters
    ----------
    model : torch.nn.Module
    layer : str, int or list of these
        A module path, an unambiguous end of one, or the number of a block (negative from
        the end).

    Returns
    -------
    dict of str to torch.nn.Module
        Full module paths and modules, in the order asked for.
    """
    asked = [layer] if isinstance(layer, str | Integral) else list(layer)
    if not asked:
        raise ValueError("layer=[] names no layer. Give at least one.")
    names = [find_layer(model, one) for one in asked]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"layer={layer!r} names '{twice[0]}' more than once.")
    modules = dict(model.named_modules())
    return {name: modules[name] for name in names}


def find_layer(model: nn.Module, layer: Any) -> str:
    """Resolve one layer to its full module path.

    Parameters
    ----------
    model : torch.nn.Module
    layer : str or int

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If no module or more than one fits; the message lists the candidates.
    """
    if isinstance(layer, Integral) and not isinstance(layer, bool):
        return _block(model, int(layer))
    if not isinstance(layer, str):
        raise TypeError(f"A layer must be a str or an int. Got {layer!r} instead.")
    names = [name for name, _ in model.named_modules() if name]
    if layer in names:
        return layer
    fitting = [name for name in names if name.endswith(f".{layer}")] if layer else []
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(
            f"layer='{layer}' is ambiguous in {_class(model)}: it fits {_listed(fitting)}. "
            "Give more of the path."
        )
    raise ValueError(
        f"No module named '{layer}' in {_class(model)}; {_suggestion(model, layer, names)}"
    )


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Give the lists of modules that lie in no other list, by their path."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[name] = module
    return found


def _block(model: nn.Module, number: int) -> str:
    lists = block_lists(model)
    if not lists:
        raise ValueError(
            f"layer={number} needs a list of blocks and {_class(model)} has none. Give the path "
            f"of a module, such as {_listed([n for n, _ in model.named_modules() if n])}."
        )
    name = max(lists, key=lambda key: len(lists[key]))
    n_blocks = len(lists[name])
    if not -n_blocks <= number < n_blocks:
        raise ValueError(
            f"layer={number} is out of range for the {n_blocks} blocks '{name}' of "
            f"{_class(model)}. Give an int from {-n_blocks} to {n_blocks - 1}."
        )
    return f"{name}.{number % n_blocks}"


def _suggestion(model: nn.Module, layer: str, names: list[str]) -> str:
    """Name what was probably meant: the block of that number, or names alike."""
    head, _, last = layer.rpartition(".")
    blocks = [f"{name}.{last}" for name in block_lists(model)] if last.isdigit() else []
    close = [name for name in blocks if name in names]
    alike = [name for name in names if layer.endswith(f".{name}")]
    close += sorted(alike, key=len, reverse=True)[:1]
    if not close:
        ends = {name.split(".", name.count(".") - layer.count("."))[-1]: name for name in names}
        close = [ends[end] for end in difflib.get_close_matches(layer, ends, n=3)]
        close = close or difflib.get_close_matches(layer, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {_listed(list(dict.fromkeys(close)), ' or ')}?"
    top = [name for name, _ in model.named_children()]
    return (
        f"its modules are {_listed(top)}, and those inside them." if top else "it has no modules."
    )


def _listed(names: list[str], last: str = ", ") -> str:
    quoted = [f"'{name}'" for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        return f"{', '.join(quoted)} and {len(names) - _MOST_NAMED} more"
    return ", ".join(quoted[:-1]) + last + quoted[-1] if len(quoted) > 1 else "".join(quoted)


def _class(model: nn.Module) -> str:
    return type(model).__name__


def hidden_states(output: Any) -> torch.Tensor | None:
    """Take the first tensor of shape (texts, tokens, features) out of a module's output."""
    if isinstance(output, torch.Tensor):
        return output if output.ndim == 3 else None
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return next((x for x in output if isinstance(x, torch.Tensor) and x.ndim == 3), None)
    return None


class _Reached(Exception):
    """Raised by a hook to leave the forward pass; never seen outside this module."""


def run_to(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Run ``model`` until the last of ``layers`` has given its output, no further.

    Parameters
    ----------
    model : torch.nn.Module
    layers : mapping of str to torch.nn.Module
        Modules of ``model`` that each run once in a forward pass.
    inputs : mapping of str to object
        Keyword arguments of the forward pass.

    Returns
    -------
    dict of str to torch.Tensor
        Hidden states of shape (texts, tokens, features), in the order of ``layers``.
    """
    outputs: dict[str, Any] = {}

    def seen(name: str, output: Any) -> None:
        outputs[name] = output
        if len(outputs) == len(layers):
            raise _Reached

    try:
        with _watching(layers, seen):
            model(**inputs)
    except _Reached:
        pass
    return _checked(model, layers, outputs)


def probe(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Do as `run_to`, but run to the end to check that each layer runs once.

    Raises
    ------
    ValueError
        If a layer does not run, runs more than once, or gives no hidden states.
    """
    outputs: dict[str, Any] = {}
    counts: Counter[str] = Counter()

    def seen(name: str, output: Any) -> None:
        outputs[name] = output
        counts[name] += 1

    try:
        with _watching(layers, seen):
            model(**inputs)
    except Exception:
        # What comes after the last layer may lack inputs: the decoder behind an encoder.
        if len(outputs) < len(layers):
            raise
    for name, n_calls in counts.items():
        if n_calls > 1:
            raise ValueError(
                f"Module '{name}' runs {n_calls} times in one forward pass of {_class(model)}, so "
                "that it has no single output. Choose a module that runs once."
            )
    return _checked(model, layers, outputs)


class _Watch:
    """A hook that reads the output of a layer."""

    def __init__(self, name: str, seen: Any):
        self.name = name
        self.seen = seen

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.seen(self.name, output)


def is_own_hook(hook: Any) -> bool:
    """Tell whether a forward hook is one of those that `run_to` and `probe` use to read."""
    return isinstance(hook, _Watch)


@contextmanager
def _watching(layers: Mapping[str, nn.Module], seen: Any) -> Iterator[None]:
    """Call ``seen(name, output)`` whenever a layer has run."""
    handles = []
    try:
        for name, module in layers.items():
            handles.append(module.register_forward_hook(_Watch(name, seen)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _checked(model, layers, outputs) -> dict[str, torch.Tensor]:
    states = {}
    for name, module in layers.items():
        if name not in outputs:
            inside = [f"{name}.{child}" for child, _ in module.named_children()]
            hint = f" Inside it are {_listed(inside)}." if inside else ""
            raise ValueError(
                f"Module '{name}' does not run in the forward pass of {_class(model)}.{hint}"
            )
        state = hidden_states(outputs[name])
        if state is None:
            raise ValueError(
                f"Module '{name}' of {_class(model)} gives no tensor of shape (texts, tokens, "
                f"features). Got {_described(outputs[name])} instead."
            )
        states[name] = state
    return states


def _described(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"


_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode, without gradients; give every flag back at the end.

    One thread at a time: hooks and flags belong to the model, which clones share.
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock, torch.no_grad():
        training = [module for module in model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True
