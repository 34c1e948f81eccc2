"""The sparse autoencoders as scikit-learn estimators."""

from ._base import BaseSAE
from ._batchtopk import BatchTopKSAE
from ._controls import FrozenDecoderSAE, FrozenEncoderSAE, RandomSAE, SoftFrozenSAE
from ._fit_many import fit_many
from ._gated import GatedSAE
from ._jumprelu import JumpReLUSAE
from ._matryoshka import MatryoshkaSAE
from ._shuffled import ShuffledActivations
from ._stable import StableConcepts
from ._topk import TopKSAE
from ._vanilla import VanillaSAE

__all__ = [
    "BaseSAE",
    "BatchTopKSAE",
    "FrozenDecoderSAE",
    "FrozenEncoderSAE",
    "GatedSAE",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "RandomSAE",
    "ShuffledActivations",
    "SoftFrozenSAE",
    "StableConcepts",
    "TopKSAE",
    "VanillaSAE",
    "fit_many",
]
