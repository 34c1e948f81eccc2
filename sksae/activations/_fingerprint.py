"""What a model computes, as a few bytes: its weights, settings and code, and its tokenizer.

A cache of hidden states may only be read by the very model that wrote it. The fingerprint of a
model is a hash of all that its hidden states follow from. Hashing weights takes a second per
gigabyte, so that is done once for a model object. Each later call rechecks what is cheap:
where each tensor lies, its version counter, and a sum over its bytes, because a change made
through ``tensor.data`` does not count as a version.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import threading
import weakref
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ._layers import is_own_hook

# Weights up to this size are summed whole in each recheck, larger ones in evenly spaced blocks.
_SUMMED = 2**30
_BLOCKS, _BLOCK = 64, 2**16

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
# Names that say where something comes from, not what it does; the mode is always evaluation.
_PASSING = {"training", "_name_or_path", "name_or_path", "transformers_version"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Packages whose code is told by their version; torch changes results by rounding alone.
_VERSIONED = {"torch", "transformers"}


class _Known(NamedTuple):
    """The fingerprint of a model object, and the state in which it was taken."""

    description: bytes
    stamps: dict[str, tuple]
    digests: dict[str, bytes]
    fingerprint: bytes


_MODELS: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()
_TOKENIZERS: weakref.WeakKeyDictionary[Any, tuple[Any, bytes]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def digest(*parts: bytes) -> bytes:
    """Hash byte strings to 16 bytes; where one ends and the next begins counts.

    Examples
    --------
    >>> digest(b"ab", b"c") == digest(b"a", b"bc")
    False
    """
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()


# Models


def is_altered(model: nn.Module) -> bool:
    """Tell whether something other than the model's weights has a say in its hidden states.

    That is a forward hook or pre-hook of somebody else on any of its modules (or on all
    modules), or a ``forward`` put on a module object. Neither can be read.
    """
    names = ("_global_forward_hooks", "_global_forward_pre_hooks")
    if any(getattr(torch_module, name, None) for name in names):
        return True
    return any(_is_altered(module) for module in model.modules())


def _is_altered(module: nn.Module) -> bool:
    # accelerate, which spreads a model over devices, puts its own forward there.
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        return True
    return any(
        not is_own_hook(hook) for name in _HOOKS for hook in getattr(module, name, {}).values()
    )


def of_model(model: nn.Module) -> bytes | None:
    """Give the fingerprint of a model, None where its weights are not there to be read.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    bytes, or None
        16 bytes: a hash of the bytes, names, types and shapes of all parameters, buffers and
        other tensors of its modules, of their settings, classes and methods, and of the
        configuration. Where the tensors lie does not count, nor training mode.
    """
    tensors = dict(_tensors(model))
    if any(tensor.is_meta for tensor in tensors.values()):
        return None
    description = _description(model)
    whole = sum(tensor.nbytes for tensor in tensors.values()) <= _SUMMED
    with _LOCK:
        stamps = {name: _stamp(tensor, whole) for name, tensor in tensors.items()}
        known = _MODELS.get(model)
        if known is None:
            known = _Known(b"", {}, {}, b"")
        if known.description == description and known.stamps == stamps:
            return known.fingerprint
        digests = {
            name: known.digests[name]
            if known.stamps.get(name) == stamps[name]
            else _digest_of(tensor)
            for name, tensor in tensors.items()
        }
        parts = chain.from_iterable((name.encode(), value) for name, value in digests.items())
        found = digest(description, *parts)
        _MODELS[model] = _Known(description, stamps, digests, found)
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}:{name}", value


def _stamp(tensor: torch.Tensor, whole: bool) -> tuple:
    """Say which memory a tensor is, and what is in it, without reading much."""
    kind = (str(tensor.dtype), tuple(tensor.shape), str(tensor.device))
    # Tensors made in inference mode count no versions.
    n_changes = None if tensor.is_inference() else tensor._version
    return (id(tensor), tensor.data_ptr(), n_changes, *kind, _sum(tensor, whole))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _sum(tensor: torch.Tensor, whole: bool) -> int:
    content = _bytes(tensor)
    n_bytes = content.numel()
    if not whole and n_bytes > _BLOCKS * _BLOCK:
        step = (n_bytes - _BLOCK) // (_BLOCKS - 1)
        content = torch.cat([content[i * step :][:_BLOCK] for i in range(_BLOCKS)])
    aligned = content[: content.numel() // 8 * 8]
    if aligned.storage_offset() % 8:
        aligned = aligned.clone()
    rest = content[len(aligned) :].sum()
    return int(aligned.view(torch.int64).sum() + rest)


def _digest_of(tensor: torch.Tensor) -> bytes:
    kind = f"{tensor.dtype} {tuple(tensor.shape)}"
    return digest(kind.encode(), memoryview(_bytes(tensor).cpu().numpy()))  # type: ignore[arg-type]


def _description(model: nn.Module) -> bytes:
    """Write down all that hidden states follow from but the tensors."""
    modules = {path: _settings(module) for path, module in model.named_modules()}
    classes = {type(module) for module in model.modules()}
    code = {_name(kind): _code(kind) for kind in classes}
    config = getattr(model, "config", None)
    about = {
        "modules": modules,
        "code": code,
        "config": _plain(_config(config)),
        "attention": getattr(config, "_attn_implementation", None),
        "transformers": _version("transformers"),
    }
    return digest(json.dumps(about, sort_keys=True, default=repr).encode())


def _settings(module: nn.Module) -> list:
    """Give the class and the plain attributes of a module."""
    kept = {
        name: _plain(value)
        for name, value in vars(module).items()
        if name not in _PASSING and "_hooks" not in name and not _is_part(value)
    }
    return [_name(type(module)), module.extra_repr(), kept]


def _is_part(value: Any) -> bool:
    """Tell whether a value is seen elsewhere: a tensor, a module, the configuration."""
    return isinstance(value, torch.Tensor | nn.Module) or hasattr(value, "to_dict")


def _plain(value: Any) -> Any:
    """Turn a value into what JSON can hold and what is the same in each process."""
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, Mapping):
        items = ((repr(k), _plain(v)) for k, v in value.items() if k not in _PASSING)
        return dict(items)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(item) for item in value)
    if inspect.isroutine(value) or inspect.isclass(value):
        return _name(value)
    return _name(type(value))


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"


def _config(config: Any) -> Any:
    return config.to_dict() if hasattr(config, "to_dict") else config


def _code(kind: type) -> list:
    """Give the compiled methods of a module class, which a notebook may define anew."""
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    found = [_function(value) for parent in own for value in vars(parent).values()]
    return [_compiled(function.__code__) for function in found if function is not None]


def _function(value: Any) -> FunctionType | None:
    """Give the function behind a method, None for those of versioned packages."""
    value = getattr(value, "__func__", value)
    if not inspect.isfunction(value) or value.__module__.partition(".")[0] in _VERSIONED:
        return None
    return inspect.unwrap(value)


def _compiled(code: CodeType) -> list:
    inner = [_compiled(c) if isinstance(c, CodeType) else _plain(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), inner]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# Tokenizers


def of_tokenizer(tokenizer: Any) -> bytes | None:
    """Give the fingerprint of a fast tokenizer, None where it cannot be written down."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return None
    stamp = _tokenizer_stamp(tokenizer, backend)
    with _LOCK:
        known = _TOKENIZERS.get(tokenizer)
        if known is None or known[0] != stamp:
            try:
                written = json.loads(backend.to_str())
            except Exception:  # of parts written in Python; tokenizers raises plain Exception
                return None
            # Set anew by each call.
            for name in ("truncation", "padding"):
                written.pop(name, None)
            found = digest(repr(stamp).encode(), json.dumps(written, sort_keys=True).encode())
            known = _TOKENIZERS[tokenizer] = (stamp, found)
    return known[1]


def _tokenizer_stamp(tokenizer: Any, backend: Any) -> tuple:
    """Give what of a tokenizer may be set on it later and is quick to read."""
    names = ("padding_side", "truncation_side", "pad_token_id", "split_special_tokens")
    roles = ("bos", "eos", "cls", "sep", "unk")
    parts = ("normalizer", "pre_tokenizer", "post_processor")
    return (
        _name(type(tokenizer)),
        len(tokenizer),
        tuple(getattr(tokenizer, name, None) for name in names),
        tuple(getattr(tokenizer, f"{role}_token_id", None) for role in roles),
        tuple(sorted(tokenizer.all_special_ids)),
        tuple(_state(getattr(backend, part, None)) for part in parts),
        _version("tokenizers"),
    )


def _state(part: Any) -> bytes:
    """Give the settings of a part of a tokenizer, b'' for one written in Python."""
    try:
        return b"" if part is None else part.__getstate__()
    except Exception:  # tokenizers raises plain Exception
        return b""
