"""The sparse autoencoders as scikit-learn estimators."""

from ._archetypal import ArchetypalSAE
from ._base import BaseSAE
from ._batchtopk import BatchTopKSAE
from ._controls import FrozenDecoderSAE, FrozenEncoderSAE, RandomSAE, SoftFrozenSAE
from ._crosscoder import Crosscoder
from ._fit_many import fit_many
from ._gated import GatedSAE
from ._jumprelu import JumpReLUSAE
from ._matching_pursuit import MatchingPursuitSAE
from ._matryoshka import MatryoshkaSAE
from ._shuffled import ShuffledActivations
from ._stable import StableConcepts
from ._topk import TopKSAE
from ._transcoder import Transcoder
from ._vanilla import VanillaSAE

__all__ = [
    "ArchetypalSAE",
    "BaseSAE",
    "BatchTopKSAE",
    "Crosscoder",
    "FrozenDecoderSAE",
    "FrozenEncoderSAE",
    "GatedSAE",
    "JumpReLUSAE",
    "MatchingPursuitSAE",
    "MatryoshkaSAE",
    "RandomSAE",
    "ShuffledActivations",
    "SoftFrozenSAE",
    "StableConcepts",
    "TopKSAE",
    "Transcoder",
    "VanillaSAE",
    "fit_many",
]
