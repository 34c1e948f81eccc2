"""Where the tokens of a running forward pass stand in their texts, and which of them are meant."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

NAMED = ("last", "prompt", "generated")
# What models call their cache: from transformers 5.24 on, before, and state-space models before.
CACHES = ("cache", "past_key_values", "cache_params")


class Pass(NamedTuple):
    """One forward pass: the tokens that it runs.

    Attributes
    ----------
    ids : Tensor of shape (texts, tokens), or None
        None where the model was given embeddings.
    at : Tensor of shape (texts, tokens)
        The place of each token in its text, from 0, those in the cache counted and padding
        not; -1 for padding.
    begin : int
        Columns in the cache, which come before.
    prompt : int
        Columns of the prompt, from the first one on, padding included.
    """

    ids: torch.Tensor | None
    at: torch.Tensor
    begin: int
    prompt: int

    @property
    def in_prompt(self) -> torch.Tensor:
        """Tell which columns belong to the prompt."""
        return torch.arange(self.at.shape[1], device=self.at.device) < self.prompt - self.begin


Select = Callable[[Pass], torch.Tensor]


class _Reader:
    """Reads the arguments of one module's forward passes, and what goes on from pass to pass."""

    def __init__(self, module: nn.Module) -> None:
        self.names = list(inspect.signature(module.forward).parameters)
        self.last: Pass | None = None
        self.cache: Callable[[], Any] = lambda: None

    def read(self, args: tuple, kwargs: Mapping[str, Any]) -> Pass | None:
        given = dict(zip(self.names, args, strict=False)) | dict(kwargs)
        ids = given.get("input_ids")
        tokens = given.get("inputs_embeds") if ids is None else ids
        if not isinstance(tokens, torch.Tensor) or tokens.ndim < 2:
            return None
        n_texts, width = tokens.shape[:2]
        mask = given.get("attention_mask")
        begin = self._n_cached(given, width)
        if isinstance(mask, torch.Tensor) and mask.shape == (n_texts, begin + width):
            at = (mask != 0).long().cumsum(dim=1) - 1
            at = at.masked_fill(mask == 0, -1)[:, begin:].to(tokens.device)
        else:
            at = torch.arange(begin, begin + width, device=tokens.device).expand(n_texts, -1)
        now = Pass(ids, at, begin, begin + width)
        if self.last is not None and _goes_on(self.last, now):
            now = now._replace(prompt=self.last.prompt)
        self.last = now
        return now

    def _n_cached(self, given: Mapping[str, Any], width: int) -> int:
        """Give the number of columns in the cache."""
        cache: Any = next((given[name] for name in CACHES if given.get(name) is not None), None)
        if isinstance(cache, tuple | list) and len(cache):
            return int(cache[0][0].shape[-2])
        with suppress(AttributeError, ValueError):
            return int(cache.get_seq_length())
        mask = given.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] > width:
            return mask.shape[1] - width
        # The state of a state-space model has no length.
        seen, self.cache = self.cache(), _reference(cache)
        if cache is not None and cache is seen and self.last is not None:
            return self.last.begin + self.last.at.shape[1]
        return 0


