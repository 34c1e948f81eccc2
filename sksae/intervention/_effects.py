"""effects: what editing a concept does to the loss and the logits of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..activations._layers import evaluating
from ..activations._loading import is_name
from ._edits import Editor, as_affine, concept_index
from ._readout import Predictions, Readout, compare
from ._site import Parts, Site

_HEADS = ("AutoModelForCausalLM", "AutoModelForSequenceClassification")


@dataclass(frozen=True, repr=False)
class Effects:
    """What `effects` measures: arrays with an entry for each concept, in the order given.

    A *prediction* is that of one token (language models), or of the class of one text. It is
    *active* if the concept is active at the position that it is made from, or anywhere in
    the text. Changes are means over predictions of the edited model less the unedited.

    Parameters
    ----------
    concepts : ndarray of int, shape (n_concepts,)
        Numbers of the concepts.
    names : list of str
        Their names in the SAE's output.
    loss_change : ndarray of shape (n_concepts,)
        Change of the cross-entropy in nats, over all predictions. Above 0: the model predicts
        worse with the concept edited, so that it had a use for it in these texts.
    loss_change_active : ndarray of shape (n_concepts,)
        The same over active predictions only; NaN where there are none.
    kl : ndarray of shape (n_concepts,)
        Kullback-Leibler divergence in nats from the unedited to the edited prediction, over
        all predictions: how much changes, for better or worse. 0 where nothing does.
    kl_active : ndarray of shape (n_concepts,)
        The same over active predictions only; NaN where there are none.
    logit_change : ndarray of shape (n_concepts,)
        Change of the target's logit, over all predictions.
    changed : ndarray of shape (n_concepts,)
        Share of the predictions whose first choice becomes another.
    n_active : ndarray of int, shape (n_concepts,)
        Number of edited positions in which the concept is active.
    n_texts : ndarray of int, shape (n_concepts,)
        Number of texts with such a position.
    loss : float
        Cross-entropy without edits, in nats.
    n_predictions : int
        Number of predictions.
    """

    concepts: np.ndarray
    names: list[str]
    loss_change: np.ndarray
    loss_change_active: np.ndarray
    kl: np.ndarray
    kl_active: np.ndarray
    logit_change: np.ndarray
    changed: np.ndarray
    n_active: np.ndarray
    n_texts: np.ndarray
    loss: float
    n_predictions: int

    def to_frame(self):
        """Give a table, one line per concept.

        Returns
        -------
        table : pandas.DataFrame
            Columns name, loss_change, loss_change_active, kl, kl_active, logit_change,
            changed, n_active and n_texts. The index is the number of the concept.
        """
        import pandas as pd

        columns = {"name": self.names}
        columns |= {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray) and name != "concepts"
        }
        return pd.DataFrame(columns, index=pd.Index(self.concepts, name="concept"))

    def __repr__(self) -> str:
        return (
            f"Effects({len(self.concepts)} concepts, loss={self.loss:.4g}, "
            f"n_predictions={self.n_predictions})"
        )


def effects(
    pipe_or_sae,
    texts,
    concepts,
    *,
    value="ablate",
    target=None,
    keep_error=True,
    model=None,
    layer=None,
    tokenizer=None,
    granularity=None,
    skip_first=None,
    max_length=None,
    batch_size=None,
    verbose=0,
):
    """Measure what each concept does for the predictions of a model, by editing it.

    The model runs over the texts as it is, and for each concept over those texts that its
    edit changes. It is a causal language model, whose predictions are those of the tokens, or
    has a classification head.

    Parameters
    ----------
    pipe_or_sae : Pipeline or BaseSAE
        A fitted pipeline of a `TransformerActivationExtractor`, steps that have an
        ``inverse_transform``, and an SAE; steps after the SAE are ignored. A fitted SAE, or
        a pipeline without an extractor, needs ``model`` and ``layer``.
    texts : sequence of str, or of lists of str
        Held-out texts.
    concepts : int, str, list of these, or "all"
        Concepts by number or name, each edited alone.
    value : float, "ablate", Scale or Add, default="ablate"
        The edit, as `intervene` takes it.
    target : int, str or array-like of these, shape (n_texts,), default=None
        Whose logit is looked at. For a language model a token, by id or as the string that
        it stands for (with its space: " sea"); None is the token that comes next in the text.
        For a classifier a class, by number or its name in ``config.label2id``, or one for
        each text; None is the class that the model without edits predicts. A classifier's
        loss is that of the same class.
    keep_error : bool, default=True
        Whether what the SAE does not reconstruct stays in the hidden states. If not, the
        comparison is between reconstructions with and without the edit.
    model : str, path or torch.nn.Module, default=None
        The model with its head, by name or as an object. None takes the extractor's; a name
        is loaded with its head. An object is used where and as it is.
    layer : str or int, default=None
        The layer, as the extractor takes it. None takes the extractor's.
    tokenizer : str, path or PreTrainedTokenizerFast, default=None
        None takes the extractor's, or the one that goes with the model's name.
    granularity : {"token", "all_tokens", "cls"}, default=None
        Which hidden states are edited: those of all tokens but special ones, those of
        special ones too, or that of the first token only. None takes the extractor's, or
        "token".
    skip_first : int, default=None
        Leading tokens of each text whose hidden states are left alone. None takes the
        extractor's, or 0.
    max_length : int, default=None
        Tokens after which a text is truncated, special ones included. None takes the
        extractor's, and warns where that truncates.
    batch_size : int, default=None
        Texts run at once. None takes the extractor's, or 32.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    Effects
        Changes of loss and logit, divergence, and how often each concept is active;
        ``to_frame()`` makes a table of it.

    Raises
    ------
    ValueError
        If a concept or the target does not exist, the model predicts neither tokens from
        those before nor classes, or there is nothing to predict.

    See Also
    --------
    intervene : Edits concepts in a model that the caller runs.
    spliced_loss : What the SAE as a whole costs.

    Notes
    -----
    Edited are the hidden states of which the extractor makes rows, no others. Predictions
    are counted as in `spliced_loss`: tokens that have one before them, special ones never. An
    edit also changes predictions at later positions, which attend to edited ones:
    ``loss_change`` has them, ``loss_change_active`` has not.

    Ablating one concept shows what the model loses without it, not what the concept is for:
    where others make up for it, or two do the same work, each seems to do little. Effects
    of concepts do not add up. A mean over predictions hides that a concept may help some and
    harm others; the divergence does not. With few active predictions all of it is noise.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sksae import Extractor, TopKSAE
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "blue": 1, "sea": 2}, "[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    >>> config = LlamaConfig(vocab_size=3, hidden_size=8, intermediate_size=8,
    ...                      num_hidden_layers=2, num_attention_heads=2)
    >>> extractor = Extractor(LlamaForCausalLM(config), 0, tokenizer=tokenizer)
    >>> texts = ["blue sea", "sea blue blue"]
    >>> pipe = make_pipeline(extractor, TopKSAE(8, top_k=8, random_state=0)).fit(texts)
    >>> found = effects(pipe, texts, [0, 3], target="sea")
    >>> found.n_predictions  # "sea"; "blue" and "blue"
    3
    >>> found.to_frame().shape  # lines of name, loss_change, ...
    (2, 9)
    """
    parts = Parts.of(pipe_or_sae, "effects")
    numbers = _numbers(pipe_or_sae, concepts, parts)
    edit = as_affine(value, "The 'value' parameter of effects")
    site = Site(
        parts,
        texts,
        _head(parts, model),
        granularities=("token", "all_tokens", "cls"),
        model=model,
        layer=layer,
        tokenizer=tokenizer,
        granularity=granularity,
        skip_first=skip_first,
        max_length=max_length,
        batch_size=batch_size,
    )
    with evaluating(site.model):
        readout = Readout(site, target)
        return _measured(readout, numbers, edit, keep_error, verbose)


def _numbers(pipe_or_sae: Any, concepts: Any, parts: Parts) -> list[int]:
    if isinstance(concepts, str) and concepts == "all":
        return list(range(parts.sae._n_features_out))
    listed = [concepts] if isinstance(concepts, str) or np.ndim(concepts) == 0 else list(concepts)
    numbers = [concept_index(pipe_or_sae, concept, "effects") for concept in listed]
    twice = next((n for i, n in enumerate(numbers) if n in numbers[:i]), None)
    if twice is not None or not numbers:
        what = "none" if twice is None else f"concept {twice} more than once"
        raise ValueError(f"The 'concepts' of effects must be different ones. Got {what}.")
    return numbers


def _head(parts: Parts, model: Any) -> str:
    """Name the class that loads the model, as its configuration tells."""
    name = model if model is not None or parts.extractor is None else parts.extractor.model
    if not is_name(name):
        return _HEADS[0]
    from transformers import AutoConfig

    architectures = AutoConfig.from_pretrained(name).architectures or []
    return _HEADS[any(kind.endswith("ForSequenceClassification") for kind in architectures)]


# -- the measurement ------------------------------------------------------------------


class _Sums:
    """Adds up what happens to the predictions of a batch, concept by concept."""

    def __init__(self, n_concepts: int) -> None:
        self.total = {name: np.zeros(n_concepts) for name in ("loss", "kl", "logit", "changed")}
        self.active = {name: np.zeros(n_concepts) for name in ("loss", "kl", "n")}
        self.n_active = np.zeros(n_concepts, dtype=np.int64)
        self.n_texts = np.zeros(n_concepts, dtype=np.int64)
        self.loss, self.n = 0.0, 0

    def add(self, concept: int, differences: dict[str, torch.Tensor], active: torch.Tensor) -> None:
        """Take in the differences of some predictions, and which of them are active."""
        for name, sums in self.total.items():
            sums[concept] += float(differences[name].sum())
        for name in ("loss", "kl"):
            self.active[name][concept] += float(differences[name][active].sum())

    def result(self, numbers: list[int], names: list[str]) -> Effects:
        """Take the means."""
        mean = {name: sums / self.n for name, sums in self.total.items()}
        n = np.where(self.active["n"] > 0, self.active["n"], np.nan)
        return Effects(
            concepts=np.array(numbers),
            names=names,
            loss_change=mean["loss"],
            loss_change_active=self.active["loss"] / n,
            kl=mean["kl"],
            kl_active=self.active["kl"] / n,
            logit_change=mean["logit"],
            changed=mean["changed"],
            n_active=self.n_active,
            n_texts=self.n_texts,
            loss=self.loss / self.n,
            n_predictions=self.n,
        )


def _measured(
    readout: Readout, numbers: list[int], edit: tuple[float, float], keep_error: bool, verbose: int
) -> Effects:
    parts = readout.site.parts
    base = Editor(parts, {}, keep_error)
    editors = [Editor(parts, {number: edit}, keep_error) for number in numbers]
    sums = _Sums(len(numbers))
    batches = list(readout.batches())
    with tqdm(total=len(batches) * len(numbers), disable=not verbose, unit="run") as bar:
        for batch in batches:
            clean, codes = _clean(readout, batch, base, numbers)
            sums.loss, sums.n = sums.loss + float(clean.loss().sum()), sums.n + len(clean.logits)
            for j, editor in enumerate(editors):
                _count(sums, j, readout, clean, codes[:, j] != 0)
                moved = editor.changes(codes[:, [j]])[:, 0] != 0
                for part, active, edited in _edited(readout, clean, codes[:, j], moved, editor):
                    sums.add(j, compare(part, edited), active)
                bar.update()
    names = list(parts.sae.get_feature_names_out())
    return sums.result(numbers, [str(names[number]) for number in numbers])


def _clean(
    readout: Readout, batch: list[Any], base: Editor, numbers: list[int]
) -> tuple[Predictions, torch.Tensor]:
    """Run a batch without edits; give its predictions and the codes of its rows."""
    seen: list[torch.Tensor] = []

    def watch(rows: torch.Tensor) -> torch.Tensor:
        seen.append(torch.cat([base.encode(x)[:, numbers].cpu() for x in rows.split(base.chunk)]))
        return base(rows)

    clean = readout.run(batch, watch)
    return clean, seen[0] if seen else torch.zeros(0, len(numbers))


def _count(sums: _Sums, j: int, readout: Readout, clean: Predictions, active: torch.Tensor) -> None:
    sums.n_active[j] += int(active.sum())
    sums.n_texts[j] += len(clean.text_of_row[active].unique())
    sums.active["n"][j] += int(readout.active(clean, active).sum())


def _edited(
    readout: Readout, clean: Predictions, codes: torch.Tensor, moved: torch.Tensor, editor: Editor
) -> Iterator[tuple[Predictions, torch.Tensor, Predictions]]:
    """Run the texts that an edit changes; give their clean predictions, and the edited ones."""
    texts = clean.text_of_row[moved].unique()
    if len(texts):
        edited = readout.run([clean.batch[i] for i in texts.tolist()], editor)
        kept = torch.isin(clean.text, texts)
        yield clean.only(kept), readout.active(clean, codes != 0)[kept], edited
