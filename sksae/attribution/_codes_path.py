"""A model's logit as a function of switches, each of which turns some codes off or on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ..activations._rows import Rows
from ..activations._units import Pool, Sequence, one_per_unit
from ..intervention._site import Site
from ._readout import Readout


@dataclass
class Case:
    """One text, and what its hidden states are made of.

    The rows of the text are ``sum of codes * directions``; each goes back to its tokens,
    times ``share``, on top of ``rest``, which is what stays as it is. An *entry* is a code
    of a chosen concept in a row; ``codes`` are its value where its switch is 1, ``absent``
    where it is 0.
    """

    text: int
    ids: np.ndarray
    types: np.ndarray | None
    position: int
    target: int
    logit: float
    at: np.ndarray  # positions replaced, shape (n_tokens,)
    row: torch.Tensor  # the row of each of them, counted within the text
    share: torch.Tensor  # shape (n_tokens, 1)
    rest: torch.Tensor  # shape (n_tokens, n_features)
    first_row: int  # of the text, among all rows
    indptr: np.ndarray  # where the entries of each row begin, shape (n_rows + 1,)
    columns: torch.Tensor  # of the entries, shape (n_entries,)
    codes: torch.Tensor
    absent: torch.Tensor
    switch: torch.Tensor  # the switch of each entry
    n_switches: int = 0

    @property
    def n_rows(self) -> int:
        """Number of rows of the text."""
        return len(self.indptr) - 1

    @property
    def entry_rows(self) -> np.ndarray:
        """The row of each entry, counted within the text."""
        return np.repeat(np.arange(self.n_rows), np.diff(self.indptr))

    def hidden(self, switches: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """Give hidden states of shape (n, n_tokens, n_features) for n settings of the switches."""
        n = len(switches)
        if not len(self.codes):
            return self.rest.expand(n, -1, -1)
        values = self.absent + switches[:, self.switch] * (self.codes - self.absent)
        rows = _bags(self.columns.repeat(n), values.flatten(), self._bounds(n), directions)
        return self.rest + rows.view(n, self.n_rows, -1)[:, self.row] * self.share

    def _bounds(self, n: int) -> torch.Tensor:
        begins = torch.from_numpy(self.indptr[:-1]).to(self.columns.device)
        again = torch.arange(n, device=begins.device)[:, None] * len(self.codes)
        return (again + begins).flatten()


def _bags(columns, values, begins, directions) -> torch.Tensor:
    """Sum ``values * directions[columns]`` over each run of entries."""
    return torch.nn.functional.embedding_bag(
        columns, directions, begins, mode="sum", per_sample_weights=values
    )


class LogitOfCodes:
    """The target logits of some texts, as a function of their switches.

    Parameters
    ----------
    readout : Readout
    cases : list of Case
        One text, which is then run as often as there are settings; or several, with one
        setting each.
    directions : Tensor of shape (n_concepts, n_features)
    """

    def __init__(self, readout: Readout, cases: list[Case], directions: torch.Tensor):
        self.readout, self.cases, self.directions = readout, cases, directions

    @property
    def n_switches(self) -> int:
        """The most switches of a text."""
        return max(case.n_switches for case in self.cases)

    def constant(self, value: float) -> torch.Tensor:
        """Give one setting per text, all switches alike."""
        shape = (len(self.cases), self.n_switches)
        like = self.directions
        return torch.full(shape, value, dtype=like.dtype, device=like.device)

    def __call__(self, switches: torch.Tensor) -> torch.Tensor:
        """Give the target logits, shape (n,), of settings of shape (n, n_switches)."""
        cases = self.cases if len(self.cases) > 1 else self.cases * len(switches)
        run = self.cases if len(self.cases) == 1 and self.readout.widens else cases
        forward = self.readout.site.forward
        places = forward.places([c.ids for c in cases], [c.at for c in cases])
        tracked = torch.is_grad_enabled() and switches.requires_grad

        def replace(state: torch.Tensor) -> torch.Tensor:
            # Nothing before the layer needs a gradient, everything after it does.
            torch.set_grad_enabled(tracked)
            state = state.expand(len(cases), -1, -1)
            flat = state.flatten(0, 1).clone()
            new = self._hidden(switches).to(flat)
            return flat.index_put((places.to(flat.device),), new).view_as(state)

        types: Any = None if run[0].types is None else [c.types for c in run]
        ids, positions = [c.ids for c in run], [c.position for c in run]
        logits = self.readout.logits(ids, types, positions, replace)
        targets = torch.tensor([c.target for c in cases], device=logits.device)
        picked = logits[torch.arange(len(cases), device=logits.device), targets]
        return picked.to(switches)

    def _hidden(self, switches: torch.Tensor) -> torch.Tensor:
        """Give the hidden states of all replaced tokens, one text after the other."""
        if len(self.cases) == 1:
            return self.cases[0].hidden(switches, self.directions).flatten(0, 1)
        each = zip(self.cases, switches.split(1), strict=True)
        return torch.cat([c.hidden(s[:, : c.n_switches], self.directions)[0] for c, s in each])


@dataclass
class CaseMaker:
    """Runs texts as they are, encodes their rows, and gives what `LogitOfCodes` needs.

    Parameters
    ----------
    readout : Readout
    concepts : ndarray of int64, or None
        The concepts that have switches; the others stay as they are. None takes all.
    baseline : ndarray of shape (nb_concepts,), or None
        The codes of a switch at 0; None is zeros.
    keep_error : bool
        Whether what the SAE does not reconstruct stays in place.
    per_position : bool
        Whether each code has a switch, or one stands for all codes of a concept in a text.
    """

    readout: Readout
    concepts: np.ndarray | None
    baseline: np.ndarray | None
    keep_error: bool
    per_position: bool

    def __post_init__(self) -> None:
        self.site: Site = self.readout.site
        directions, offset = self.site.parts.directions()
        parameter = next(self.site.model.parameters())
        # Computed in float32 at least, whatever the model's weights are.
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        self.all_directions, self.offset = (
            torch.as_tensor(x, dtype=dtype, device=parameter.device) for x in (directions, offset)
        )
        chosen = slice(None) if self.concepts is None else torch.from_numpy(self.concepts)
        self.directions = self.all_directions[chosen]

    @property
    def rows(self) -> Rows:
        """What the rows stand for."""
        return self.site.rows

    def cases(self, batch: list[Sequence]) -> list[Case]:
        """Run texts as they are and take their hidden states apart."""
        site, readout = self.site, self.readout
        ids, types = [site.tokens.ids[s.at] for s in batch], site.types_of(batch)
        positions = [readout.position_of(s) for s in batch]
        at = [np.flatnonzero(site.replaced[s.at]) for s in batch]
        places = site.forward.places(ids, at)
        seen = []

        def watch(state: torch.Tensor) -> torch.Tensor:
            seen.append(state.flatten(0, 1)[places.to(state.device)].to(self.directions))
            return state

        logits = readout.logits(ids, types, positions, watch)
        texts = [int(site.tokens.text[s.at[0]]) for s in batch]
        wanted = [int(readout.targets[t]) for t in texts]
        chosen = [int(own) if t < 0 else t for t, own in zip(wanted, logits.argmax(1), strict=True)]
        states = seen[0].split([len(x) for x in at])
        rows = [site.plan.row[s.at[p]] for s, p in zip(batch, at, strict=True)]
        codes = self._codes(states, rows)
        return [
            self._case(
                codes[i],
                states[i],
                rows[i],
                text=texts[i],
                ids=ids[i],
                types=None if types is None else types[i],
                position=positions[i],
                target=chosen[i],
                logit=float(logits[i, chosen[i]]),
                at=at[i],
            )
            for i in range(len(batch))
        ]

    def _codes(self, states, rows) -> list[sparse.csr_array]:
        """Pool the tokens of each text into its rows and encode them."""
        both = zip(states, rows, strict=True)
        pooled = [self._pooled(state.cpu().numpy(), _local(row)) for state, row in both]
        nb_concepts = len(self.all_directions)
        bounds = np.cumsum([0, *(len(x) for x in pooled)])
        if not bounds[-1]:
            return [sparse.csr_array((0, nb_concepts), dtype=np.float32) for _ in pooled]
        codes = self.site.parts.codes(np.concatenate(pooled))
        codes.eliminate_zeros()
        codes.sort_indices()
        return [codes[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]

    def _pooled(self, states: np.ndarray, row: np.ndarray) -> np.ndarray:
        how = self.site.aggregation
        if how in {"first", "last"}:
            row = one_per_unit(row, how)
            states, row = states[row >= 0], row[row >= 0]
        sizes = np.bincount(row) if len(row) else np.zeros(0, dtype=np.int64)
        pool = Pool(sizes, states.shape[1], how, dtype=states.dtype)
        if len(row):
            pool.add(row, states)
        return pool.result()

    def _case(self, codes, states, rows, **known: Any) -> Case:
        like = self.directions
        row = torch.from_numpy(_local(rows)).to(like.device)
        share = torch.ones(len(rows), 1).to(like)
        if self.site.aggregation == "sum":
            share = (1 / torch.from_numpy(self.site.plan.sizes[rows])[:, None]).to(like)
        chosen = codes if self.concepts is None else sparse.csr_array(codes[:, self.concepts])
        entries, at_zero = self._entries(chosen)
        columns, values, absent = (
            torch.as_tensor(x, dtype=d, device=like.device)
            for x, d in (
                (entries.indices, torch.int64),
                (entries.data, like.dtype),
                (at_zero, like.dtype),
            )
        )
        switch = torch.arange(len(values), device=like.device)
        if not self.per_position:
            switch = torch.unique(columns, return_inverse=True)[1]
        case = Case(
            row=row,
            share=share,
            rest=states,
            first_row=int(rows.min()) if len(rows) else 0,
            indptr=entries.indptr.astype(np.int64),
            columns=columns,
            codes=values,
            absent=absent,
            switch=switch,
            n_switches=int(switch.max()) + 1 if len(switch) else 0,
            **known,
        )
        case.rest = self._rest(case, codes, states)
        return case

    def _entries(self, codes: sparse.csr_array) -> tuple[sparse.csr_array, np.ndarray]:
        """Give the codes that have switches, those that only a baseline has as zeros."""
        if self.baseline is None:
            return codes, np.zeros(codes.nnz)
        baseline = self.baseline if self.concepts is None else self.baseline[self.concepts]
        present = np.zeros(codes.shape, dtype=bool)
        present[codes.nonzero()] = True
        at = np.nonzero(present | (baseline != 0))
        counts = np.bincount(at[0], minlength=codes.shape[0])
        indptr = np.concatenate([[0], np.cumsum(counts)])
        entries = sparse.csr_array((codes.toarray()[at], at[1], indptr), shape=codes.shape)
        return entries, baseline[at[1]]

    def _rest(self, case: Case, codes, states: torch.Tensor) -> torch.Tensor:
        """Give what the hidden states are beside the entries: error term, bias, other concepts."""
        if not case.n_rows:
            return states
        moving = self._decoded(case, case.indptr, case.columns, case.codes, self.directions)
        if self.keep_error:
            return states - moving
        columns = torch.from_numpy(codes.indices.astype(np.int64)).to(moving.device)
        values = torch.from_numpy(codes.data).to(moving)
        whole = self._decoded(case, codes.indptr, columns, values, self.all_directions)
        return whole + self.offset * case.share - moving

    @staticmethod
    def _decoded(case: Case, indptr, columns, values, directions) -> torch.Tensor:
        if not len(values):
            return torch.zeros(len(case.row), directions.shape[1]).to(directions)
        begins = torch.from_numpy(indptr[:-1].astype(np.int64)).to(columns.device)
        return _bags(columns, values, begins, directions)[case.row] * case.share


def _local(rows: np.ndarray) -> np.ndarray:
    """Count the rows of a text from 0."""
    return rows - rows.min() if len(rows) else rows


def pieces(batch: list[Any], size: int) -> Iterator[list[Any]]:
    """Cut a list into pieces of at most this size."""
    yield from (batch[at : at + size] for at in range(0, len(batch), size))
