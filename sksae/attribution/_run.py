"""One method on its way through texts: which run together, and what becomes of the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ._activation import ConceptActivation
from ._cases import Case, Cases
from ._methods import Method, Settings, quiet, seeded


class Run:
    """A method, on its way through the texts.

    Parameters
    ----------
    f : ConceptActivation
    cases : Cases
    method : Method
    settings : Settings
    captum : module
        ``captum.attr``.
    absent : Tensor of shape (n_embedding,)
        The embedding of what stands for an absent unit.
    """

    def __init__(
        self,
        f: ConceptActivation,
        cases: Cases,
        method: Method,
        settings: Settings,
        captum: Any,
        absent: torch.Tensor,
    ):
        self.f = f
        self.cases = cases
        self.method = method
        self.settings = settings
        self.captum = captum
        self.absent = absent

    def all(
        self, seeds: list[int | None], verbose: bool | int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the scores of all units, and the concepts' activations with and without them."""
        from tqdm import tqdm

        cases, n_concepts = self.cases, len(self.f.concepts)
        scores = np.zeros((len(cases.rows), n_concepts))
        values, absent = np.zeros((2, cases.n_texts, n_concepts))
        with tqdm(total=cases.n_texts, unit="text", disable=not verbose) as bar:
            for group in self._groups():
                x = self.f.embed(group)
                base = self._replaced(x, group)
                at = [case.text for case in group]
                with torch.no_grad():
                    values[at] = self._values(group, x)
                    absent[at] = self._values(group, base)
                with quiet():
                    found = self._scores(group, x, base, seeds[at[0]])
                for case, columns in zip(group, found, strict=True):
                    scores[cases.bounds[case.text] : cases.bounds[case.text + 1]] = columns
                bar.update(len(group))
            bar.update(cases.n_texts - bar.n)
        return scores, values, absent

    def _groups(self) -> list[list[Case]]:
        """Put texts of like length together, as many as are run at once; random ones alone."""
        cases = sorted(self.cases.cases, key=lambda case: -len(case.ids))
        copies = self.settings.n_steps if self.method.sums_up else 1
        alone = self.method.random or not self.method.gradient
        n = 1 if alone else max(1, self.settings.batch_size // copies)
        return [cases[i : i + n] for i in range(0, len(cases), n)]

    def _replaced(self, x: torch.Tensor, group: list[Case]) -> torch.Tensor:
        """Give the embeddings with every unit replaced."""
        units = self.f.per_token(group, "unit")
        return torch.where((units >= 0)[:, :, None], self.absent, x)

    def _values(self, group: list[Case], x: torch.Tensor) -> np.ndarray:
        size = self.f.size(group)
        pieces = [self.f(group[i : i + size], x[i : i + size]) for i in range(0, len(x), size)]
        return torch.cat(pieces).double().numpy()

    def _scores(self, group: list[Case], x, base, seed: int | None) -> list[np.ndarray]:
        """Give scores of shape (n_units, n_concepts) of each text.

        All concepts of a text meet the same draws.
        """
        settings = self.settings._replace(batch_size=self.f.size(group))
        if self.method.gradient:
            return self._by_gradient(group, x, base, settings, seed)
        (case,) = group
        return [self._by_perturbation(case, x, base, settings, seed)]

    def _by_gradient(self, group, x, base, settings, seed) -> list[np.ndarray]:
        units = self.f.per_token(group, "unit")
        free = (units >= 0)[:, :, None]
        n_concepts = len(self.f.concepts)
        scores = [np.zeros((case.n_units, n_concepts)) for case in group]
        for j in range(n_concepts):

            def f(embeddings, index, j=j):
                kept = torch.where(free[index], embeddings, x[index])
                return self.f([group[i] for i in index.tolist()], kept)[:, j]

            with seeded(seed):
                given = x.clone().requires_grad_()
                found = self.method.run(
                    self.captum, f, given, base, torch.arange(len(group)), settings
                )
            for i, case in enumerate(group):
                scores[i][:, j] = folded(found[i].detach(), units[i], case.n_units, self.method)
        return scores

    def _by_perturbation(self, case: Case, x, base, settings, seed) -> np.ndarray:
        if not case.n_units:
            return np.zeros((0, len(self.f.concepts)))
        known = _Known(lambda present: self._of_coalitions(case, x, base, present))
        columns = []
        for j in range(len(self.f.concepts)):
            with seeded(seed):
                found = self.method.run(
                    self.captum, lambda z, j=j: known(z)[:, j], case.n_units, settings
                )
            columns.append(found.reshape(-1).double().numpy())
        return np.stack(columns, axis=1)

    def _of_coalitions(self, case: Case, x, base, present: torch.Tensor) -> torch.Tensor:
        """Give the activations in copies of a text that keep some units, replace the others."""
        unit = torch.from_numpy(case.unit)
        is_kept = present[:, unit.clamp(min=0)] | (unit < 0)
        with torch.no_grad():
            return self.f([case] * len(present), torch.where(is_kept[:, :, None], x, base))


class _Known:
    """Activations by coalition, each computed once, for all concepts."""

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor]):
        self.compute = compute
        self.found: dict[bytes, torch.Tensor] = {}

    def __call__(self, present: torch.Tensor) -> torch.Tensor:
        present = present > 0.5
        keys = [row.numpy().tobytes() for row in present]
        new = {k: i for i, k in enumerate(keys) if k not in self.found}
        if new:
            computed = self.compute(present[list(new.values())])
            self.found.update(zip(new, computed, strict=True))
        return torch.stack([self.found[key] for key in keys])


def folded(found: torch.Tensor, unit: torch.Tensor, n_units: int, method: Method) -> np.ndarray:
    """Make attributions of shape (n_tokens, n_embedding) one number for each unit."""
    of = unit.numpy()
    values = found.double().numpy()[of >= 0]
    squares = method.fold == "norm"
    per_token = (values**2 if squares else values).sum(axis=1)
    total = np.bincount(of[of >= 0], weights=per_token, minlength=n_units)
    return np.sqrt(total) if squares else total
