"""From a pipeline and texts to cases: what of each text runs, its units and its rows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from ..activations import ConceptPooler, Rows, TransformerActivationExtractor
from ..activations._texts import check_texts, tokenize
from ..activations._units import Plan, cut, make_plan
from ..interpretation._base import ConceptInterpreter
from ..interpretation._parts import Parts
from ..intervention._site import _source, _warn_if_truncated


class Case(NamedTuple):
    """One text as it runs.

    ``unit`` holds for each token the number of its unit and ``row`` that of the row of hidden
    states it goes to, both counted from 0 in this text, -1 for none; ``sizes`` holds the
    number of tokens pooled into each row.
    """

    text: int
    ids: np.ndarray
    types: np.ndarray | None
    unit: np.ndarray
    n_units: int
    row: np.ndarray
    sizes: np.ndarray

    @property
    def at(self) -> np.ndarray:
        """Positions of the tokens that go into rows."""
        return np.flatnonzero(self.row >= 0)


class Cases(NamedTuple):
    """All texts: those with tokens as cases, the units of all of them as rows."""

    cases: list[Case]
    rows: Rows
    bounds: np.ndarray

    @property
    def n_texts(self) -> int:
        """Number of texts, those without tokens included."""
        return len(self.bounds) - 1


def read(
    parts: Parts, inputs: Any, granularity: str, reduction: str | int, given: Mapping[str, Any]
) -> tuple[TransformerActivationExtractor, Cases]:
    """Tokenise texts and say which tokens make which unit and which row.

    Parameters
    ----------
    parts : Parts
    inputs : sequence of str, or of lists of str
    granularity : {"token", "word", "sentence"}
        What a unit is.
    reduction : {"sum", "max"} or int
        With an int, only that row of each text counts.
    given : mapping
        ``model``, ``layer``, ``tokenizer`` and ``max_length``; None where the pipeline decides.

    Returns
    -------
    reader : TransformerActivationExtractor
        The fitted extractor that reads the rows.
    cases : Cases
    """
    texts = check_texts(parts.prepared(inputs), parts.owner)
    _check_between(parts)
    reader = _reader(parts, texts.texts, given)
    tokens = reader._tokenize(texts)
    tokenizer = reader._loaded()[1]
    if granularity == "word" and reader.granularity != "word":
        tokens = tokenize(tokenizer, texts, want_words=True)
    side = getattr(tokenizer, "truncation_side", "right")
    sequences = cut(tokens, reader.max_length_, "truncate", side)
    if given["max_length"] is None:
        _warn_if_truncated(tokens, reader.max_length_, parts.owner)
    units = make_plan(tokens, texts, sequences, granularity, "mean", 0)
    rows = make_plan(
        tokens, texts, sequences, reader.granularity, reader.aggregation, reader.skip_first
    )
    bounds = _bounds(units, len(texts.texts))
    row_bounds = _bounds(rows, len(texts.texts))
    kept = _kept_rows(row_bounds, reduction, parts.owner)
    cases = []
    for sequence in sequences:
        at, text = sequence.at, int(np.searchsorted(tokens.bounds, sequence.at[0], "right")) - 1
        row, sizes = _local_rows(rows, at, kept[text])
        unit = np.where(units.row[at] < 0, -1, units.row[at] - bounds[text])
        types = None if tokens.types is None else tokens.types[at]
        n_units = int(bounds[text + 1] - bounds[text])
        cases.append(Case(text, tokens.ids[at], types, unit, n_units, row, sizes))
    return reader, Cases(cases, Rows(units.text, units.start, units.end, texts.texts), bounds)


def _reader(parts: Parts, texts: list[str], given: Mapping[str, Any]) -> Any:
    """Give the pipeline's extractor, or one on what is given instead."""
    changes = {name: value for name, value in given.items() if value is not None}
    if parts.extractor is not None and not changes:
        return parts.extractor
    source: Any = _source(parts, given)  # type: ignore[arg-type]
    changes.pop("model", None)
    reader = source.set_params(**changes).fit(texts)
    n_features = getattr((*parts.between, parts.sae)[0], "n_features_in_", None)
    if n_features not in (None, reader.n_features_out_):
        raise ValueError(
            f"layer={reader.layer!r} has {reader.n_features_out_} features, and the SAE was fitted "
            f"on {n_features}. Pass the model and layer of its training rows."
        )
    return reader


