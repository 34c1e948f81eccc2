"""Concept to output: what each concept contributes to a logit of the model."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import check_random_state

from ..activations._forward import batches
from ..activations._layers import evaluating
from ..activations._rows import Rows, with_rows
from ..estimators import BaseSAE
from ..intervention._site import Parts, Site
from ._cases import find_concepts, given_names
from ._codes_path import Case, CaseMaker, LogitOfCodes, pieces
from ._estimates import METHODS, Settings, estimate
from ._methods import captum_attr
from ._output_result import OutputAttribution
from ._readout import Readout, head_of, refuse_samples

_OWNER = "concept_output_attribution"
GRANULARITIES = ("token", "all_tokens", "word", "sentence", "cls")


def concept_output_attribution(
    pipe_or_sae,
    inputs,
    concepts=None,
    *,
    target=None,
    attribution_method="gradient_x_activation",
    keep_error=True,
    per_position=False,
    normalize=False,
    baseline=None,
    position=None,
    n_steps=50,
    n_samples=25,
    model=None,
    layer=None,
    tokenizer=None,
    granularity=None,
    aggregation=None,
    skip_first=None,
    max_length=None,
    batch_size=None,
    random_state=None,
    verbose=0,
):
    """Say what each concept contributes to a logit of the model.

    The hidden states at the SAE's layer are replaced by the decoded codes, so that the rest of
    the model is a function of the codes; the methods say what each of them does to one logit:
    that of a class, or that of a token. Only concepts that are active in a text have a score
    there, so that the cost does not depend on the number of concepts.

    Parameters
    ----------
    pipe_or_sae : Pipeline or BaseSAE
        A fitted pipeline of a `TransformerActivationExtractor`, steps whose
        ``inverse_transform`` is affine, and an SAE; of later steps only the names of the
        concepts are read. A fitted SAE, or a pipeline without an extractor, needs ``model``
        and ``layer``.
    inputs : sequence of str, or of lists of str
        The texts.
    concepts : int, str or sequence of these, default=None
        The concepts to score, by number or by feature name. The others stay as they are.
        None takes all.
    target : int, str or sequence of these, default=None
        Whose logit is explained. With a classification head a class, by its number or by its
        name in ``config.label2id``; with a language modelling head a token, by its id or as
        a string that is exactly one token, such as " blue". One for all texts, or one for
        each. None takes the class or token with the largest logit, the model's own prediction.
    attribution_method : {"gradient_x_activation", "integrated_gradients", "ablation", \
            "shapley_sampling", "concepts_x_gradients"}, default="gradient_x_activation"
        The method, see Notes. "concepts_x_gradients" is interpreto's name for the first one.
    keep_error : bool, default=True
        Whether what the SAE does not reconstruct, ``x - x_hat``, is added to the decoded
        codes as a constant. With it, the model that is explained is the one that was given.
    per_position : bool, default=False
        Whether to score each code of each row of the pipeline (each token), instead of all
        codes of a concept in a text together.
    normalize : bool, default=False
        Whether to divide the scores of each text by the sum of their magnitudes, as
        interpreto does; they are shares then, and no longer in logits.
    baseline : array-like of shape (nb_concepts,), default=None
        The codes that stand for absence, where integrated gradients begin and what ablation
        and Shapley sampling put in place. None is zeros. A baseline with many concepts
        makes as many of them count in every row, and takes longer.
    position : int or sequence of int, default=None
        With a language modelling head, the token whose logits are read, counted in the text
        as the model sees it, special tokens included, negative from the end. In a causal
        model these logits are those of the token after it. None is the last token that is
        not a special one; in a model that fills in tokens, the mask token.
    n_steps : int, default=50
        Of integrated gradients, the number of points on the way.
    n_samples : int, default=25
        Of Shapley sampling, the number of random orders.
    model : str, path or torch.nn.Module, default=None
        The model with its head, by name or as an object. None takes the extractor's; given
        by name it is loaded with the head that its configuration names, an object must have
        one. An object is used where and as it is.
    layer : str or int, default=None
        The layer, as the extractor takes it. None takes the extractor's.
    tokenizer : str, path or PreTrainedTokenizerFast, default=None
        None takes the extractor's, or the one that goes with the model's name.
    granularity : {"token", "all_tokens", "word", "sentence", "cls"}, default=None
        What a row stands for, as in the extractor. None takes the extractor's, or "token".
    aggregation : str, default=None
        How the tokens of a word or sentence are pooled, as in the extractor. None takes the
        extractor's, or "mean".
    skip_first : int, default=None
        Leading tokens of each text whose hidden states are left alone. None takes the
        extractor's, or 0.
    max_length : int, default=None
        Tokens after which a text is truncated, special ones included. None takes the
        extractor's, and warns where that truncates.
    batch_size : int, default=None
        Texts, or versions of a text, run at once. None takes the extractor's, or 32.
    random_state : int, RandomState instance or None, default=None
        Of Shapley sampling: makes the orders repeatable.
    verbose : int, default=0
        1 shows a progress bar over the texts.

    Returns
    -------
    OutputAttribution
        Scores as a CSR matrix, with the logits they explain.

    Raises
    ------
    ImportError
        If captum is not installed.
    ValueError
        If the model has no head, the target does not fit it, or the rows stand for whole
        texts ("sample").
    TypeError
        If a target, a position or a concept is of the wrong type.

    See Also
    --------
    insertion_deletion : Tests the scores on the model.
    sksae.intervention.spliced_loss : What the SAE's reconstructions cost as a whole.

    Notes
    -----
    Let f be the logit as a function of the codes z, with d its derivative. Of z a code, or
    without ``per_position`` all codes of a concept in a text, is turned off; ``b`` is the
    baseline. What a score means, and the model runs that a text takes:

    - "gradient_x_activation", ``z * d(z)`` [1]_: first-order guess at what turning the
      concept off would cost. One run; wrong where f is far from a straight line.
    - "integrated_gradients", ``(z - b) *`` the mean of d on the way from b to z [2]_. The
      scores sum to ``f(z) - f(b)``, but the codes on the way are none that the SAE gives.
      ``n_steps`` runs.
    - "ablation", ``f(z) - f(z with the concept at b)``: what happens when this concept alone
      is missing. Concepts that can stand in for each other all get little. As many runs as
      there are active concepts.
    - "shapley_sampling", the mean of what a concept adds, over random orders in which they
      are turned on [3]_. The scores sum to ``f(z) - f(b)`` and share what concepts do
      together. ``n_samples`` times as many runs as ablation; the standard error falls with
      the square root of ``n_samples``.

    All are in logits of the model as given, and change with anything that is added to all
    logits alike: a class can lose probability while its logit rises.

    Replaced are the hidden states of which the extractor makes rows, no others; what other
    tokens (such as [CLS] under "token") carry past the layer has no score. A row of several
    tokens goes back to each of them; rows made by "sum" are divided by their number. Long
    texts are truncated. Without ``keep_error`` the scores explain another model, the one that
    runs on reconstructions: compare ``logits_replaced`` with ``logits``.

    interpreto's ``concept_output_gradient`` is "concepts_x_gradients" with
    ``keep_error=False, normalize=True, per_position=True``.

    References
    ----------
    .. [1] Shrikumar et al. (2016), "Not Just a Black Box: Learning Important Features
       Through Propagating Activation Differences", arXiv:1605.01713, section 3.
    .. [2] Sundararajan et al. (2017), "Axiomatic Attribution for Deep Networks",
       arXiv:1703.01365, section 3.
    .. [3] Castro et al. (2009), "Polynomial calculation of the Shapley value based on
       sampling", Computers & Operations Research 36, section 3.

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
    >>> found = concept_output_attribution(pipe, texts, target="blue", per_position=True)
    >>> found.scores.shape, list(found.rows.units)
    ((5, 8), ['blue', 'sea', 'sea', 'blue', 'blue'])
    >>> bool(abs(found.logits - found.logits_replaced).max() < 1e-5)
    True
    """
    parts = Parts.of(pipe_or_sae, _OWNER)
    _check_choices(attribution_method, baseline, n_steps, n_samples)
    captum_attr()
    baseline = _checked_baseline(baseline, parts.sae)
    settings = {
        "granularity": granularity,
        "aggregation": aggregation,
        "skip_first": skip_first,
        "max_length": max_length,
    }
    refuse_samples(parts, granularity)
    site = Site(
        parts,
        inputs,
        head_of(parts, model),
        GRANULARITIES,
        model=model,
        layer=layer,
        tokenizer=tokenizer,
        batch_size=batch_size,
        **settings,
    )
    names = parts.sae.get_feature_names_out()
    also = given_names(pipe_or_sae, len(names))
    chosen = _chosen(concepts, names, also)
    settings |= {
        "position": position,
        "keep_error": bool(keep_error),
        "per_position": bool(per_position),
        "baseline": baseline,
        "normalize": bool(normalize),
    }
    with torch.inference_mode(False), evaluating(site.model):
        readout = Readout(site, target, position)
        maker = CaseMaker(readout, chosen, baseline, bool(keep_error), bool(per_position))
        sink = _Sink(maker, settings)
        seeds = _seeds(random_state, site.n_texts)
        for cases in runs(maker, verbose, attribution_method):
            logit = LogitOfCodes(readout, cases, maker.directions)
            scores = _estimates(attribution_method, logit, n_steps, n_samples, seeds)
            sink.add(logit, scores)
    columns = np.arange(len(names)) if chosen is None else chosen
    shown = names if also is None else also
    return sink.result(attribution_method, columns, np.asarray(shown, dtype=object)[columns])


def runs(maker: CaseMaker, verbose: int, what: str) -> Iterator[list[Case]]:
    """Run the texts as they are, in batches, and give what is known of them."""
    from tqdm import tqdm

    site, readout = maker.site, maker.readout
    with tqdm(total=len(site.sequences), desc=what, unit="text", disable=not verbose) as bar:
        for batch in batches(site.sequences, site.batch_size, site.device):
            for some in pieces(batch, readout.rows_at_once(len(batch[0].at))):
                yield maker.cases(some)
                bar.update(len(some))


def _estimates(method, logit, n_steps, n_samples, seeds) -> list[np.ndarray]:
    """Give the scores of each text; random orders do not depend on the other texts."""
    readout = logit.readout
    at_once = readout.rows_at_once(max(len(case.ids) for case in logit.cases))
    if METHODS[method].together:
        settings = Settings(n_steps, n_samples, at_once, np.random.RandomState(0))
        return estimate(method, logit, settings)
    scores = []
    for case in logit.cases:
        rng = np.random.RandomState(seeds[case.text])
        alone = LogitOfCodes(readout, [case], logit.directions)
        scores += estimate(method, alone, Settings(n_steps, n_samples, at_once, rng))
    return scores


def _seeds(random_state: Any, n_texts: int) -> np.ndarray:
    fresh = np.random.RandomState() if random_state is None else check_random_state(random_state)
    return fresh.randint(2**31 - 1, size=n_texts)


class _Sink:
    """Collects what is found of each text, in any order."""

    def __init__(self, maker: CaseMaker, settings: dict[str, Any]):
        self.maker, self.settings = maker, settings
        self.per_position = settings["per_position"]
        n_texts = maker.site.n_texts
        self.target = np.full(n_texts, -1, dtype=np.int64)
        self.logits = np.full((4, n_texts), np.nan)
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, logit: LogitOfCodes, scores: list[np.ndarray]) -> None:
        """Take in some texts, with the scores of their switches."""
        full, none = (logit(logit.constant(x)).double().cpu().numpy() for x in (1, 0))
        for i, (case, found) in enumerate(zip(logit.cases, scores, strict=True)):
            delta = found.sum() - (full[i] - none[i])
            self.logits[:, case.text] = case.logit, full[i], none[i], delta
            self.target[case.text] = case.target
            total = np.abs(found).sum()
            if self.settings["normalize"] and total:
                found = found / total
            self.parts.append(self._entries(case, found))

    def _entries(self, case: Case, scores: np.ndarray) -> tuple[np.ndarray, ...]:
        """Give row, column, activation and score of what is active in a text."""
        columns, codes = case.columns.cpu().numpy(), case.codes.cpu().numpy()
        if self.per_position:
            return case.first_row + case.entry_rows, columns, codes, scores
        switch = case.switch.cpu().numpy()
        column = np.zeros(len(scores), dtype=np.int64)
        column[switch] = columns
        largest = np.full(len(scores), -np.inf)
        np.maximum.at(largest, switch, codes)
        return np.full(len(scores), case.text), column, largest, scores

    def result(self, method: str, concepts: np.ndarray, names: np.ndarray) -> OutputAttribution:
        """Put everything together."""
        rows = self.maker.rows
        if not self.per_position:
            rows = _text_rows(rows)
        dtype = np.float64 if self.maker.directions.dtype.itemsize == 8 else np.float32
        parts = [np.concatenate(x) for x in zip(*self.parts, strict=True)]
        row, column, activation, score = parts
        order = np.lexsort((column, row))
        indptr = np.cumsum([0, *np.bincount(row, minlength=len(rows))]).astype(np.int32)
        indices = column[order].astype(np.int32)
        scores, activations = (
            with_rows(
                sparse.csr_array(
                    (data[order].astype(dtype), indices, indptr), (len(rows), len(concepts))
                ),
                rows,
            )
            for data in (score, activation)
        )
        return OutputAttribution(
            scores,
            activations,
            concepts.astype(np.int64),
            names,
            self.target,
            self.maker.readout.names(self.target),
            self.logits[0],
            self.logits[1],
            self.logits[2],
            self.logits[3],
            method,
            self.settings,
        )


def _text_rows(rows: Rows) -> Rows:
    texts = rows.texts or ()
    zeros = np.zeros(len(texts), dtype=np.int64)
    return Rows(np.arange(len(texts)), zeros, [len(t) for t in texts], rows.texts)


def _chosen(concepts: Any, names: np.ndarray, also: np.ndarray | None) -> np.ndarray | None:
    """Turn concepts, by number or by name, into numbers."""
    if concepts is None:
        return None
    found = find_concepts(concepts, names, also, _OWNER, "concepts")
    values, counts = np.unique(found, return_counts=True)
    if counts.max() > 1:
        raise ValueError(f"concepts of {_OWNER} names {values[counts.argmax()]} more than once.")
    return found


def _check_choices(method: Any, baseline: Any, n_steps: Any, n_samples: Any) -> None:
    if method not in METHODS:
        raise ValueError(
            f"attribution_method must be one of {', '.join(map(repr, METHODS))}. Got {method!r}."
        )
    if METHODS[method].together and baseline is not None:
        raise ValueError(
            f"attribution_method={method!r} looks at the codes as they are and has no baseline. "
            "Leave baseline out, or use 'integrated_gradients'."
        )
    for name, value in (("n_steps", n_steps), ("n_samples", n_samples)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be an int of at least 1. Got {value!r}.")


def _checked_baseline(baseline: Any, sae: BaseSAE) -> np.ndarray | None:
    if baseline is None:
        return None
    baseline = np.asarray(baseline, dtype=np.float64)
    nb_concepts = sae.components_.shape[0]
    if baseline.shape != (nb_concepts,) or not np.isfinite(baseline).all():
        raise ValueError(
            f"baseline must hold one finite code for each of {nb_concepts} concepts. Got shape "
            f"{baseline.shape}."
        )
    return baseline
