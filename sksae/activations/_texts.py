"""From what a user passes as texts to tokens: checks, tokenisation, sentence boundaries."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterable, Mapping, Set
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Texts handed to the tokenizer at once: its Python lists are short-lived, the arrays stay.
_CHUNK = 2048

_LOCKS: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


class Texts(NamedTuple):
    """Checked texts; ``word_spans`` holds one (n_words, 2) array per text given as words."""

    texts: list[str]
    word_spans: list[np.ndarray] | None


class Tokens(NamedTuple):
    """The tokens of all texts end to end; text i owns ``bounds[i]:bounds[i + 1]``.

    ``word`` numbers the words and is empty unless asked for; ``types`` is None unless the
    tokenizer gives token types.
    """

    ids: np.ndarray
    start: np.ndarray
    end: np.ndarray
    special: np.ndarray
    word: np.ndarray
    types: np.ndarray | None
    bounds: np.ndarray

    @property
    def text(self) -> np.ndarray:
        """Index of the text of each token."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))


def check_texts(X: Any, name: str) -> Texts:
    """Check that ``X`` is a sequence of texts, or of texts split into words.

    Parameters
    ----------
    X : sequence of str, or of lists of str
        List, tuple, 1-D array, pandas or polars Series, column of a Hugging Face dataset.
    name : str
        The estimator's name, for the messages.

    Returns
    -------
    Texts
    """
    entries = _entries(X, name)
    if not entries:
        raise ValueError(
            f"Found array with 0 sample(s) (shape=(0,)) while a minimum of 1 is required by {name}."
        )
    if isinstance(entries[0], list | tuple | np.ndarray):
        words = [_words(entry, i, name) for i, entry in enumerate(entries)]
        return Texts([" ".join(w) for w in words], [_word_spans(w) for w in words])
    return Texts([_text(entry, f"X[{i}]", name) for i, entry in enumerate(entries)], None)


