"""Rows made of known features, drawn block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import check_random_state
from torch import Tensor
from torch.nn.functional import embedding_bag

# Entries of a block of codes, 4 MiB in float32 or on a CUDA device 1 GiB, however many rows are
# asked for.
_BLOCK_ENTRIES, _ON_CUDA = 2**20, 2**28
# Share of active features up to which rows are added up one by one, not multiplied.
_SPARSE = 0.01

Draw = Callable[[int, torch.Generator], Tensor]


class PlantedFeatures:
    """Known features with the law of their strengths: an endless source of rows.

    Each row is ``codes @ dictionary + bias``. The generators of `sksae.datasets` make one
    when ``n_samples=None``; it serves where training and held-out rows are to share a
    dictionary, or where the rows do not fit into memory.

    Parameters
    ----------
    draw : callable
        ``(n, generator) -> Tensor`` of shape (n, n_true): strengths of the features in n
        rows, on the device of ``dictionary``. It is called for blocks of rows.
    dictionary : Tensor of shape (n_true, n_features)
        The features, rows of unit Euclidean norm.
    probabilities : Tensor of shape (n_true,)
        How often each feature is active.
    bias : Tensor of shape (n_features,) or None, default=None
        Added to every row.
    random_state : int, RandomState instance or None, default=None
        Of the rows.

    Attributes
    ----------
    dictionary : ndarray of shape (n_true, n_features), float32
    probabilities : ndarray of shape (n_true,), float64
        Expected share of the rows in which each feature is active, as far as the suite
        knows it; see there.
    bias : ndarray of shape (n_features,), float32

    Examples
    --------
    >>> from sksae.datasets import make_korznikov
    >>> source = make_korznikov(None, n_features=16, nb_concepts=64, n_active=2, random_state=0)
    >>> train, held_out = source.sample(1000), source.sample(100)
    >>> train.shape, held_out.shape, source.dictionary.shape
    ((1000, 16), (100, 16), (64, 16))
    >>> sum(len(X) for X in source.chunks(1000, chunk_size=300))
    1000
    """

    def __init__(self, draw, dictionary, probabilities, bias=None, random_state=None):
        self._draw, self._rows = draw, dictionary
        self._bias = dictionary.new_zeros(dictionary.shape[1]) if bias is None else bias
        self._generator = generator(random_state, dictionary.device)
        self.dictionary = dictionary.cpu().numpy()
        self.probabilities = probabilities.double().cpu().numpy()
        self.bias = self._bias.cpu().numpy()

    def sample(self, n_samples, *, return_codes=False):
        """Draw rows.

        Parameters
        ----------
        n_samples : int
            At least 1.
        return_codes : bool, default=False
            Whether to give the strengths of the features too.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), float32
        codes : CSR matrix of shape (n_samples, n_true), float32
            Only with ``return_codes=True``.

        Raises
        ------
        ValueError
            If ``n_samples`` is not an int of 1 or more.
        """
        check_count(n_samples, "n_samples", "sample")
        X = np.empty((n_samples, self.dictionary.shape[1]), dtype=np.float32)
        codes, start = [], 0
        for block in self._blocks(n_samples):
            X[start : start + len(block)] = self._decode(block).cpu().numpy()
            start += len(block)
            if return_codes:
                codes.append(sparse.csr_matrix(block.cpu().numpy()))
        return (X, sparse.vstack(codes, format="csr")) if return_codes else X

    def chunks(self, n_samples, *, chunk_size=65536) -> Iterator[np.ndarray]:
        """Draw rows in chunks, for ``partial_fit``.

        Parameters
        ----------
        n_samples : int
            Rows of all chunks together.
        chunk_size : int, default=65536
            Rows of a chunk; the last one may have fewer.

        Yields
        ------
        X : ndarray of shape (chunk_size, n_features), float32

        Raises
        ------
        ValueError
            If one of them is not an int of 1 or more.
        """
        check_count(n_samples, "n_samples", "chunks")
        check_count(chunk_size, "chunk_size", "chunks")
        for start in range(0, n_samples, chunk_size):
            yield self.sample(min(chunk_size, n_samples - start))

    def tensor(self, n_samples) -> Tensor:
        """Draw rows as a tensor on the device of the source.

        Parameters
        ----------
        n_samples : int
            At least 1.

        Returns
        -------
        Tensor of shape (n_samples, n_features), float32
        """
        check_count(n_samples, "n_samples", "tensor")
        X = self._rows.new_empty((n_samples, self._rows.shape[1]))
        start = 0
        for block in self._blocks(n_samples):
            X[start : start + len(block)] = self._decode(block)
            start += len(block)
        return X

    def _decode(self, codes: Tensor) -> Tensor:
        place = None if codes.is_cuda else places(codes)
        if place is None or len(place) > _SPARSE * codes.numel():
            return torch.addmm(self._bias, codes, self._rows)
        n, n_true = codes.shape
        starts = torch.searchsorted(place, torch.arange(n) * n_true)
        strengths = codes.flatten()[place]
        sums = embedding_bag(
            place % n_true, self._rows, starts, mode="sum", per_sample_weights=strengths
        )
        return sums.add_(self._bias)

    def _blocks(self, n_samples: int) -> Iterator[Tensor]:
        most = _ON_CUDA if self._rows.is_cuda else _BLOCK_ENTRIES
        size = max(1, most // len(self._rows))
        for start in range(0, n_samples, size):
            yield self._draw(min(size, n_samples - start), self._generator)


def answer(source: PlantedFeatures, n_samples: int | None, return_codes: bool) -> Any:
    """Give what a generator returns: the source itself, or rows with what they are made of."""
    if n_samples is None:
        return source
    if return_codes:
        X, codes = source.sample(n_samples, return_codes=True)
        return X, source.dictionary, source.probabilities, codes
    return source.sample(n_samples), source.dictionary, source.probabilities


def generator(random_state, device: torch.device | str = "cpu") -> torch.Generator:
    """Give a generator of torch's that follows from a ``random_state``."""
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return torch.Generator(device).manual_seed(int(seed))