def _check_between(parts: Parts) -> None:
    pooler = next((step for step in parts.between if isinstance(step, ConceptPooler)), None)
    if pooler is not None:
        raise ValueError(
            f"{parts.owner} needs steps that keep rows apart, and {type(pooler).__name__} before "
            "the SAE pools them. Let the extractor do so: granularity='sample'."
        )


def _bounds(plan: Plan, n_texts: int) -> np.ndarray:
    """Give the first row of each text, and the number of all rows."""
    return np.concatenate([[0], np.cumsum(np.bincount(plan.text, minlength=n_texts))])


def _kept_rows(bounds: np.ndarray, reduction: str | int, owner: str) -> list[range]:
    """Give the rows of each text whose concepts count."""
    ranges = [range(a, b) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    if isinstance(reduction, str):
        return ranges
    for i, rows in enumerate(ranges):
        if not -len(rows) <= reduction < len(rows):
            raise ValueError(
                f"reduction={reduction} of {owner} asks for a row that inputs[{i}] does not have: "
                f"its {len(rows)} rows are numbered from 0, or negatively from the end. Leave "
                "this text out, or use 'sum' or 'max'."
            )
    return [rows[reduction : reduction + 1 or None] for rows in ranges]


def _local_rows(plan: Plan, at: np.ndarray, kept: range) -> tuple[np.ndarray, np.ndarray]:
    row = plan.row[at]
    inside = (row >= kept.start) & (row < kept.stop)
    return np.where(inside, row - kept.start, -1), plan.sizes[kept.start : kept.stop]


# -- concepts -------------------------------------------------------------------------


def find_concepts(
    concept: Any, names: np.ndarray, also: np.ndarray | None, owner: str, parameter: str = "concept"
) -> np.ndarray:
    """Give the numbers of concepts asked for by number or name.

    Parameters
    ----------
    concept : int, str or list of these
    names : ndarray of str
        The SAE's feature names.
    also : ndarray of str, or None
        The names that a later step gives.
    owner : str
        For the messages.
    parameter : str, default="concept"
        Name of the parameter, for the messages.

    Returns
    -------
    ndarray of int64, shape (n_concepts,)
    """
    is_list = isinstance(concept, Sequence | np.ndarray) and not isinstance(concept, str)
    asked = list(concept) if is_list else [concept]
    if not asked:
        raise ValueError(f"{parameter}=[] of {owner} names no concept. Give at least one.")
    numbers = {name: i for known in (names, also) if known is not None for i, name in _each(known)}
    return np.array(
        [_number(one, numbers, len(names), owner, parameter) for one in asked], dtype=np.int64
    )


def _each(names: np.ndarray) -> list[tuple[int, str]]:
    return [(i, str(name)) for i, name in enumerate(names)]


def _number(one: Any, numbers: dict[str, int], nb_concepts: int, owner: str, parameter: str) -> int:
    if isinstance(one, str):
        if one in numbers:
            return numbers[one]
        close = difflib.get_close_matches(one, numbers, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"names are like {next(iter(numbers))!r}"
        raise ValueError(f"{parameter}={one!r} of {owner} is no feature name of the SAE; {hint}")
    if not isinstance(one, Integral) or isinstance(one, bool | np.bool_):
        raise TypeError(
            f"The '{parameter}' of {owner} must be the number or the feature name of a concept, "
            f"or a list of these. Got {one!r} instead."
        )
    if not 0 <= int(one) < nb_concepts:
        raise ValueError(
            f"{parameter}={one} of {owner} is out of range: the SAE has {nb_concepts} concepts, "
            "numbered from 0."
        )
    return int(one)


def given_names(pipe_or_sae: Any, nb_concepts: int) -> np.ndarray | None:
    """Give the names that the last interpreter of a pipeline has for the concepts."""
    for _, step in reversed(getattr(pipe_or_sae, "steps", [])):
        is_interpreter = isinstance(step, ConceptInterpreter)
        if is_interpreter and getattr(step, "n_features_in_", None) == nb_concepts:
            return step.get_feature_names_out()
    return None
