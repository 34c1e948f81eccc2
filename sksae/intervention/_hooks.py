"""A forward hook that replaces hidden states, and goes away again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..activations._layers import find_layers, hidden_states


@contextmanager
def replacing(
    model: nn.Module,
    layer: Any,
    replace: Callable[[torch.Tensor], torch.Tensor],
    *,
    widens: bool = False,
) -> Iterator[None]:
    """Replace the hidden states that a layer puts out, as long as the block lasts.

    Blocks nest: of two on one layer, the inner one gets what the outer one gives. The hook is
    removed at the end of the block, however it ends.

    Parameters
    ----------
    model : torch.nn.Module
    layer : str or int
        One layer, as `find_layers` takes it.
    replace : callable
        From hidden states of shape (texts, tokens, features) to others of that shape; they
        must not be changed in place. Called in each forward pass.
    widens : bool, default=False
        Whether the others may be of more texts: what comes after the layer then runs on more
        texts than what comes before it.

    Yields
    ------
    None
    """

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        state = hidden_states(output)
        if state is None:
            raise ValueError(f"layer={layer!r} of {type(model).__name__} gives no hidden states.")
        new = replace(state)
        first = 1 if widens else 0
        if new.shape[first:] != state.shape[first:]:
            raise ValueError(
                f"Hidden states of shape {tuple(state.shape)} cannot be replaced by ones of shape "
                f"{tuple(new.shape)}."
            )
        return output if new is state else _exchanged(output, state, new.to(state))

    (module,) = find_layers(model, layer).values()
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _exchanged(output: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    """Give the output of a module with one tensor exchanged, in a container of its own."""
    if isinstance(output, torch.Tensor):
        return new
    if isinstance(output, Mapping):
        exchanged: Any = copy.copy(output)
        for key in [key for key, value in output.items() if value is old]:
            exchanged[key] = new
        return exchanged
    items = [new if item is old else item for item in output]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
