"""Trees of features: a child needs its parent, and has no sibling beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._planted import check_count, places, scattered


class Generation(NamedTuple):
    """The children of one generation: ``branching`` of each parent, in order of the parents."""

    parents: slice
    children: slice


class Forest:
    """Trees of equal shape over the first features, generation after generation.

    Parameters
    ----------
    n_trees : int
        Their roots are the features 0 to n_trees - 1.
    branching : int
        Children of each feature that has some.
    depth : int
        Generations below the roots.
    """

    def __init__(self, n_trees: int, branching: int, depth: int) -> None:
        self.n_trees, self.branching, self.depth = n_trees, branching, depth

    def generations(self) -> Iterator[Generation]:
        """Give the generations below the roots, from the top."""
        start, n = 0, self.n_trees
        for _ in range(self.depth if n else 0):
            middle, n_children = start + n, n * self.branching
            yield Generation(slice(start, middle), slice(middle, middle + n_children))
            start, n = middle, n_children

    def by_parent(self, values: Tensor, generation: Generation) -> Tensor:
        """View the children's values (..., n_true) as (..., n_parents, branching)."""
        children = values[..., generation.children]
        return children.view(*children.shape[:-1], -1, self.branching)

    def prune_(self, codes: Tensor, means: Tensor, rng: torch.Generator) -> Tensor:
        """Apply the rules of the trees to strengths of shape (n, n_true), in place."""
        for generation in self.generations():
            parents, children = codes[:, generation.parents], self.by_parent(codes, generation)
            place = places(children != 0)
            lots = torch.rand(len(place), generator=rng, device=rng.device).add_(1)
            order = scattered(place, lots, children.shape)
            stays = order == order.amax(dim=2, keepdim=True)
            children *= stays * (parents / means[generation.parents])[:, :, None]
        return codes

    def compensated(self, wanted: Tensor) -> Tensor:
        """Give with what probability features could be active, to be as frequent as wanted.

        Parameters
        ----------
        wanted : Tensor of shape (n_true,)
            Frequencies.

        Returns
        -------
        Tensor of shape (n_true,)
            For a child ``min(1, c (1 + sum of its siblings' c))``, where c is what is wanted
            of it divided by what is wanted of its parent.
        """
        could = wanted.clone()
        for generation in self.generations():
            given = self.by_parent(wanted, generation) / wanted[generation.parents, None]
            siblings = given.sum(dim=1, keepdim=True) - given
            could[generation.children] = (given * (1 + siblings)).clamp(max=1).flatten()
        return could

    def marginals(self, could: Tensor) -> Tensor:
        """Give how often features are active, if those that could be are independent.

        Parameters
        ----------
        could : Tensor of shape (n_true,)
            With what probability each could be active.

        Returns
        -------
        Tensor of shape (n_true,)
        """
        p = could.clone()
        for generation in self.generations():
            stays = _share_that_stays(self.by_parent(could, generation))
            p[generation.children] = (stays * p[generation.parents, None]).flatten()
        return p


def _share_that_stays(q: Tensor) -> Tensor:
    """Give how often each of some siblings is the one that is chosen, given their parent.

    With K of the others there, it is chosen with probability 1 / (1 + K), and the mean of that
    is the integral over t from 0 to 1 of ``prod_(j != i) (1 - q_j + q_j t)``.
    """
    n = q.shape[1]
    total = torch.zeros_like(q)
    for i in range(n):
        polynomial = torch.zeros_like(q)
        polynomial[:, 0] = 1  # coefficients in t, of degree n - 1 at most
        for j in set(range(n)) - {i}:
            others, there = polynomial, q[:, j, None]
            polynomial = others * (1 - there)
            polynomial[:, 1:] += others[:, :-1] * there
        total[:, i] = q[:, i] * (polynomial / torch.arange(1, n + 1)).sum(dim=1)
    return total


def check_forest(n_trees, branching, depth, n_true: int, owner: str) -> None:
    """Refuse trees that are none, or have more features than there are."""
    check_count(n_trees, "n_trees", owner, least=0)
    check_count(branching, "branching", owner)
    check_count(depth, "depth", owner, least=0)
    wanted = n_trees * sum(branching**generation for generation in range(depth + 1))
    if wanted > n_true:
        raise ValueError(
            f"n_trees={n_trees} of branching={branching} and depth={depth} hold {wanted} features "
            f"in {owner}, but nb_concepts is {n_true}. Lower one of the three or raise nb_concepts."
        )
