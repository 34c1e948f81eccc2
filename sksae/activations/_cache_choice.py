"""Which cache an extractor uses: what its parameters ask for, and what its rows follow from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import _fingerprint as fingerprint
from . import _loading as loading
from ._cache import Group, Memory, NoGroup
from ._cache_folder import FORMAT, FolderGroup, import_zarr
from ._forward import device_of

_MISTAKEN = {"", "memory", "disk", "folder", "ram", "none", "no", "off", "true", "false", "yes"}
# Indices of folders that an extractor and its clones keep open.
_OPENED = 16


def check_cache(cache: Any, owner: str) -> None:
    """Refuse a ``cache`` parameter that names neither a kind of cache nor a usable folder.

    Raises
    ------
    ValueError
        If it reads like a mistaken word, or names a file.
    ImportError
        If it is a folder and zarr is missing.
    """
    if cache is None or cache == "memory":
        return
    name = os.fspath(cache)
    if name.lower() in _MISTAKEN:
        raise ValueError(
            f"The 'cache' parameter of {owner} must be 'memory', None or a folder. Got {name!r} "
            f"instead. For a folder of that name, write {os.path.join('.', name)!r}."
        )
    if Path(name).exists() and not Path(name).is_dir():
        raise ValueError(
            f"The 'cache' parameter of {owner} must be 'memory', None or a folder. Got the file "
            f"{name!r} instead."
        )
    import_zarr(owner)
    Path(name).mkdir(parents=True, exist_ok=True)


def open_group(
    cache: Any,
    size: int,
    held: dict[Any, Any],
    model: nn.Module,
    tokenizer: Any,
    n_features: int,
    settings: Mapping[str, Any],
    owner: str,
) -> Group:
    """Open the part of a cache that holds the rows of one model at certain settings.

    Parameters
    ----------
    cache : "memory", path or None
    size : int
        Most bytes in memory.
    held : dict
        Where the cache is put so that it lasts: it is gone with the last place that holds it.
    model : torch.nn.Module
    tokenizer : PreTrainedTokenizerFast
    n_features : int
    settings : mapping
        All parameters that rows follow from.
    owner : str
        The estimator's name, for the messages.

    Returns
    -------
    Group
        One that keeps nothing where none is asked for, where a hook may change the hidden
        states, and where weights or tokenizer cannot be read.
    """
    if cache is None or fingerprint.is_altered(model):
        return NoGroup()
    prints = fingerprint.of_model(model), fingerprint.of_tokenizer(tokenizer)
    if None in prints:
        return NoGroup()
    about = {
        "format": FORMAT,
        "model": type(model).__name__,
        "weights": prints[0].hex(),  # type: ignore[union-attr]
        "tokenizer": prints[1].hex(),  # type: ignore[union-attr]
        "arithmetic": _arithmetic(device_of(model).type),
        **settings,
    }
    written = json.dumps(about, sort_keys=True, indent=1)
    group = fingerprint.digest(written.encode())
    if cache == "memory":
        held["memory"] = memory = loading.shared("memory cache", (), Memory)
        return memory.group(group, size)
    folder = Path(cache).absolute()
    found = loading.shared(
        "folder cache",
        (str(folder), group),
        lambda: FolderGroup(folder, group, written, n_features, owner),
    )
    opened = held.setdefault("folders", {})
    opened[folder, group] = opened.pop((folder, group), found)
    if len(opened) > _OPENED:
        del opened[next(iter(opened))]
    return found


def _arithmetic(device: str) -> list:
    """Say what beside the type of the weights decides how a device rounds."""
    autocast = torch.is_autocast_enabled(device)
    kind = str(torch.get_autocast_dtype(device)) if autocast else None
    return [device, kind, torch.get_float32_matmul_precision()]