def _reference(cache: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(cache)
    except TypeError:  # of None, and of a cache that is an empty list
        return lambda: None


def _goes_on(last: Pass, now: Pass) -> bool:
    """Tell whether a pass generates on: one token behind the cache, or all again and one more."""
    width = now.at.shape[1]
    end = last.begin + last.at.shape[1]
    if now.begin:
        return width == 1 and now.begin == end
    if last.ids is None or now.ids is None or width != end + 1 or last.begin:
        return False
    before = last.ids.to(now.ids.device)
    # Rows may change places, as in a beam search.
    return bool((now.ids[:, None, :-1] == before[None]).all(dim=2).any(dim=1).all())


class Watch:
    """Knows the forward pass that runs in a model.

    Parameters
    ----------
    model : torch.nn.Module
    layer : str
        Full path of a layer. Of the modules around it the innermost that takes tokens is
        listened to, so that the layers of a decoder know the decoder's tokens.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.kind = type(model).__name__
        self.now: Pass | None = None
        parts = layer.split(".")
        paths = [".".join(parts[:i]) for i in range(len(parts))]
        self.modules = [model.get_submodule(path) for path in paths]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen as long as the block lasts."""
        with ExitStack() as stack:
            for module in self.modules:
                stack.callback(self._listen(module).remove)
            yield

    def _listen(self, module: nn.Module) -> Any:
        reader = _Reader(module)

        def hook(_module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
            self.now = reader.read(args, kwargs) or self.now

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def chosen(self, shape: torch.Size, select: Select | None) -> torch.Tensor | None:
        """Give the chosen tokens, bool of shape (texts, tokens); None for all.

        Parameters
        ----------
        shape : torch.Size
            Of the hidden states.
        select : callable, or None
            From the pass; padding never counts. None chooses all tokens.
        """
        now = self.now
        if now is None or now.at.shape != shape[:2]:
            if select is None:
                return None
            raise ValueError(
                f"intervene cannot tell which token is which: hidden states of shape "
                f"{tuple(shape)} came without input_ids or inputs_embeds of {self.kind} that fit. "
                "Run the model itself inside the block, or pass positions=None and the SAE alone."
            )
        chosen = now.at >= 0
        return chosen if select is None else chosen & select(now)


def selection(positions: Any) -> Select:
    """Check what is given as ``positions`` of `intervene`, None excepted; give its choice."""
    if isinstance(positions, str):
        if positions in NAMED:
            return {"last": _from_last, "prompt": _prompt, "generated": _generated}[positions]
    elif callable(positions):
        return lambda now: _called(positions, now)
    elif isinstance(positions, slice):
        return _of_slice(positions)
    elif isinstance(positions, Integral | list | tuple | range | np.ndarray | torch.Tensor):
        array = _tensor(positions)
        if array.dtype == torch.bool and array.ndim == 2:
            return lambda now: _of_mask(array, now)
        if array.dtype != torch.bool and not array.is_floating_point() and array.ndim <= 1:
            _check_from_the_start(array.flatten().tolist(), positions)
            return lambda now: torch.isin(now.at, array.flatten().to(now.at))
    raise ValueError(
        f"The 'positions' parameter of intervene must be None, one of {', '.join(map(repr, NAMED))}"
        ", an int, a slice, a list of ints, a bool mask of shape (texts, tokens), or a callable "
        f"that gives one from input_ids. Got {positions!r} instead."
    )


def _tensor(positions: Any) -> torch.Tensor:
    if isinstance(positions, torch.Tensor):
        return positions.detach().cpu()
    array = np.asarray(positions)
    return torch.from_numpy(array.astype(np.int64) if not array.size else array.copy())


def _check_from_the_start(numbers: list[Any], positions: Any) -> None:
    if any(number is not None and number < 0 for number in numbers):
        raise ValueError(
            "The 'positions' parameter of intervene counts from the first token of a text, as the "
            f"last one is not known while it grows. Got {positions!r}; for the end of the prompt "
            "and what is generated behind it, use 'last'."
        )


def _of_slice(positions: slice) -> Select:
    _check_from_the_start([positions.start, positions.stop, positions.step], positions)
    start, step = positions.start or 0, 1 if positions.step is None else positions.step
    if step == 0:
        raise ValueError("The 'positions' parameter of intervene is a slice with step 0.")

    def select(now: Pass) -> torch.Tensor:
        chosen = (now.at >= start) & ((now.at - start) % step == 0)
        return chosen if positions.stop is None else chosen & (now.at < positions.stop)

    return select


def _of_mask(mask: torch.Tensor, now: Pass) -> torch.Tensor:
    n_texts, width = now.at.shape
    if len(mask) != n_texts:
        raise ValueError(
            f"The 'positions' mask of intervene has {len(mask)} rows, and the model runs "
            f"{n_texts} texts."
        )
    here = mask[:, now.begin : now.begin + width].to(now.at.device)
    return nn.functional.pad(here, (0, width - here.shape[1]))


def _called(function: Callable[[torch.Tensor], Any], now: Pass) -> torch.Tensor:
    if now.ids is None:
        raise ValueError(
            "The 'positions' callable of intervene is given input_ids, and the model got "
            "inputs_embeds. Use positions that need no tokens."
        )
    chosen = torch.as_tensor(function(now.ids))
    if chosen.dtype != torch.bool or chosen.shape != now.at.shape:
        raise ValueError(
            "The 'positions' callable of intervene must give bools of the shape of input_ids, "
            f"{tuple(now.at.shape)}. Got {chosen.dtype} of shape {tuple(chosen.shape)}."
        )
    return chosen.to(now.at.device)


def _prompt(now: Pass) -> torch.Tensor:
    return now.in_prompt.expand_as(now.at)


def _generated(now: Pass) -> torch.Tensor:
    return ~now.in_prompt.expand_as(now.at)


def _from_last(now: Pass) -> torch.Tensor:
    in_prompt = now.in_prompt.expand_as(now.at)
    last = now.at.where(in_prompt, -1).amax(dim=1, keepdim=True)
    return ~in_prompt | (in_prompt & (now.at == last))
