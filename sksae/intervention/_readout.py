"""What a model predicts in a batch, and how two predictions differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import nn

from ..activations._forward import batches
from ..activations._units import Sequence
from ._site import Fill, Site
from ._splice import _causal_vocabulary, _label_ids, _n_classes, _small_batches, _steps


@dataclass(frozen=True)
class Predictions:
    """The predictions of a batch.

    Attributes
    ----------
    batch : list of Sequence
    logits : Tensor of shape (n, n_choices)
        One row per prediction.
    right : Tensor of shape (n,)
        The choice whose cross-entropy is the loss.
    target : Tensor of shape (n,)
        The choice whose logit is looked at.
    text : Tensor of shape (n,)
        The text of each prediction, by its place in the batch.
    row : Tensor of shape (n,)
        The edited row that a prediction is made from; -1 if there is none, or all of the text.
    text_of_row : Tensor of shape (n_rows,)
        The text of each edited row.
    """

    batch: list[Sequence]
    logits: torch.Tensor
    right: torch.Tensor
    target: torch.Tensor
    text: torch.Tensor
    row: torch.Tensor
    text_of_row: torch.Tensor

    def only(self, kept: torch.Tensor) -> Predictions:
        """Leave out predictions."""
        some = {name: getattr(self, name)[kept] for name in ("right", "target", "text", "row")}
        return replace(self, logits=self.logits[kept.to(self.logits.device)], **some)

    def loss(self) -> torch.Tensor:
        """Give the cross-entropy of each prediction in nats."""
        return _concatenated(
            nn.functional.cross_entropy(self.logits[at].float(), right, reduction="none")
            for at, right in _steps(self.logits, torch.arange(len(self.right)), self.right)
        )


def compare(clean: Predictions, edited: Predictions) -> dict[str, torch.Tensor]:
    """Give by name, for each prediction: changes of loss and logit, divergence, other choice."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in ("loss", "kl", "logit", "changed")}
    for at, right, target in _steps(
        clean.logits, torch.arange(len(clean.right)), clean.right, clean.target
    ):
        old, new = (x.logits[at].float() for x in (clean, edited))
        p, q = old.log_softmax(dim=1), new.log_softmax(dim=1)
        parts["loss"].append(_at(p, right) - _at(q, right))
        parts["kl"].append((p.exp() * (p - q)).sum(dim=1))
        parts["logit"].append(_at(new, target) - _at(old, target))
        parts["changed"].append((old.argmax(dim=1) != new.argmax(dim=1)).double())
    return {name: _concatenated(values) for name, values in parts.items()}


def _at(table: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    return table.gather(1, column[:, None])[:, 0]


def _concatenated(parts: Any) -> torch.Tensor:
    return torch.cat([torch.zeros(0), *(x.detach().cpu() for x in parts)]).double()


class Readout:
    """The predictions of the model at a site: next tokens, or the class of each text.

    Parameters
    ----------
    site : Site
    target : object
        As `effects` takes it.
    """

    def __init__(self, site: Site, target: Any) -> None:
        self.site = site
        if not site.sequences:
            raise ValueError("effects needs texts with tokens, and these have none.")
        longest = max(site.sequences, key=lambda s: len(s.at))
        self.classifies = site.run([site.tokens.ids[longest.at[:8]]]).ndim == 2
        self.target: Any = None
        if self.classifies:
            self._check_texts()
            n_classes = _n_classes(site)
            self.target = None if target is None else _classes(site, target, n_classes)
        else:
            self.vocabulary = _causal_vocabulary(site)
            self.target = None if target is None else _token(site, target, self.vocabulary)

    def _check_texts(self) -> None:
        empty = np.flatnonzero(np.diff(self.site.tokens.bounds) == 0)
        if empty.size:
            raise ValueError(f"texts[{empty[0]}] has no tokens, so it has no class. Leave it out.")

    def batches(self) -> Iterator[list[Sequence]]:
        """Cut the texts that have something to predict into batches."""
        if self.classifies:
            return iter(batches(self.site.sequences, self.site.batch_size, self.site.device))
        return _small_batches(self.site, self.vocabulary)

    def run(self, batch: list[Sequence], fill: Fill) -> Predictions:
        """Run a batch with rows replaced."""
        rows = [np.flatnonzero(self.site.replaced[s.at]) for s in batch]
        text_of_row = torch.from_numpy(np.repeat(np.arange(len(batch)), [len(r) for r in rows]))
        logits = self.site.logits(batch, fill)
        read = self._classes if self.classifies else self._tokens
        return Predictions(batch, text_of_row=text_of_row, **read(batch, logits, rows))

    def active(self, found: Predictions, rows: torch.Tensor) -> torch.Tensor:
        """Tell for each prediction whether it is made from one of these rows (bool)."""
        if self.classifies:
            return torch.isin(found.text, found.text_of_row[rows].unique())
        return torch.cat([rows, torch.zeros(1, dtype=torch.bool)])[found.row]

    def _tokens(self, batch: list[Sequence], logits: torch.Tensor, rows: list[np.ndarray]) -> dict:
        places, right = self.site.predicted(batch)
        at = [self.site.targets_of(s) - 1 for s in batch]
        begin = np.cumsum([0, *(len(r) for r in rows)])
        row = [_numbered(len(s.at), r, b) for s, r, b in zip(batch, rows, begin, strict=False)]
        return {
            "logits": logits.flatten(0, 1)[places.to(logits.device)],
            "right": right,
            "target": right if self.target is None else torch.full_like(right, self.target),
            "text": torch.from_numpy(np.repeat(np.arange(len(at)), [len(x) for x in at])),
            "row": torch.from_numpy(np.concatenate([r[x] for r, x in zip(row, at, strict=True)])),
        }

    def _classes(self, batch: list[Sequence], logits: torch.Tensor, rows: list[np.ndarray]) -> dict:
        right = logits.argmax(dim=1).cpu()
        if self.target is not None:
            text = self.site.tokens.text
            right = torch.from_numpy(self.target[[text[s.at[0]] for s in batch]])
        every = torch.arange(len(batch))
        return {
            "logits": logits,
            "right": right,
            "target": right,
            "text": every,
            "row": torch.full_like(every, -1),
        }


def _numbered(length: int, rows: np.ndarray, begin: int) -> np.ndarray:
    """Give the number of the row that each token fills, -1 for none."""
    numbers = np.full(length, -1, dtype=np.int64)
    numbers[rows] = begin + np.arange(len(rows))
    return numbers


def _token(site: Site, target: Any, vocabulary: int) -> int:
    """Give the id of the token that is looked at."""
    if isinstance(target, Integral) and not isinstance(target, bool):
        if 0 <= int(target) < vocabulary:
            return int(target)
        raise ValueError(
            f"target={target} of effects is no token: the ids end at {vocabulary - 1}."
        )
    if not isinstance(target, str):
        raise TypeError(
            "The 'target' parameter of effects must be a token of the language model, by id or "
            f"as a string. Got {target!r} instead."
        )
    ids = site.tokenizer(target, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"target={target!r} of effects must be one token. This tokenizer makes {len(ids)} of "
            f"it: {site.tokenizer.convert_ids_to_tokens(ids)}. Give another, or the id of one."
        )
    return int(ids[0])


def _classes(site: Site, target: Any, n_classes: int) -> np.ndarray:
    """Give the number of the class that is looked at in each text."""
    if isinstance(target, str | Integral):
        target = [target] * site.n_texts
    return _label_ids(target, site.n_texts, n_classes, site.model, name="target")
