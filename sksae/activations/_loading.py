"""Models and tokenizers: loading by name, sharing what is loaded, showing them briefly."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

_HEAVY = 500_000_000

# What is loaded and still held by some estimator, so that another one need not load it.
_ALIVE: weakref.WeakValueDictionary[tuple, Any] = weakref.WeakValueDictionary()

# A worker of a parallel search unpickles a new estimator for each fit. It keeps what it
# loaded last; in the main process the estimators hold what they need.
_KEPT: dict[str, Any] = {}

_warned_heavy = False


def is_name(value: Any) -> bool:
    """Tell whether a model or tokenizer is given by name or folder."""
    return isinstance(value, str | os.PathLike)


def shared(kind: str, key: tuple, load: Callable[[], Any]) -> Any:
    """Give the object loaded under this key, loading it if nobody holds it any more."""
    full = (kind, *key)
    found = _ALIVE.get(full)
    if found is None:
        found = load()
        _ALIVE[full] = found
    if multiprocessing.parent_process() is not None:
        _KEPT[kind] = found
    return found


def key_of(name: Any, *settings: Any) -> tuple:
    """Make a key of a name and what it is loaded with; a folder counts with its files."""
    path = Path(name)
    files: list = []
    if path.is_dir():
        stats = [(f.name, f.stat()) for f in sorted(path.iterdir()) if f.is_file()]
        files = [(file, stat.st_mtime_ns, stat.st_size) for file, stat in stats]
    return (os.fspath(name), repr(settings), tuple(files))


def load_model(
    name: Any,
    revision: str | None,
    params: dict | None,
    device: torch.device,
    dtype: torch.dtype,
    auto_class: str = "AutoModel",
) -> nn.Module:
    """Load a model by name or folder in evaluation mode; a head must have its weights there."""
    params = {"dtype": dtype, "revision": revision, **(params or {})}
    if params["revision"] is None:
        del params["revision"]

    def load() -> nn.Module:
        import transformers

        auto = getattr(transformers, auto_class)
        with _named_failure("model", name), _no_progress_bars():
            model, found = auto.from_pretrained(name, **params, output_loading_info=True)
        if auto_class != "AutoModel":
            _check_head(name, auto_class, found["missing_keys"])
        return model.eval() if "device_map" in params else model.eval().to(device)

    return shared("model", key_of(name, sorted(params.items()), device, auto_class), load)


def _check_head(name: Any, auto_class: str, missing: Collection[str]) -> None:
    """Refuse a model that would run with a head of random weights."""
    if missing:
        raise ValueError(
            f"{os.fspath(name)!r} holds no weights for {', '.join(sorted(missing)[:3])}, which "
            f"{auto_class} needs: it was saved without its head. Pass model=, the name or folder "
            "of one with its head."
        )


def load_tokenizer(name: Any, revision: str | None, params: dict | None) -> Any:
    """Load a tokenizer by name or folder, through ``AutoTokenizer``."""
    params = dict(params or {})
    if revision is not None:
        params.setdefault("revision", revision)

    def load() -> Any:
        from transformers import AutoTokenizer

        with _named_failure("tokenizer", name):
            return AutoTokenizer.from_pretrained(name, **params)

    return shared("tokenizer", key_of(name, sorted(params.items())), load)


def find_tokenizer(
    tokenizer: Any, model: Any, revision: str | None = None, params: dict | None = None
) -> Any:
    """Give the tokenizer of a model, loaded if it is given by name; None is the model's own."""
    if tokenizer is None:
        tokenizer = model if is_name(model) else name_inside(model)
        if not tokenizer:
            raise ValueError(
                f"tokenizer=None takes the tokenizer of the model's folder, and this "
                f"{type(model).__name__} names none. Pass tokenizer=."
            )
    if is_name(tokenizer):
        tokenizer = load_tokenizer(tokenizer, revision if tokenizer == model else None, params)
    return tokenizer


def language_class(name: Any) -> str:
    """Name the class of transformers that loads a language model with its head."""
    from transformers import AutoConfig

    with _named_failure("model", name):
        architectures = AutoConfig.from_pretrained(name).architectures or []
    masked = any(architecture.endswith("ForMaskedLM") for architecture in architectures)
    return "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM"


@contextmanager
def _named_failure(parameter: str, name: Any) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise OSError(
            f"Cannot load the {parameter} {os.fspath(name)!r} ({reason}). Pass a folder, the name "
            f"of one that can be fetched, or a loaded {parameter}."
        ) from exc


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def name_inside(model: nn.Module) -> str:
    """Give the name or folder that a model object says it was loaded from, or ''."""
    config = getattr(model, "config", None)
    return getattr(model, "name_or_path", "") or getattr(config, "_name_or_path", "") or ""


def check_tokenizer(tokenizer: Any) -> Any:
    """Refuse tokenizers that cannot tell which characters a token stands for."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, without the character spans of its "
            "tokens. Pass a fast one: AutoTokenizer.from_pretrained(name, use_fast=True)."
        )
    return tokenizer


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Turn the ``dtype`` parameter into a floating torch dtype."""
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r} is no floating dtype of torch. Use 'float32', 'bfloat16', 'float16'."
        )
    return resolved


class Brief:
    """Stands for a model or tokenizer where a parameter is shown."""

    def __init__(self, shown: Any):
        size = ""
        if isinstance(shown, nn.Module):
            size = f", {_rounded(sum(p.numel() for p in shown.parameters()))} parameters"
        self.text = f"<{type(shown).__name__}{size}>"

    def __repr__(self) -> str:
        return self.text


def _rounded(n: int) -> str:
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= unit:
            return f"{n / unit:.1f}{letter}"
    return str(n)


def brief(value: Any) -> Any:
    """Give a short stand-in for a model or tokenizer object, anything else as it is."""
    is_tokenizer = hasattr(value, "convert_ids_to_tokens")
    return Brief(value) if isinstance(value, nn.Module) or is_tokenizer else value


def asked_by_printer() -> bool:
    """Tell whether the caller's caller is scikit-learn's printer of estimators.

    It prints whatever ``get_params`` returns, a pipeline's steps included, and offers no
    other place to give a parameter a short form.
    """
    return sys._getframe(2).f_globals.get("__name__") == "sklearn.utils._pprint"


def warn_if_heavy(model: nn.Module) -> None:
    """Warn once in a process that pickling a model object carries its weights."""
    global _warned_heavy
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size <= _HEAVY or _warned_heavy:
        return
    _warned_heavy = True
    warnings.warn(
        f"{type(model).__name__} is pickled with {size / 1e6:.0f} MB of weights, as happens for "
        "each fit of a search with n_jobs > 1. Give the model by name or folder to avoid this.",
        UserWarning,
        stacklevel=3,
    )
