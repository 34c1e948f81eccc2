"""Edits of codes, and what they do to hidden states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from ..activations import KeepRows
from ..estimators import BaseSAE
from ._site import _CODES, Parts, _as_seen_in_fit


@dataclass(frozen=True)
class Scale:
    """An edit for `intervene` and `effects`: the code is multiplied.

    Parameters
    ----------
    factor : float
        2 doubles the code where the concept is active, and does nothing elsewhere; 0 ablates.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_number(self.factor, "The 'factor' of Scale")


@dataclass(frozen=True)
class Add:
    """An edit for `intervene` and `effects`: a number is added to the code.

    The hidden state moves along the concept's direction, whether the concept is active or
    not: by ``amount * steering_vector(sae, concept)``.

    Parameters
    ----------
    amount : float
        In the units of the codes, which are those of the SAE's input.
    """

    amount: float

    def __post_init__(self) -> None:
        _check_number(self.amount, "The 'amount' of Add")


def _check_number(value: Any, name: str) -> None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number. Got {value!r} instead.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite. Got {value!r} instead.")


def as_affine(edit: Any, name: str) -> tuple[float, float]:
    """Write an edit as ``(a, b)``: the code z becomes ``a * z + b``."""
    if isinstance(edit, Scale):
        return float(edit.factor), 0.0
    if isinstance(edit, Add):
        return 1.0, float(edit.amount)
    if isinstance(edit, str) and edit == "ablate":
        return 0.0, 0.0
    if isinstance(edit, str) or not isinstance(edit, Real):
        raise TypeError(
            f"{name} must be a number (the code is set to it), 'ablate', Scale(factor) or "
            f"Add(amount). Got {edit!r} instead."
        )
    _check_number(edit, name)
    return 0.0, float(edit)


def concept_index(pipe_or_sae: Any, concept: Any, owner: str) -> int:
    """Resolve a concept, given by its number or name, to the row of the dictionary.

    Names are those of the SAE's columns, or those that a later step of the pipeline gives
    them one by one.
    """
    sae = Parts.of(pipe_or_sae, owner).sae
    n = sae._n_features_out
    if isinstance(concept, str):
        for step in _namers(pipe_or_sae, sae):
            names = list(step.get_feature_names_out())
            if len(names) == n and concept in names:
                return names.index(concept)
    elif isinstance(concept, Integral) and not isinstance(concept, bool | np.bool_):
        if 0 <= int(concept) < n:
            return int(concept)
    example = list(sae.get_feature_names_out())[0]
    raise ValueError(
        f"{owner} knows no concept {concept!r}. Give the number of one, from 0 to {n - 1}, or "
        f"its name, such as {example!r}."
    )


def _namers(pipe_or_sae: Any, sae: BaseSAE) -> list[Any]:
    """Give the SAE, and the steps behind it that may have names for its columns."""
    if not isinstance(pipe_or_sae, Pipeline):
        return [sae]
    steps = [step for _, step in pipe_or_sae.steps]
    steps = steps[next(i for i, step in enumerate(steps) if step is sae) :]
    return [step for step in steps if hasattr(step, "get_feature_names_out")]


