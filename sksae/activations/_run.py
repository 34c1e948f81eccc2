"""Many texts through the model: tokens made ahead, like lengths together, known rows copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ._cache import Entry, Group
from ._forward import Forward, batches, device_of
from ._layers import evaluating
from ._texts import Texts, Tokens
from ._units import Plan, Pool, special_ids

# Characters of the texts that are tokenised, sorted by length and run together, and most texts
# of them: about 60 batches.
_CHARACTERS, _TEXTS = 2**20, 4096


class Setup(NamedTuple):
    """A model with what it is run with.

    ``tokenize`` turns texts into tokens, ``plan`` says which rows they fill.
    """

    model: nn.Module
    tokenizer: Any
    layers: list[str]
    n_features: int
    aggregation: str
    batch_size: int | str
    tokenize: Any
    plan: Any


class Result(NamedTuple):
    """Rows of texts; ``n_rows`` and ``n_tokens`` have one entry per text."""

    values: np.ndarray
    spans: np.ndarray
    n_rows: np.ndarray
    n_tokens: np.ndarray


class Prepared(NamedTuple):
    """Some texts, by number, with their tokens."""

    numbers: list[int]
    tokens: Tokens
    plan: Plan


def run_plan(setup: Setup, tokens: Tokens, plan: Plan, pool: Pool, bar: Any = None) -> np.ndarray:
    """Run tokens through the model and pool their hidden states.

    Parameters
    ----------
    setup : Setup
    tokens : Tokens
    plan : Plan
    pool : Pool
        Takes in the hidden states, at the rows that the plan says.
    bar : tqdm.tqdm, default=None
        Counts tokens.

    Returns
    -------
    ndarray of float32
        The rows of the pool.
    """
    modules = dict(setup.model.named_modules())
    layers = {name: modules[name] for name in setup.layers}
    forward = Forward(setup.model, layers, setup.tokenizer)
    sequences = [s for s in plan.sequences if rows_here(s, plan.row).size]
    types = tokens.types
    with evaluating(setup.model):
        for batch in batches(sequences, setup.batch_size, device_of(setup.model).type):
            wanted = [rows_here(s, plan.row) for s in batch]
            ids = [tokens.ids[s.at] for s in batch]
            states = forward.batch(
                ids, None if types is None else [types[s.at] for s in batch], wanted
            )
            rows = [plan.row[s.at[w]] for s, w in zip(batch, wanted, strict=True)]
            pool.add(np.concatenate(rows), states)
            if bar is not None:
                bar.update(sum(len(x) for x in ids))
    return pool.result()


def rows_here(sequence, row: np.ndarray) -> np.ndarray:
    """Give the positions of a sequence whose hidden states go into rows."""
    wanted = row[sequence.at] >= 0
    return np.flatnonzero(wanted if sequence.owned is None else wanted & sequence.owned)


def n_run(plan: Plan) -> int:
    """Count the tokens that the model runs for a plan."""
    return sum(len(s.at) for s in plan.sequences if rows_here(s, plan.row).size)


class Run:
    """All texts of one call, in chunks, in their order.

    Each chunk is found in the cache as far as it is there, and the rest is run. Its rows are
    appended to the output, which is extended in place, and given to the cache. So memory
    holds the output, the tokens of a chunk or two, and one batch. Meanwhile a thread
    tokenises the next chunk.

    Parameters
    ----------
    setup : Setup
    texts : Texts
    keys : sequence of hashable
        Texts with equal keys are run once.
    group : Group
        The cache.
    bar : tqdm.tqdm
        Counts the tokens that are run.
    """

    def __init__(self, setup: Setup, texts: Texts, keys: Sequence, group: Group, bar: Any):
        self.setup = setup
        self.texts = texts
        self.keys = keys
        self.group = group
        self.bar = bar
        first: dict[Any, int] = {}
        self.source = [first.setdefault(key, i) for i, key in enumerate(keys)]
        n = len(keys)
        self.n_rows, self.n_tokens, self.at = (np.zeros(n, dtype=np.int64) for _ in range(3))
        self.values = np.empty((0, setup.n_features), dtype=np.float32)
        self.spans = np.empty((0, 3), dtype=np.int32)

    def result(self) -> Result:
        """Run what has to be run."""
        own = [i for i, first in enumerate(self.source) if i == first]
        found = self.group.find(self.keys[i] for i in own)
        missing = {i for i in own if self.keys[i] not in found}
        del found
        chunks = list(self._chunks(missing))
        self._left = sum(len(self.texts.texts[i]) for i in missing)
        with _ahead(self._prepare, [numbers for _, _, numbers in chunks]) as prepared:
            for begin, end, _ in chunks:
                self._chunk(begin, end, prepared())
        self.bar.total = self.bar.n
        self.bar.refresh()
        return Result(self.values, self.spans, self.n_rows, self.n_tokens)

    def _chunks(self, missing: set[int]) -> Iterator[tuple[int, int, list[int]]]:
        """Cut the texts where enough of them are to be run."""
        begin, numbers, size = 0, [], 0
        for i, text in enumerate(self.texts.texts):
            if i in missing:
                numbers.append(i)
                size += len(text)
            if size >= _CHARACTERS or len(numbers) >= _TEXTS:
                yield begin, i + 1, numbers
                begin, numbers, size = i + 1, [], 0
        if begin < len(self.texts.texts):
            yield begin, len(self.texts.texts), numbers

    def _prepare(self, numbers: list[int]) -> Prepared | None:
        if not numbers:
            return None
        spans = self.texts.word_spans
        texts = Texts(
            [self.texts.texts[i] for i in numbers],
            None if spans is None else [spans[i] for i in numbers],
        )
        tokens = self.setup.tokenize(texts)
        return Prepared(numbers, tokens, self.setup.plan(tokens, texts))

    def _chunk(self, begin: int, end: int, prepared: Prepared | None) -> None:
        own = [i for i in range(begin, end) if self.source[i] == i]
        n_before = len(self.values)
        while True:
            with ExitStack() as held:
                found = self.group.find(self.keys[i] for i in own)
                if len(found) < len(own):
                    held.enter_context(evaluating(self.setup.model))
                    held.enter_context(self.group.exclusive())
                    found = self.group.find(self.keys[i] for i in own)
                missing = [i for i in own if self.keys[i] not in found]
                if prepared is None or prepared.numbers != missing:
                    prepared = self._prepare(missing)
                self._lay_out(begin, end, own, found, prepared)
                if self._copy_found(own, found):
                    self._run_missing(n_before, prepared)
                    break
            # What could not be read is not found any more.
            self._extend(n_before)
        self._copy_repeated(begin, end)

    def _lay_out(self, begin, end, own, found, prepared) -> None:
        """Say where the rows of each text go, and make room for them."""
        for i in own:
            handle = found.get(self.keys[i])
            if handle is not None:
                self.n_rows[i], self.n_tokens[i] = handle.n_rows, handle.n_tokens
        if prepared is not None:
            numbers, plan = prepared.numbers, prepared.plan
            self.n_rows[numbers] = np.bincount(plan.text, minlength=len(numbers))
            self.n_tokens[numbers] = np.diff(prepared.tokens.bounds)
        source = self.source[begin:end]
        self.n_rows[begin:end] = self.n_rows[source]
        self.n_tokens[begin:end] = self.n_tokens[source]
        ends = len(self.values) + np.cumsum(self.n_rows[begin:end])
        self.at[begin:end] = ends - self.n_rows[begin:end]
        self._extend(int(ends[-1]))

    def _extend(self, n: int) -> None:
        """Make the output ``n`` rows long, where the system can without a second copy."""
        for name in ("values", "spans"):
            array = getattr(self, name)
            if len(array):
                # Nothing else refers to its memory; what did is gone with its function.
                array.resize((n, array.shape[1]), refcheck=False)
            else:
                setattr(self, name, np.empty((n, array.shape[1]), dtype=array.dtype))

    def _copy_found(self, own, found) -> bool:
        at = ((i, found.get(self.keys[i])) for i in own)
        places = [(handle, int(self.at[i])) for i, handle in at if handle is not None]
        return self.group.fill(places, self.values, self.spans)

    def _run_missing(self, n_before: int, prepared: Prepared | None) -> None:
        if prepared is None:
            return
        numbers, tokens, plan = prepared
        self._announce(numbers, plan)
        target = self._targets(numbers)
        self.spans[target, 0] = plan.start
        self.spans[target, 1] = plan.end
        self.spans[target, 2] = special_ids(tokens, plan)
        sizes = np.ones(len(self.values) - n_before, dtype=np.int64)
        sizes[target - n_before] = plan.sizes
        row = plan.row.copy()
        row[plan.row >= 0] = target[plan.row[plan.row >= 0]] - n_before
        pool = Pool(sizes, self.setup.n_features, self.setup.aggregation, self.values[n_before:])
        run_plan(self.setup, tokens, plan._replace(row=row), pool, self.bar)
        self.group.put([(self.keys[i], self._entry(i)) for i in numbers])

    def _targets(self, numbers: list[int]) -> np.ndarray:
        """Give the row of the output for each row of some texts."""
        n_rows = self.n_rows[numbers]
        begins = np.cumsum(n_rows) - n_rows
        return np.repeat(self.at[numbers] - begins, n_rows) + np.arange(n_rows.sum())

    def _entry(self, i: int) -> Entry:
        where = slice(int(self.at[i]), int(self.at[i] + self.n_rows[i]))
        return Entry(self.values[where], self.spans[where], int(self.n_tokens[i]))

    def _copy_repeated(self, begin: int, end: int) -> None:
        for i in range(begin, end):
            if self.source[i] != i:
                first, here = self._entry(self.source[i]), self._entry(i)
                here.values[:] = first.values
                here.spans[:] = first.spans

    def _announce(self, numbers: list[int], plan: Plan) -> None:
        """Tell the bar how many tokens there will be, as far as can be told."""
        n_tokens = n_run(plan)
        size = sum(len(self.texts.texts[i]) for i in numbers)
        self._left = max(0, self._left - size)
        self.bar.total = self.bar.n + n_tokens + round(self._left * n_tokens / max(1, size))
        self.bar.refresh()


@contextmanager
def _ahead(prepare: Any, items: list[Any]) -> Iterator[Any]:
    """Give a function that gives ``prepare`` of each item, made one ahead in a thread."""
    if len(items) < 2:
        yield lambda: prepare(items[0])
        return
    with ThreadPoolExecutor(1, "sksae-tokens") as pool:
        waiting = iter(items)
        pending: list[Future] = [pool.submit(prepare, next(waiting))]

        def take() -> Any:
            done = pending.pop()
            for item in waiting:
                pending.append(pool.submit(prepare, item))
                break
            return done.result()

        yield take
