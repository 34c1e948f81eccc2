"""Which steps run on stored codes only, and the words that say so."""

from __future__ import annotations

import contextlib

import torch

from ..kernels import DEVICES, Workspace, name, serves

# Below this width, and above this share of stored codes, dense products are faster on the CPU. On
# CUDA stored codes were as fast or faster up to that share, from 1,024 concepts on; more was not
# measured.
_FEWEST_CONCEPTS = 256
_LARGEST_SHARE = {"cpu": 1 / 8, "cuda": 1 / 32}
# Steps until it is tried again whether codes are sparse.
_PAUSE = 32
# Where the device tells how many codes are active, concepts from which on stored codes are faster
# on it, if products are in float32: in bfloat16 dense ones, begun at once, take less. On one H200
# a fit at 4,096 concepts took 1.1 times as long where a third of its steps were on stored codes,
# and one at 24,576 0.6 times as long where two thirds were.
_FEWEST_COUNTED = 16_384


class TooManyStored(Exception):
    """A batch has so many codes that dense products are faster."""


class StoredSteps:
    """Decides for each step whether it runs on stored codes, and keeps its memory.

    Parameters
    ----------
    net : SAENet
        After its initialisation.
    """

    def __init__(self, net) -> None:
        self.wanted, self.device = net.backend, net._device()
        self.obstacle = self._obstacle(net)
        self.precision = net.amp_dtype if self._rounds(net) else None
        self.workspace: Workspace | None = None
        self.screened, self.n_missed, self.compiled = False, 0, False
        self.n_steps = self.n_dense = 0
        self.next_try = 0

    def _obstacle(self, net) -> str | None:
        if self.wanted == "reference":
            return "as asked for"
        if self.device.type not in DEVICES:
            return "the kernels for stored codes are for CPUs and CUDA devices"
        if not serves(self.wanted, self.device):
            return f"backend='{self.device.type}' asks for {name(self.device)}"
        if net.amp_dtype is not None and not self._rounds(net):
            return "use_amp in float16" if self.device.type == "cuda" else "use_amp"
        for part in (net.module_, net.criterion_):
            if (reason := part.sparse_obstacle()) is not None:
                return reason
        if self.wanted == "auto":
            return _size_obstacle(net.module_, self.device.type, self._rounds(net))
        return None

    def _rounds(self, net) -> bool:
        """Tell whether the encoder's product is the one thing computed in half precision."""
        return self.device.type == "cuda" and net.amp_dtype is torch.bfloat16

    def next_workspace(self, n: int, module) -> Workspace | None:
        """Give the memory for the pre-codes of a step, or None for one that runs dense."""
        if self.obstacle is not None:
            return None
        self.n_steps += 1
        if self.n_steps < self.next_try:
            self.n_dense += 1
            return None
        if self.workspace is None or len(self.workspace.memory) < n:
            shape = n + 1, module.nb_concepts  # the last batch may have one row more
            memory = module.decoder_bias.new_empty(shape, dtype=self.precision)
            self.workspace = Workspace(memory, screen=module.screens)
        return self.workspace

    def forget(self) -> None:
        """Keep nothing of the weights: between epochs, callbacks may change them."""
        if self.workspace is not None:
            self.workspace.forget()

    def close(self) -> None:
        """Let go of the memory, at the end of training."""
        if self.workspace is not None:
            self.screened = self.workspace.n_screened > 0
            with contextlib.suppress(RuntimeError):  # of a device that failed before
                self.n_missed = self.workspace.missed()
        self.workspace = None

    def check(self, n_stored: int, n_all: int) -> None:
        """Refuse, where there is a choice, codes of which too many are stored."""
        if self.wanted == "auto" and n_stored > _LARGEST_SHARE[self.device.type] * n_all:
            self.n_dense += 1
            self.next_try = self.n_steps + _PAUSE
            raise TooManyStored

    def __str__(self) -> str:
        if self.obstacle is not None:
            compiled = ", compiled" if self.compiled else ""
            return f"reference (plain torch on {self.device}{compiled}: {self.obstacle})"
        dense = ""
        if self.n_dense:
            dense = (
                f"; {self.n_dense} of {self.n_steps} steps in plain torch: too many active codes"
            )
        product = "" if self.precision is None else ", the encoder's product in bfloat16"
        if self.screened:
            how = "8-bit integers" if self.device.type == "cpu" else "bfloat16"
            product = f", large pre-codes found in {how}"
        if self.n_missed:
            product += f", without certainty for up to {self.n_missed} rows"
        return f"{self.device.type} ({name(self.device)}{product}{dense})"


def _size_obstacle(module, kind: str, rounds: bool) -> str | None:
    m = module.nb_concepts
    if m < _FEWEST_CONCEPTS:
        return f"{m} concepts are too few for stored codes to pay"
    counted = module.dense_is_fast or (module.counts_codes and (rounds or m < _FEWEST_COUNTED))
    if kind == "cuda" and counted:
        return "to read how many codes are active takes longer than dense products"
    if getattr(module, "top_k", 0) > _LARGEST_SHARE[kind] * m:
        return f"top_k={module.top_k} of {m} concepts are too many for stored codes to pay"
    return None
