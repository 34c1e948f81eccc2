"""Sparse autoencoders on transformer activations, as scikit-learn estimators."""

from . import activations, attribution, datasets, interpretation, intervention, losses, metrics
from .activations import ConceptPooler, Extractor, KeepRows, TransformerActivationExtractor
from .estimators import (
    BaseSAE,
    BatchTopKSAE,
    Crosscoder,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    TopKSAE,
    Transcoder,
    VanillaSAE,
    fit_many,
)
from .interpretation import TopKInputs

__version__ = "0.1.0"

__all__ = [
    "BaseSAE",
    "BatchTopKSAE",
    "ConceptPooler",
    "Crosscoder",
    "Extractor",
    "GatedSAE",
    "JumpReLUSAE",
    "KeepRows",
    "MatryoshkaSAE",
    "TopKInputs",
    "TopKSAE",
    "Transcoder",
    "TransformerActivationExtractor",
    "VanillaSAE",
    "activations",
    "attribution",
    "datasets",
    "fit_many",
    "interpretation",
    "intervention",
    "losses",
    "metrics",
]
