"""Sparse autoencoders on transformer activations, as scikit-learn estimators."""

from . import activations, attribution, datasets, interpretation, intervention, losses, metrics
from .activations import ConceptPooler, Extractor, KeepRows, TransformerActivationExtractor
from .estimators import (
    BaseSAE,
    BatchTopKSAE,
    FrozenDecoderSAE,
    FrozenEncoderSAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    RandomSAE,
    ShuffledActivations,
    SoftFrozenSAE,
    StableConcepts,
    TopKSAE,
    VanillaSAE,
    fit_many,
)
from .interpretation import TopKInputs

__version__ = "0.1.0"

__all__ = [
    "BaseSAE",
    "BatchTopKSAE",
    "ConceptPooler",
    "Extractor",
    "FrozenDecoderSAE",
    "FrozenEncoderSAE",
    "GatedSAE",
    "JumpReLUSAE",
    "KeepRows",
    "MatryoshkaSAE",
    "RandomSAE",
    "ShuffledActivations",
    "SoftFrozenSAE",
    "StableConcepts",
    "TopKInputs",
    "TopKSAE",
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
