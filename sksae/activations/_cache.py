"""Rows of texts that went through the model before: what they are kept under, and in memory.

Whatever is kept belongs to a group, the hash of all but the text that its rows follow from, and
there to a key, the hash of the text. A group gives what it has (``find``), copies it into an
output (``fill``) and takes in what is new (``put``), all by key, so that order, repetition and
choice of texts play no part.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ._fingerprint import digest
from ._texts import Texts

# What an entry takes beside its arrays, roughly.
_OVERHEAD = 500


class Entry(NamedTuple):
    """The rows of one text.

    ``spans`` has the columns start, end and id of an added special token (-1 for others).
    ``n_tokens`` counts those of the whole text, truncated or not.
    """

    values: np.ndarray
    spans: np.ndarray
    n_tokens: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.values)


class Group(Protocol):
    """What an extractor keeps its rows in. A handle tells ``n_rows`` and ``n_tokens``."""

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Any]:
        """Give a handle for each key that is there."""

    def fill(self, found: Sequence[tuple[Any, int]], values: np.ndarray, spans: np.ndarray) -> bool:
        """Copy rows to where they begin in the output; False where some cannot be read."""

    def put(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Take in new rows, as far as there is room."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep others from computing the same meanwhile."""


def text_keys(texts: Texts) -> list[bytes]:
    """Hash each text, with the words it was given in."""
    strings = (text.encode("utf-8", "surrogatepass") for text in texts.texts)
    if texts.word_spans is None:
        return [digest(string) for string in strings]
    return [
        digest(string, spans.tobytes())
        for string, spans in zip(strings, texts.word_spans, strict=True)
    ]


# In memory


class _Kept:
    """An entry in memory; ``turn`` is that of the call that last used it."""

    __slots__ = ("entry", "turn", "n_bytes")

    def __init__(self, entry: Entry, turn: int):
        self.entry = entry
        self.turn = turn
        self.n_bytes = entry.values.nbytes + entry.spans.nbytes + _OVERHEAD


class Memory:
    """All that is kept in memory in this process, the longest unused first.

    Attributes
    ----------
    n_bytes : int
    """

    def __init__(self) -> None:
        self.n_bytes = 0
        self._kept: OrderedDict[tuple[bytes, bytes], _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = itertools.count()

    def __len__(self) -> int:
        return len(self._kept)

    def group(self, group: bytes, size: int) -> MemoryGroup:
        """Give one group for the length of one call."""
        return MemoryGroup(self, group, size, next(self._turns))

    def get(self, key: tuple[bytes, bytes], turn: int) -> Entry | None:
        """Give an entry and count it as used."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            kept.turn = turn
            self._kept.move_to_end(key)
            return kept.entry

    def add(self, key: tuple[bytes, bytes], entry: Entry, turn: int, size: int) -> None:
        """Take in an entry, in place of those unused for longest.

        What this call has used stays: pushing it out for the rest of the same texts would leave
        nothing for the next call, where the texts do not fit.
        """
        new = _Kept(entry, turn)
        with self._lock:
            if key in self._kept or not self._make_room(size - new.n_bytes, turn):
                return
            self._kept[key] = _Kept(
                Entry(entry.values.copy(), entry.spans.copy(), entry.n_tokens), turn
            )
            self.n_bytes += new.n_bytes

    def _make_room(self, size: int, turn: int) -> bool:
        while self.n_bytes > size and self._kept:
            key, oldest = next(iter(self._kept.items()))
            if size < 0 or oldest.turn == turn:
                return False
            del self._kept[key]
            self.n_bytes -= oldest.n_bytes
        return self.n_bytes <= size


class MemoryGroup:
    """One group of the memory, during one call."""

    def __init__(self, memory: Memory, group: bytes, size: int, turn: int):
        self.memory = memory
        self.group = group
        self.size = size
        self.turn = turn

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Entry]:
        """Give the entries that are there."""
        pairs = ((key, self.memory.get((self.group, key), self.turn)) for key in keys)
        return {key: entry for key, entry in pairs if entry is not None}

    def fill(
        self, found: Sequence[tuple[Entry, int]], values: np.ndarray, spans: np.ndarray
    ) -> bool:
        """Copy entries into the output."""
        for entry, at in found:
            values[at : at + entry.n_rows] = entry.values
            spans[at : at + entry.n_rows] = entry.spans
        return True

    def put(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Take in copies of new entries."""
        for key, entry in items:
            self.memory.add((self.group, key), entry, self.turn, self.size)

    def exclusive(self) -> AbstractContextManager[None]:
        """Do nothing: threads take turns at the model, which holds a lock of its own."""
        return nullcontext()


class NoGroup:
    """Keeps nothing."""

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Any]:
        """Find nothing."""
        return {}

    def fill(self, found: Any, values: np.ndarray, spans: np.ndarray) -> bool:
        """Copy nothing."""
        return True

    def put(self, items: Any) -> None:
        """Drop what comes."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


@contextmanager
def warned_once(seen: set[str], where: Path, owner: str, what: str) -> Iterator[None]:
    """Turn a failure of the cache into a warning that names the place, given once."""
    try:
        yield
    except Exception as exc:  # zarr raises many kinds
        if str(where) not in seen:
            seen.add(str(where))
            reason = str(exc).strip() or type(exc).__name__
            warnings.warn(
                f"'{where}' in the cache of {owner} {what}: {reason}.", UserWarning, stacklevel=2
            )
