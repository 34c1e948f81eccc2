"""The activation of concepts as a function of the input embeddings of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..activations import TransformerActivationExtractor
from ..activations._forward import Forward, device_of
from ..activations._layers import run_to
from ..interpretation._parts import Parts
from ..intervention._hooks import replacing
from ..intervention._site import _as_seen_in_fit
from ._cases import Case

# Most codes held at once.
_CODES = 2**25

_ROLES = ("mask", "pad", "eos")


class ConceptActivation:
    """Concepts' activations in texts, from the embeddings of their tokens.

    Embeddings are float32 on the CPU, whatever the model's precision and device, so that
    random methods draw the same numbers anywhere.

    Parameters
    ----------
    parts : Parts
    reader : TransformerActivationExtractor
    concepts : ndarray of int
    reduction : {"sum", "max"} or int
        How the activations of a text's rows are made one number.
    batch_size : int
        Sequences run at once.
    """

    def __init__(
        self,
        parts: Parts,
        reader: TransformerActivationExtractor,
        concepts: np.ndarray,
        reduction: str | int,
        batch_size: int,
    ):
        self.parts = parts
        self.model, self.tokenizer = reader._loaded()
        self.aggregation = reader.aggregation
        self.concepts = torch.from_numpy(concepts)
        self.reduction = reduction
        self.batch_size = batch_size
        modules = dict(self.model.named_modules())
        layers = {name: modules[name] for name in reader.layer_names_}
        self.forward = Forward(self.model, layers, self.tokenizer)
        self.table = _table(self.model, parts.owner)
        self.path = next(name for name, module in modules.items() if module is self.table)

    def size(self, cases: Sequence[Case]) -> int:
        """Give how many sequences like these are run at once."""
        codes = max(len(case.sizes) for case in cases) * self.parts.nb_concepts
        return min(self.batch_size, max(1, _CODES // max(codes, 1)))

    @torch.no_grad()
    def embed(self, cases: Sequence[Case]) -> torch.Tensor:
        """Give the embeddings of padded texts, shape (n_cases, n_tokens, n_embedding)."""
        padded = self.forward.inputs([case.ids for case in cases], None)["input_ids"]
        return self.table(padded).to("cpu", torch.float32)

    @torch.no_grad()
    def embed_token(self, token: int | None) -> torch.Tensor:
        """Give the embedding of one token, shape (n_embedding,); None gives zeros."""
        ids = torch.tensor([[token or 0]], device=device_of(self.model))
        vector = self.table(ids)[0, 0].to("cpu", torch.float32)
        return torch.zeros_like(vector) if token is None else vector

    def per_token(self, cases: Sequence[Case], name: str) -> torch.Tensor:
        """Pad ``unit`` or ``row`` of texts as their tokens are, with -1."""
        return self.forward._padded([getattr(case, name) for case in cases], -1)

    def __call__(self, cases: Sequence[Case], embeddings: torch.Tensor) -> torch.Tensor:
        """Give the activations, with gradients where they are on.

        Parameters
        ----------
        cases : sequence of Case
            A text may occur several times.
        embeddings : Tensor of shape (n_cases, n_tokens, n_embedding)
            Padded as `embed` does, perhaps to a greater length.

        Returns
        -------
        Tensor of shape (n_cases, n_concepts)
        """
        counts = [len(case.sizes) for case in cases]
        if not sum(counts):
            return torch.zeros(len(cases), len(self.concepts))
        rows = self._pooled(cases, self._states(cases, embeddings))
        codes = self._encode(rows)
        picked = codes[:, self.concepts.to(codes.device)].cpu()
        return torch.stack([self._reduced(codes) for codes in picked.split(counts)])

    def _states(self, cases: Sequence[Case], embeddings: torch.Tensor) -> torch.Tensor:
        """Run the model no further than its layers; give the hidden states that go into rows."""
        ids = [case.ids for case in cases]
        types = None if cases[0].types is None else [case.types for case in cases]
        width = max(len(x) for x in ids)
        cut = embeddings[:, -width:] if self.forward.pad_left else embeddings[:, :width]
        inputs = self.forward.inputs(ids, types)  # type: ignore[arg-type]
        places = self.forward.places(ids, [case.at for case in cases])
        try:
            with replacing(self.model, self.path, lambda _: cut):
                states = run_to(self.model, self.forward.layers, inputs)
        except torch.OutOfMemoryError as exc:
            raise torch.OutOfMemoryError(
                f"No memory left for {len(ids)} texts of {width} tokens at once. Lower batch_size "
                "or max_length."
            ) from exc
        picked = [s.flatten(0, 1)[places.to(s.device)].float() for s in states.values()]
        return torch.cat([x.to(picked[0].device) for x in picked], dim=1)

    def _pooled(self, cases: Sequence[Case], states: torch.Tensor) -> torch.Tensor:
        """Pool tokens into rows as the extractor does."""
        sizes = np.concatenate([case.sizes for case in cases])
        first = np.cumsum([0, *(len(case.sizes) for case in cases)])[:-1]
        row = np.concatenate([c.row[c.at] + a for c, a in zip(cases, first, strict=True)])
        into = torch.from_numpy(row).to(states.device)
        return pooled(states, into, torch.from_numpy(sizes).to(states), self.aggregation)

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Give the codes of rows, through the steps before the SAE."""
        x: Any = rows
        if self.parts.between:
            x = rows.detach().cpu().numpy()
            for step in self.parts.between:
                x = step.transform(_as_seen_in_fit(step, x))
            x = torch.tensor(np.asarray(x))
            if len(x) != len(rows):
                raise ValueError(
                    f"The steps between the extractor and the SAE made {len(x)} of {len(rows)} "
                    f"rows; {self.parts.owner} needs them to keep rows apart."
                )
        return self.parts.sae.encode(x)

    def _reduced(self, codes: torch.Tensor) -> torch.Tensor:
        """Make the activations of a text's rows one number a concept."""
        if self.reduction == "max" and len(codes):
            return codes.amax(dim=0)
        return codes.sum(dim=0)


