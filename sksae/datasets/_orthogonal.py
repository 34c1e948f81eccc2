"""Features pushed apart until they are as orthogonal as they get."""

from __future__ import annotations

import torch
from torch import Tensor


def spread_apart(vectors: Tensor, n_steps: int, lr: float) -> Tensor:
    """Lower the squared cosines of unit vectors to each other, by Adam.

    The loss is ``sum_(i != j) G_ij^2 + m sum_i (G_ii - 1)^2`` of the Gram matrix G of the m
    vectors, as in SynthSAEBench (arXiv:2602.14687); its gradient is taken in closed form, in
    which ``G V = V (V^T V)``, so that G is never made.

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
        moved.grad = _gradient(moved)
        optimizer.step()
    return moved / moved.norm(dim=1, keepdim=True)


def _gradient(vectors: Tensor) -> Tensor:
    own = vectors.square().sum(dim=1, keepdim=True)
    of_others = torch.addcmul(vectors @ (vectors.T @ vectors), own, vectors, value=-1)
    return 4 * torch.addcmul(of_others, own - 1, vectors, value=len(vectors))
