"""Which logit of each text is explained, and how it is read from the model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ..activations._forward import token_budget
from ..activations._loading import is_name
from ..activations._units import Sequence
from ..intervention._hooks import replacing
from ..intervention._site import Parts, Site

# Most logits held at once.
_LOGITS = 2**27

# Of the configuration's architecture, what loads a model with its head.
_HEADS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}

State = Callable[[torch.Tensor], torch.Tensor]


def head_of(parts: Parts, model: Any) -> str:
    """Name the class of transformers that loads the model, given by name, with its head."""
    source: Any = parts.extractor
    own = model is None and source is not None
    name = source.model if own else model
    if not is_name(name):
        return " or ".join(sorted(set(_HEADS.values())))
    from transformers import AutoConfig

    params = {"revision": source.revision, **(source.model_params or {})} if own else {}
    known = ("revision", "trust_remote_code", "cache_dir", "token", "subfolder")
    params = {key: params[key] for key in known if params.get(key) is not None}
    classes = getattr(AutoConfig.from_pretrained(name, **params), "architectures", None) or []
    for ending, head in _HEADS.items():
        if any(architecture.endswith(ending) for architecture in classes):
            return head
    raise ValueError(
        f"{parts.owner} needs the model with its head, and {os.fspath(name)!r} was saved as "
        f"{' or '.join(classes) or 'one of an unknown class'}. Pass model=, a model with a "
        "sequence classification or language modelling head."
    )


def refuse_samples(parts: Parts, granularity: str | None) -> None:
    """Refuse rows that stand for whole texts."""
    granularity = granularity or getattr(parts.extractor, "granularity", "token")
    if granularity == "sample":
        raise ValueError(
            f"{parts.owner} puts each row back onto its tokens, and a row of granularity='sample' "
            "would make all tokens of a text alike. Use 'token', 'word' or 'sentence' in the "
            "extractor, and per_position=False for one score per text."
        )


class Readout:
    """The logit of each text that is explained, and the runs that give it.

    Parameters
    ----------
    site : Site
    target : int, str, sequence of these, or None
        The class or token of each text; None is the one with the largest logit.
    position : int, sequence of int, or None
        Of language models, the token whose logits are read.

    Attributes
    ----------
    of_tokens : bool
        Whether the logits are those of tokens, and not of classes.
    targets : ndarray of int64, shape (n_texts,)
        -1 where the model's own choice is still to be found.
    widens : bool
        Whether what comes after the layer can run on more texts than what comes before it.
    """

    def __init__(self, site: Site, target: Any, position: Any):
        self.site = site
        # Heads that read the first token would find padding there; to others it is the same.
        site.forward.pad_left = False
        if not site.sequences:
            raise ValueError(
                f"None of the {site.n_texts} texts has a token. Pass texts that have some."
            )
        self._example = max(site.sequences, key=lambda s: len(s.at)).at[:8]
        ids = [site.tokens.ids[self._example]]
        logits = site.run(ids)
        self.of_tokens = self._is_of_tokens(logits)
        self.n_logits = logits.shape[-1]
        self.positions = self._positions(position, logits) if self.of_tokens else None
        if position is not None and not self.of_tokens:
            raise ValueError(
                f"position={position!r} is for language models, and {self._kind} gives one logit "
                "per class. Leave it out."
            )
        self.targets = self._targets(target)
        self._picks = self.of_tokens and self._can_pick(ids, logits)
        self.widens = self._can_widen(ids)

    @property
    def _kind(self) -> str:
        return type(self.site.model).__name__

    def rows_at_once(self, width: int) -> int:
        """Give the most texts of this many tokens to be run at once."""
        n_logits = self.n_logits * (width if self.of_tokens and not self._picks else 1)
        most = self.site.batch_size
        if most == "auto":
            most = token_budget(self.site.device) // width
        return max(1, min(int(most), _LOGITS // n_logits))

    def position_of(self, sequence: Sequence) -> int:
        """Give the position in a sequence whose logits are read, 0 where there is only one."""
        if self.positions is None:
            return 0
        text = int(self.site.tokens.text[sequence.at[0]])
        position, length = self.positions[text], len(sequence.at)
        if position is None:
            inside = np.flatnonzero(~self.site.tokens.special[sequence.at])
            return int(inside[-1]) if inside.size else length - 1
        if not -length <= position < length:
            raise ValueError(
                f"position={position} is out of range for texts[{text}], of {length} tokens as "
                f"the model sees them. Give an int from {-length} to {length - 1}."
            )
        return position % length

    def logits(
        self,
        ids: list[np.ndarray],
        types: list[np.ndarray] | None,
        positions: list[int],
        replace: State,
    ) -> torch.Tensor:
        """Run texts with the hidden states at the layer replaced, and give logits of each.

        Nothing before the layer keeps a gradient. ``replace`` may give more texts than it
        gets where there is one of them, so that this runs once for many.

        Returns
        -------
        Tensor of shape (n_texts, n_logits)
            Those of the classes, or of the tokens at one position.
        """
        more, columns = {}, np.array(positions)
        if self._picks:
            kept, columns = np.unique(columns, return_inverse=True)
            more = {"logits_to_keep": torch.from_numpy(kept)}
        model, layer = self.site.model, self.site.layer
        with torch.no_grad(), replacing(model, layer, replace, widens=len(ids) == 1):
            logits = self.site.run(ids, types, **more)
        if not self.of_tokens:
            return logits
        where = torch.from_numpy(columns).to(logits.device).expand(len(logits))
        return logits[torch.arange(len(logits), device=logits.device), where]

    def names(self, targets: np.ndarray) -> list[str]:
        """Name classes by the model's labels, tokens by their strings."""
        if self.of_tokens:
            return ["" if t < 0 else self.site.tokenizer.decode([int(t)]) for t in targets]
        known = getattr(getattr(self.site.model, "config", None), "id2label", None) or {}
        return ["" if t < 0 else str(known.get(int(t), int(t))) for t in targets]

    # -- what the model can do --------------------------------------------------------

    def _is_of_tokens(self, logits: torch.Tensor) -> bool:
        if logits.ndim == 2:
            return False
        n_ids = len(self._example)
        if logits.ndim == 3 and logits.shape[1] == n_ids:
            if logits.shape[2] > int(self.site.tokens.ids.max()):
                return True
        raise ValueError(
            f"{self._kind} gives logits of shape {tuple(logits.shape)} for 1 text of {n_ids} "
            "tokens, neither one for each class nor one for each token of the vocabulary. Pass "
            "model=, one with a sequence classification or language modelling head."
        )

    def _can_pick(self, ids: list[np.ndarray], logits: torch.Tensor) -> bool:
        """Tell whether the head can be run on some positions only."""
        takes = inspect.signature(self.site.model.forward).parameters
        if "logits_to_keep" not in takes:
            return False
        kept = torch.tensor([len(ids[0]) - 1])
        found = self.site.run(ids, logits_to_keep=kept)
        return found.shape[1] == 1 and bool(torch.allclose(found, logits[:, -1:], rtol=1e-2))

    def _can_widen(self, ids: list[np.ndarray]) -> bool:
        """Try whether one text before the layer can stand for two after it."""

        def two(state: torch.Tensor) -> torch.Tensor:
            state = state[:1]
            return torch.cat([state, 0.5 * state])

        at = [len(ids[0]) - 1]
        expected = self.logits([ids[0], ids[0]], None, at * 2, two)
        try:
            found = self.logits(ids, None, at, two)
        except Exception:
            # Whatever a model says to this, it is asked no more.
            return False
        scale = float(expected.detach().abs().max())
        return found.shape == expected.shape and bool(
            torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * scale)
        )

    def _sees_ahead(self, logits: torch.Tensor) -> bool:
        """Tell whether the logits at a token depend on the tokens behind it."""
        ids = np.resize(self.site.tokens.ids[self._example], max(2, len(self._example)))
        changed = ids.copy()
        changed[-1] = (changed[-1] + 1) % logits.shape[2]
        before, after = (self.site.run([x])[0, :-1].float() for x in (ids, changed))
        return float((before - after).abs().max()) > 1e-3 * float(before.std()) + 1e-6

    # -- what is asked for --------------------------------------------------------------

    def _positions(self, position: Any, logits: torch.Tensor) -> list[int | None]:
        if position is None:
            if not self._sees_ahead(logits):
                return [None] * self.site.n_texts
            return self._masks()
        positions = self._one_each(position, "position")
        for p in positions:
            if not isinstance(p, Integral) or isinstance(p, bool):
                raise TypeError(f"position must be an int, or one per text. Got {p!r} instead.")
        return [int(p) for p in positions]

    def _masks(self) -> list[int | None]:
        """Find the mask token of each text, for a model that fills it in."""
        mask = getattr(self.site.tokenizer, "mask_token_id", None)
        found: list[int | None] = [None] * self.site.n_texts
        for sequence in self.site.sequences:
            text = int(self.site.tokens.text[sequence.at[0]])
            at = np.flatnonzero(self.site.tokens.ids[sequence.at] == mask)
            if len(at) != 1:
                raise ValueError(
                    f"{self._kind} fills in tokens, and texts[{text}] has {len(at)} mask tokens. "
                    "Give it one, or pass position=, the token whose logits are meant."
                )
            found[text] = int(at[0])
        return found

    def _targets(self, target: Any) -> np.ndarray:
        if target is None:
            return np.full(self.site.n_texts, -1, dtype=np.int64)
        read = self._token if self.of_tokens else self._class
        return np.array([read(t) for t in self._one_each(target, "target")], dtype=np.int64)

    def _one_each(self, value: Any, name: str) -> list[Any]:
        if isinstance(value, str | Integral):
            return [value] * self.site.n_texts
        if not hasattr(value, "__len__") or isinstance(value, bytes | dict | set):
            raise TypeError(
                f"{name} must be an int{' or a str' if name == 'target' else ''}, or a sequence "
                f"of one per text. Got {type(value).__name__} instead."
            )
        values = np.asarray(value).tolist() if hasattr(value, "dtype") else list(value)
        if len(values) != self.site.n_texts:
            raise ValueError(
                f"{name} must hold one entry for each of {self.site.n_texts} texts. Got "
                f"{len(values)}."
            )
        return values

    def _number(self, target: Any, what: str) -> int:
        if not isinstance(target, Integral) or isinstance(target, bool):
            raise TypeError(
                f"A target must be an int or a str. Got {target!r} instead; leave target out "
                "for the model's own choice."
            )
        if not 0 <= int(target) < self.n_logits:
            raise ValueError(
                f"target={target} is out of range: {self._kind} has {self.n_logits} {what}, "
                "numbered from 0."
            )
        return int(target)

    def _class(self, target: Any) -> int:
        if not isinstance(target, str):
            return self._number(target, "classes")
        known = getattr(getattr(self.site.model, "config", None), "label2id", None) or {}
        if target not in known:
            raise ValueError(
                f"target={target!r} is no label of {self._kind}: config.label2id has "
                f"{list(known)[:8]}. Pass one of these, or the number of the class."
            )
        return self._number(int(known[target]), "classes")

    def _token(self, target: Any) -> int:
        if not isinstance(target, str):
            return self._number(target, "tokens")
        tokenizer = self.site.tokenizer
        ids = tokenizer(target, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 and target in (vocabulary := tokenizer.get_vocab()):
            ids = [vocabulary[target]]
        if len(ids) != 1:
            raise ValueError(
                f"target={target!r} is {len(ids)} tokens, {tokenizer.convert_ids_to_tokens(ids)}, "
                "and one is needed. Mind that many tokenizers count the space before a word as "
                f"part of it, as in {' ' + target.strip()!r}; or pass the id of a token."
            )
        return self._number(int(ids[0]), "tokens")