def _entries(X: Any, name: str) -> list:
    if isinstance(X, str | bytes):
        raise TypeError(
            f"{name} expects a sequence of texts. Got a single {type(X).__name__} instead: "
            "pass a list, [text]."
        )
    if isinstance(X, Mapping | Set) or not (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
        raise TypeError(
            f"{name} expects a sequence of texts (list, array, Series or dataset column of str). "
            f"Got {type(X).__name__} instead."
        )
    shape = getattr(X, "shape", None)
    if shape is not None and len(shape) != 1:
        raise TypeError(
            f"{name} expects one dimension, a sequence of texts. Got {type(X).__name__} of shape "
            f"{tuple(shape)} instead: pass one column of it."
        )
    return X.tolist() if isinstance(X, np.ndarray) else list(X)


def _text(entry: Any, where: str, name: str) -> str:
    if isinstance(entry, str):
        if not entry.isascii() and _LONE_SURROGATE.search(entry):
            raise ValueError(
                f"{name} got half a character: {where} holds a lone surrogate, as a cut emoji or "
                "errors='surrogateescape' leave it. Replace it: "
                "text.encode('utf-8', 'replace').decode('utf-8')."
            )
        return str(entry)
    missing = type(entry).__name__ in {"NoneType", "NAType", "NaTType"}
    if missing or (isinstance(entry, float) and entry != entry):
        raise ValueError(
            f"{name} got a missing value: {where} is {entry!r}. Drop it, or fill it with ''."
        )
    hint = " Pass one of its columns, as in dataset['text']." if isinstance(entry, dict) else ""
    raise TypeError(
        f"{name} expects texts: {where} must be a str. Got {type(entry).__name__} instead.{hint}"
    )


def _words(entry: Any, i: int, name: str) -> list[str]:
    if not isinstance(entry, list | tuple | np.ndarray):
        raise TypeError(
            f"{name} expects either texts or lists of words, not both: X[0] is a list of words, "
            f"X[{i}] is {entry!r}."
        )
    return [_text(word, f"X[{i}][{j}]", name) for j, word in enumerate(entry)]


def _word_spans(words: list[str]) -> np.ndarray:
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    ends = np.cumsum(lengths + 1) - 1
    return np.stack([ends - lengths, ends], axis=1)


def tokenize(tokenizer: Any, texts: Texts, want_words: bool = False) -> Tokens:
    """Tokenise texts, special tokens added, nothing truncated or padded.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    texts : Texts
    want_words : bool, default=False
        Whether to number the words of each text in ``word``.

    Returns
    -------
    Tokens
    """
    parts = []
    for at in range(0, len(texts.texts), _CHUNK):
        with _lock_of(tokenizer):
            encoded = tokenizer(
                texts.texts[at : at + _CHUNK],
                add_special_tokens=True,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                verbose=False,
            )
        parts.append(_arrays(encoded, want_words and texts.word_spans is None))
    ids, spans, special, word, types, lengths = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    tokens = Tokens(
        ids=ids,
        start=spans[:, 0],
        end=spans[:, 1],
        special=special | np.isin(ids, _special_ids(tokenizer)),
        word=word,
        types=types if len(types) == len(ids) else None,
        bounds=np.concatenate([[0], np.cumsum(lengths)]),
    )
    if not want_words:
        return tokens
    if texts.word_spans is None:
        return tokens._replace(word=_split_at_spaces(tokens, texts.texts))
    return tokens._replace(word=_given_words(tokens, texts.word_spans))


def _lock_of(tokenizer: Any) -> Any:
    """Give the lock of a tokenizer, which sets itself up anew in each call and must not then run.

    Clones share a tokenizer, and so may threads.
    """
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(tokenizer, threading.Lock())


def _arrays(encoded: Any, want_words: bool) -> tuple[np.ndarray, ...]:
    lists = encoded["input_ids"]
    words: list[int] = []
    if want_words:
        for i in range(len(lists)):
            words += [-1 if word is None else word for word in encoded.word_ids(i)]
    return (
        _chain(lists),
        _chain(chain.from_iterable(encoded["offset_mapping"])).reshape(-1, 2),
        _chain(encoded["special_tokens_mask"]).astype(bool),
        np.array(words, dtype=np.int64),
        _chain(encoded.get("token_type_ids", [])),
        np.array([len(ids) for ids in lists], dtype=np.int64),
    )


def _chain(lists: Iterable) -> np.ndarray:
    return np.fromiter(chain.from_iterable(lists), dtype=np.int64)


def _special_ids(tokenizer: Any) -> list[int]:
    """Give the ids that stand for no text: all special ones but a pure unknown token."""
    roles = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id")
    unknown = {getattr(tokenizer, "unk_token_id", None)}
    unknown -= {getattr(tokenizer, role, None) for role in roles}
    return sorted(set(tokenizer.all_special_ids) - unknown)


def _split_at_spaces(tokens: Tokens, texts: list[str]) -> np.ndarray:
    """Split the words of tokenizers that do not split text before tokenising.

    Without a pre-tokenizer the whole text counts as one word; there a word begins at the
    first token that starts after white space.
    """
    text, word = tokens.text, tokens.word
    new = np.ones(len(word), dtype=bool)
    new[1:] = (word[1:] != word[:-1]) | (text[1:] != text[:-1])
    heads = np.flatnonzero(new)
    for a, b in zip(heads, np.append(heads, len(word))[1:], strict=True):
        string, end = texts[text[a]], int(tokens.end[a:b].max())
        if word[a] < 0 or len(string[tokens.start[a] : end].split()) < 2:
            continue
        filled = False
        for i in range(a, b):
            piece = string[tokens.start[i] : tokens.end[i]]
            first = tokens.end[i] - len(piece.lstrip())
            if filled and piece.strip() and _after_space(string, first, tokens.end[i - 1]):
                new[i] = True
            filled = filled or bool(piece.strip())
    return np.where(word < 0, -1, np.cumsum(new))


def _after_space(string: str, first: int, last_end: int) -> bool:
    return first >= last_end and first > 0 and string[first - 1].isspace()


def _given_words(tokens: Tokens, word_spans: list[np.ndarray]) -> np.ndarray:
    word = np.full(len(tokens.ids), -1, dtype=np.int64)
    for i, spans in enumerate(word_spans):
        a, b = tokens.bounds[i], tokens.bounds[i + 1]
        word[a:b] = locate(tokens.start[a:b], tokens.end[a:b], spans[:, 0])
    return word


def locate(start: np.ndarray, end: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Tell in which of the pieces beginning at ``begins`` the last character of a span lies.

    The last one, because the spans of byte-level tokenizers may start with a space that
    belongs to the piece before.
    """
    return np.searchsorted(begins, np.maximum(end - 1, start), side="right") - 1


_BREAK = re.compile(
    r"(?P<stop>[.?!…]+)[\"'”’»)\]]*\s+"  # a stop, perhaps quoted, before white space
    r"|[。！？]+[\"”’」』）)]*\s*"  # full-width stops need no space after them
    r"|\s*[\n\r\u2028\u2029]\s*"
)
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘«]+$")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]$")  # e.g, i.e, U.S, p.m
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon gen col capt lt sgt gov sen rep st mt messrs mme mlle jr sr "
    "vs etc cf viz al approx est fig figs no nos vol vols ch sec pp ed eds inc ltd co corp dept "
    "univ assn bros jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri".split()
)


def sentence_begins(text: str) -> np.ndarray:
    """Find where the sentences of a text begin.

    A sentence ends at ``. ? ! …`` before white space, at a full-width stop, and at a line
    break; not at the dot of a known abbreviation, an initial or a dotted short form.

    Returns
    -------
    ndarray of int64
        Character positions, the first one 0.

    Examples
    --------
    >>> sentence_begins("Dr. No came. He left!").tolist()
    [0, 13]
    """
    begins = [0]
    for match in _BREAK.finditer(text):
        broken_line = any(c in "\n\r\u2028\u2029" for c in match.group())
        if match["stop"] != "." or broken_line or not _abbreviates(text, match.start()):
            begins.append(match.end())
    return np.array(begins, dtype=np.int64)


def _abbreviates(text: str, dot: int) -> bool:
    found = _LAST_WORD.search(text[max(0, dot - 20) : dot])
    if found is None:
        return False
    word = found.group()
    initial = len(word) == 1 and word.isupper() and word != "I"
    return initial or word.lower() in _ABBREVIATIONS or bool(_DOTTED.fullmatch(word))
