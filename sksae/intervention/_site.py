"""Where an SAE stands in for hidden states: a layer of a model with its head, and texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..activations import TransformerActivationExtractor
from ..activations._forward import Forward, device_of
from ..activations._texts import check_texts
from ..activations._units import Sequence, cut, make_plan
from ..estimators import BaseSAE
from ..metrics._observed import flat_steps
from ._hooks import replacing

# Most codes held at once.
_CODES = 2**25

Fill = Callable[[torch.Tensor], torch.Tensor]


class Parts(NamedTuple):
    """What stands before the SAE, and the SAE."""

    owner: str
    extractor: TransformerActivationExtractor | None
    between: list[tuple[str, Any]]
    sae: BaseSAE

    @classmethod
    def of(cls, pipe_or_sae: Any, owner: str) -> Parts:
        """Take a fitted pipeline or SAE apart."""
        if isinstance(pipe_or_sae, BaseSAE):
            check_is_fitted(pipe_or_sae)
            _check_reconstructs(pipe_or_sae, owner)
            return cls(owner, None, [], pipe_or_sae)
        if not isinstance(pipe_or_sae, Pipeline):
            raise TypeError(
                f"{owner} expects a fitted Pipeline of an extractor and an SAE, or a fitted SAE. "
                f"Got {type(pipe_or_sae).__name__} instead."
            )
        steps = flat_steps(pipe_or_sae.steps)
        found = [i for i, (_, step) in enumerate(steps) if isinstance(step, BaseSAE)]
        if len(found) != 1:
            raise ValueError(
                f"{owner} needs a pipeline with one SAE. This one has {len(found)}: "
                f"{', '.join(type(step).__name__ for _, step in steps)}."
            )
        before, sae = steps[: found[0]], steps[found[0]][1]
        _check_reconstructs(sae, owner)
        extractor = None
        if before and isinstance(before[0][1], TransformerActivationExtractor):
            extractor = before.pop(0)[1]
        _check_between(before, owner)
        for step in (extractor, *(step for _, step in before), sae):
            if step is not None:
                check_is_fitted(step)
        return cls(owner, extractor, before, sae)

    @property
    def n_features(self) -> int | None:
        """Number of features that the reconstruction must have."""
        first = self.between[0][1] if self.between else self.sae
        return getattr(first, "n_features_in_", None)

    def codes(self, rows: np.ndarray) -> sparse.csr_array:
        """Encode rows of the extractor, through the steps before the SAE."""
        x: Any = rows
        for _, step in self.between:
            x = step.transform(_as_seen_in_fit(step, x))
        codes = self.sae.transform(_as_seen_in_fit(self.sae, x))
        return sparse.csr_array(codes if sparse.issparse(codes) else np.asarray(codes))

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Give what each concept adds to a row of the extractor, and the row without concepts.

        Returns
        -------
        directions : ndarray of shape (nb_concepts, n_features)
            The dictionary, through the inverses of the steps before the SAE.
        offset : ndarray of shape (n_features,)
            The decoder bias, through them.

        Raises
        ------
        ValueError
            If the inverses are not affine, so that there are no such directions.
        """
        dictionary, bias = self.sae.components_, self.sae.decoder_bias_
        if not self.between:
            return dictionary, bias
        dictionary, bias = dictionary.astype(np.float64), bias.astype(np.float64)
        offset = self._back(bias[None])[0]
        directions = self._back(bias + dictionary) - offset
        some = np.random.default_rng(0).exponential(size=(4, len(dictionary)))
        expected = some @ directions + offset
        if not np.allclose(
            self._back(some @ dictionary + bias), expected, 1e-3, 1e-3 * np.abs(expected).max()
        ):
            names = ", ".join(type(step).__name__ for _, step in self.between)
            raise ValueError(
                f"{self.owner} needs steps before the SAE whose inverse is affine, such as "
                f"KeepRows(StandardScaler()), so that each concept is a direction of the layer. "
                f"That of {names} is not."
            )
        return directions, offset

    def _back(self, x: np.ndarray) -> np.ndarray:
        for _, step in reversed(self.between):
            x = step.inverse_transform(x)
        return np.asarray(x, dtype=np.float64)

    def reconstruct(self, rows: torch.Tensor) -> torch.Tensor:
        """Encode and decode hidden states, through the steps before the SAE and back."""
        size = max(1, _CODES // self.sae._n_features_out)
        return torch.cat([self._through(x) for x in rows.split(size)])

    def _through(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.between:
            return self.sae.decode(self.sae.encode(rows))
        x: Any = rows.cpu().numpy()
        for _, step in self.between:
            x = step.transform(_as_seen_in_fit(step, x))
        x = self.sae.decode(self.sae.encode(torch.tensor(np.asarray(x))))
        x = x.numpy()
        for _, step in reversed(self.between):
            x = step.inverse_transform(x)
        return torch.tensor(np.asarray(x))


def _check_reconstructs(sae: BaseSAE, owner: str) -> None:
    if not sae._reconstructs_input:
        name = type(sae).__name__
        raise ValueError(
            f"{owner} needs an SAE whose reconstruction can stand for the layer that it reads. "
            f"{name} predicts another layer; its directions in that one are {name}.components_."
        )


def _check_between(steps: list[tuple[str, Any]], owner: str) -> None:
    for name, step in steps:
        if not hasattr(step, "inverse_transform"):
            raise ValueError(
                f"{owner} puts reconstructions back into the model, and step '{name}' "
                f"({type(step).__name__}) before the SAE has no inverse_transform. Use one that "
                "has, such as KeepRows(StandardScaler()), or none."
            )


def _as_seen_in_fit(step: Any, rows: Any) -> Any:
    """Give a step that was fitted on a frame the names that it expects."""
    names = getattr(step, "feature_names_in_", None)
    if names is None or hasattr(rows, "columns"):
        return rows
    import pandas as pd

    return pd.DataFrame(rows, columns=names)


class Site:
    """The layer of a model with its head, and the texts that run through it.

    Parameters
    ----------
    parts : Parts
    texts : sequence of str, or of lists of str
    head : str
        The class of transformers that loads the model where it is given by name.
    granularities : tuple of str
        Those whose rows are single tokens.
    **given : object
        Arguments of `spliced_loss`; None where the pipeline decides.
    """

    def __init__(
        self, parts: Parts, texts: Any, head: str, granularities: tuple[str, ...], **given: Any
    ):
        texts = check_texts(texts, parts.owner)
        source = _source(parts, given)
        reader = _reader(parts, source, head, given, granularities).fit(texts.texts)
        _check_reader(parts, reader)
        self.parts = parts
        self.model, tokenizer = reader.model, reader.tokenizer
        self.tokenizer = tokenizer
        self.layer = reader.layer_names_[0]
        self.batch_size, self.aggregation = reader.batch_size, reader.aggregation
        self.device = device_of(self.model).type
        self.n_texts = len(texts.texts)
        self.head = head
        self.forward = Forward(self.model, {}, tokenizer)
        # Some heads find the end of a text by the padding token of their configuration.
        pad = getattr(getattr(self.model, "config", None), "pad_token_id", None)
        if isinstance(pad, int) and pad >= 0:
            self.forward.pad_id = pad
        self.tokens = reader._tokenize(texts)
        side = getattr(tokenizer, "truncation_side", "right")
        self.sequences = cut(self.tokens, reader.max_length_, "truncate", side)
        if given["max_length"] is None:
            _warn_if_truncated(self.tokens, reader.max_length_, parts.owner)
        # Pooled or not, the plan is that of all tokens of a unit: a row goes back to each.
        self.plan = make_plan(
            self.tokens, texts, self.sequences, reader.granularity, "mean", reader.skip_first
        )
        self.rows = reader._rows(self.tokens, self.plan, texts)
        self.replaced = self.plan.row >= 0

    def targets_of(self, sequence: Sequence) -> np.ndarray:
        """Give the positions of a sequence whose tokens are to be predicted."""
        return np.flatnonzero(~self.tokens.special[sequence.at[1:]]) + 1

    def predicted(self, batch: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """Say where in the batch which tokens are predicted, from the logits one before them."""
        ids = [self.tokens.ids[s.at] for s in batch]
        at = [self.targets_of(s) for s in batch]
        places = self.forward.places(ids, [x - 1 for x in at])
        targets = np.concatenate([x[i] for x, i in zip(ids, at, strict=True)])
        return places, torch.from_numpy(targets)

    def logits(self, batch: list[Sequence], fill: Fill) -> torch.Tensor:
        """Run a batch with the hidden states at the layer replaced by ``fill`` of them."""
        ids = [self.tokens.ids[s.at] for s in batch]
        wanted = [np.flatnonzero(self.replaced[s.at]) for s in batch]
        places = self.forward.places(ids, wanted)

        def replace(state: torch.Tensor) -> torch.Tensor:
            if not len(places):
                return state
            flat = state.flatten(0, 1).clone()
            at = places.to(flat.device)
            flat[at] = fill(flat[at].float()).to(flat.device, flat.dtype)
            return flat.view_as(state)

        with replacing(self.model, self.layer, replace):
            return self.run(ids, self.types_of(batch))

    def types_of(self, batch: list[Sequence]) -> list[np.ndarray] | None:
        """Give the token types of a batch, None where the tokenizer gives none."""
        types = self.tokens.types
        return None if types is None else [types[s.at] for s in batch]

    def run(
        self, ids: list[np.ndarray], types: list[np.ndarray] | None = None, **more: Any
    ) -> torch.Tensor:
        """Run token sequences as they are and give the logits."""
        try:
            output = self.model(**self.forward.inputs(ids, types), **more)
        except torch.OutOfMemoryError as exc:
            width = max(len(x) for x in ids)
            raise torch.OutOfMemoryError(
                f"No memory left for a batch of {len(ids)} texts of {width} tokens and their "
                "logits. Lower batch_size or max_length."
            ) from exc
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor):
            raise ValueError(
                f"{type(self.model).__name__} gives no logits, and {self.parts.owner} needs the "
                f"model with its head. Pass model=, as {self.head}.from_pretrained loads it."
            )
        return logits


def _source(parts: Parts, given: Mapping[str, Any]) -> TransformerActivationExtractor:
    """Give an extractor that knows the model and how it is to be read."""
    if parts.extractor is not None:
        source = clone(parts.extractor)
        if given["model"] is not None:
            source.set_params(model=given["model"], revision=None, model_params=None)
        return source
    missing = [name for name in ("model", "layer") if given[name] is None]
    if missing:
        raise ValueError(
            f"{parts.owner} got no extractor, so it needs {' and '.join(f'{n}=' for n in missing)}"
            ". Pass the pipeline that begins with the extractor, or these."
        )
    return TransformerActivationExtractor(given["model"], given["layer"])


def _reader(
    parts: Parts,
    source: TransformerActivationExtractor,
    head: str,
    given: Mapping[str, Any],
    granularities: tuple[str, ...],
) -> TransformerActivationExtractor:
    """Give an unfitted extractor on the model with its head."""
    fitted = parts.extractor
    settings: dict[str, Any] = {"max_length": getattr(fitted, "max_length_", None)}
    for name in ("granularity", "aggregation", "skip_first", "batch_size"):
        settings[name] = getattr(source, name)
    settings |= {name: given[name] for name in settings if given.get(name) is not None}
    _check_granularity(settings["granularity"], granularities, parts.owner)
    if fitted is not None and len(fitted.layer_names_) > 1:
        raise ValueError(
            f"{parts.owner} replaces the hidden states of one layer, and the extractor gives "
            f"{len(fitted.layer_names_)} side by side. Fit a pipeline for each."
        )
    model = source._load_model(head)
    layer = given["layer"]
    if layer is None and fitted is not None:
        layer = _path_in(model, fitted.layer_names_[0])
    return TransformerActivationExtractor(
        model, layer, tokenizer=_tokenizer(source, fitted, given["tokenizer"]), **settings
    )


def _tokenizer(source: Any, fitted: Any, given: Any) -> Any:
    if given is not None:
        source = clone(source).set_params(tokenizer=given)
    elif fitted is not None:
        source = fitted
    return source._load_tokenizer()


def _check_granularity(granularity: str, known: tuple[str, ...], owner: str) -> None:
    if granularity not in known:
        listed = ", ".join(repr(name) for name in known)
        raise ValueError(
            f"{owner} replaces the hidden states of tokens one by one, and granularity="
            f"{granularity!r} gives no row for each. Use one of {listed}: in the extractor, so "
            f"that the SAE learns such rows, or as an argument of {owner}."
        )


def _path_in(model: nn.Module, name: str) -> str:
    """Find a module of a headless model in the model with its head."""
    names = {path for path, _ in model.named_modules()}
    below = f"{getattr(model, 'base_model_prefix', '')}.{name}"
    return below if name not in names and below in names else name


def _check_reader(parts: Parts, reader: TransformerActivationExtractor) -> None:
    if len(reader.layer_names_) > 1:
        raise ValueError(
            f"{parts.owner} replaces the hidden states of one layer. Got layer={reader.layer!r}."
        )
    if parts.n_features not in (None, reader.n_features_out_):
        raise ValueError(
            f"Layer '{reader.layer_names_[0]}' has {reader.n_features_out_} features, and the SAE "
            f"was fitted on {parts.n_features}. Pass the model and layer of its training rows."
        )


def _warn_if_truncated(tokens: Any, max_length: int, owner: str) -> None:
    lengths = np.diff(tokens.bounds)
    n_long = int((lengths > max_length).sum())
    if n_long:
        warnings.warn(
            f"{n_long} of {len(lengths)} texts have more than {max_length} tokens and were "
            f"truncated. Pass max_length to {owner} to say so yourself.",
            UserWarning,
            stacklevel=4,
        )
