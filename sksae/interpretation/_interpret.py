"""interpret: an interpretation from texts, activations or codes, in one call."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone

from ..activations._rows import resolve_units, rows_of, with_rows
from ..metrics._checks import check_matrix
from ._logit_lens import LogitLens
from ._ngrams import unique_ngrams
from ._parts import Parts
from ._topk_inputs import TopKInputs
from ._unit_codes import unit_codes, vocabulary_codes

# Arguments that interpreto's methods take and that belong to the extractor here.
_OF_THE_EXTRACTOR = {
    "activation_granularity": "granularity",
    "aggregation_strategy": "aggregation",
}


def interpret(
    pipe_or_sae,
    interpretation_method=TopKInputs,
    concepts_indices="all",
    inputs=None,
    latent_activations=None,
    concepts_activations=None,
    *,
    use_vocab=False,
    use_unique_words=False,
    unique_words_kwargs=None,
    units=None,
    **kwargs,
) -> dict[int, Any]:
    """Say what the concepts of a fitted SAE stand for.

    The argument names are those of interpreto. Of several sources the one nearest to the
    concepts is used: ``concepts_activations``, else ``latent_activations``, else ``inputs``.

    Parameters
    ----------
    pipe_or_sae : SAE or Pipeline
        A fitted SAE, or a fitted pipeline that holds exactly one; steps after it are ignored.
        Texts need a pipeline with an extractor.
    interpretation_method : class or estimator, default=TopKInputs
        A class of `sksae.interpretation`, which is called with ``kwargs``, or an instance,
        which is cloned and given ``kwargs`` as parameters. A `LogitLens` without components
        reads those of the SAE, if no step stands between extractor and SAE.
    concepts_indices : "all", int or array-like of int, default="all"
        Concepts to interpret. With an instance, "all" leaves it what it has.
    inputs : sequence of str, default=None
        Texts. They are run where there is no other source. Beside activations or codes that
        do not carry their rows they say what each row stands for: one row per unit of the
        extractor (token, word, sentence, text), in order.
    latent_activations : array-like or tensor of shape (n_rows, n_features), default=None
        Output of the extractor, which the SAE encodes.
    concepts_activations : array-like, tensor or sparse matrix of shape \
            (n_rows, nb_concepts), default=None
        Codes.
    use_vocab : bool, default=False
        Whether to run each token of the tokenizer's vocabulary alone and take these as the
        units; ``inputs`` are ignored then.
    use_unique_words : bool or int, default=False
        Whether to run each distinct word of ``inputs`` alone and take these as the units; an
        int n takes the distinct sequences of n words.
    unique_words_kwargs : dict, default=None
        Further arguments of `unique_ngrams`: ``count_min_threshold``, ``words_to_ignore``.
    units : array-like of str, shape (n_rows,), default=None
        The string of each row, in place of what the rows or ``inputs`` say.
    **kwargs : dict
        Parameters of the method, such as ``k=10``.

    Returns
    -------
    interpretations : dict of int to object, or to None
        ``interpretations_`` of the fitted method: for `TopKInputs` a dict of units and
        activations for each concept, None for a dead one.

    Raises
    ------
    ValueError
        If there is no source or, for texts, no extractor; if units and rows differ in number;
        if codes do not have one column per concept; if sources do not go together.
    TypeError
        If ``interpretation_method`` is no interpreter, or does not know one of ``kwargs``.

    See Also
    --------
    TopKInputs : The default method, as the last step of a pipeline.
    unit_codes : Runs any strings alone.
    vocabulary_codes : Runs the tokens of the vocabulary alone.

    Examples
    --------
    >>> from sksae import TopKSAE
    >>> from sksae.datasets import make_activations
    >>> X, _ = make_activations(n_samples=64, n_features=8, random_state=0)
    >>> sae = TopKSAE(3, top_k=1, nb_epochs=1, device="cpu", random_state=0).fit(X)
    >>> codes = [[0.5, 0.0, 0.0], [2.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    >>> words = ["sea", "ship", "sea"]
    >>> interpret(sae, TopKInputs, concepts_activations=codes, units=words, k=2)
    {0: {'ship': 2.0, 'sea': 1.0}, 1: None, 2: {'ship': 1.0}}
    """
    method = _method(interpretation_method, concepts_indices, kwargs)
    parts = Parts.of(pipe_or_sae, "interpret")
    if isinstance(method, LogitLens) and "components" not in kwargs:
        _give_dictionary(method, interpretation_method, parts)
    alone = _run_alone(use_vocab, use_unique_words)
    if alone:
        given = {
            "latent_activations": latent_activations,
            "concepts_activations": concepts_activations,
            "units": units,
        }
        _refuse_beside(alone, given)
        parts.with_extractor()
    elif unique_words_kwargs is not None:
        raise ValueError("interpret takes unique_words_kwargs only with use_unique_words.")
    if use_vocab:
        codes = vocabulary_codes(pipe_or_sae)
    elif use_unique_words:
        codes = _codes_of_ngrams(pipe_or_sae, inputs, int(use_unique_words), unique_words_kwargs)
    else:
        codes, rows = _codes(parts, inputs, latent_activations, concepts_activations)
        codes = _carrying(parts, codes, rows, inputs, units)
    return method.fit(codes, units=units).interpretations_


def _method(method, concepts_indices, kwargs):
    moved = next((name for name in kwargs if name in _OF_THE_EXTRACTOR), None)
    if moved is not None:
        raise TypeError(
            f"interpret takes no {moved}: a row is what the extractor makes of the texts. Set "
            f"{_OF_THE_EXTRACTOR[moved]}= of the TransformerActivationExtractor instead."
        )
    if not hasattr(method, "fit") or not hasattr(method, "get_params"):
        raise TypeError(
            "The 'interpretation_method' of interpret must be an interpreter of "
            f"sksae.interpretation, a class or an instance. Got {method!r} instead."
        )
    if isinstance(method, type):
        return method(concepts_indices=concepts_indices, **kwargs)
    if not (isinstance(concepts_indices, str) and concepts_indices == "all"):
        kwargs = {**kwargs, "concepts_indices": concepts_indices}
    return clone(method).set_params(**kwargs)


def _give_dictionary(lens, given, parts):
    """Let a lens without a dictionary, or with the SAE itself, read the rows of the SAE."""
    # The clone of a lens has an SAE that is not fitted.
    is_of_sae = getattr(given, "components", None) is parts.sae
    if is_of_sae or lens.components is None and not parts.between:
        lens.set_params(components=parts.sae.components_)


def _run_alone(use_vocab, use_unique_words) -> str:
    """Name the argument that asks for units run alone, if there is one."""
    if not isinstance(use_unique_words, bool | np.bool_ | Integral) or use_unique_words < 0:
        raise ValueError(
            "The 'use_unique_words' parameter of interpret must be a bool or the number of words "
            f"in a unit. Got {use_unique_words!r} instead."
        )
    if use_vocab and use_unique_words:
        raise ValueError("interpret takes use_vocab or use_unique_words, not both.")
    return "use_vocab" if use_vocab else "use_unique_words" if use_unique_words else ""


def _refuse_beside(alone, given):
    wrong = next((name for name, value in given.items() if value is not None), None)
    if wrong is not None:
        raise ValueError(
            f"{alone} of interpret runs its own units, for which {wrong} says nothing. Leave "
            f"out {wrong} or {alone}."
        )


def _codes_of_ngrams(pipe, inputs, n, params):
    if inputs is None:
        raise ValueError("use_unique_words of interpret needs texts to take words from: inputs.")
    ngrams = unique_ngrams(inputs, n, **(params or {}))
    if not ngrams:
        raise ValueError(
            f"The inputs of interpret hold no unit of {n} word(s) to run. Lower "
            "count_min_threshold, or ignore fewer words."
        )
    return unit_codes(pipe, list(ngrams))


def _codes(parts, inputs, latents, concepts):
    """Give codes and the rows that are known of them."""
    if concepts is not None:
        rows, codes = rows_of(concepts), check_matrix(concepts, "concepts_activations", "interpret")
        if codes.shape[1] != parts.nb_concepts:
            raise ValueError(
                f"concepts_activations of interpret has {codes.shape[1]} columns, but "
                f"{type(parts.sae).__name__} has {parts.nb_concepts} concepts. Activations that "
                "are not encoded yet are latent_activations."
            )
        return codes, rows
    if latents is not None:
        return parts.encode(latents), rows_of(latents)
    if inputs is None:
        raise ValueError(
            "interpret needs something to interpret: inputs (texts), latent_activations, "
            "concepts_activations, or use_vocab=True."
        )
    X = parts.with_extractor().extractor.transform(parts.prepared(inputs))
    return parts.encode(X), rows_of(X)


def _carrying(parts, codes, rows, inputs, units):
    """Give the codes with their rows, which are those of ``inputs`` where no others are known."""
    if rows is None and units is None and inputs is not None:
        rows = parts.rows(inputs)
        if len(rows) != codes.shape[0]:
            raise ValueError(
                f"inputs of interpret make {len(rows)} rows (granularity="
                f"{parts.extractor.granularity!r}), but there are activations of "
                f"{codes.shape[0]}. Pass the texts that the activations come from, or units= "
                "(one string per row)."
            )
    codes = with_rows(codes, rows)
    if rows is None or units is not None:
        resolve_units(codes, units, "interpret")
    return codes