class Editor:
    """Changes hidden states as if the codes of some concepts were others.

    With z the codes of a state x, z' the edited ones and R the decoder, x becomes
    ``x + R(z') - R(z)`` (``keep_error``) or ``R(z')``.

    Parameters
    ----------
    parts : Parts
        The SAE, and the steps before it.
    edits : mapping of int to (float, float)
        By concept, as `as_affine` writes them.
    keep_error : bool
    """

    def __init__(
        self, parts: Parts, edits: Mapping[int, tuple[float, float]], keep_error: bool = True
    ) -> None:
        self.parts, self.keep_error = parts, keep_error
        self.concepts = torch.tensor(list(edits), dtype=torch.int64)
        self.factor = torch.tensor([a for a, _ in edits.values()], dtype=torch.float64)
        self.amount = torch.tensor([b for _, b in edits.values()], dtype=torch.float64)
        self.affine = _affine(parts.between)
        if keep_error and self.affine is not None and edits:
            rows = parts.sae.get_dictionary().cpu()[self.concepts]
            self.directions = rows * self.affine[1].to(rows)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Give the edited rows, shape (n, n_features), in the dtype of ``rows`` or a wider one."""
        if not len(rows) or (self.keep_error and not len(self.concepts)):
            return rows
        with torch.autocast(rows.device.type, enabled=False):
            return torch.cat([self._edited(x) for x in rows.split(self.chunk)])

    @property
    def chunk(self) -> int:
        """Number of rows whose codes fit into a buffer."""
        return max(1, _CODES // self.parts.sae._n_features_out)

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Give the codes of hidden states, through the steps before the SAE."""
        if self.affine is None:
            return self.parts.sae.encode(self._through(rows, forward=True))
        mean, scale = (t.to(rows.device, torch.float64) for t in self.affine)
        if self.parts.between:
            rows = ((rows.double() - mean) / scale).to(_wide(rows.dtype))
        return self.parts.sae.encode(rows)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Give the hidden states that codes stand for."""
        rows = self.parts.sae.decode(codes)
        if self.affine is None:
            return self._through(rows, forward=False)
        if not self.parts.between:
            return rows
        mean, scale = (t.to(rows.device, torch.float64) for t in self.affine)
        return (rows.double() * scale + mean).to(rows.dtype)

    def changes(self, codes: torch.Tensor) -> torch.Tensor:
        """Give ``z' - z`` of the edited concepts, from their codes (n, n_edited)."""
        return codes * (self.factor - 1).to(codes) + self.amount.to(codes)

    def _edited(self, x: torch.Tensor) -> torch.Tensor:
        if self.keep_error and self.affine is not None:
            change = self._all_changes(x)
            return x.to(_wide(x.dtype)) + change @ self.directions.to(change)
        codes = self.encode(x)
        at = self.concepts.to(codes.device)
        new = codes.index_add(1, at, self.changes(codes[:, at]))
        if not self.keep_error:
            return self.decode(new)
        same = (new == codes).all(dim=1, keepdim=True)
        moved = self.decode(new) - self.decode(codes)
        return x.to(_wide(x.dtype)) + torch.where(same, torch.zeros_like(moved), moved)

    def _all_changes(self, x: torch.Tensor) -> torch.Tensor:
        if bool((self.factor == 1).all()):  # the codes do not matter
            return self.amount.to(x.device, _wide(x.dtype)).expand(len(x), -1)
        codes = self.encode(x)
        return self.changes(codes[:, self.concepts.to(codes.device)])

    def _through(self, rows: torch.Tensor, forward: bool) -> torch.Tensor:
        """Pass rows through steps that know arrays only; no gradient comes back."""
        x: Any = rows.detach().to("cpu", _wide(rows.dtype)).numpy()
        steps = self.parts.between if forward else self.parts.between[::-1]
        for _, step in steps:
            x = step.transform(_as_seen_in_fit(step, x)) if forward else step.inverse_transform(x)
        passed = torch.tensor(np.asarray(x)).to(rows.device)
        return _Barrier.apply(rows, passed, steps[0][0]) if rows.requires_grad else passed


class _Barrier(torch.autograd.Function):
    """Gives what a step made of rows, and refuses to send a gradient back through it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, passed: torch.Tensor, name: str) -> torch.Tensor:
        ctx.name = name
        return passed.view_as(passed)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"No gradient passes through step '{ctx.name}' before the SAE, which computes on "
            "arrays. Use StandardScaler there, or none, or run under torch.no_grad()."
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Give the dtype to compute in: half precision is widened."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _affine(steps: list[tuple[str, Any]]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Give mean and scale of the steps before the SAE; None if they are no `StandardScaler`."""
    mean, scale = np.float64(0.0), np.float64(1.0)
    for _, step in steps:
        inner = step.transformer_ if isinstance(step, KeepRows) else step
        if type(inner) is not StandardScaler:
            return None
        if inner.with_mean:
            mean = mean + scale * inner.mean_
        if inner.with_std:
            scale = scale * inner.scale_
    return torch.as_tensor(mean), torch.as_tensor(scale)
