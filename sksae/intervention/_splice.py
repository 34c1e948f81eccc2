"""What a model loses when an SAE's reconstructions stand in for its hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import nn

from ..activations._forward import batches
from ..activations._layers import evaluating
from ..activations._units import Sequence
from ..metrics import accuracy_recovered, loss_recovered
from ._site import Fill, Parts, Site

# Most logits held at once for a batch, and for one step of the arithmetic.
_LOGITS = 2**27
_STEP = 2**23


class _Report:
    """Numbers with names: a short repr and a dictionary."""

    def to_dict(self) -> dict[str, float]:
        """Give the numbers by their names, in order."""
        return asdict(self)  # type: ignore[call-overload]

    def __repr__(self) -> str:
        shown = [
            f"{name}={value if isinstance(value, int) else format(value, '.4g')}"
            for name, value in self.to_dict().items()
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class SplicedLoss(_Report):
    """What `spliced_loss` measures; losses are in nats per predicted token.

    Parameters
    ----------
    ce : float
        Cross-entropy of the model as it is.
    ce_spliced : float
        With the SAE's reconstruction in place of the hidden states.
    ce_zero : float
        With zeros in place of the hidden states.
    ce_mean : float
        With their mean in place of the hidden states.
    kl : float
        Kullback-Leibler divergence from the clean prediction to the spliced one. 0 where the
        SAE changes no prediction; lower is better.
    loss_recovered : float
        ``(ce_zero - ce_spliced) / (ce_zero - ce)``. Higher is better: 1 where the SAE costs
        nothing, 0 where it is as bad as zeros, below 0 where it is worse. It says nothing
        where ``ce_zero`` does not exceed ``ce``: NaN where they are equal.
    loss_recovered_mean : float
        The same against ``ce_mean``, the stricter of the two.
    n_tokens : int
        Predicted tokens that the means are taken over.
    """

    ce: float
    ce_spliced: float
    ce_zero: float
    ce_mean: float
    kl: float
    loss_recovered: float
    loss_recovered_mean: float
    n_tokens: int


@dataclass(frozen=True, repr=False)
class SplicedAccuracy(_Report):
    """What `spliced_accuracy` measures, as shares of the texts.

    Parameters
    ----------
    accuracy : float
        Of the model as it is.
    accuracy_spliced : float
        With the SAE's reconstruction in place of the hidden states.
    accuracy_zero : float
        With zeros in place of the hidden states.
    accuracy_mean : float
        With their mean in place of the hidden states.
    accuracy_recovered : float
        ``(accuracy_spliced - accuracy_zero) / (accuracy - accuracy_zero)``. Higher is better;
        NaN where zeros cost no accuracy.
    accuracy_recovered_mean : float
        The same against ``accuracy_mean``.
    n_texts : int
        Number of texts.
    """

    accuracy: float
    accuracy_spliced: float
    accuracy_zero: float
    accuracy_mean: float
    accuracy_recovered: float
    accuracy_recovered_mean: float
    n_texts: int


def spliced_loss(
    pipe_or_sae,
    texts,
    *,
    model=None,
    layer=None,
    tokenizer=None,
    granularity=None,
    skip_first=None,
    max_length=None,
    batch_size=None,
):
    """Measure how well a causal language model predicts text through an SAE.

    The model runs over the texts four times: as it is, and with the hidden states of one
    layer replaced by the SAE's reconstruction, by zeros and by their mean. The share of the
    loss that zeros (or the mean) do and the reconstruction does not is the loss recovered.

    Parameters
    ----------
    pipe_or_sae : Pipeline or BaseSAE
        A fitted pipeline of a `TransformerActivationExtractor`, steps that have an
        ``inverse_transform``, and an SAE; steps after the SAE are ignored. A fitted SAE, or
        a pipeline without an extractor, needs ``model`` and ``layer``.
    texts : sequence of str, or of lists of str
        Held-out texts. Those of fewer than two tokens count for nothing.
    model : str, path or torch.nn.Module, default=None
        The language model with its head, by name or as an object. None takes the
        extractor's: a name is loaded through ``transformers.AutoModelForCausalLM`` in each
        call, an object must have its head. An object is used where and as it is.
    layer : str or int, default=None
        The layer, as the extractor takes it. None takes the extractor's.
    tokenizer : str, path or PreTrainedTokenizerFast, default=None
        None takes the extractor's, or the one that goes with the model's name.
    granularity : {"token", "all_tokens"}, default=None
        Which hidden states are replaced: those of all tokens but special ones, or those of
        special ones too. None takes the extractor's, or "token".
    skip_first : int, default=None
        Leading tokens of each text whose hidden states are left alone. None takes the
        extractor's, or 0.
    max_length : int, default=None
        Tokens after which a text is truncated, special ones included. None takes the
        extractor's, and warns where that truncates.
    batch_size : int, default=None
        Texts run at once. None takes the extractor's, or 32. Fewer are run where the
        logits of a batch would exceed 2**27 values (512 MB in float32).

    Returns
    -------
    SplicedLoss
        Cross-entropies, loss recovered, divergence.

    Raises
    ------
    ValueError
        If the model has no head or sees the tokens it predicts, if there are several
        layers, a step that has no inverse, or no token to predict.

    See Also
    --------
    spliced_accuracy : The same for a model with a classification head.

    Notes
    -----
    *Replaced* are the hidden states of which the extractor makes rows, no others: padding,
    the first ``skip_first`` tokens and, with "token", special tokens keep their own.

    *Counted* is the prediction of every token that has one before it in its text, special
    tokens excepted: padding, BOS and EOS are never to be predicted [1]_. The hidden states of
    all tokens before it are replaced, as far as they are replaced at all.

    The mean is that of all hidden states replaced here. Long texts are truncated, whatever
    the extractor's ``long_text`` says. Losses are computed in float32 and summed in float64.

    An SAE must be put where it was trained: with a bare SAE, give the ``skip_first`` of its
    training rows, or it reconstructs states that it has never seen.

    References
    ----------
    .. [1] Karvonen et al. (2025), "SAEBench: A Comprehensive Benchmark for Sparse
       Autoencoders in Language Model Interpretability", arXiv:2503.09532.
    .. [2] Rajamanoharan et al. (2024), "Improving Dictionary Learning with Gated Sparse
       Autoencoders", arXiv:2404.16014.

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
    >>> pipe = make_pipeline(extractor, TopKSAE(8, top_k=2, random_state=0)).fit(texts)
    >>> loss = spliced_loss(pipe, texts)
    >>> loss.n_tokens  # "sea"; "blue" and "blue"
    3
    >>> list(loss.to_dict())[:4]
    ['ce', 'ce_spliced', 'ce_zero', 'ce_mean']
    """
    site = Site(
        Parts.of(pipe_or_sae, "spliced_loss"),
        texts,
        "AutoModelForCausalLM",
        granularities=("token", "all_tokens"),
        model=model,
        layer=layer,
        tokenizer=tokenizer,
        granularity=granularity,
        skip_first=skip_first,
        max_length=max_length,
        batch_size=batch_size,
    )
    with evaluating(site.model):
        return _loss(site)


def spliced_accuracy(
    pipe_or_sae,
    texts,
    y,
    *,
    model=None,
    layer=None,
    tokenizer=None,
    granularity=None,
    skip_first=None,
    max_length=None,
    batch_size=None,
):
    """Measure how well a model classifies texts through an SAE.

    The same as `spliced_loss` for a model with a classification head, an encoder for
    example: its accuracy as it is, and with the hidden states of one layer replaced by the
    SAE's reconstruction, by zeros and by their mean.

    Parameters
    ----------
    pipe_or_sae : Pipeline or BaseSAE
        A fitted pipeline of a `TransformerActivationExtractor`, steps that have an
        ``inverse_transform``, and an SAE; steps after the SAE are ignored. A fitted SAE, or
        a pipeline without an extractor, needs ``model`` and ``layer``.
    texts : sequence of str, or of lists of str
        Held-out texts.
    y : array-like of int or str, shape (n_texts,)
        The class of each text: the number of its logit, or its name in the model's
        ``config.label2id``.
    model : str, path or torch.nn.Module, default=None
        The model with its head, by name or as an object. None takes the extractor's: a name
        is loaded through ``transformers.AutoModelForSequenceClassification`` in each call,
        an object must have its head. An object is used where and as it is.
    layer : str or int, default=None
        The layer, as the extractor takes it. None takes the extractor's.
    tokenizer : str, path or PreTrainedTokenizerFast, default=None
        None takes the extractor's, or the one that goes with the model's name.
    granularity : {"token", "all_tokens", "cls"}, default=None
        Which hidden states are replaced: those of all tokens but special ones, those of
        special ones too, or that of the first special one only. None takes the extractor's,
        or "token".
    skip_first : int, default=None
        Leading tokens of each text whose hidden states are left alone. None takes the
        extractor's, or 0.
    max_length : int, default=None
        Tokens after which a text is truncated, special ones included. None takes the
        extractor's, and warns where that truncates.
    batch_size : int, default=None
        Texts run at once. None takes the extractor's, or 32.

    Returns
    -------
    SplicedAccuracy
        Accuracies, accuracy recovered.

    Raises
    ------
    ValueError
        If the model has no classification head, if ``y`` does not fit it, if there are
        several layers, a step that has no inverse, or a text without tokens.

    See Also
    --------
    spliced_loss : The same for causal language models.

    Notes
    -----
    Replaced are the hidden states of which the extractor makes rows, no others, so that the
    SAE meets only what it was trained on. With "token" special tokens keep their own, and a
    head that reads [CLS] gets to see what [CLS] has gathered before the layer. How much that
    is, ``accuracy_zero`` and ``accuracy_mean`` tell: where they come near ``accuracy``, the
    decision does not pass through the replaced states and the share recovered says little.
    Then train the SAE on "all_tokens", or take an earlier layer.

    Accuracy moves in steps of ``1 / n_texts``; with few texts or a small gap between
    ``accuracy`` and ``accuracy_zero`` the share recovered is noise.
    """
    site = Site(
        Parts.of(pipe_or_sae, "spliced_accuracy"),
        texts,
        "AutoModelForSequenceClassification",
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
        return _accuracy(site, y)


# -- arithmetic -----------------------------------------------------------------------


def _recovered(arithmetic, clean: float, spliced: float, ablated: float) -> float:
    """Give a recovered share; NaN where the ablation changed nothing."""
    return arithmetic(clean, spliced, ablated) if ablated != clean else float("nan")


def _nll(logits: torch.Tensor, places: torch.Tensor, targets: torch.Tensor) -> float:
    """Sum the nats of the targets, predicted by the logits at these places."""
    total = 0.0
    for at, target in _steps(logits, places, targets):
        nats = nn.functional.cross_entropy(logits[at].float(), target, reduction="none")
        total += float(nats.cpu().double().sum())
    return total


def _kl(clean: torch.Tensor, spliced: torch.Tensor, places: torch.Tensor) -> float:
    """Sum KL(clean || spliced) in nats over these places."""
    total = 0.0
    for (at,) in _steps(clean, places):
        p, q = (x[at].float().log_softmax(dim=-1) for x in (clean, spliced))
        nats = (p.exp() * (p - q)).sum(dim=-1)
        total += float(nats.cpu().double().sum())
    return total


def _steps(logits: torch.Tensor, *aligned: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Cut tensors of one entry per token, so that a step's logits fit into a buffer."""
    size = max(1, _STEP // logits.shape[-1])
    return zip(*(x.to(logits.device).split(size) for x in aligned), strict=True)


class _MeanRow:
    """Takes the mean of the rows that pass through it."""

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.n = 0

    def watch(self, rows: torch.Tensor) -> torch.Tensor:
        """Take rows in and give them back."""
        self.total = self.total + rows.to("cpu", torch.float64).sum(dim=0)
        self.n += len(rows)
        return rows

    def fill(self, rows: torch.Tensor) -> torch.Tensor:
        """Give the mean in place of each row."""
        return (self.total / self.n).to(rows.device, rows.dtype).expand_as(rows)


# -- the two measurements -------------------------------------------------------------


def _loss(site: Site) -> SplicedLoss:
    vocabulary = _causal_vocabulary(site)
    mean, kl, n_tokens = _MeanRow(), 0.0, 0
    nll = dict.fromkeys(("ce", "ce_spliced", "ce_zero", "ce_mean"), 0.0)
    for batch in _small_batches(site, vocabulary):
        places, targets = site.predicted(batch)
        clean = _flat_logits(site, batch, mean.watch)
        nll["ce"] += _nll(clean, places, targets)
        spliced = _flat_logits(site, batch, site.parts.reconstruct)
        nll["ce_spliced"] += _nll(spliced, places, targets)
        kl += _kl(clean, spliced, places)
        del clean, spliced
        nll["ce_zero"] += _nll(_flat_logits(site, batch, torch.zeros_like), places, targets)
        n_tokens += len(targets)
    for batch in _small_batches(site, vocabulary):
        nll["ce_mean"] += _nll(_flat_logits(site, batch, mean.fill), *site.predicted(batch))
    ce = {name: total / n_tokens for name, total in nll.items()}
    return SplicedLoss(
        **ce,
        kl=kl / n_tokens,
        loss_recovered=_recovered(loss_recovered, ce["ce"], ce["ce_spliced"], ce["ce_zero"]),
        loss_recovered_mean=_recovered(loss_recovered, ce["ce"], ce["ce_spliced"], ce["ce_mean"]),
        n_tokens=n_tokens,
    )


def _flat_logits(site: Site, batch: list[Sequence], fill: Fill) -> torch.Tensor:
    return site.logits(batch, fill).flatten(0, 1)


def _small_batches(site: Site, vocabulary: int) -> Iterator[list[Sequence]]:
    """Cut the batches so that their logits stay in memory; leave out what predicts nothing."""
    long_enough = [s for s in site.sequences if site.targets_of(s).size]
    for batch in batches(long_enough, site.batch_size, site.device):
        size = max(1, _LOGITS // (len(batch[0].at) * vocabulary))
        yield from (batch[at : at + size] for at in range(0, len(batch), size))


def _causal_vocabulary(site: Site) -> int:
    """Check that the model predicts tokens from those before; give the number it knows."""
    if not any(site.targets_of(s).size for s in site.sequences):
        raise ValueError(
            f"None of the {site.n_texts} texts has a token to predict: each has fewer than two, "
            "or special tokens alone. Pass longer texts."
        )
    longest = max(site.sequences, key=lambda s: len(s.at))
    ids = site.tokens.ids[longest.at[:8]]
    changed = ids.copy()
    kind = type(site.model).__name__
    logits = site.run([ids])
    if logits.ndim != 3 or logits.shape[1] != len(ids) or logits.shape[2] <= site.tokens.ids.max():
        raise ValueError(
            f"{kind} gives logits of shape {tuple(logits.shape)} for 1 text of {len(ids)} tokens, "
            "not one for each token of the vocabulary. Pass model=, a causal language model."
        )
    changed[-1] = (changed[-1] + 1) % logits.shape[2]
    before, after = logits[0, :-1].float(), site.run([changed])[0, :-1].float()
    if float((before - after).abs().max()) > 1e-3 * float(before.std()) + 1e-6:
        raise ValueError(
            f"{kind} sees the tokens that it is to predict, so that its loss says nothing. Pass "
            "a causal language model, or use spliced_accuracy with a classification head."
        )
    return logits.shape[2]


def _accuracy(site: Site, y: Any) -> SplicedAccuracy:
    empty = np.flatnonzero(np.diff(site.tokens.bounds) == 0)
    if empty.size:
        raise ValueError(f"texts[{empty[0]}] has no tokens, so it has no class. Leave it out.")
    # Heads that read the first token would find padding there; to others it is the same.
    site.forward.pad_left = False
    n_classes = _n_classes(site)
    y = _label_ids(y, site.n_texts, n_classes, site.model)
    mean = _MeanRow()
    clean = _share_right(site, y, mean.watch)
    spliced = _share_right(site, y, site.parts.reconstruct)
    zero = _share_right(site, y, torch.zeros_like)
    ablated = _share_right(site, y, mean.fill)
    return SplicedAccuracy(
        accuracy=clean,
        accuracy_spliced=spliced,
        accuracy_zero=zero,
        accuracy_mean=ablated,
        accuracy_recovered=_recovered(accuracy_recovered, clean, spliced, zero),
        accuracy_recovered_mean=_recovered(accuracy_recovered, clean, spliced, ablated),
        n_texts=site.n_texts,
    )


def _share_right(site: Site, y: np.ndarray, fill: Fill) -> float:
    text, n_right = site.tokens.text, 0
    for batch in batches(site.sequences, site.batch_size, site.device):
        found = site.logits(batch, fill).argmax(dim=1).cpu().numpy()
        n_right += int((found == y[text[[s.at[0] for s in batch]]]).sum())
    return n_right / site.n_texts


def _n_classes(site: Site) -> int:
    logits = site.run([site.tokens.ids[site.sequences[0].at]])
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"{type(site.model).__name__} gives logits of shape {tuple(logits.shape)} for 1 text, "
            "not one for each of two classes or more. Pass model=, one with a classification head."
        )
    return logits.shape[1]


def _label_ids(
    y: Any, n_texts: int, n_classes: int, model: nn.Module, name: str = "y"
) -> np.ndarray:
    """Turn classes, by number or by name, into the numbers of their logits."""
    y = np.asarray(y)
    if y.dtype == object and all(isinstance(value, Integral) for value in y.flat):
        y = y.astype(np.int64)
    if y.shape != (n_texts,):
        raise ValueError(
            f"{name} must hold one class for each of {n_texts} texts. Got shape {y.shape}."
        )
    if y.dtype.kind in "iub":
        if y.min() < 0 or y.max() >= n_classes:
            raise ValueError(
                f"{name} holds the classes {y.min()} to {y.max()}, and {type(model).__name__} has "
                f"{n_classes}, numbered from 0."
            )
        return y.astype(np.int64)
    label2id = getattr(getattr(model, "config", None), "label2id", None) or {}
    unknown = sorted({str(label) for label in y} - set(label2id))
    if unknown:
        raise ValueError(
            f"{name} holds {unknown[0]!r}, which config.label2id of {type(model).__name__} does "
            f"not know: {list(label2id)[:8]}. Pass these names, or the numbers of the classes."
        )
    return np.array([int(label2id[str(label)]) for label in y], dtype=np.int64)
