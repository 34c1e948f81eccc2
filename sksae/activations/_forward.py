"""One batch through the model: padding, the arguments it takes, the rows of its tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from .._linear import FastLinear
from ._layers import evaluating, probe, run_to
from ._units import Sequence


class Forward:
    """Runs token sequences through a model up to some layers.

    Sequences are padded on the right, which changes no row: the attention mask hides the
    padding. Where the tokenizer asks for padding on the left, that is done if the model
    takes ``position_ids``, which then keep every token at its own position.

    Parameters
    ----------
    model : torch.nn.Module
    layers : mapping of str to torch.nn.Module
        The layers whose hidden states are wanted.
    tokenizer : PreTrainedTokenizerFast
        Tells the padding side and token.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], tokenizer: Any):
        self.model = model
        self.layers = layers
        pad = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = 0 if pad is None else int(pad)
        parameters = inspect.signature(model.forward).parameters
        self._anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes = set(parameters)
        if not self._anything and "input_ids" not in self._takes:
            raise ValueError(
                f"{type(model).__name__} takes no input_ids. Pass the transformers model itself, "
                "not a wrapper of it."
            )
        on_left = getattr(tokenizer, "padding_side", "right") == "left"
        self.pad_left = on_left and "position_ids" in parameters and not _own_positions(model)

    def probe(self, ids: np.ndarray) -> dict[str, int]:
        """Run a few tokens and give the number of features of each layer."""
        with evaluating(self.model):
            states = probe(self.model, self.layers, self.inputs([ids], None))
        for name, state in states.items():
            _check_shape(name, state, (1, len(ids)))
        return {name: state.shape[2] for name, state in states.items()}

    def batch(
        self, ids: list[np.ndarray], types: list[np.ndarray] | None, wanted: list[np.ndarray]
    ) -> np.ndarray:
        """Run one batch.

        Parameters
        ----------
        ids : list of ndarray of int
            The tokens of each sequence.
        types : list of ndarray of int, or None
            Their token types, as the tokenizer gives them.
        wanted : list of ndarray of int
            The positions of each sequence whose hidden states are wanted.

        Returns
        -------
        ndarray of float32, shape (n_wanted, n_features)
            The layers side by side.
        """
        width = max(len(x) for x in ids)
        inputs = self.inputs(ids, types)
        try:
            with FastLinear():
                states = run_to(self.model, self.layers, inputs)
        except torch.OutOfMemoryError as exc:
            raise torch.OutOfMemoryError(
                f"No memory left for a batch of {len(ids)} texts of {width} tokens. Lower "
                "batch_size or max_length."
            ) from exc
        picked = self.places(ids, wanted)
        rows = [_rows(name, state, (len(ids), width), picked) for name, state in states.items()]
        return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)

    def places(self, ids: list[np.ndarray], wanted: list[np.ndarray]) -> torch.Tensor:
        """Give the wanted positions as indices into the padded batch, laid out row after row."""
        width = max(len(x) for x in ids)
        flat = [
            i * width + positions + (width - len(x) if self.pad_left else 0)
            for i, (x, positions) in enumerate(zip(ids, wanted, strict=True))
        ]
        return torch.from_numpy(np.concatenate(flat))

    def inputs(self, ids: list[np.ndarray], types: list[np.ndarray] | None) -> dict[str, Any]:
        """Pad sequences and give the keyword arguments that the model takes."""
        mask = self._padded([np.ones(len(x), dtype=np.int64) for x in ids], 0)
        inputs: dict[str, Any] = {
            "input_ids": self._padded(ids, self.pad_id),
            "attention_mask": mask,
        }
        if types is not None and "token_type_ids" in self._takes:
            inputs["token_type_ids"] = self._padded(types, 0)
        if self.pad_left:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        inputs = {k: v.to(device_of(self.model)) for k, v in inputs.items()}
        if "use_cache" in self._takes:
            inputs["use_cache"] = False
        if not self._anything:
            inputs = {k: v for k, v in inputs.items() if k in self._takes}
        return inputs

    def _padded(self, sequences: list[np.ndarray], value: int) -> torch.Tensor:
        width = max(len(x) for x in sequences)
        out = np.full((len(sequences), width), value, dtype=np.int64)
        for row, x in zip(out, sequences, strict=True):
            row[width - len(x) if self.pad_left else 0 :][: len(x)] = x
        return torch.from_numpy(out)


def _check_shape(name: str, state: torch.Tensor, shape: tuple[int, int]) -> None:
    if tuple(state.shape[:2]) != shape:
        raise ValueError(
            f"Module '{name}' gave hidden states of shape {tuple(state.shape)} for {shape[0]} "
            f"texts of {shape[1]} tokens. Choose a module that gives one row per token."
        )


def _rows(name: str, state: torch.Tensor, shape: tuple[int, int], picked: torch.Tensor):
    _check_shape(name, state, shape)
    flat = state.reshape(-1, state.shape[2])
    return flat[picked.to(flat.device)].to("cpu", torch.float32).numpy()


# Tokens of a batch, padding included: on the CPU for each thread. There a batch of a model with
# 384 features is fastest where it stays in the caches, 1.3 to 1.7 times as fast as one of 4,096.
TOKENS_PER_THREAD, TOKENS_MOST = 1024, 16384
TOKENS_ELSEWHERE = 32768


def token_budget(device: str) -> int:
    """Give the tokens of a batch, padding included, for a type of device."""
    if device != "cpu":
        return TOKENS_ELSEWHERE
    return min(TOKENS_MOST, TOKENS_PER_THREAD * torch.get_num_threads())


def batches(
    sequences: list[Sequence], batch_size: int | str, device: str = "cpu"
) -> list[list[Sequence]]:
    """Group sequences of like length, the longest first, so that memory runs out at once.

    Parameters
    ----------
    sequences : list of Sequence
    batch_size : int or "auto"
        Sequences of a batch. "auto" takes as many as `token_budget` allows, at least one.
    device : str, default="cpu"
        The type of the device.

    Returns
    -------
    list of list of Sequence
    """
    lengths = np.array([len(sequence.at) for sequence in sequences])
    order = np.argsort(-lengths, kind="stable").tolist()
    budget = token_budget(device)
    grouped, at = [], 0
    while at < len(order):
        fitting = max(1, budget // lengths[order[at]])
        n = fitting if batch_size == "auto" else int(batch_size)
        grouped.append([sequences[i] for i in order[at : at + n]])
        at += n
    return grouped


def device_of(model: nn.Module) -> torch.device:
    """Give the device of a model's first parameter."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def position_tables(model: nn.Module) -> list[nn.Embedding]:
    """Give the tables of learned absolute positions of a model."""
    names = ("position_embeddings", "wpe", "embed_positions")
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in names
    ]


def _own_positions(model: nn.Module) -> bool:
    """Tell whether the model numbers positions itself, from its padding token (RoBERTa)."""
    return any(table.padding_idx is not None for table in position_tables(model))


def position_limit(model: nn.Module) -> int | None:
    """Give the longest sequence that learned positions allow, None where there are none."""
    limits = []
    for table in position_tables(model):
        offset = getattr(table, "offset", 0)
        if table.padding_idx is not None:
            offset = table.padding_idx + 1
        limits.append(table.num_embeddings - offset)
    return min(limits, default=None)
