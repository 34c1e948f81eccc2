"""Codes of units that are run alone: words, n-grams, the tokens of a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from scipy import sparse

from ..activations._extractor import vocabulary_size
from ..activations._pooler import pool_rows
from ..activations._rows import Rows, with_rows
from ..activations._texts import Texts, Tokens, check_texts, tokenize
from ._parts import Parts

# Units whose hidden states are held at once.
_CHUNK = 1024

# "[unused7]", "<unused7>", "<extra_id_7>", "<|reserved_special_token_7|>"
_UNUSED = re.compile(r"[\[<]\|?(?:unused|extra_id|reserved)[^\]>]*[\]>]", re.IGNORECASE)


def unit_codes(pipe, units, *, batch_size=256):
    """Run each unit alone through extractor and SAE.

    Parameters
    ----------
    pipe : Pipeline
        A fitted pipeline that holds an extractor and one SAE; steps after it are ignored.
    units : sequence of str
        Words, n-grams, sentences: each is a text of its own.
    batch_size : int, default=256
        Units in one batch of the model.

    Returns
    -------
    codes : CSR matrix of shape (n_units, nb_concepts)
        Row i holds the codes of ``units[i]``: where the extractor gives several rows for it
        (tokens, words), their largest for each concept. ``codes.rows.units`` are the units.

    Raises
    ------
    ValueError
        If there is no extractor or not one SAE in ``pipe``, or if there are no units.
    TypeError
        If ``units`` is no sequence of strings.

    See Also
    --------
    vocabulary_codes : The tokens of the vocabulary as units.
    unique_ngrams : The words and n-grams of texts.
    TopKInputs : Names concepts from these codes.

    Notes
    -----
    Special tokens are added as for any text; their own rows do not count, unless
    ``granularity="cls"`` asks for them. Where ``skip_first`` leaves out leading tokens, as
    many beginning-of-text tokens (or end-of-text tokens, where there are no others) stand
    before the unit, so that it is not the unit that is left out.

    Examples
    --------
    >>> from sklearn.pipeline import Pipeline
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    >>> from sksae import TopKSAE, TransformerActivationExtractor
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "blue": 1, "sea": 2}, "[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    >>> model = BertModel(BertConfig(vocab_size=3, hidden_size=8, num_attention_heads=2))
    >>> acts = TransformerActivationExtractor(model, "layer.0", tokenizer=tokenizer)
    >>> sae = TopKSAE(4, top_k=2, nb_epochs=1, device="cpu", random_state=0)
    >>> pipe = Pipeline([("acts", acts), ("sae", sae)]).fit(["blue sea", "sea"])
    >>> codes = unit_codes(pipe, ["sea", "blue", "blue sea"])
    >>> codes.shape, list(codes.rows.units)
    ((3, 4), ['sea', 'blue', 'blue sea'])
    """
    parts = _parts(pipe, "unit_codes", batch_size)
    entries = check_texts(units, "unit_codes").texts
    chunks = []
    for at in range(0, len(entries), _CHUNK):
        texts = check_texts(parts.prepared(entries[at : at + _CHUNK]), "unit_codes")
        tokens = parts.extractor._tokenize(texts)
        chunks.append(_codes_alone(parts, tokens, texts, batch_size))
    return _carrying(chunks, entries)


def vocabulary_codes(pipe, *, batch_size=256):
    """Run each token of the vocabulary alone through extractor and SAE.

    Parameters
    ----------
    pipe : Pipeline
        A fitted pipeline that holds an extractor and one SAE; steps after it are ignored.
    batch_size : int, default=256
        Tokens of the vocabulary in one batch of the model.

    Returns
    -------
    codes : CSR matrix of shape (n_tokens, nb_concepts)
        One row per token, in the order of their ids. ``codes.rows.units`` are the tokens as
        the tokenizer decodes them, without white space around: two tokens may read alike,
        with and without a space before them.

    Raises
    ------
    ValueError
        If there is no extractor or not one SAE in ``pipe``.

    See Also
    --------
    unit_codes : Any strings as units.
    TopKInputs : Names concepts from these codes.

    Notes
    -----
    The token itself is run, not the string that it decodes to, between the special tokens
    that the tokenizer puts around any text. Tokens left out: special and unused ones, those
    that the model has no embedding for, those that stand for no visible character, and those
    that are a part of a character.

    Leading tokens that ``skip_first`` leaves out are treated as in `unit_codes`.

    Examples
    --------
    >>> from sklearn.pipeline import Pipeline
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    >>> from sksae import TopKSAE, TransformerActivationExtractor
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "blue": 1, "sea": 2}, "[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    >>> model = BertModel(BertConfig(vocab_size=3, hidden_size=8, num_attention_heads=2))
    >>> acts = TransformerActivationExtractor(model, "layer.0", tokenizer=tokenizer)
    >>> sae = TopKSAE(4, top_k=2, nb_epochs=1, device="cpu", random_state=0)
    >>> pipe = Pipeline([("acts", acts), ("sae", sae)]).fit(["blue sea", "sea"])
    >>> codes = vocabulary_codes(pipe)
    >>> codes.shape, list(codes.rows.units)
    ((2, 4), ['blue', 'sea'])
    """
    parts = _parts(pipe, "vocabulary_codes", batch_size)
    model, tokenizer = parts.extractor._loaded()
    ids, strings = vocabulary(tokenizer, vocabulary_size(model))
    frame = _frame(tokenizer)
    chunks = []
    for at in range(0, len(ids), _CHUNK):
        texts = Texts(strings[at : at + _CHUNK], None)
        tokens = _framed(ids[at : at + _CHUNK], texts.texts, frame)
        chunks.append(_codes_alone(parts, tokens, texts, batch_size))
    return _carrying(chunks, strings)


def vocabulary(tokenizer: Any, size: int | None = None) -> tuple[np.ndarray, list[str]]:
    """Give the ids (below ``size``) and strings of the tokens that stand for readable text."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    known = {i for i in tokenizer.get_vocab().values() if size is None or i < size}
    ids = sorted(known - special)
    keep = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    strings = [string.strip() for string in tokenizer.batch_decode([[i] for i in ids], **keep)]
    readable = [i for i, string in enumerate(strings) if _is_readable(string)]
    return np.array(ids, dtype=np.int64)[readable], [strings[i] for i in readable]


