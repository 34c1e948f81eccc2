"""Sparse autoencoders on transformer activations, as scikit-learn estimators."""

from . import activations, attribution, datasets, interpretation, intervention, losses, metrics
from .activations import ConceptPooler, Extractor, KeepRows, TransformerActivationExtractor
from .estimators import (
    ArchetypalSAE,
    BaseSAE,
    BatchTopKSAE,
    Crosscoder,
    FrozenDecoderSAE,
    FrozenEncoderSAE,
    GatedSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    RandomSAE,
    ShuffledActivations,
    SoftFrozenSAE,
    StableConcepts,
    TopKSAE,
    Transcoder,
    VanillaSAE,
    fit_many,
)
from .interpretation import TopKInputs

__version__ = "0.1.0"

__all__ = [
    "ArchetypalSAE",
    "BaseSAE",
    "BatchTopKSAE",
    "ConceptPooler",
    "Crosscoder",
    "Extractor",
    "FrozenDecoderSAE",
    "FrozenEncoderSAE",
    "GatedSAE",
    "JumpReLUSAE",
    "KeepRows",
    "MatchingPursuitSAE",
    "MatryoshkaSAE",
    "RandomSAE",
    "ShuffledActivations",
    "SoftFrozenSAE",
    "StableConcepts",
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