def pooled(
    values: torch.Tensor, row: torch.Tensor, sizes: torch.Tensor, aggregation: str
) -> torch.Tensor:
    """Pool token rows into rows, with gradients.

    Parameters
    ----------
    values : Tensor of shape (n_tokens, n_features)
    row : Tensor of int64, shape (n_tokens,)
        The row that each token goes to.
    sizes : Tensor of shape (n_rows,)
        Number of tokens of each row.
    aggregation : str
        As of the extractor; "first" and "last" have one token a row already.

    Returns
    -------
    Tensor of shape (n_rows, n_features)

    Examples
    --------
    >>> values, row = torch.tensor([[1.0], [3.0], [-5.0]]), torch.tensor([0, 0, 1])
    >>> pooled(values, row, torch.tensor([2.0, 1.0]), "mean").tolist()
    [[2.0], [-5.0]]
    """
    shape = (len(sizes), values.shape[1])
    into = row[:, None].expand_as(values)
    if aggregation in {"mean", "sum", "first", "last"}:
        total = values.new_zeros(shape).scatter_add(0, into, values)
        return total / sizes[:, None] if aggregation == "mean" else total

    def extreme(reduce: str) -> torch.Tensor:
        start = values.new_zeros(shape)
        return start.scatter_reduce(0, into, values, reduce, include_self=False)

    if aggregation == "max":
        return extreme("amax")
    if aggregation == "min":
        return extreme("amin")
    high, low = extreme("amax"), extreme("amin")
    return torch.where(high >= -low, high, low)


def _table(model: Any, owner: str) -> torch.nn.Module:
    """Find the module that embeds token ids."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = None
    if table is None:
        raise ValueError(
            f"{owner} changes the input embeddings of the model, and {type(model).__name__} names "
            "none: its get_input_embeddings() must give the module that embeds token ids."
        )
    return table


def find_baseline(baseline: Any, tokenizer: Any, n_tokens: int | None, owner: str) -> int | None:
    """Give the token that stands for an absent unit; None for an embedding of zeros.

    Parameters
    ----------
    baseline : None, int, or {"mask", "pad", "eos", "zero"}
        None takes the first of the four that there is.
    tokenizer : PreTrainedTokenizerFast
    n_tokens : int, or None
        Number of token ids that the model knows.
    owner : str
        For the messages.

    Returns
    -------
    int, or None
    """
    known = {role: getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}
    if baseline is None:
        there = [token for token in known.values() if token is not None]
        return next((token for token in there if n_tokens is None or token < n_tokens), None)
    if baseline == "zero":
        return None
    token = known[baseline] if isinstance(baseline, str) else int(baseline)
    if token is None:
        raise ValueError(
            f"baseline='{baseline}' of {owner} needs a tokenizer with a {baseline} token, and this "
            f"{type(tokenizer).__name__} has none. Give the id of a token, or use 'zero'."
        )
    if token < 0 or (n_tokens is not None and token >= n_tokens):
        raise ValueError(
            f"baseline={token} of {owner} is no token id: the model knows {n_tokens}, numbered "
            "from 0."
        )
    return token
