"""From tokens to units: which positions are run, which rows they fill, how rows are pooled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._texts import Texts, Tokens, locate, sentence_begins

GRANULARITIES = ("token", "all_tokens", "word", "sentence", "sample", "cls")
# Those whose rows are made of several tokens.
POOLED = ("word", "sentence", "sample")
AGGREGATIONS = ("mean", "max", "min", "sum", "signed_max", "first", "last")


class Sequence(NamedTuple):
    """One input of the model: where its tokens are, and which of them give rows here."""

    at: np.ndarray
    owned: np.ndarray | None = None


class Plan(NamedTuple):
    """What to run and where the results go.

    ``row`` holds for each token the row it goes to, -1 for none; ``sizes`` the number of
    tokens that are pooled into each row; ``text``, ``start`` and ``end`` describe the rows.
    """

    sequences: list[Sequence]
    row: np.ndarray
    sizes: np.ndarray
    text: np.ndarray
    start: np.ndarray
    end: np.ndarray
    first: np.ndarray


def cut(tokens: Tokens, max_length: int, long_text: str, side: str = "right") -> list[Sequence]:
    """Cut the tokens of each text into sequences that the model can take.

    Parameters
    ----------
    tokens : Tokens
    max_length : int
        Most tokens in one sequence, special tokens included.
    long_text : {"truncate", "windows"}
        A longer text loses its end, or is run in windows that overlap by half; each token
        then gives a row in the window in whose middle it is nearest.
    side : {"right", "left"}, default="right"
        The end that truncation removes.

    Returns
    -------
    list of Sequence
        In the order of the texts; a text without tokens has none.
    """
    sequences: list[Sequence] = []
    for a, b in zip(tokens.bounds[:-1].tolist(), tokens.bounds[1:].tolist(), strict=True):
        if b - a > max_length:
            sequences += _cut_long(tokens, a, b, max_length, long_text, side)
        elif b > a:
            sequences.append(Sequence(np.arange(a, b)))
    return sequences


def _cut_long(tokens, a, b, max_length, long_text, side) -> list[Sequence]:
    added = tokens.special[a:b] & (tokens.start[a:b] == tokens.end[a:b])
    n_before = int(np.argmin(added)) if not added.all() else 0
    n_after = int(np.argmin(added[::-1])) if not added.all() else 0
    room = max_length - n_before - n_after
    if room < 1:
        raise ValueError(
            f"max_length={max_length} leaves no room for text beside {n_before + n_after} "
            "special tokens. Raise max_length."
        )
    index = np.arange(a, b)
    before, body, after = np.split(index, [n_before, b - a - n_after])
    if long_text == "windows":
        return _windows(before, body, after, room)
    kept = body[-room:] if side == "left" else body[:room]
    return [Sequence(np.concatenate([before, kept, after]))]


def _windows(before, body, after, room) -> list[Sequence]:
    begins = np.append(np.arange(0, len(body) - room, max(1, room // 2)), len(body) - room)
    limits = (begins[:-1] + begins[1:] + room - 1) // 2 + 1
    limits = np.concatenate([[0], limits, [len(body)]])
    windows = []
    for w, begin in enumerate(begins.tolist()):
        own = np.arange(begin, begin + room)
        own = (own >= limits[w]) & (own < limits[w + 1])
        edges = [np.full(len(before), w == 0), own, np.full(len(after), w == len(begins) - 1)]
        index = np.concatenate([before, body[begin : begin + room], after])
        windows.append(Sequence(index, np.concatenate(edges)))
    return windows


def make_plan(
    tokens: Tokens,
    texts: Texts,
    sequences: list[Sequence],
    granularity: str,
    aggregation: str,
    skip_first: int,
) -> Plan:
    """Say which tokens are pooled into which row.

    Parameters
    ----------
    tokens : Tokens
    texts : Texts
    sequences : list of Sequence
        The output of `cut`.
    granularity : str
        One of `GRANULARITIES`.
    aggregation : str
        One of `AGGREGATIONS`.
    skip_first : int
        Leading tokens of each text that are left out.

    Returns
    -------
    Plan
    """
    text = tokens.text
    group, keep = _groups(tokens, texts, granularity)
    keep &= _reached(tokens, text, sequences, skip_first)
    kept = np.flatnonzero(keep)
    new = np.ones(len(kept), dtype=bool)
    new[1:] = (np.diff(text[kept]) != 0) | (np.diff(group[kept]) != 0)
    heads, unit = np.flatnonzero(new), np.cumsum(new) - 1
    first = kept[heads]
    start, end = _spans(tokens, texts, granularity, kept, heads)
    if granularity in {"word", "sentence"}:
        full = [
            bool(texts.texts[t][s:e].strip())
            for t, s, e in zip(text[first].tolist(), start.tolist(), end.tolist(), strict=True)
        ]
        solid = np.array(full, dtype=bool)
        unit = np.where(solid, np.cumsum(solid) - 1, -1)[unit] if len(unit) else unit
        first, start, end = first[solid], start[solid], end[solid]
    if aggregation in {"first", "last"}:
        unit = one_per_unit(unit, aggregation)
    row = np.full(len(text), -1, dtype=np.int64)
    row[kept] = unit
    sizes = np.bincount(unit[unit >= 0], minlength=len(first))
    return Plan(sequences, row, sizes, text[first], start, end, first)


def _groups(tokens: Tokens, texts: Texts, granularity: str) -> tuple[np.ndarray, np.ndarray]:
    """Give a group number for each token, and which tokens count."""
    n = len(tokens.ids)
    if granularity == "token":
        return np.arange(n), ~tokens.special
    if granularity == "all_tokens":
        return np.arange(n), np.ones(n, dtype=bool)
    if granularity == "cls":
        keep = np.zeros(n, dtype=bool)
        keep[tokens.bounds[:-1][np.diff(tokens.bounds) > 0]] = True
        return np.arange(n), keep
    if granularity == "word":
        return tokens.word, ~tokens.special & (tokens.word >= 0)
    group = np.zeros(n, dtype=np.int64)
    if granularity == "sentence":
        for i, string in enumerate(texts.texts):
            a, b = tokens.bounds[i], tokens.bounds[i + 1]
            group[a:b] = locate(tokens.start[a:b], tokens.end[a:b], sentence_begins(string))
    return group, ~tokens.special


def _reached(tokens, text, sequences, skip_first) -> np.ndarray:
    """Tell which tokens are run and not among the leading ones of their text."""
    reached = np.zeros(len(text), dtype=bool)
    for sequence in sequences:
        owned = sequence.owned
        reached[sequence.at if owned is None else sequence.at[owned]] = True
    if skip_first and len(text):
        before = np.concatenate([[0], np.cumsum(reached)])
        rank = before[:-1] - before[tokens.bounds[text]]
        reached &= rank >= skip_first
    return reached


def _spans(tokens, texts, granularity, kept, heads) -> tuple[np.ndarray, np.ndarray]:
    if not len(kept):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    if granularity == "word" and texts.word_spans is not None:
        text, first = tokens.text, kept[heads]
        spans = [texts.word_spans[text[i]][tokens.word[i]] for i in first]
        return np.array(spans)[:, 0], np.array(spans)[:, 1]
    start = np.minimum.reduceat(tokens.start[kept], heads)
    return start, np.maximum.reduceat(tokens.end[kept], heads)


def one_per_unit(unit: np.ndarray, which: str) -> np.ndarray:
    """Leave only the first or the last token of each unit in it."""
    at_edge = np.ones(len(unit), dtype=bool)
    if which == "first":
        at_edge[1:] = unit[1:] != unit[:-1]
    else:
        at_edge[:-1] = unit[1:] != unit[:-1]
    return np.where(at_edge, unit, -1)


def special_strings(tokens: Tokens, plan: Plan, tokenizer: Any) -> np.ndarray | None:
    """Give the strings of the rows that are added special tokens, None for other rows."""
    return strings_of(special_ids(tokens, plan), tokenizer)


def special_ids(tokens: Tokens, plan: Plan) -> np.ndarray:
    """Give the ids of the rows that are added special tokens, -1 for other rows."""
    is_special = tokens.special[plan.first] & (plan.start == plan.end)
    return np.where(is_special, tokens.ids[plan.first], -1)


def strings_of(ids: np.ndarray, tokenizer: Any) -> np.ndarray | None:
    """Give the strings of special tokens, None for the id -1, or None if there are no others."""
    is_special = ids >= 0
    if not is_special.any():
        return None
    strings = np.full(len(ids), None, dtype=object)
    strings[is_special] = tokenizer.convert_ids_to_tokens(ids[is_special].tolist())
    return strings


class Pool:
    """Pools token rows into the rows of units, as batches come in any order.

    Parameters
    ----------
    sizes : ndarray of int, shape (n_rows,)
        Number of token rows that go into each row.
    n_features : int
    aggregation : str
        One of `AGGREGATIONS`.
    values : ndarray of shape (n_rows, n_features), optional
        Where the pooled rows go. What is in it stays where no token comes, and where
        ``sizes`` is 1.
    dtype : numpy dtype, default=float32
        Of the pooled rows, without ``values``.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        n_features: int,
        aggregation: str,
        values: np.ndarray | None = None,
        dtype: Any = np.float32,
    ):
        self.sizes = sizes
        self.aggregation = aggregation
        shape = (len(sizes), n_features)
        self.values = np.empty(shape, dtype=dtype) if values is None else values
        self._single = bool((sizes == 1).all())
        self._seen = np.zeros(len(sizes), dtype=bool)

    def add(self, row: np.ndarray, values: np.ndarray) -> None:
        """Take in token rows and the rows they go to."""
        if self._single:
            self.values[row] = values
            return
        order = np.argsort(row, kind="stable")
        row, values = row[order], values[order]
        heads = np.flatnonzero(np.diff(row, prepend=-1))
        pooled, target = _reduce(values, heads, self.aggregation), row[heads]
        old = self._seen[target]
        if old.any():
            both = np.stack([self.values[target[old]], pooled[old]], axis=1)
            both = both.reshape(-1, values.shape[1])
            pooled[old] = _reduce(both, np.arange(0, len(both), 2), self.aggregation)
        self.values[target] = pooled
        self._seen[target] = True

    def result(self) -> np.ndarray:
        """Give the pooled rows."""
        if self.aggregation == "mean" and not self._single:
            # Other rows are not filled yet: what memory holds there may not even be divided.
            sizes = self.sizes[:, None].astype(self.values.dtype)
            np.divide(self.values, sizes, out=self.values, where=sizes > 1)
        return self.values


def _reduce(values: np.ndarray, heads: np.ndarray, aggregation: str) -> np.ndarray:
    if aggregation == "max":
        return np.maximum.reduceat(values, heads)
    if aggregation == "min":
        return np.minimum.reduceat(values, heads)
    if aggregation == "signed_max":
        high, low = np.maximum.reduceat(values, heads), np.minimum.reduceat(values, heads)
        return np.where(high >= -low, high, low)
    return np.add.reduceat(values, heads)
