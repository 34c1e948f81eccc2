"""Metrics of codes, reconstructions and dictionaries, and the scorers made of them.

Arrays, CSR matrices or tensors in, floats or small arrays out. Sums are taken in float64 and
in blocks of rows; codes in CSR are never made dense.
"""

from ._codes import (
    DensityHistogram,
    dead_fraction,
    dense_fraction,
    density_histogram,
    firing_density,
    l0,
)
from ._dictionary import dictionary_coherence, pw_mcc, stability
from ._features import (
    best_matches,
    concept_f1,
    concept_scores,
    mcc,
    mean_max_cosine,
    recovered_fraction,
    uniqueness,
)
from ._language import accuracy_recovered, kl_divergence, loss_recovered
from ._probing import sparse_probing
from ._reconstruction import (
    explained_variance,
    fvu,
    mean_cosine,
    normalized_mse,
    relative_reconstruction_bias,
)
from ._selector import MeanDifferenceSelector

__all__ = [
    "DensityHistogram",
    "MeanDifferenceSelector",
    "accuracy_recovered",
    "best_matches",
    "concept_f1",
    "concept_scores",
    "dead_fraction",
    "dense_fraction",
    "density_histogram",
    "dictionary_coherence",
    "explained_variance",
    "firing_density",
    "fvu",
    "kl_divergence",
    "l0",
    "loss_recovered",
    "mcc",
    "mean_cosine",
    "mean_max_cosine",
    "normalized_mse",
    "pw_mcc",
    "recovered_fraction",
    "relative_reconstruction_bias",
    "sparse_probing",
    "stability",
    "uniqueness",
]