def _is_readable(string: str) -> bool:
    visible = any(c.isprintable() and not c.isspace() for c in string)
    return visible and "\ufffd" not in string and not _UNUSED.fullmatch(string)


def _parts(pipe, owner: str, batch_size) -> Parts:
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(
            f"The 'batch_size' parameter of {owner} must be an int of at least 1. "
            f"Got {batch_size!r} instead."
        )
    return Parts.of(pipe, owner).with_extractor()


def _frame(tokenizer) -> tuple[Tokens, int, int]:
    """Tokenise some text; give the tokens, and where those of the text begin and end."""
    tokens = tokenize(tokenizer, Texts(["a A 1 ."], None))
    own = np.flatnonzero(~(tokens.special & (tokens.start == tokens.end)))
    return tokens, int(own[0]), int(own[-1]) + 1


def _framed(ids: np.ndarray, strings: Sequence[str], frame) -> Tokens:
    """Put each id between the special tokens that stand around any text."""
    around, at, stop = frame
    width = at + 1 + len(around.ids) - stop

    def column(value, own: Any = None):
        rows = np.tile(np.concatenate([value[: at + 1], value[stop:]]), (len(ids), 1))
        if own is not None:
            rows[:, at] = own
        return rows.ravel()

    nowhere = np.zeros_like(around.ids)
    return Tokens(
        ids=column(around.ids, ids),
        start=column(nowhere),
        end=column(nowhere, [len(string) for string in strings]),
        special=column(around.special, False),
        word=column(nowhere - 1, 0),
        types=None if around.types is None else column(around.types),
        bounds=width * np.arange(len(ids) + 1),
    )


def _codes_alone(parts: Parts, tokens: Tokens, texts: Texts, batch_size: int):
    """Give one row of codes for each text: the largest over its rows."""
    extractor = parts.extractor
    tokens = _after_leading(tokens, extractor)
    plan = extractor._plan(tokens, texts)
    values, rows = extractor._run(tokens, plan, batch_size), extractor._rows(tokens, plan, texts)
    counted = np.ones(len(rows), dtype=bool)
    if extractor.granularity != "cls":
        counted = rows.end > rows.start
    if not counted.any():
        return sparse.csr_matrix((len(texts.texts), parts.nb_concepts), dtype=values.dtype)
    rows = rows[counted]
    codes = parts.encode(parts.states(values[counted], rows))
    return pool_rows(sparse.csr_matrix(codes), rows.text, len(texts.texts), "max")


def _after_leading(tokens: Tokens, extractor) -> Tokens:
    """Put tokens before each text where ``skip_first`` would leave out tokens of the text."""
    if not extractor.skip_first:
        return tokens
    tokenizer = extractor._loaded()[1]
    leading = _frame(tokenizer)[1]
    n = extractor.skip_first - leading
    if n <= 0:
        return tokens
    filler = _filler(tokenizer, extractor)
    at = np.repeat(tokens.bounds[:-1] + leading, n)
    none = np.zeros(0, dtype=np.int64)
    return Tokens(
        ids=np.insert(tokens.ids, at, filler),
        start=np.insert(tokens.start, at, 0),
        end=np.insert(tokens.end, at, 0),
        special=np.insert(tokens.special, at, True),
        word=np.insert(tokens.word, at, -1) if len(tokens.word) else none,
        types=None if tokens.types is None else np.insert(tokens.types, at, 0),
        bounds=tokens.bounds + n * np.arange(len(tokens.bounds)),
    )


def _filler(tokenizer, extractor) -> int:
    roles = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    ids = [getattr(tokenizer, role, None) for role in roles]
    found = next((i for i in ids if i is not None), None)
    if found is None:
        raise ValueError(
            f"skip_first={extractor.skip_first} leaves out the unit itself where it is run "
            f"alone, and {type(tokenizer).__name__} has no special token to stand before it. "
            "Give the tokenizer a bos_token, or use skip_first=0."
        )
    return found


def _carrying(chunks: Iterable, units: Sequence[str]):
    lengths = [len(unit) for unit in units]
    rows = Rows(np.arange(len(units)), np.zeros(len(units), dtype=np.int64), lengths, units)
    return with_rows(sparse.vstack(list(chunks), format="csr"), rows)
