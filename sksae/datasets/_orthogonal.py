"""Features pushed apart until they are as orthogonal as they get."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1024


def spread_apart(vectors: Tensor, n_steps: int, lr: float) -> Tensor:
    """Lower the squared cosines of unit vectors to each other, by Adam.

    The loss is ``sum_(i != j) G_ij^2 + m sum_i (G_ii - 1)^2`` of the Gram matrix G of the m
    vectors, as in SynthSAEBench (arXiv:2602.14687); its gradient is taken in closed form
    and in chunks, so that G is never held whole.

    Parameters
    ----------
    vectors : Tensor of shape (m, n_features)
    n_steps : int
        0 leaves them.
    lr : float
        Learning rate.

    Returns
    -------
    Tensor of shape (m, n_features)
        Rows of unit norm.
    """
    moved = vectors.clone()
    optimizer = torch.optim.Adam([moved], lr=lr)
    for _ in range(n_steps):
        moved.grad = torch.cat([_gradient(moved, i) for i in range(0, len(moved), _CHUNK)])
        optimizer.step()
    return moved / moved.norm(dim=1, keepdim=True)


def _gradient(vectors: Tensor, start: int) -> Tensor:
    rows = vectors[start : start + _CHUNK]
    gram = rows @ vectors.T
    i = torch.arange(len(rows), device=rows.device)
    own = gram[i, start + i]
    gram[i, start + i] = 0
    return 4 * (gram @ vectors + len(vectors) * (own - 1)[:, None] * rows)
