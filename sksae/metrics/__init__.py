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
from ._compare import compare
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
from ._interpreto import FID, MSE, ConceptMatchingAlgorithm, Sparsity, SparsityRatio, Stability
from ._language import accuracy_recovered, kl_divergence, loss_recovered
from ._probing import sparse_probing
from ._reconstruction import (
    explained_variance,
    fvu,
    mean_cosine,
    normalized_mse,
    relative_reconstruction_bias,
)
from ._scorers import combine_scorers, get_scorer, get_scorer_names, make_scorer
from ._selection import OneStandardError, select_sparsest
from ._selector import MeanDifferenceSelector

__all__ = [
    "FID",
    "MSE",
    "ConceptMatchingAlgorithm",
    "DensityHistogram",
    "MeanDifferenceSelector",
    "OneStandardError",
    "Sparsity",
    "SparsityRatio",
    "Stability",
    "accuracy_recovered",
    "best_matches",
    "combine_scorers",
    "compare",
    "concept_f1",
    "concept_scores",
    "dead_fraction",
    "dense_fraction",
    "density_histogram",
    "dictionary_coherence",
    "explained_variance",
    "firing_density",
    "fvu",
    "get_scorer",
    "get_scorer_names",
    "kl_divergence",
    "l0",
    "loss_recovered",
    "make_scorer",
    "mcc",
    "mean_cosine",
    "mean_max_cosine",
    "normalized_mse",
    "pw_mcc",
    "recovered_fraction",
    "relative_reconstruction_bias",
    "select_sparsest",
    "sparse_probing",
    "stability",
    "uniqueness",
]
