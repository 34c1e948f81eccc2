"""What one example of a concept is, and the examples of a concept, made when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ._rendering import visible


@dataclass(frozen=True)
class ActivatingExample:
    """A stretch of a text and the activation of a concept on each of its units.

    Parameters
    ----------
    quantile : str
        What it is an example of: "top", or the quantile of the concept's activations that
        it was drawn from, such as "1/5" for the fifth of the lowest ones.
    text : int
        Index of the text.
    start, end : int
        Characters of the stretch in its text.
    context : str
        The stretch itself, ``text[start:end]``.
    units : tuple of str
        Its tokens, words or sentences.
    spans : tuple of (int, int)
        Characters of each unit in ``context``.
    activations : tuple of float
        Activation of the concept on each unit.
    peak : int
        Which of the units the example was chosen for.
    """

    quantile: str
    text: int
    start: int
    end: int
    context: str
    units: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    activations: tuple[float, ...]
    peak: int

    @property
    def unit(self) -> str:
        """The unit that the example was chosen for."""
        return self.units[self.peak]

    @property
    def activation(self) -> float:
        """The activation of that unit."""
        return self.activations[self.peak]


class ConceptExamples(Sequence):
    """The examples of one concept: a sequence of `ActivatingExample`.

    Each is made when it is asked for, so that the examples of thousands of concepts take
    little memory.
    """

    def __init__(self, reading, reach, peaks, quantiles, active, values):
        self._reading = reading
        self._reach = reach
        self._peaks = peaks
        self._quantiles = quantiles
        near = _near(active, reading.around(peaks, reach))
        self._active, self._values = active[near], values[near]

    def __len__(self):
        return len(self._peaks)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        peak = int(self._peaks[index])
        first, last = map(int, self._reading.around(peak, self._reach))
        a, b = np.searchsorted(self._active, [first, last])
        activations = np.zeros(last - first, dtype=self._values.dtype)
        activations[self._active[a:b] - first] = self._values[a:b]
        return ActivatingExample(
            self._quantiles[index],
            *self._reading.excerpt(first, last),
            activations=tuple(activations.tolist()),
            peak=peak - first,
        )

    def top_units(self) -> Iterator[str]:
        """Go through the units that the top examples were chosen for."""
        for peak, quantile in zip(self._peaks.tolist(), self._quantiles, strict=True):
            if quantile == "top":
                found = self._reading.excerpt(peak, peak + 1)
                yield visible(found.context) or found.units[0]

    def __eq__(self, other):
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self):
        return repr(list(self))


def _near(active, stretches):
    """Tell which of the sorted positions lie between the bounds of a stretch."""
    first, last = np.searchsorted(active, stretches)
    change = np.zeros(len(active) + 1, dtype=np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last, -1)
    return np.cumsum(change)[:-1] > 0
