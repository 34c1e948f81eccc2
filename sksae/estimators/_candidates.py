"""Directions in which data lie from their center: what archetypes are combinations of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..training import RowBatches
from ..training._data import random_rows

_ROWS_PER_POINT = 8
_ITERATIONS = 10
_BLOCK_ENTRIES = 2**23
# Of the typical distance from the center; a row within that has no direction.
_AT_CENTER = 1e-3


def find_candidates(data: RowBatches, n_points: int, method: str) -> Tensor:
    """Give up to ``n_points`` directions of rows from their center, of unit norm.

    They depend on the rows alone: of all, ``8 * n_points`` are drawn with a fixed seed.

    Parameters
    ----------
    data : RowBatches
        The rows.
    n_points : int
        Number of directions. Where there are no more rows than that, each row is one.
    method : {"kmeans", "random"}
        The centers of clusters of rows, largest cluster first, or rows.

    Returns
    -------
    Tensor of shape (n_points, n_features)
        On the device and in the precision of the data. Random directions for constant data.
    """
    center = data.statistics.center.to(data.device, data.dtype)
    found = directions(data.take(random_rows(len(data), _ROWS_PER_POINT * n_points)) - center)
    generator = torch.Generator().manual_seed(0)
    if not len(found):
        shape = n_points, len(center)
        return normalize(torch.randn(shape, generator=generator).to(center), dim=1)
    found = found[torch.randperm(len(found), generator=generator).to(found.device)]
    if method == "random" or len(found) <= n_points:
        return found[:n_points]
    return cluster_directions(found, n_points)


def directions(offsets: Tensor) -> Tensor:
    """Give the unit vectors along offsets (n, n_features), without those that are next to 0."""
    if len(offsets):  # so that no square overflows, or vanishes
        offsets = offsets / offsets.abs().max().clamp(min=torch.finfo(offsets.dtype).tiny)
    norms = offsets.norm(dim=1)
    apart = (norms > _AT_CENTER * norms.mean()) & (norms > 0)
    return normalize(offsets[apart], dim=1)


def cluster_directions(rows: Tensor, n_clusters: int) -> Tensor:
    """Give the centers of spherical k-means, the largest cluster first.

    Ten passes from the first ``n_clusters`` rows; a cluster that has lost its rows stays
    where it is. Source: Dhillon and Modha (2001), "Concept decompositions for large sparse
    text data using clustering", section 3.

    Parameters
    ----------
    rows : Tensor of shape (n, n_features)
        Of unit norm, in random order.
    n_clusters : int
        At most n.

    Returns
    -------
    Tensor of shape (n_clusters, n_features)
        Of unit norm.
    """
    centers = rows[:n_clusters].clone()
    for _ in range(_ITERATIONS):
        nearest = _nearest(rows, centers)
        sums = torch.zeros_like(centers).index_add_(0, nearest, rows)
        kept = sums.norm(dim=1, keepdim=True) > _AT_CENTER
        centers = torch.where(kept, normalize(sums, dim=1), centers)
    sizes = torch.bincount(_nearest(rows, centers), minlength=n_clusters)
    return centers[sizes.argsort(descending=True, stable=True)]


def given_candidates(points, data: RowBatches, owner: str) -> Tensor:
    """Give the directions of a caller's points, in input units, from the center of the data.

    Raises
    ------
    ValueError
        If they have no direction, or are not finite or not as wide as the data.
    """
    points = np.asarray(points.detach().cpu() if isinstance(points, Tensor) else points)
    width = data.shape[1]
    usable = points.ndim == 2 and points.shape[1] == width and len(points) > 0
    if not usable or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise ValueError(
            f"The 'points' parameter of {owner} must be 'kmeans', 'random', or finite numbers of "
            f"shape (n_points, n_features={width}). Got shape {points.shape} of {points.dtype}."
        )
    center = data.statistics.center.to(data.device)
    offsets = torch.as_tensor(points, dtype=center.dtype, device=data.device) - center
    found = directions(offsets).to(data.dtype)
    if len(found) < len(points):
        raise ValueError(
            f"{len(points) - len(found)} of the {len(points)} 'points' of {owner} lie at the "
            "center of the data, so that nothing lies in their direction. Leave them out."
        )
    return found


def _nearest(rows: Tensor, centers: Tensor) -> Tensor:
    """Give for each row the center with the largest cosine, shape (n,)."""
    blocks = rows.split(max(1, _BLOCK_ENTRIES // len(centers)))
    return torch.cat([(block @ centers.T).argmax(dim=1) for block in blocks])