def unit_vectors(n: int, n_features: int, rng: torch.Generator) -> Tensor:
    """Give n directions, uniform on the sphere, shape (n, n_features)."""
    vectors = torch.randn((n, n_features), generator=rng, device=rng.device)
    return vectors / vectors.norm(dim=1, keepdim=True)


def bernoulli(n: int, probabilities: Tensor, rng: torch.Generator) -> Tensor:
    """Give n rows of independent events, shape (n, n_true), bool."""
    shape = (n, len(probabilities))
    return torch.rand(shape, generator=rng, device=rng.device) < probabilities


def places(values: Tensor) -> Tensor:
    """Give where values are not zero, counted along the flattened tensor."""
    flat = values.flatten()
    if flat.is_cuda:
        return flat.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(flat.numpy()))  # several times as fast as torch's


def scattered(place: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give zeros but for ``values`` at places, counted along the flattened tensor."""
    flat = values.new_zeros(math.prod(shape)).index_copy_(0, place, values)
    return flat.view(shape)


def check_count(value, name: str, owner: str, least: int = 1) -> None:
    """Refuse what is not a number of something."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"The '{name}' parameter of {owner} must be an int of {least} or more. Got {value!r}."
        )


def check_samples(n_samples, owner: str) -> None:
    """Refuse what is neither None nor a number of rows."""
    if n_samples is not None:
        check_count(n_samples, "n_samples", owner)


def check_range(value, name: str, owner: str, low: float, high: float = np.inf) -> None:
    """Refuse a number that is not from ``low`` to ``high``, both included."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        wanted = f"of {low:g} or more" if high == np.inf else f"from {low:g} to {high:g}"
        raise ValueError(
            f"The '{name}' parameter of {owner} must be a number {wanted}. Got {value!r}."
        )
