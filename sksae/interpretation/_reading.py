"""Texts as units in reading order, and the stretches of them around a unit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..activations._rows import Rows


class Excerpt(NamedTuple):
    """A stretch of a text, and its units.

    ``spans`` holds the characters of each unit in ``context``; those of a special token,
    which stands for no characters, are empty.
    """

    text: int
    start: int
    end: int
    context: str
    units: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


class Reading:
    """The units of all texts, each with a position that counts on in reading order.

    Rows of the same characters but for white space around, such as the tokens of one emoji,
    are one unit.

    Parameters
    ----------
    rows : Rows
        With its texts. Rows keep their order within a text if their spans begin in
        ascending order; others are sorted.

    Attributes
    ----------
    position : ndarray of int64, shape (n_rows,)
        Position of the unit of each row.
    text : ndarray of int64, shape (n_units,)
        Index of the text of each unit, ascending.
    """

    def __init__(self, rows: Rows):
        order = _reading_order(rows)
        rows = rows[order]
        new = _differs(rows)
        self.position = np.empty(len(rows), dtype=np.int64)
        self.position[order] = np.cumsum(new) - 1
        self._rows = rows if new.all() else rows[new]
        self._texts = rows.texts
        self.text = self._rows.text

    @classmethod
    def of_units(cls, units, groups) -> Reading:
        """Read the units of each group as a text, joined by spaces."""
        order = np.argsort(groups, kind="stable")
        lengths = np.array([len(u) for u in units], dtype=np.int64)[order]
        after = np.cumsum(lengths + 1)
        numbers, first, text = np.unique(groups[order], return_index=True, return_inverse=True)
        start = after - 1 - lengths
        start -= start[first][text]
        joined = [" ".join(part) for part in np.split(np.asarray(units)[order], first[1:])]
        back = np.argsort(order)
        rows = Rows(text[back], start[back], (start + lengths)[back], joined)
        reading = cls(rows)
        reading._numbers = numbers
        return reading

    # The numbers that the texts have outside; None where they are numbered from 0.
    _numbers: np.ndarray | None = None

    def around(self, position, reach: int) -> tuple[Any, Any]:
        """Give where the stretch around a unit, or each of several, begins and ends."""
        text = self.text[position]
        first = np.maximum(position - reach, np.searchsorted(self.text, text, "left"))
        last = np.minimum(position + reach + 1, np.searchsorted(self.text, text, "right"))
        return first, last

    def excerpt(self, first: int, last: int) -> Excerpt:
        """Give the stretch of a text from one position to before another."""
        rows = self._rows[first:last]
        number = int(rows.text[0])
        whole = self._texts[number]
        spans = [
            _trimmed(whole, s, e)
            for s, e in zip(rows.start.tolist(), rows.end.tolist(), strict=True)
        ]
        specials = [None] * len(spans) if rows.specials is None else rows.specials
        spelt = [span for span, special in zip(spans, specials, strict=True) if special is None]
        start = cursor = min((s for s, _ in spelt), default=0)
        end = max((e for _, e in spelt), default=0)
        units, relative = [], []
        for (s, e), special in zip(spans, specials, strict=True):
            if special is not None:
                s = e = cursor
            cursor = max(cursor, e)
            units.append(whole[s:e].strip() if special is None else special)
            relative.append((s - start, e - start))
        if self._numbers is not None:
            number = int(self._numbers[number])
        return Excerpt(number, start, end, whole[start:end], tuple(units), tuple(relative))


def _reading_order(rows: Rows) -> np.ndarray:
    """Sort rows by text, and by span where those of a text are not in ascending order.

    Special tokens have no span of their own, so that sorting would move them.
    """
    order = np.argsort(rows.text, kind="stable")
    spelt = order[rows.end[order] > rows.start[order]]
    same_text = np.diff(rows.text[spelt]) == 0
    if np.any(same_text & (np.diff(rows.start[spelt]) < 0)):
        return np.lexsort((rows.end, rows.start, rows.text))
    return order


def _differs(rows: Rows) -> np.ndarray:
    """Tell which rows stand for other characters than the row before."""
    new = np.ones(len(rows), dtype=bool)
    start, end = without_space(rows)
    blank = start >= end
    start, end = np.where(blank, rows.start, start), np.where(blank, rows.end, end)
    moved = [np.diff(of) != 0 for of in (rows.text, start, end)]
    new[1:] = np.any(moved, axis=0) | (rows.end[1:] == rows.start[1:])
    return new


def without_space(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Give the spans of rows, white space at their ends left out.

    Of white space alone, and of special tokens, the start is not before the end.
    """
    start, end = rows.start.copy(), rows.end.copy()
    if rows.texts is not None:
        for i, (text, s, e) in enumerate(zip(rows.text, rows.start, rows.end, strict=True)):
            span = rows.texts[text][s:e]
            start[i] = e - len(span.lstrip())
            end[i] = s + len(span.rstrip())
    return start, end


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave white space at the ends out of a span, unless there is nothing else."""
    unit = text[start:end]
    if not unit.strip():
        return start, end
    return start + len(unit) - len(unit.lstrip()), end - len(unit) + len(unit.rstrip())
